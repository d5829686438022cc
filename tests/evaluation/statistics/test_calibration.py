"""Points of the reliability curve against scikit-learn and the calibration error."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve

from evaluation.statistics.calibration import Bin, reliability
from evaluation.tasks.metrics import calibration_error
from foundation.randomness import numpy_generator


def test_by_hand() -> None:
    scores = np.array([[0.9, 0.1], [0.05, 0.95], [0.4, 0.6], [0.0, 1.0]])
    labels = np.array([0, 0, 1, 1])
    low, high = reliability(labels, scores, bins=4)
    assert low == Bin(0.5, 0.75, pytest.approx(0.6), 1.0, 1)
    assert high == Bin(0.75, 1.0, pytest.approx(0.95), pytest.approx(2 / 3), 3)


@given(seed=st.integers(0, 1000), classes=st.integers(2, 4), bins=st.integers(2, 12), count=st.integers(1, 60))
def test_as_scikit_learn_and_as_the_calibration_error(seed: int, classes: int, bins: int, count: int) -> None:
    rng = numpy_generator(seed, "reliability")
    scores, labels = rng.dirichlet([1.0] * classes, count), rng.integers(0, classes, count)
    found = reliability(labels, scores, bins)
    right = (scores.argmax(1) == labels).astype(int)
    accuracy, confidence = calibration_curve(right, scores.max(1), n_bins=bins, pos_label=1)
    assert [each.accuracy for each in found] == pytest.approx(accuracy.tolist())
    assert [each.confidence for each in found] == pytest.approx(confidence.tolist())
    assert sum(each.count for each in found) == count
    assert all(each.low <= each.confidence <= each.high for each in found)
    gap = sum(each.count * abs(each.accuracy - each.confidence) for each in found) / count
    assert gap == pytest.approx(calibration_error(labels, scores, bins))


def test_nothing_to_show() -> None:
    assert reliability(np.zeros(0, dtype=np.int64), np.zeros((0, 2))) == []
