"""Patients whose true figures are known, for the coverage of intervals."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy import stats

from evaluation.statistics.intervals import FloatArray, Scored

SLICES = 16
AUCS = (0.80, 0.75)
POSITIVE = 0.4
ERRORS = (1.0, 1.2)
"""Standard deviations of the two regressions' errors."""
MEASURED = 1.8
"""Standard deviation of what a regression predicts."""
DICE_LOGITS = (1.5, 1.3)


@dataclass(frozen=True)
class Case:
    """One row of a table. folds: the patients are dealt into so many, each with a shift of all its scores.

    labels: whether they differ within a patient ("slice") or not ("patient"). sites: strata of one figure.
    """

    labels: str
    patients: int
    correlation: float
    folds: int = 1
    sites: int = 1


@dataclass(frozen=True)
class Sizes:
    """Numbers of images ``[N]`` under two encoders, with the patient and stratum of each."""

    truth: FloatArray
    errors: tuple[FloatArray, FloatArray]
    dice: tuple[FloatArray, FloatArray]
    """``[P]``, one a patient."""
    patients: np.ndarray
    strata: np.ndarray


def classified(case: Case, rng: np.random.Generator) -> list[Scored]:
    """The same images under two scores, as ``[1 - p, p]``."""
    patient = np.repeat(np.arange(case.patients), SLICES)
    if case.labels == "patient":
        positive = rng.random(case.patients)[patient] < POSITIVE
    else:
        positive = rng.random(len(patient)) < rng.beta(2, 3, case.patients)[patient]
    fold = patient % case.folds
    shift = rng.normal(0.0, 1.0 if case.folds > 1 else 0.0, case.folds)[fold]
    effect, noise = (_pair(rng, size) for size in (case.patients, len(patient)))
    scored = []
    for k, truth in enumerate(AUCS):
        score = _gap(truth) * (positive - 0.5) + np.sqrt(case.correlation) * effect[k][patient]
        score = score + np.sqrt(1 - case.correlation) * noise[k] + shift
        p = 1.0 / (1.0 + np.exp(-score))
        strata = _names(fold * case.sites + patient // case.folds % case.sites)
        scored.append(Scored(positive.astype(np.int64), np.stack([1 - p, p], 1), _names(patient), strata))
    return scored


def measured(case: Case, rng: np.random.Generator) -> Sizes:
    """Sizes with the errors of two regressions, and the Dice scores of two segmentations."""
    patient = np.repeat(np.arange(case.patients), SLICES)
    truth = MEASURED * _mixed(case, rng.standard_normal(case.patients), rng.standard_normal(len(patient)))
    errors, logits = (
        [_mixed(case, *pair) for pair in zip(_pair(rng, case.patients), _pair(rng, len(patient)), strict=True)]
        for _ in range(2)
    )
    dice = [
        (1.0 / (1.0 + np.exp(-middle - logit))).reshape(case.patients, SLICES).mean(1)
        for middle, logit in zip(DICE_LOGITS, logits, strict=True)
    ]
    return Sizes(
        truth,
        (ERRORS[0] * errors[0], ERRORS[1] * errors[1]),
        (dice[0], dice[1]),
        _names(patient),
        _names(patient % case.sites),
    )


@cache
def average_precision() -> float:
    """The area under the precision-recall curve of the first score, by the trapezoid rule."""
    threshold = np.linspace(8.0, -8.0, 200_001)
    half = _gap(AUCS[0]) / 2
    recall, alarms = stats.norm.sf(threshold - half), stats.norm.sf(threshold + half)
    precision = POSITIVE * recall / (POSITIVE * recall + (1 - POSITIVE) * alarms)
    return float(np.trapezoid(precision, recall))


@cache
def dice_means() -> tuple[float, float]:
    """The expected Dice of the two segmentations, whatever the correlation: the mean of a logistic-normal number."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    first, second = (float(weights @ (1 / (1 + np.exp(-middle - nodes))) / weights.sum()) for middle in DICE_LOGITS)
    return first, second


def _gap(auc: float) -> float:
    return float(np.sqrt(2) * stats.norm.ppf(auc))


def _mixed(case: Case, effect: FloatArray, noise: FloatArray) -> FloatArray:
    """``[N]`` standard normal, the patient's effect having the share ``correlation`` of the variance."""
    mixed: FloatArray = np.sqrt(case.correlation) * np.repeat(effect, SLICES) + np.sqrt(1 - case.correlation) * noise
    return mixed


def _names(codes: np.ndarray) -> np.ndarray:
    return np.char.zfill(codes.astype(np.str_), 3)


def _pair(rng: np.random.Generator, size: int) -> tuple[FloatArray, FloatArray]:
    """Two standard normal vectors with correlation one half."""
    first, other = rng.standard_normal((2, size))
    return first, 0.5 * first + np.sqrt(0.75) * other
