"""Intervals against figures from papers, the bound that epsilon sets, and what is said of a figure."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attacks.figures import AttackResult, advantage, exact, guesses, newcombe
from attacks.reading import largest_advantage, promise_of, verdict
from federation.study import study_from


def figure(low: float, high: float) -> AttackResult:
    return AttackResult((low + high) / 2, low, high, 20, {})


def test_newcombe_has_the_interval_of_the_paper() -> None:
    """Newcombe 1998, table II, comparison (a), method 10: 56/70 - 48/80."""
    assert newcombe(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_the_exact_interval_of_none_and_all() -> None:
    """(alpha / 2) ** (1 / n) where all are right."""
    assert exact(10, 10) == pytest.approx((0.025**0.1, 1.0))
    assert exact(0, 10) == pytest.approx((0.0, 1 - 0.025**0.1))


def test_advantage_is_the_difference_of_rates_above_zero() -> None:
    found = advantage(np.array([1.0, 2.0, 3.0, -1.0]), np.array([-1.0, -2.0, 1.5, -3.0]))
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert found.more["auc"] == pytest.approx(13.5 / 16)  # a tie counts half
    assert found.more["tpr_at_1_percent"] is None


def test_too_few_patients_have_no_figure() -> None:
    assert advantage(np.ones(3), np.zeros(9)) is None


def test_the_rate_at_one_percent_false_alarms() -> None:
    others = np.arange(100.0)
    found = advantage(np.array([98.5, 99.5, 50.0, 98.0]), others)
    assert found is not None
    assert found.more["tpr_at_1_percent"] == pytest.approx(0.5)  # above 98, so that one of 100 is a false alarm


def test_scores_that_say_nothing_are_covered_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        found = advantage(draw.normal(size=20), draw.normal(size=20))
        assert found is not None
        covered += found.low <= 0 <= found.high
    assert covered >= 0.91 * 300


def test_guesses_are_set_against_chance() -> None:
    found = guesses(6, 8, 0.25)
    assert found.value == pytest.approx((0.75 - 0.25) / 0.75)
    assert guesses(2, 8, 0.25).value == pytest.approx(0.0)


@given(st.floats(0.01, 20), st.floats(0, 0.1))
def test_the_largest_advantage_is_where_both_errors_are_as_small_as_they_may_be(epsilon: float, delta: float) -> None:
    """The corner of the region of Kairouz et al. 2015: FPR + e^eps FNR = 1 - delta, FPR = FNR."""
    error = (1 - delta) / (1 + math.exp(epsilon))
    assert largest_advantage(epsilon, delta) == pytest.approx(min(1.0, 1 - 2 * error))


def test_a_study_without_privacy_promises_nothing(raw_study: dict[str, object]) -> None:
    assert promise_of(study_from(raw_study, "test")) is None


def test_a_promise_by_site_counts_twice_as_one_site_is_put_in_anothers_place(raw_study: dict[str, Any]) -> None:
    """Group privacy of two: twice epsilon, and delta times 1 + e^epsilon."""
    section = {"unit": "site", "epsilon": 0.5, "delta": 0.002, "sites": 4}
    training = raw_study["training"] | {"epochs": None, "steps": 2}
    found = promise_of(study_from(raw_study | {"privacy": section, "training": training}, "test"))
    assert found is not None
    bound = (math.e - 1 + 2 * 0.002 * (1 + math.exp(0.5))) / (math.e + 1)
    assert found["largest_advantage"] == pytest.approx(bound, abs=1e-4)
    assert (found["unit"], found["epsilon"], found["delta"]) == ("site", 0.5, 0.002)


def test_an_attack_that_fails_on_the_overfitted_model_is_too_weak() -> None:
    word, reading = verdict(figure(-0.2, 0.2), figure(-0.1, 0.5), None)
    assert word == "too weak here"
    assert "this attack is too weak here" in reading
    assert verdict(figure(-0.2, 0.2), None, None)[0] == "too weak here"


@pytest.mark.parametrize(
    ("own", "permitted", "word"),
    [
        (figure(-0.2, 0.2), None, "nothing found"),
        (figure(0.1, 0.5), None, "succeeds"),
        (figure(0.1, 0.5), 0.3, "succeeds"),
        (figure(0.4, 0.8), 0.3, "beyond the promise"),
        (None, None, "not made"),
    ],
)
def test_verdicts(own: AttackResult | None, permitted: float | None, word: str) -> None:
    assert verdict(own, figure(0.5, 1.0), permitted)[0] == word


def test_an_attack_that_succeeds_is_said_even_where_the_control_fails() -> None:
    assert verdict(figure(0.1, 0.5), figure(-0.5, 0.5), None)[0] == "succeeds"
