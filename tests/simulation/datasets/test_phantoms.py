"""The embedded phantoms: deterministic, whole, shifted where promised, and not readable from raw pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from imaging.listing.manifest import Manifest
from simulation.datasets import phantoms
from simulation.datasets.phantom_anatomy import LESION_BRIGHTNESS, band_noise, draw_anatomy, draw_slices, frequencies
from simulation.datasets.phantoms import PHANTOMS, SITES, box_around


def load(workspace: Path, seed: int = 0, **options: Any) -> Manifest:
    return PHANTOMS.load(None, workspace, seed, options)


def contents(manifest: Manifest) -> dict[str, bytes]:
    files = [*manifest.table["image"], *manifest.table["mask"]]
    return {name: (manifest.root / name).read_bytes() for name in files}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The default family."""
    return load(tmp_path_factory.mktemp("phantoms"))


@pytest.fixture(scope="module")
def pixels(family: Manifest) -> NDArray[np.float64]:
    """[N, 64, 64] in [0, 1] of full scale."""
    arrays = [np.asarray(Image.open(path)) for path in family.paths()]
    return np.stack([array / np.iinfo(array.dtype).max for array in arrays])


def test_the_same_seed_draws_the_same_files_and_another_seed_others(tmp_path: Path) -> None:
    first = load(tmp_path / "a", images=16, size=32)
    again = load(tmp_path / "b", images=16, size=32)
    other = load(tmp_path / "c", seed=1, images=16, size=32)
    assert first.table.equals(again.table) and contents(first) == contents(again)
    assert len(set(contents(first).values())) > len(first)
    assert contents(other) != contents(first)


def test_more_images_keep_the_patients_there_were(tmp_path: Path) -> None:
    few, many = load(tmp_path, images=16, size=32), load(tmp_path, images=32, size=32)
    assert contents(few).items() <= contents(many).items()


def test_whole_phantoms_are_kept_and_incomplete_ones_drawn_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = load(tmp_path, images=16, size=32)
    before = contents(first)
    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "_draw_all", lambda *_: pytest.fail("drawn although whole"))
        load(tmp_path, images=16, size=32)
    (first.root / first.table["mask"].iloc[3]).unlink()
    assert contents(load(tmp_path, images=16, size=32)) == before


