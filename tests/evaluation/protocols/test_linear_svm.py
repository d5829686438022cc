"""The SVM is scikit-learn's, chosen on validation alone; Platt scaling keeps its order and is calibrated."""

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from evaluation.protocols.linear_svm import SVM_STRENGTHS, Platt, decisions, svm_scores
from evaluation.tasks.metrics import auroc, calibration_error
from foundation.randomness import numpy_generator

Labelled = tuple[np.ndarray, np.ndarray]


def made(classes: int, rows: int = 400, width: int = 8) -> tuple[Labelled, Labelled, Labelled]:
    """Training, validation and test images of overlapping classes, the first most common; features of all sizes."""
    draw = numpy_generator(0, "svm", classes)
    x = draw.standard_normal((rows, width))
    likeness = x[:, :classes] + draw.normal(0, 0.8, (rows, classes)) + 1.2 * np.eye(classes)[0]
    y = likeness.argmax(1).astype(np.int64)
    x = x * 10.0 ** draw.uniform(-2, 2, width) + 5
    third = rows // 4
    return (x[:third], y[:third]), (x[third : 2 * third], y[third : 2 * third]), (x[2 * third :], y[2 * third :])


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_scikit_learns_at_the_best_strength(classes: int) -> None:
    """Balanced accuracy decides, of equals the strongest penalty; Platt scaling as CalibratedClassifierCV's."""
    train, validation, test = made(classes)
    scale = StandardScaler().fit(train[0])
    shown, known, unseen = (scale.transform(part[0]) for part in (train, validation, test))
    machines = [LinearSVC(C=strength, dual=False).fit(shown, train[1]) for strength in SVM_STRENGTHS]
    best = int(np.argmax([balanced_accuracy_score(validation[1], machine.predict(known)) for machine in machines]))
    assert best > 0
    calibrated = CalibratedClassifierCV(FrozenEstimator(machines[best]), method="sigmoid").fit(known, validation[1])
    scores = svm_scores(train, validation, test[0], classes)
    np.testing.assert_allclose(scores, calibrated.predict_proba(unseen), atol=2e-3)
    np.testing.assert_allclose(scores.sum(1), 1.0)
    if classes == 2:
        order = roc_auc_score(test[1], machines[best].decision_function(unseen))
        assert auroc(test[1], scores) == pytest.approx(order, abs=1e-12)
    assert calibration_error(test[1], scores) < 0.1


def test_test_images_steer_nothing() -> None:
    train, validation, test = made(2)
    whole = svm_scores(train, validation, test[0], 2)
    part = svm_scores(train, validation, np.vstack([test[0][:9], 50 * test[0][9:]]), 2)
    np.testing.assert_allclose(part[:9], whole[:9], rtol=1e-12)


def test_platt_never_turns_the_order_round() -> None:
    values = np.linspace(-3.0, 3.0, 40)
    against = Platt.of(values, (values < 0).astype(np.float64))(values)
    assert (np.diff(against) > 0).all()
    assert np.ptp(against) < 0.01
    none = Platt.of(values, np.zeros(40))(values)  # a class that no validation image has
    np.testing.assert_allclose(none, 1 / 42, atol=2e-3)
    same = Platt.of(np.full(40, 2.0), np.ones(40))(values)
    assert np.isfinite(same).all()


def test_classes_without_a_training_image_are_never_found() -> None:
    train, validation, test = made(3)
    two = train[1] != 1
    scores = svm_scores((train[0][two], train[1][two]), validation, test[0], 3)
    assert (scores[:, 1] == 0).all()
    np.testing.assert_allclose(scores.sum(1), 1.0)
    assert auroc((test[1][test[1] != 1] == 2).astype(np.int64), scores[test[1] != 1][:, [0, 2]]) > 0.8
    one = train[1] == 2
    only = svm_scores((train[0][one], train[1][one]), validation, test[0], 3)
    np.testing.assert_array_equal(only, np.tile([0.0, 0.0, 1.0], (len(test[0]), 1)))


def test_a_fit_that_does_not_end_warns_nobody_and_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation, _ = made(2)
    monkeypatch.setattr("evaluation.protocols.linear_svm._STEPS", 1)
    first, second = (decisions(train[0], train[1], 1.0, validation[0])[0] for _ in range(2))
    np.testing.assert_array_equal(first, second)
