"""Schedules against formulas worked by hand, and what must hold for all of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.schedules import cosine, linear, momentum_for_batch, warmup_cosine

share = st.floats(0, 1)
value = st.floats(1e-6, 1e3)


@pytest.mark.parametrize(
    ("progress", "expected"),
    [
        (0.0, 0.0),
        (0.05, 1.0),  # half of the warm-up
        (0.1, 2.0),  # the peak
        (0.1 + 0.9 / 3, 1.5),  # a third of the way down: (1 + cos 60 degrees) / 2 = 3/4
        (0.55, 1.0),
        (0.1 + 0.9 * 2 / 3, 0.5),
        (1.0, 0.0),
        (-3.0, 0.0),
        (7.0, 0.0),
    ],
)
def test_warmup_cosine_by_hand(progress: float, expected: float) -> None:
    assert warmup_cosine(progress, 2.0, warmup=0.1) == pytest.approx(expected, abs=1e-12)


def test_without_warmup_it_starts_at_the_peak_and_ends_at_nothing() -> None:
    assert warmup_cosine(0.0, 2.0, warmup=0.0) == 2.0
    assert warmup_cosine(1.0, 2.0, warmup=0.0) == 0
    assert warmup_cosine(0.5, 2.0, warmup=0.0) == pytest.approx(1.0)


def test_all_warmup_rises_to_the_very_end() -> None:
    assert warmup_cosine(0.75, 2.0, warmup=1.0) == 1.5


@given(share, value, st.floats(0, 0.99))
def test_warmup_cosine_stays_between_nought_and_peak(progress: float, peak: float, warmup: float) -> None:
    assert -1e-9 <= warmup_cosine(progress, peak, warmup=warmup) <= peak * (1 + 1e-9)


@given(share, share, value, st.floats(0.01, 0.99))
def test_rises_before_the_end_of_warmup_and_falls_after(a: float, b: float, peak: float, warmup: float) -> None:
    first, second = sorted((a, b))
    low, high = (warmup_cosine(p, peak, warmup=warmup) for p in (first, second))
    if second <= warmup:
        assert low <= high + 1e-9 * peak
    if first >= warmup:
        assert high <= low + 1e-9 * peak


def test_cosine_is_byols_momentum() -> None:
    """Grill et al. 2020, section 3.3: tau = 1 - (1 - tau_base) (cos(pi k / K) + 1) / 2."""
    for progress in (0.0, 0.2, 0.5, 0.9, 1.0):
        assert cosine(progress, 0.996, 1.0) == pytest.approx(1 - (1 - 0.996) * (math.cos(math.pi * progress) + 1) / 2)


def test_linear_by_hand() -> None:
    assert linear(0.25, 0.996, 1.0) == pytest.approx(0.997)
    assert linear(-1, 2.0, 4.0) == 2.0
    assert linear(2, 2.0, 4.0) == 4.0


@given(share, st.floats(-10, 10), st.floats(-10, 10))
def test_straight_line_and_half_cosine_stay_between_their_ends(p: float, start: float, end: float) -> None:
    low, high = min(start, end) - 1e-9, max(start, end) + 1e-9
    for schedule in (linear, cosine):
        assert low <= schedule(p, start, end) <= high
        assert schedule(0.0, start, end) == pytest.approx(start)
        assert schedule(1.0, start, end) == pytest.approx(end)
        assert schedule(p, start, end) == pytest.approx(schedule(1 - p, end, start), abs=1e-9)


@given(st.floats(0.5, 0.9999), st.integers(1, 64), st.integers(1, 8))
def test_a_site_of_small_batches_forgets_as_much_per_image(momentum: float, batch: int, times: int) -> None:
    """``times`` steps of ``batch`` forget what one step of ``times * batch`` forgets."""
    small = momentum_for_batch(momentum, batch, 64) ** times
    assert small == pytest.approx(momentum_for_batch(momentum, batch * times, 64))


def test_the_reference_batch_has_the_stated_momentum() -> None:
    assert momentum_for_batch(0.996, 32, 32) == 0.996
    assert momentum_for_batch(0.81, 16, 32) == pytest.approx(0.9)
