"""Logistic probe, baselines and diagnostics."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression

from evaluation.config import PROTOCOLS_OF, ProtocolName
from evaluation.protocols.baselines import majority_scores, principal, small_pixels
from evaluation.protocols.logistic import (
    STRENGTHS,
    Standard,
    log_loss,
    logistic_findings,
    logistic_scores,
    path,
    singular_basis,
)
from evaluation.protocols.table import PROTOCOLS
from evaluation.statistics.diagnostics import feature_spread, rankme
from foundation.randomness import numpy_generator


def test_every_protocol_of_the_config_is_in_the_table() -> None:
    """And the other way round; what a kind of task may ask for, a protocol predicts."""
    assert set(PROTOCOLS) == set(get_args(ProtocolName))
    for kind, names in PROTOCOLS_OF.items():
        assert set(names) == {name for name, protocol in PROTOCOLS.items() if kind in protocol.predict}


def test_rankme_against_the_oracle(shared: Path) -> None:
    oracle = np.load(shared / "oracles" / "oracle.npz")
    assert rankme(oracle["rankme/Z"].astype(np.float64)) == pytest.approx(float(oracle["rankme/expected"]), rel=1e-5)


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


def test_logistic_with_more_features_than_images_and_a_constant_one() -> None:
    x, y = make_features(2, rows=20, width=60)
    x[:, 5] = 3.0
    standard = Standard.of(x)(x)
    assert np.isfinite(standard).all()
    (fitted,) = path(standard, y, 2, [0.1])
    expected = LogisticRegression(C=0.1, tol=1e-10, max_iter=20_000).fit(standard, y).predict_proba(standard)
    np.testing.assert_allclose(fitted.probabilities(standard), expected, atol=2e-4)


@pytest.mark.parametrize("rows", [60, 400])  # fewer and more than TALL times the 24 features
def test_singular_basis_is_a_rotation(rows: int) -> None:
    """Uncorrelated columns, falling in size, that are the rotated features; what is left out holds nothing."""
    x, _ = make_features(2, rows=rows)
    x[:, 7] = 2 * x[:, 3]
    basis, rotation = singular_basis(x)
    assert basis.shape == (rows, 23)
    np.testing.assert_allclose(basis, x @ rotation, atol=1e-9)
    np.testing.assert_allclose(basis @ rotation.T, x, atol=1e-5)
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(23), atol=1e-12)
    np.testing.assert_allclose((basis**2).sum(0), np.linalg.svd(x, compute_uv=False)[:23] ** 2, rtol=1e-6)
    products = basis.T @ basis
    np.testing.assert_allclose(products, np.diag(np.diag(products)), atol=1e-9 * products.max())


def test_findings_have_a_probe_each() -> None:
    """Each finding's scores are those of a two-class probe of its own; one that all or none has, its share."""
    x, y = make_features(4, rows=300)
    labels = np.stack([y % 2, np.ones_like(y), np.zeros_like(y), (y == 3).astype(np.int64)], axis=1)
    labels[100:, 1] = 0
    scores = logistic_findings((x[:100], labels[:100]), (x[100:200], labels[100:200]), x[200:])
    for k in (0, 3):
        own = logistic_scores((x[:100], labels[:100, k]), (x[100:200], labels[100:200, k]), x[200:], 2)
        np.testing.assert_array_equal(scores[:, k], own[:, 1])
    assert scores[:, 1].tolist() == [1.0] * 100
    assert scores[:, 2].tolist() == [0.0] * 100


def test_strength_is_chosen_on_validation_alone() -> None:
    """The scores are those of the strength of least validation loss, whatever the test images are."""
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


def test_baselines() -> None:
    np.testing.assert_allclose(majority_scores(np.array([0, 0, 1, 0]), 2, 2), [[0.75, 0.25]] * 2)
    images = torch.arange(2 * 3 * 64 * 64, dtype=torch.float32).reshape(2, 3, 64, 64)
    small = small_pixels(images)
    assert small.shape == (2, 3 * 32 * 32)
    assert small[0, 0] == pytest.approx((0 + 1 + 64 + 65) / 4)


def test_components_come_from_the_training_images_alone() -> None:
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
