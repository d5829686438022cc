"""Figures of merit from labels ``[N]`` (class codes) and scores ``[N, K]`` (probabilities): all NaN where undefined."""

import numpy as np

from evaluation.statistics.intervals import FloatArray, IntArray, concordance


def auroc(labels: IntArray, scores: FloatArray) -> float:
    """Area under the ROC curve; of class 1 where there are two, else the mean of one-versus-rest over all classes."""
    count = scores.shape[1]
    parts = []
    for k in [1] if count == 2 else range(count):
        high, low = scores[labels == k, k], scores[labels != k, k]
        if not len(high) or not len(low):
            return float("nan")
        parts.append(float(concordance(high, low).sum() / (len(high) * len(low))))
    return float(np.mean(parts))


def auprc(labels: IntArray, scores: FloatArray) -> float:
    """Average precision: sum over thresholds of recall step x precision, ties together; mean over classes as AUROC."""
    count = scores.shape[1]
    parts = []
    for k in [1] if count == 2 else range(count):
        hit = (labels == k).astype(np.float64)
        if not 0 < hit.sum() < len(hit):
            return float("nan")
        order = np.argsort(-scores[:, k], kind="stable")
        ranked = scores[order, k]
        last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        found = np.cumsum(hit[order])[last]
        steps = np.diff(np.concatenate([[0.0], found])) / hit.sum()
        parts.append(float((steps * found / (last + 1)).sum()))
    return float(np.mean(parts))


def balanced_accuracy(labels: IntArray, scores: FloatArray) -> float:
    """Mean over the classes that occur of the recall of the likeliest class (of two: a threshold at 1/2)."""
    present = np.unique(labels)
    if len(present) < 2:
        return float("nan")
    guess = scores.argmax(1)
    return float(np.mean([(guess[labels == k] == k).mean() for k in present]))


def f1(labels: IntArray, scores: FloatArray) -> float:
    """2 TP / (2 TP + FP + FN) of class 1 where there are two, else the mean over classes that occur or are guessed."""
    guess = scores.argmax(1)
    parts = []
    for k in [1] if scores.shape[1] == 2 else range(scores.shape[1]):
        both = int(((guess == k) & (labels == k)).sum())
        either = int((guess == k).sum() + (labels == k).sum())
        if either:
            parts.append(2.0 * both / either)
    return float(np.mean(parts)) if parts else float("nan")


def calibration_error(labels: IntArray, scores: FloatArray, bins: int = 10) -> float:
    """Expected calibration error: |accuracy - confidence| of the likeliest class, weighted over bins of equal width.

    Naeini et al. 2015; Guo et al. 2017, eq. 3. Scores have to be probabilities.
    """
    if not len(labels):
        return float("nan")
    confidence = scores.max(1)
    right = (scores.argmax(1) == labels).astype(np.float64)
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    gap = np.bincount(which, right, bins) - np.bincount(which, confidence, bins)
    return float(np.abs(gap).sum() / len(labels))
