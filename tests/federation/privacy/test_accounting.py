"""What releases cost: against other accountants, and against the definition of differential privacy itself."""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from federation.privacy.accounting import (
    Release,
    concentrated,
    discrete_release,
    epsilon_of,
    noise_for,
    recomputed,
)
from federation.privacy.ledger import Ledger
from foundation.errors import StudyError

from ...tiers import examples, slow

SETTINGS = [
    slow(1.8, 1 / 3, 200, 1 / 360, 10.96),
    slow(4.6, 0.5, 200, 1 / 130, 4.38),
    (1.0, 0.02, 2000, 1e-4, 4.84),
    (5.0, 1.0, 20, 1e-3, 2.74),
    slow(2.2, 0.1, 1000, 1e-5, 7.28),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "figure"), SETTINGS)
def test_the_epsilon_that_is_printed_is_recomputed_from_the_ledger(
    tmp_path: Path, noise: float, rate: float, steps: int, delta: float, figure: float
) -> None:
    """By another accountant, from the file's own lines, with none of our code between."""
    from opacus.accountants import PRVAccountant

    ledger = Ledger(tmp_path / "ledger.jsonl")
    for round_ in range(1, 5):
        ledger.charge("a" * 64, round_, Release("gaussian", noise, rate, steps // 4), None)
    rows = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    accountant = PRVAccountant()
    accountant.history = [(row["noise"], row["rate"], row["steps"]) for row in rows if "noise" in row]
    assert len(accountant.history) == 4
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)
        independent = accountant.get_epsilon(delta, eps_error=0.005)
    printed = ledger.spent(delta)
    assert printed == pytest.approx(figure, abs=0.005)
    assert printed == pytest.approx(independent, abs=0.02)
    assert recomputed(ledger.releases(), delta) == pytest.approx(printed, abs=0.02)


def test_one_gaussian_is_exact() -> None:
    """Delta of a Gaussian at epsilon in closed form (Balle and Wang 2018)."""
    for noise, delta in ((0.7, 1e-5), (2.0, 1e-3), (30.0, 1e-6)):
        epsilon = epsilon_of([Release("gaussian", noise)], delta)
        near, far = 1 / (2 * noise) - epsilon * noise, -1 / (2 * noise) - epsilon * noise
        exact = norm.cdf(near) - math.exp(epsilon) * norm.cdf(far)
        assert exact <= delta * (1 + 1e-6)  # an upper bound ...
        assert exact > 0.98 * delta  # ... and a close one


def test_equal_gaussians_are_one_with_less_noise() -> None:
    """n Gaussian steps at rate 1 are one step with noise / sqrt(n)."""
    many = epsilon_of([Release("gaussian", 6.0)] * 36, 1e-5)
    assert many == pytest.approx(epsilon_of([Release("gaussian", 1.0)], 1e-5), abs=2e-3)


def test_thousands_of_equal_rows_cost_what_one_row_of_all_steps_does() -> None:
    rows = [Release("gaussian", 2.0, 0.05, 7)] * 3000 + [Release("gaussian", 9.0, 0.05, 3)]
    assert epsilon_of(rows, 1e-5) == epsilon_of(
        [Release("gaussian", 9.0, 0.05, 3), Release("gaussian", 2.0, 0.05, 21_000)], 1e-5
    )


def test_more_costs_more_and_nothing_costs_nothing() -> None:
    one = Release("gaussian", 2.0, 0.1, 100)
    base = epsilon_of([one], 1e-5)
    assert epsilon_of([], 1e-5) == recomputed([], 1e-5) == 0
    for dearer in (
        [one, Release("gaussian", 50.0)],
        [Release("gaussian", 1.9, 0.1, 100)],
        [Release("gaussian", 2.0, 0.11, 100)],
        [Release("gaussian", 2.0, 0.1, 101)],
        [one, Release("discrete gaussian", 50.0, 1.0, 1, 10, 1000.0, 3)],
    ):
        assert epsilon_of(dearer, 1e-5) > base
    assert epsilon_of([one], 1e-6) > base


def test_what_is_lost_anyway_is_not_computed_for_hours() -> None:
    assert epsilon_of([Release("gaussian", 0.02, 1.0, 1000)], 1e-5) > 1000


@pytest.mark.parametrize(
    ("epsilon", "delta", "rate", "steps"),
    [(8.0, 1 / 360, 1 / 3, 200), slow(1.0, 1e-5, 0.01, 1000), (0.3, 1e-3, 1.0, 9)],
)
def test_the_least_noise_that_keeps_a_promise(epsilon: float, delta: float, rate: float, steps: int) -> None:
    noise = noise_for(epsilon, delta, rate, steps)
    assert round(noise * 100) == pytest.approx(noise * 100, abs=1e-9)
    assert epsilon_of([Release("gaussian", noise, rate, steps)], delta) <= epsilon
    assert epsilon_of([Release("gaussian", noise - 0.01, rate, steps)], delta) > epsilon


def test_a_promise_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(StudyError, match=r"epsilon 0\.01 at delta 1e-05 over 100,000 steps at rate 1: .*raise epsilon"):
        noise_for(0.01, 1e-5, 1.0, 100_000)
    with pytest.raises(StudyError, match=r"epsilon 0\.001 at delta 1e-05 over 1,000 rounds: .*or ask for fewer rounds"):
        discrete_release(0.001, 1e-5, 1000, 100, 65536.0, 3)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("gaussian", 0.0), "noise is above 0"),
        (("gaussian", 1.0, 1.5), "rate 1.5"),
        (("gaussian", 1.0, 1.0, 0), "0 steps"),
        (("gaussian", 1.0, 1.0, 1, 5), "has no dimension"),
        (("laplace", 1.0), "there are gaussian and discrete gaussian"),
        (("discrete gaussian", 1.0, 0.5, 1, 5, 9.0, 3), "at rate 0.5"),
        (("discrete gaussian", 1.0, 1.0, 1, 5, 0.2, 3), "deviation is at least .5"),
        (("discrete gaussian", 1.0), "there is a number and a site"),
    ],
)
def test_releases_that_cannot_be(values: tuple[object, ...], said: str) -> None:
    with pytest.raises(StudyError) as caught:
        Release(*values)  # type: ignore[arg-type]
    assert said in str(caught.value)
    for delta in (0.0, 1.0):
        with pytest.raises(StudyError, match="is a probability"):
            epsilon_of([], delta)


