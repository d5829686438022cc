"""Figures of merit worked by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as reference

from evaluation.tasks.metrics import auprc, auroc, balanced_accuracy, calibration_error, f1
from foundation.randomness import numpy_generator


def two(scores: list[float]) -> np.ndarray:
    p = np.array(scores)
    return np.stack([1 - p, p], axis=1)


LABELS = np.array([0, 0, 1, 1, 1])
SCORES = two([0.1, 0.6, 0.6, 0.8, 0.3])


def test_by_hand() -> None:
    # pairs (positive, negative): .6>.1, .6=.6, .8>.1, .8>.6, .3>.1, .3<.6 -> 4.5 of 6
    assert auroc(LABELS, SCORES) == pytest.approx(4.5 / 6)
    # recall 1/2 of class 0, 2/3 of class 1
    assert balanced_accuracy(LABELS, SCORES) == pytest.approx((1 / 2 + 2 / 3) / 2)
    # guessed positive: .6 .6 .8 -> TP 2, FP 1, FN 1
    assert f1(LABELS, SCORES) == pytest.approx(4 / 6)
    # thresholds .8: 1/1; .6 (two together): 2/3; .3: 3/4 -> 1/3 (1 + 2/3 + 3/4)
    assert auprc(LABELS, SCORES) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_calibration_by_hand() -> None:
    # confidences .9 .6 .6 .8 .7 in ten bins; right: yes no yes yes no
    expected = abs(1 - 0.9) / 5 + abs(1 - 1.2) / 5 + abs(1 - 0.8) / 5 + abs(0 - 0.7) / 5
    assert calibration_error(LABELS, SCORES, 10) == pytest.approx(expected)
    assert calibration_error(np.array([1, 1]), two([1.0, 1.0]), 10) == 0.0


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_against_scikit_learn(classes: int) -> None:
    rng = numpy_generator(classes, "metrics")
    labels = rng.integers(0, classes, 200)
    scores = np.round(rng.dirichlet(np.ones(classes), 200), 2)
    scores[:, -1] = 1 - scores[:, :-1].sum(1)
    shown = scores[:, 1] if classes == 2 else scores
    assert auroc(labels, scores) == pytest.approx(reference.roc_auc_score(labels, shown, multi_class="ovr"))
    assert balanced_accuracy(labels, scores) == pytest.approx(
        reference.balanced_accuracy_score(labels, scores.argmax(1))
    )
    average = "binary" if classes == 2 else "macro"
    assert f1(labels, scores) == pytest.approx(reference.f1_score(labels, scores.argmax(1), average=average))
    hot = labels == 1 if classes == 2 else np.eye(classes)[labels]
    assert auprc(labels, scores) == pytest.approx(reference.average_precision_score(hot, shown))


def test_one_class_is_not_a_number() -> None:
    assert np.isnan(auroc(np.ones(3, dtype=np.int64), two([0.1, 0.2, 0.3])))
    assert np.isnan(auprc(np.zeros(3, dtype=np.int64), two([0.1, 0.2, 0.3])))
    assert np.isnan(balanced_accuracy(np.zeros(3, dtype=np.int64), two([0.1, 0.2, 0.3])))
