"""Attacks on models that are known to tell, or not to tell: overfitted, untrained, defended or not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attacks.crowd import Patient, by_patient, halves, places_of
from attacks.figures import AttackResult, advantage
from attacks.inversion import invert
from attacks.models import overfitted
from attacks.scores import scores
from attacks.settings import AttackSettings
from attacks.sites import by_site, tell_sites
from attacks.updates import Defence, Target, why_not
from federation.study import Study, study_from
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods import build_method

CPU = torch.device("cpu")
SETTINGS = AttackSettings(views=16, control_steps=400, restarts=1, steps=50, targets=3, crowd=10)
NOISY = Defence(1.0, 30.0)


@pytest.fixture
def study(raw_study: dict[str, Any]) -> Study:
    wide: dict[str, Any] = {"width": 48, "heads": 3}
    raw_study["encoder"] |= wide
    raw_study["method"] |= {"decoder_width": 48, "decoder_heads": 3}
    raw_study["image"] |= {"augment": {"crop_scale": [0.9, 1.0], "horizontal_flip": False}}
    return study_from(raw_study, "test")


@pytest.fixture
def store(write_site: Callable[..., Path], study: Study, tmp_path: Path) -> TensorStore:
    """24 patients of an image each."""
    write_site(tmp_path, "A", images=24, patients=24, seed=0)
    return TensorStore.build(Manifest.read(tmp_path / "A" / "manifest.csv"), study.image, tmp_path / "store")


def patients(count: int = 24) -> list[Patient]:
    return [Patient((place,), "north" if place % 2 else "south") for place in range(count)]


def build(study: Study) -> Any:
    return build_method(study.method, study.encoder, study.image, study.seed)


def membership(kind: str, method: Any, store: TensorStore) -> AttackResult:
    inside, outside = halves(patients(), 12)
    own = by_patient(scores(kind, method, store, range(24), SETTINGS, CPU), [*inside, *outside])
    found = advantage(own[: len(inside)], own[len(inside) :])
    assert found is not None
    return found


def test_the_members_of_an_overfitted_model_are_found(study: Study, store: TensorStore) -> None:
    inside, _ = halves(patients(), 12)
    method = overfitted(build(study), store, places_of(inside), SETTINGS, CPU)
    assert membership("loss", method, store).low > 0


@pytest.mark.parametrize("kind", ["loss", "features"])
def test_of_an_untrained_model_the_interval_covers_chance(study: Study, store: TensorStore, kind: str) -> None:
    found = membership(kind, build(study), store)
    assert found.low <= 0 <= found.high


def test_a_image_is_recovered_from_an_update_but_not_from_a_noised_one(study: Study, store: TensorStore) -> None:
    target = Target(build(study), store, SETTINGS, CPU)
    bare, noised = (invert(target, range(10), each) for each in (Defence(), NOISY))
    assert bare.low > 0
    assert noised.low <= 0 < noised.high
    assert bare.more["correlation"] > bare.more["floor"]  # type: ignore[operator]


def test_the_site_is_told_by_its_update_but_not_by_a_noised_one(study: Study, store: TensorStore) -> None:
    target, groups = Target(build(study), store, SETTINGS, CPU), by_site(patients(16), 4)
    bare, noised = (tell_sites(target, groups, 0, each) for each in (Defence(), NOISY))
    assert bare is not None and noised is not None
    assert bare.low > 0
    assert noised.low <= 0
    assert tell_sites(target, groups[:1], 0, Defence()) is None


def test_what_is_sent_is_clipped_by_patient_and_noised() -> None:
    long, short = torch.tensor([3.0, 4.0]), torch.tensor([0.3, 0.0])
    quiet = Defence(1.0, 0.0).sent([long, short], torch.Generator())
    assert torch.allclose(quiet, torch.tensor([0.9, 0.8]))
    assert torch.allclose(Defence().sent([long, short], torch.Generator()), torch.tensor([3.3, 4.0]))
    many = Defence(2.0, 3.0).sent([torch.zeros(20_000)], torch.Generator().manual_seed(0))
    assert float(many.std()) == pytest.approx(6.0, rel=0.03)


def test_a_coupled_loss_and_secure_aggregation_leave_no_update_of_one_image(raw_study: dict[str, Any]) -> None:
    open_ = study_from(raw_study, "test")
    assert why_not(open_, build(open_)) == ""
    raw_study["method"] = {"name": "simclr"}
    coupled = study_from(raw_study, "test")
    assert "couples images" in why_not(coupled, build(coupled))


def test_scores_are_set_against_their_own_site_and_averaged_over_a_patients_images() -> None:
    crowd = [Patient((0, 1), "a"), Patient((2,), "a"), Patient((3,), "b"), Patient((4,), "b")]
    found = by_patient({0: 1.0, 1: 3.0, 2: 4.0, 3: 100.0, 4: 102.0}, crowd)
    assert found == pytest.approx(np.array([-1.0, 1.0, -1.0, 1.0]))


def test_both_halves_have_as_many_of_each_site() -> None:
    crowd = [Patient((place,), "a" if place < 5 else "b") for place in range(12)]
    first, second = halves(crowd, 3)
    assert [each.site for each in first] == [each.site for each in second]
    assert len(first) == 3 and {each.site for each in first} == {"a", "b"}
    assert not set(places_of(first)) & set(places_of(second))