def masses(deviation: float, reach: int) -> np.ndarray:
    where = np.arange(-reach, reach + 1)
    weights = np.exp(-((where / deviation) ** 2) / 2)
    return np.asarray(weights / weights.sum())


@examples(25)
@given(deviation=st.floats(0.5, 8), sites=st.integers(1, 5), shift=st.integers(1, 6))
def test_the_bound_on_sums_of_discrete_gaussians(deviation: float, sites: int, shift: int) -> None:
    """The Renyi divergence of the true sum from its shifted self, by convolution, is never over rho x order."""
    one = masses(deviation, math.ceil(14 * deviation))
    total = one
    for _ in range(sites - 1):
        total = np.convolve(total, one)
    there, moved = total[shift:], total[:-shift]
    sure = (there > 1e-280) & (moved > 1e-280)
    release = Release("discrete gaussian", math.sqrt(sites) * deviation / shift, 1.0, 1, 1, deviation, sites)
    for order in (1.5, 2.0, 4.0):
        logs = order * np.log(there[sure]) + (1 - order) * np.log(moved[sure])
        divergence = np.log(np.exp(logs - logs.max()).sum()) + logs.max()
        assert divergence / (order - 1) <= concentrated(release) * order * (1 + 1e-6) + 1e-9


def test_coarse_discrete_noise_costs_more_than_fine() -> None:
    """The extra term by hand: deviation .5, two sites, 9 numbers: tau = 10 exp(-2 pi^2 / 4 / 2) = .8481."""
    coarse = Release("discrete gaussian", 2.0, 1.0, 1, 9, 0.5, 2)
    assert concentrated(coarse) == pytest.approx((0.25 + 0.84807 * 9 / 2) / 2, rel=1e-4)
    fine = Release("discrete gaussian", 2.0, 1.0, 1, 9, 65536.0, 2)
    assert concentrated(fine) == pytest.approx(0.125, rel=1e-12)


def test_discrete_noise_costs_what_gaussian_noise_does_by_renyi_accounting() -> None:
    discrete = [Release("discrete gaussian", 3.0, 1.0, 20, 1000, 65536.0, 3)]
    exact = epsilon_of([Release("gaussian", 3.0, 1.0, 20)], 1e-3)
    assert exact < epsilon_of(discrete, 1e-3) < 1.2 * exact
    assert recomputed(discrete, 1e-3) == pytest.approx(epsilon_of(discrete, 1e-3), rel=1e-6)
    mixed = [*discrete, Release("gaussian", 2.0, 0.1, 100)]
    assert recomputed(mixed, 1e-3) == pytest.approx(epsilon_of(mixed, 1e-3), rel=1e-3)
    found = discrete_release(8.0, 1e-3, 20, 1000, 65536.0, 3)
    assert (
        epsilon_of([found], 1e-3)
        <= 8.0
        < epsilon_of([Release("discrete gaussian", found.noise - 0.01, 1.0, 20, 1000, 65536.0, 3)], 1e-3)
    )
