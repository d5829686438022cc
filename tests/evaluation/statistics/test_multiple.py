"""Holm's adjustment against numbers worked by hand and its definition, and what is said of it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.statistics.multiple import LEVEL, holm, holm_sentence

NAN = float("nan")


def test_by_hand() -> None:
    """.01 x 4, .03 x 3 (carried over to .02's place by order: .02 x 3), .04 x 1 raised to the one before it."""
    assert holm([0.01, 0.04, 0.03, 0.02]) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm([0.01, 0.015, 0.03]) == pytest.approx([0.03, 0.03, 0.03])
    assert holm([0.6, 0.5]) == pytest.approx([1.0, 1.0])
    assert holm([0.03]) == pytest.approx([0.03])
    assert len(holm([])) == 0


def test_a_comparison_without_interval_is_no_member() -> None:
    assert holm([NAN, 0.02, NAN, 0.03]) == pytest.approx([NAN, 0.04, NAN, 0.04], nan_ok=True)
    assert np.isnan(holm([NAN])).all()


def rejected(p: list[float]) -> set[int]:
    """Closed testing (Marcus et al. 1976) with Bonferroni in every subset, which Holm is the short cut of."""
    every = range(len(p))
    subsets = [set(s) for size in range(1, len(p) + 1) for s in itertools.combinations(every, size)]
    return {
        i for i in every if all(min(p[j] for j in subset) * len(subset) < LEVEL for subset in subsets if i in subset)
    }


@given(st.lists(st.floats(0, 0.1), min_size=1, max_size=7))
def test_it_rejects_what_closed_testing_rejects(p: list[float]) -> None:
    adjusted = holm(p)
    assert {i for i, value in enumerate(adjusted) if value < LEVEL} == rejected(p)
    assert (adjusted >= np.array(p)).all() and (adjusted <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()


NAMES = ["random", "centralised", "north alone", "south alone"]


@pytest.mark.parametrize(
    ("p", "said"),
    [
        (
            [0.01, 0.2, 0.04, NAN],
            "4 comparisons were made, 1 of them without an interval. 2 have intervals that exclude zero; 1 is left "
            "after Holm's adjustment for that many: random.",
        ),
        (
            [0.001, 0.2, 0.002, 0.003],
            "4 comparisons were made. 3 have intervals that exclude zero; all are left after Holm's adjustment for "
            "that many: random, north alone, south alone.",
        ),
        (
            [0.04, 0.2, 0.3, 0.4],
            "4 comparisons were made. 1 has an interval that excludes zero; none is left after Holm's adjustment "
            "for that many.",
        ),
        ([0.1, 0.2, 0.3, 0.4], "4 comparisons were made. None has an interval that excludes zero."),
    ],
)
def test_the_sentence(p: list[float], said: str) -> None:
    assert holm_sentence(NAMES, p) == said


def test_one_comparison_needs_no_sentence() -> None:
    assert holm_sentence(["random"], [0.01]) == ""
