"""A study's plan: noise that keeps its promise, from the study file alone."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from federation.privacy.accounting import Release, epsilon_of, noise_for
from federation.privacy.noise import discrete_gaussian
from federation.privacy.plan import (
    _grid,
    noise_grid,
    plan_of,
    shared_numbers,
    signal_to_noise,
    study_signal,
    trained_numbers,
)
from federation.secure_aggregation.thresholds import threshold
from federation.study import Study, study_from
from foundation.errors import StudyError
from ssl_methods import build_method

MakeStudy = Callable[..., Study]
PATIENTS = {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 36, "patients_per_step": 8}
SITES = {"unit": "site", "epsilon": 8, "delta": 1e-3, "sites": 6}


@pytest.fixture
def private(raw_study: dict[str, Any]) -> MakeStudy:
    """``private(PATIENTS, rounds=4)``: the tiny study with 50 steps a round and that privacy."""

    def make(privacy: dict[str, Any] | None, rounds: int = 4, **sections: Any) -> Study:
        raw = raw_study | {"privacy": privacy} | sections
        raw["training"] = {"epochs": None, "steps": 50, "batch": 4, "precision": "float32"}
        raw["rounds"] = raw["rounds"] | {"count": rounds}
        return study_from(raw, "test")

    return make


def test_by_patient_the_steps_of_all_rounds_count(private: MakeStudy) -> None:
    study = private(PATIENTS)
    plan = plan_of(study)
    assert plan is not None
    assert (plan.rate, plan.steps, plan.delta) == (8 / 36, 200, 1e-3)
    assert plan.noise == noise_for(8, 1e-3, 8 / 36, 200) == 1.67
    assert plan.per_round == Release("gaussian", 1.67, 8 / 36, 50)
    assert plan.epsilon == epsilon_of([plan.per_round] * 4, 1e-3) <= 8


def test_by_site_a_round_is_a_step(private: MakeStudy) -> None:
    plan = plan_of(private(SITES, rounds=20))
    assert plan is not None
    assert (plan.rate, plan.steps, plan.per_round) == (1.0, 20, Release("gaussian", plan.noise))
    assert 7.9 < plan.epsilon == epsilon_of([plan.per_round] * 20, 1e-3) <= 8


def test_without_privacy_there_is_no_plan(private: MakeStudy) -> None:
    assert plan_of(private(None)) is None


def test_by_site_with_secure_aggregation_the_sites_noise_adds_up(private: MakeStudy) -> None:
    study = private(SITES | {"clip": 0.5}, rounds=20, secure_aggregation={})
    plan, numbers = plan_of(study), shared_numbers(study)
    grid = noise_grid(study, numbers)
    assert plan is not None and plan.per_round == grid.release and plan.epsilon <= 8
    assert grid.survivors == threshold(6) == 5
    release = grid.release
    assert (release.dimension, release.deviation, release.survivors) == (numbers, grid.deviation, 5)
    # An update of the greatest length, rounded at its worst, against the deviation of five sites' noise together.
    longest = 0.5 * grid.scale + math.sqrt(numbers) / 2
    assert math.sqrt(5) * grid.deviation / longest == pytest.approx(release.noise, rel=1e-9)
    assert math.sqrt(numbers) / 2 <= 0.01 * 0.5 * grid.scale


def test_threshold() -> None:
    assert [threshold(sites) for sites in (3, 4, 5, 6, 7, 9, 64)] == [3, 3, 4, 5, 5, 7, 43]


def test_rounding_is_never_longer_than_counted() -> None:
    draw = np.random.default_rng(0)
    for numbers in (1, 10, 10_000):
        update = draw.normal(size=numbers)
        update /= np.linalg.norm(update)
        for scale in (1.0, 17.3, 4000.0):
            assert np.linalg.norm(np.round(update * scale)) <= scale + math.sqrt(numbers) / 2


@pytest.mark.parametrize(("epsilon", "sites", "numbers"), [(1, 8, 22_000_000), (8, 64, 22_000_000), (30, 4, 1000)])
def test_grids_are_fine_enough_and_sums_fit(epsilon: float, sites: int, numbers: int) -> None:
    grid = _grid(epsilon, 1e-3 if sites < 100 else 1e-4, 50, sites, 1.0, numbers)
    assert 2**16 <= grid.deviation <= 2**22 and math.log2(grid.deviation).is_integer()
    assert math.sqrt(numbers) / 2 <= 0.01 * grid.scale
    assert sites * (grid.scale + math.sqrt(numbers) / 2 + 12 * grid.deviation) < 2**31
    assert np.abs(discrete_gaussian(10_000, grid.deviation)).max() <= 12 * grid.deviation


def test_grids_that_cannot_be() -> None:
    with pytest.raises(StudyError, match=r"no grid is fine enough for 5,000,000,000 numbers .*leave out secure_aggr"):
        _grid(0.5, 1e-3, 50, 8, 1.0, 5_000_000_000)
    with pytest.raises(StudyError, match="would not fit into 32 bits: ask fewer sites"):
        _grid(8, 1e-5, 50, 3000, 1.0, 10_000)


def test_numbers_that_are_noised(private: MakeStudy) -> None:
    study = private(PATIENTS)
    method = build_method(study.method, study.encoder, study.image, 0)
    assert trained_numbers(study) == sum(p.numel() for p in method.parameters() if p.requires_grad)
    assert shared_numbers(study) == sum(v.numel() for v in method.shared_state().values() if v.is_floating_point())


def test_signal_to_noise_by_hand(private: MakeStudy) -> None:
    """100 steps of 10 patients against noise 2 in 2,500 directions: 1,000 against 10 x 50 x 2."""
    assert signal_to_noise(2.0, 10, 100, 2500) == pytest.approx(1.0)
    assert signal_to_noise(2.0, 10, 100, 2500, sites=4) == pytest.approx(2.0)
    for privacy in (PATIENTS, SITES):
        study = private(privacy)
        plan = plan_of(study)
        assert plan is not None
        numbers = trained_numbers(study) if privacy is PATIENTS else shared_numbers(study)
        units = 8 if privacy is PATIENTS else 6
        expected = math.sqrt(plan.steps / numbers) * units / plan.noise
        assert study_signal(study, plan) == pytest.approx(expected)
        assert study_signal(study, plan, sites=9) == pytest.approx(expected * (3 if privacy is PATIENTS else 1))
