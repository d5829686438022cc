"""What a promise means in words: the numbers in them are the bounds, and nothing is left out."""

import math

import pytest

from federation.privacy.words import best_guess, meaning
from foundation.errors import StudyError


def test_the_best_guess() -> None:
    assert best_guess(0, 0) == 0.5
    assert best_guess(1, 0) == pytest.approx(math.e / (1 + math.e))
    advantage = (math.exp(3) - 1 + 2 * 0.01) / (math.exp(3) + 1)  # of true over false positives, at most
    assert best_guess(3, 0.01) == pytest.approx((1 + advantage) / 2)
    assert best_guess(900, 1e-5) == pytest.approx(1)  # no overflow


def test_the_sentences_hold_the_bounds() -> None:
    odds, guess = meaning(1, 1e-5)
    assert "by a factor of at most 2.72" in odds and "at most 1e-05 that does not hold" in odds
    assert "in at most 73.11 % of cases" in guess
    assert "in at most 99.97 % of cases" in meaning(8, 1e-5)[1] and "at most 2,981;" in meaning(8, 1e-5)[0]
    assert "one site took part, with all its patients" in meaning(8, 1e-3, "site")[0]
    assert "perhaps in every case" in meaning(40, 1e-5)[1] and "e^40, more than a million" in meaning(40, 1e-5)[0]
    assert len(meaning(10, 1e-5)) == 2 and "a weak bound" in meaning(10.1, 1e-5)[2]
    for wrong in ((-1.0, 0.1), (1.0, 1.0)):
        with pytest.raises(StudyError, match="epsilon is 0 or more"):
            meaning(*wrong)
