"""How alike two encoders see the same images: Kornblith et al. 2019, Similarity of neural network representations."""

import numpy as np

from evaluation.statistics.intervals import FloatArray

FEWEST_IMAGES = 4
"""The unbiased estimator divides by n - 3."""


def linear_cka(first: FloatArray, second: FloatArray) -> float:
    """CKA with a linear kernel of the features ``[N, D1]`` and ``[N, D2]`` of the same images, row by row.

    HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y)), with the unbiased estimator of HSIC (Song et al. 2012, eq. 5): the usual
    one nears 1 for any two encoders where D is above N. So it lies in [-1, 1]: 1 for features that differ by rotation,
    scale and shift only, about 0 for those that have nothing to do with each other. NaN of fewer than
    ``FEWEST_IMAGES`` images, or where all features of an encoder are the same.
    """
    if len(first) < FEWEST_IMAGES:
        return float("nan")
    x, y = _centred(first), _centred(second)
    own = _hsic(x, x) * _hsic(y, y)
    return float(_hsic(x, y) / np.sqrt(own)) if own > 0 else float("nan")


def _centred(features: FloatArray) -> FloatArray:
    """Columns of mean 0, all divided by one number so that rows have length 1 on average; zeros if all are the same."""
    centred = features - features.mean(0)
    size = np.sqrt(np.square(centred).sum(1).mean())
    # What is left after the mean was taken from equal rows is rounding.
    return np.asarray(centred / size if size > 1e-9 * np.abs(features).max() else np.zeros_like(centred))


def _hsic(x: FloatArray, y: FloatArray) -> float:
    """n (n - 3) times the unbiased estimate for centred features, in the D x D form.

    With K = X X^T, L = Y Y^T and their diagonals k, l, Song's estimator is taken of K~ and L~, which have a diagonal of
    zeros. As the rows of X sum to 0, K~ 1 = -k, and its three terms become
    tr(K~ L~) = |X^T Y|^2 - k.l, (1^T K~ 1)(1^T L~ 1) = sum(k) sum(l), 1^T K~ L~ 1 = k.l.
    """
    n = len(x)
    k, l = np.einsum("nd,nd->n", x, x), np.einsum("nd,nd->n", y, y)  # noqa: E741
    together = float(k @ l)
    trace = float(np.square(x.T @ y).sum()) - together
    return trace + float(k.sum() * l.sum()) / ((n - 1) * (n - 2)) - 2 / (n - 2) * together
