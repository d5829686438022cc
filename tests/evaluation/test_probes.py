"""kNN, logistic probe, floors and diagnostics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from evaluation.config import EvaluationConfig
from evaluation.diagnostics import feature_spread, rankme
from evaluation.floors import majority_scores, principal, small_pixels
from evaluation.knn import knn_scores, votes
from evaluation.logistic import STRENGTHS, Standard, log_loss, logistic_scores, path
from evaluation.protocols import PROTOCOLS
from foundation.randomness import numpy_generator


def test_every_protocol_of_the_config_is_in_the_table() -> None:
    assert EvaluationConfig(protocols=("knn", "logistic", "finetune")).protocols == tuple(PROTOCOLS)


def test_knn_against_the_oracle(shared: Path) -> None:
    oracle = np.load(shared / "oracles" / "oracle.npz")
    query, bank, labels, expected, scores = (
        oracle[f"knn_k20_t0.07/{name}"] for name in ("query", "bank", "labels", "expected", "scores")
    )
    found = votes(query.astype(np.float64), bank.astype(np.float64), labels, 4, neighbours=20)
    np.testing.assert_allclose(found, scores, rtol=1e-4)
    np.testing.assert_array_equal(np.argsort(-found, axis=1), expected)


def test_rankme_against_the_oracle(shared: Path) -> None:
    oracle = np.load(shared / "oracles" / "oracle.npz")
    assert rankme(oracle["rankme/Z"].astype(np.float64)) == pytest.approx(float(oracle["rankme/expected"]), rel=1e-5)


def test_knn_by_hand() -> None:
    bank = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    found = votes(np.array([[5.0, 0.0]]), bank, np.array([0, 1, 1]), 2, neighbours=2, temperature=0.5)
    np.testing.assert_allclose(found, [[np.exp(2.0), np.exp(np.sqrt(0.5) / 0.5)]])
    assert knn_scores(np.array([[5.0, 0.0]]), bank, np.array([0, 1, 1]), 2).tolist() == [[1.0, 0.0]]


def make_features(classes: int, seed: int = 0, rows: int = 240, width: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = numpy_generator(seed, "features", classes)
    x = rng.standard_normal((rows, width)) @ rng.standard_normal((width, width)) * 3 + 1
    y = (x[:, :classes] + rng.normal(0, 12, (rows, classes))).argmax(1)
    return x, y.astype(np.int64)


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [1e-3, 1.0, 100.0])
def test_logistic_against_scikit_learn(classes: int, strength: float) -> None:
    x, y = make_features(classes)
    standard = Standard.of(x)(x)
    (fitted,) = path(standard, y, classes, [strength])
    expected = LogisticRegression(C=strength, tol=1e-10, max_iter=20_000).fit(standard, y).predict_proba(standard)
    np.testing.assert_allclose(fitted.probabilities(standard), expected, atol=2e-4)


def test_logistic_with_more_features_than_pictures_and_a_constant_one() -> None:
    x, y = make_features(2, rows=20, width=60)
    x[:, 5] = 3.0
    standard = Standard.of(x)(x)
    assert np.isfinite(standard).all()
    (fitted,) = path(standard, y, 2, [0.1])
    expected = LogisticRegression(C=0.1, tol=1e-10, max_iter=20_000).fit(standard, y).predict_proba(standard)
    np.testing.assert_allclose(fitted.probabilities(standard), expected, atol=2e-4)


def test_strength_is_chosen_on_validation_alone() -> None:
    """The scores are those of the strength of least validation loss, whatever the test pictures are."""
    x, y = make_features(2, rows=300)
    train, validation, test = (x[:60], y[:60]), (x[60:180], y[60:180]), x[180:]
    scores = logistic_scores(train, validation, test, 2)
    standard = Standard.of(train[0])
    fits = list(path(standard(train[0]), train[1], 2, STRENGTHS))
    losses = [log_loss(validation[1], fit.probabilities(standard(validation[0]))) for fit in fits]
    best = int(np.argmin(losses))
    assert 0 < best < len(STRENGTHS) - 1
    np.testing.assert_allclose(scores, fits[best].probabilities(standard(test)), atol=1e-9)
    np.testing.assert_array_equal(logistic_scores(train, validation, test[:7] * 100, 2).shape, (7, 2))
    np.testing.assert_allclose(
        logistic_scores(train, validation, np.vstack([test[:7], test[7:] * 100]), 2)[:7], scores[:7]
    )
    assert len(STRENGTHS) == 45
    assert (STRENGTHS[0], STRENGTHS[-1]) == (pytest.approx(1e-6), pytest.approx(1e5))


def test_floors() -> None:
    np.testing.assert_allclose(majority_scores(np.array([0, 0, 1, 0]), 2, 2), [[0.75, 0.25]] * 2)
    pictures = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).reshape(2, 3, 64, 64)
    small = small_pixels(pictures)
    assert small.shape == (2, 3 * 32 * 32)
    assert small[0, 0] == pytest.approx((0 + 1 + 64 + 65) / 4)


def test_components_come_from_the_training_pictures_alone() -> None:
    rng = numpy_generator(1, "pca")
    train, test = rng.standard_normal((50, 30)), rng.standard_normal((9, 30))
    own, other = principal(train, (test,), 6)
    expected = PCA(6, svd_solver="full").fit(train)
    np.testing.assert_allclose(np.abs(own), np.abs(expected.transform(train)), atol=1e-9)
    np.testing.assert_allclose(np.abs(other), np.abs(expected.transform(test)), atol=1e-9)


def test_collapsed_features_are_seen() -> None:
    rng = numpy_generator(1, "spread")
    assert feature_spread(rng.standard_normal((500, 32))) == pytest.approx(1.0, abs=0.05)
    assert feature_spread(np.ones((50, 32)) + 1e-4 * rng.standard_normal((50, 32))) < 0.01
    assert rankme(np.ones((50, 32))) == pytest.approx(1.0, abs=0.01)
