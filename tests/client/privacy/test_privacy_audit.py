"""The private step against an adversary: what it promises is kept, and every planted fault is found out.

Lower bounds on epsilon at 95 % confidence, from hundreds of whole studies with and without one patient
(benchmarks/privacy/audit_game.py), or from one run with thousands of known patients
(benchmarks/privacy/audit_one_run.py); larger ones in benchmarks/privacy/audit.py. The numbers of runs were fixed on
a plain model of the step, with room: no honest bound came near the claim there, and no fault's bound below it.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
from scipy.stats import norm

from benchmarks.privacy.audit import audit_weights
from benchmarks.privacy.audit_game import FAULTS, SAMPLED, WHOLE, Setting, audit, bound, no_clipping, noise_too_small
from benchmarks.privacy.audit_one_run import chance, lower_bound, right_guesses

RUNS = {"noise / 4": 1000, "rate understated": 280}
"""Of each kind, with the canary and without; 200 where a fault is plainer than these."""


def test_the_bound_by_hand() -> None:
    """A patient who is always seen against never: log((low - delta) / high) of 75 and 75 runs that chose nothing."""
    seen = bound(np.ones((100, 1)), np.zeros((100, 1)), {"it": lambda runs: runs[:, 0]}, delta=0.01)
    low, high = 0.025 ** (1 / 75), 1 - 0.025 ** (1 / 75)  # Clopper and Pearson for 75 of 75 and 0 of 75
    assert seen.epsilon == pytest.approx(math.log((low - 0.01) / high))
    assert (seen.statistic, seen.inside, seen.outside) == ("it", 1.0, 0.0)


def test_a_rarer_event_counts_as_well_as_a_commoner_one() -> None:
    """The event may be the rare one with the patient: the promise holds both ways round."""
    inside, outside = np.zeros((400, 1)), np.zeros((400, 1))
    outside[::2] = 1.0
    seen = bound(inside, outside, {"it": lambda runs: runs[:, 0]}, delta=0.0)
    assert seen.epsilon > math.log(0.4 / 0.02)


def test_no_difference_gives_no_bound() -> None:
    runs = np.random.default_rng(0).normal(size=(2, 400, 1))
    assert bound(runs[0], runs[0], {"it": lambda runs: runs[:, 0]}, delta=0.005).epsilon == 0.0


def test_the_bound_holds_for_noise_whose_epsilon_is_known() -> None:
    """Laplace noise of scale 1 / 2 has epsilon 2 exactly: at most about 5 of 100 bounds at 95 % may be over it."""
    draws = np.random.default_rng(0)
    found = []
    for _ in range(100):
        inside, outside = 1 + draws.laplace(0, 0.5, (300, 1)), draws.laplace(0, 0.5, (300, 1))
        found.append(bound(inside, outside, {"it": lambda runs: runs[:, 0]}, delta=0.0).epsilon)
    assert sum(epsilon > 2 for epsilon in found) <= 10
    assert float(np.median(found)) > 0.8


def test_the_step_keeps_its_promise_and_the_audit_sees_something() -> None:
    """With 1,000 runs of each kind the bound lies well above nothing, and below what is claimed."""
    found = audit(WHOLE, 1000)
    assert 0.5 < found.epsilon <= WHOLE.claimed


def test_sampled_steps_keep_their_promise() -> None:
    assert audit(SAMPLED, 150).epsilon <= SAMPLED.claimed


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_out(fault: str) -> None:
    planted, setting = FAULTS[fault]
    with planted():
        assert audit(setting, RUNS.get(fault, 200)).epsilon > setting.claimed


def test_a_fault_shows_in_the_weights_that_leave() -> None:
    """Whole rounds, with the study's own AdamW: noised gradients are more than anybody outside sees."""
    with no_clipping():
        assert audit_weights(WHOLE, 200).epsilon > WHOLE.claimed


def test_the_claim_that_is_audited_is_the_accountant_s() -> None:
    """One Gaussian step, by the formula of Balle and Wang 2018: delta at the claimed epsilon is the setting's."""
    epsilon, sigma = WHOLE.claimed, WHOLE.sigma
    delta = norm.cdf(0.5 / sigma - epsilon * sigma) - math.exp(epsilon) * norm.cdf(-0.5 / sigma - epsilon * sigma)
    assert delta == pytest.approx(WHOLE.delta, rel=0.01)
    assert Setting(epsilon=1.0, patients_per_step=10, steps=1).sigma > sigma


def test_the_chance_of_right_guesses_by_hand() -> None:
    """3 of 3 right at epsilon 0: an eighth, and with delta 2 m delta max(3/8, 6/16, 7/24)."""
    assert chance(3, 3, canaries=10, epsilon=0.0, delta=0.0) == pytest.approx(1 / 8)
    assert chance(3, 3, canaries=10, epsilon=0.0, delta=0.01) == pytest.approx(1 / 8 + 0.2 * 3 / 8)


def test_one_run_sees_something_and_no_more_than_is_claimed() -> None:
    right = right_guesses(4.0, 1e-5, 5000, 100)
    assert 1.0 < lower_bound(right, 200, 5000, 1e-5) <= 4.0


@pytest.mark.parametrize("planted", [noise_too_small, no_clipping])
def test_one_run_finds_a_fault_out(planted: Callable[[], AbstractContextManager[None]]) -> None:
    with planted():
        right = right_guesses(2.0, 1e-5, 5000, 100)
    assert lower_bound(right, 200, 5000, 1e-5) > 2.0
