"""Ridge regression is scikit-learn's, and its penalty is chosen on validation images alone."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from evaluation.protocols.ridge import PENALTIES, ridge_values
from foundation.randomness import numpy_generator


def made(rows: int, width: int, noise: float = 6.0) -> tuple[np.ndarray, np.ndarray]:
    draw = numpy_generator(2, "ridge", rows, width)
    x = draw.standard_normal((rows, width)) @ draw.standard_normal((width, width)) + 3
    return x, 50 + x[:, :4].sum(1) + draw.normal(0, noise, rows)


@pytest.mark.parametrize(("train", "width"), [(40, 15), (150, 15), (20, 60)])
def test_values_are_scikit_learns_at_the_best_penalty(train: int, width: int) -> None:
    x, y = made(train + 60, width)
    x[:, 1] = 4.0
    seen, chosen, asked = x[:train], x[train : train + 30], x[train + 30 :]
    found = ridge_values((seen, y[:train]), (chosen, y[train : train + 30]), asked)
    scale = StandardScaler().fit(seen)
    models = [Ridge(train * penalty, solver="svd").fit(scale.transform(seen), y[:train]) for penalty in PENALTIES]
    errors = [((model.predict(scale.transform(chosen)) - y[train : train + 30]) ** 2).mean() for model in models]
    best = int(np.argmin(errors))
    assert 0 < best < len(PENALTIES) - 1
    np.testing.assert_allclose(found, models[best].predict(scale.transform(asked)), rtol=1e-7)


def test_test_images_steer_nothing_and_noise_is_answered_with_the_mean() -> None:
    x, y = made(90, 10)
    train, validation = (x[:40], y[:40]), (x[40:70], y[40:70])
    whole = ridge_values(train, validation, x[70:])
    np.testing.assert_allclose(ridge_values(train, validation, np.vstack([x[70:75], 9 * x[75:]]))[:5], whole[:5])
    noise = numpy_generator(8, "noise").standard_normal((90, 10))
    flat = ridge_values((noise[:40], y[:40]), (noise[40:70], np.full(30, y[:40].mean())), noise[70:])
    np.testing.assert_allclose(flat, y[:40].mean(), rtol=1e-4)
