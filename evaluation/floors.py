"""Floors without learning of features: what the majority class, and the bare pixels, are worth."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.intervals import FloatArray, IntArray
from evaluation.logistic import logistic_scores

SIDE, VOLUME_SIDE = 32, 16
COMPONENTS = 60


def majority_scores(train: IntArray, test: int, classes: int) -> FloatArray:
    """``[test, K]``: the class shares of the training pictures, the same for every test picture (AUROC .5)."""
    shares = np.bincount(train, minlength=classes) / len(train)
    return np.tile(shares, (test, 1))


def small_pixels(pictures: Tensor) -> FloatArray:
    """Pictures ``[B, C, S, S]`` as rows ``[B, C * 32 * 32]``, each small pixel the mean of those it covers.

    Volumes ``[B, C, D, S, S]`` as rows ``[B, C * 16 * 16 * 16]``.
    """
    exact = pictures.to(torch.float32)
    flat = exact.ndim == 4
    small = functional.adaptive_avg_pool2d(exact, SIDE) if flat else functional.adaptive_avg_pool3d(exact, VOLUME_SIDE)
    return small.flatten(1).numpy().astype(np.float64)


def principal(
    train: FloatArray, others: tuple[FloatArray, ...], components: int = COMPONENTS
) -> tuple[FloatArray, ...]:
    """``train`` and ``others`` on the first principal components of ``train`` (fewer where it has fewer)."""
    centre = train.mean(0)
    _, singular, right = np.linalg.svd(train - centre, full_matrices=False)
    kept = right[:components][singular[:components] > 1e-9 * max(float(singular.max(initial=0.0)), 1e-300)]
    return tuple((rows - centre) @ kept.T for rows in (train, *others))


def pixel_scores(
    train: tuple[FloatArray, IntArray], validation: tuple[FloatArray, IntArray], test: FloatArray, classes: int
) -> FloatArray:
    """``[N, K]`` from small pixels: PCA fitted on the training pictures, then the logistic probe."""
    known, chosen, unseen = principal(train[0], (validation[0], test))
    return logistic_scores((known, train[1]), (chosen, validation[1]), unseen, classes)
