"""Which images are shown: held ones, of different patients, sites and labels, and nothing that names them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.explain.image_panels import _places, mask_point, panels
from evaluation.inputs import Inputs, read_inputs
from evaluation.tasks.targets import HELD
from foundation.errors import RunError

MakeRun = Callable[..., Path]


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    return make_run()


def inputs(run: Path) -> Inputs:
    return read_inputs(run, show=False)


def test_panels_of_a_run(run: Path) -> None:
    found = panels(run, count=2)
    assert [panel.encoder for panel in found[:7]] == ["", *["Federated", "Random"] * 3]
    assert len(found) == 14 and found == panels(run, count=2)
    one = panels(run, ["random"], count=2)
    assert one == [panel for panel in found if panel.encoder in ("", "Random")]
    first = [panel.encoder for panel in panels(run, ["random", "federated"], count=1)]
    assert first == ["", *["Random", "Federated"] * 3]


def test_only_held_images_are_shown_each_of_a_new_patient_site_and_label(run: Path) -> None:
    own = inputs(run).images
    places = _places(own, 0, 3, None)
    assert set(own.roles[0][places]) <= set(HELD)
    assert len(set(own.patient[places])) == len(set(own.site[places])) == 3
    assert len(set(own.label[places[:2]])) == 2
    held = own.where(0, *HELD)
    everything = _places(own, 0, 10_000, None)
    assert sorted(everything.tolist()) == held.tolist()
    patients = len(set(own.patient[held]))
    assert len(set(own.patient[everything[:patients]])) == patients


def test_a_image_with_a_mask_comes_first_among_equals(run: Path) -> None:
    own = inputs(run).images
    masks = np.zeros((len(own.rows), 4, 4), dtype=np.uint8)
    target = own.where(0, *HELD)[5]
    masks[target, 1, 1] = 1
    assert _places(own, 0, 1, masks).tolist() == [target]


def test_no_panel_names_a_image_a_patient_or_a_site(run: Path) -> None:
    own = inputs(run).images
    text = " ".join(part for panel in panels(run) for part in (panel.caption, panel.alt))
    for name in (*own.patient, *own.site, *own.image):
        assert Path(name).name not in text


def test_the_place_can_be_given(run: Path) -> None:
    assert "ring at 10% of the width and 90% of the height" in panels(run, count=1, at=(0.1, 0.9))[0].alt


@pytest.mark.parametrize("at", [(-0.1, 0.5), (0.5, 1.01), (float("nan"), 0.5)])
def test_a_place_outside_the_image_is_one_line(run: Path, at: tuple[float, float]) -> None:
    with pytest.raises(RunError, match=r"the place .* lies outside the image; give x and y from 0 to 1"):
        panels(run, at=at)


def test_without_a_readable_held_image_nothing_is_shown(run: Path) -> None:
    own = inputs(run)
    held = own.images.where(0, *HELD)
    one = own.images.patient[held[0]]
    path = run / "evaluation" / "splits.csv"
    splits = pd.read_csv(path, dtype=str, keep_default_na=False)
    splits.loc[splits["role"].isin(HELD) & (splits["patient"] != one), "role"] = "train"
    splits.to_csv(path, index=False)
    for place in held[own.images.patient[held] == one]:
        (own.manifest.root / str(own.images.image[place])).write_bytes(b"damaged")
    shutil.rmtree(run / "store")
    assert panels(run) == []


def test_an_unknown_arm_is_one_line(run: Path) -> None:
    with pytest.raises(RunError, match=r"arm 'fedrated' is not in .* has federated, random; did you mean 'federated'"):
        panels(run, ["fedrated"])


def test_arms_without_a_common_fold_are_one_line(make_run: MakeRun) -> None:
    run = make_run(folds=2)
    assert panels(run, count=1)
    for arm, fold in (("random", 0), ("federated", 1)):
        shutil.rmtree(run / "arms" / arm / f"fold-{fold}")
    with pytest.raises(RunError, match="no fold in common"):
        panels(run)
    assert panels(run, ["random"], count=1)


def test_the_point_of_a_mask_lies_in_it() -> None:
    ring = np.zeros((10, 10), dtype=np.uint8)
    ring[1:8, 1:8] = 1
    ring[2:7, 2:7] = 0
    point = mask_point(ring)
    assert point is not None
    assert ring[int(point[1] * 10), int(point[0] * 10)] == 1
    ring[4, 3] = 2  # nearer to the centre than any
    assert mask_point(ring) == (0.35, 0.45)
    assert mask_point(np.zeros((10, 10), dtype=np.uint8)) is None
    assert mask_point(np.stack([ring, ring * 0, ring * 0])) is None  # outlined in another slice than the middle one
    assert mask_point(np.stack([ring * 0, ring, ring * 0])) == (0.35, 0.45)