def test_a_drawing_that_is_stopped_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(phantoms, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            load(tmp_path, images=16, size=32)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert all(path.is_file() for path in load(tmp_path, images=16, size=32).paths())


def test_masks_and_boxes_agree_and_lie_in_the_image(family: Manifest) -> None:
    for mask_name, boxes, label in family.table[["mask", "boxes", "label"]].itertuples(index=False):
        mask = np.asarray(Image.open(family.root / mask_name))
        ((x0, y0, x1, y1, boxed),) = json.loads(boxes)
        assert mask.dtype == np.bool_ and mask.shape == (64, 64) and mask.sum() > 100
        assert boxed == label
        assert mask[y0:y1, x0:x1].sum() == mask.sum()  # nothing outside, and every side touches
        assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


def test_box_of_a_mask_worked_by_hand() -> None:
    mask = np.zeros((6, 8), dtype=bool)
    mask[2, 3] = mask[4, 5] = True
    assert box_around(mask) == (3, 2, 6, 5)


def test_sites_have_the_sizes_that_were_promised(family: Manifest) -> None:
    table = family.table
    patients = table.groupby("site")["patient"].nunique()
    assert patients["E"] == 2
    assert all(patients[site] >= 20 for site in SITES if site != "E")
    assert 900 <= len(table) <= 1300
    assert set(table["label"]) == {0, 1} and 0.4 < table["label"].mean() < 0.6
    # the class varies within most patients, as tumour in slice does in real sets
    assert (table.groupby("patient")["label"].nunique() == 2).mean() > 0.7


def test_depth_of_the_stored_images_is_the_scanners(family: Manifest) -> None:
    for site, rows in family.table.groupby("site"):
        deep = SITES[str(site)].scanner.bits == 16
        assert np.asarray(Image.open(family.root / rows["image"].iloc[0])).dtype == (np.uint16 if deep else np.uint8)


def out_of_fold(features: NDArray[np.float64], target: NDArray[Any], groups: NDArray[Any]) -> NDArray[np.float64]:
    """The baseline without learning: PCA 60 and logistic regression, by patient; probability of the last class."""
    model = make_pipeline(
        PCA(60, svd_solver="randomized", iterated_power=3, random_state=0), LogisticRegression(C=0.1, max_iter=500)
    )
    predicted = cross_val_predict(model, features, target, groups=groups, cv=GroupKFold(3), method="predict_proba")
    return np.asarray(predicted)[:, -1]


def shrunk(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, 64, 64] to [N, 1024]: 32 x 32 means of 2 x 2 pixels, each image of mean 0 and spread 1."""
    small = pixels.reshape(len(pixels), 32, 2, 32, 2).mean(axis=(2, 4)).reshape(len(pixels), -1)
    return np.asarray((small - small.mean(axis=1, keepdims=True)) / small.std(axis=1, keepdims=True))


def test_the_class_is_not_readable_from_raw_pixels(family: Manifest, pixels: NDArray[np.float64]) -> None:
    label, patient = family.table["label"].to_numpy(), family.table["patient"].to_numpy()
    assert roc_auc_score(label, out_of_fold(shrunk(pixels), label, patient)) <= 0.7


def test_the_shifted_scanner_is_really_shifted(family: Manifest, pixels: NDArray[np.float64]) -> None:
    """Site D is recognised in images of unseen patients; its noise, of the signal, is above all others'."""
    site, patient = family.table["site"].to_numpy(), family.table["patient"].to_numpy()
    shifted = (site == "D").astype(int)
    assert roc_auc_score(shifted, out_of_fold(shrunk(pixels), shifted, patient)) > 0.99
    air = pixels[:, :3, :3].mean(axis=(1, 2)) / np.percentile(pixels, 99, axis=(1, 2))
    noise = {name: air[site == name].mean() for name in SITES}
    assert noise["D"] > 1.3 * max(value for name, value in noise.items() if name != "D")


def test_both_classes_have_lesions_of_the_same_brightness_spread_and_area() -> None:
    found: dict[int, list[tuple[float, float, float]]] = {0: [], 1: []}
    labels = np.arange(4) % 2
    for number in range(60):
        generator = np.random.default_rng(number)
        anatomy = draw_anatomy(generator)
        for label, image, mask in zip(labels, *draw_slices(anatomy, labels, 64, generator), strict=True):
            found[int(label)].append((image[mask].mean(), image[mask].std(), mask.mean()))
    first, second = (np.array(found[label]) for label in (0, 1))
    standard_error = np.sqrt(first.var(axis=0) / len(first) + second.var(axis=0) / len(second))
    assert (np.abs(first.mean(axis=0) - second.mean(axis=0)) < 4 * standard_error + 1e-3).all()
    assert first[:, 0].mean() == pytest.approx(LESION_BRIGHTNESS, abs=0.02)


@pytest.mark.parametrize("size", [32, 64, 128])
def test_band_noise_holds_its_frequencies_and_its_direction(size: int) -> None:
    along, around = band_noise(2, size, (4.0, 6.0), np.random.default_rng(0), np.array([0.5, np.nan]))
    power = np.abs(np.fft.fftshift(np.fft.fft2(along))) ** 2
    fy, fx = np.meshgrid(*[np.fft.fftshift(np.fft.fftfreq(size, 2.0 / size))] * 2, indexing="ij")
    inside = (np.hypot(fy, fx) >= 4.0) & (np.hypot(fy, fx) <= 6.0)
    off = np.abs((np.arctan2(fy, fx) - 0.5 + np.pi / 2) % np.pi - np.pi / 2)  # angle to the direction, either way
    assert power[inside & (off < 0.201)].sum() > 0.999 * power.sum()
    assert along.std() == pytest.approx(1.0) and around.std() == pytest.approx(1.0)
    # without a direction every one has its share, the frequencies straight down among them
    many = np.abs(np.fft.fft2(band_noise(400, size, (4.0, 6.0), np.random.default_rng(1)))) ** 2
    ring = (np.hypot(*frequencies(size)) >= 4.0) & (np.hypot(*frequencies(size)) <= 6.0)
    shares = many.mean(axis=0)[:, : size // 2 + 1][ring]
    assert shares.min() > 0.7 * shares.mean() and shares.max() < 1.3 * shares.mean()
