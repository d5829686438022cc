"""Ridge regression on standardised frozen features, its penalty chosen on validation patients.

Objective as scikit-learn's: sum of squared errors + penalty x |w|^2, intercept free. One decomposition of the features
serves all penalties: in its basis each is a division (Hastie et al. 2009, eq. 3.47).
"""

import numpy as np

from evaluation.protocols.logistic import Standard, singular_basis
from evaluation.statistics.intervals import FloatArray

PENALTIES: tuple[float, ...] = tuple(float(penalty) for penalty in np.logspace(5.0, -6.0, 45))
"""Per training image, the strongest first: from no use of the features to least squares."""


def ridge_path(features: FloatArray, values: FloatArray, penalties: tuple[float, ...]) -> FloatArray:
    """Weights ``[D, penalties]`` for features ``[N, D]`` of mean 0 and values ``[N]`` of mean 0."""
    basis, rotation = singular_basis(features)
    energy, along = (basis**2).sum(0), basis.T @ values
    shrunk = along[:, None] / (energy[:, None] + len(features) * np.array(penalties))
    return np.asarray(rotation @ shrunk)


def ridge_values(
    train: tuple[FloatArray, FloatArray], validation: tuple[FloatArray, FloatArray], test: FloatArray
) -> FloatArray:
    """``[N]`` for ``test`` at the penalty of least squared error on validation images; of equals the strongest."""
    standard, mean = Standard.of(train[0]), float(train[1].mean())
    weights = ridge_path(standard(train[0]), train[1] - mean, PENALTIES)
    errors = ((standard(validation[0]) @ weights + mean - validation[1][:, None]) ** 2).mean(0)
    return np.asarray(standard(test) @ weights[:, int(errors.argmin())] + mean)
