"""The points of a reliability curve: in each bin of confidence, how often the likeliest class was right."""

from dataclasses import dataclass

import numpy as np

from evaluation.statistics.intervals import FloatArray, IntArray


@dataclass(frozen=True)
class Bin:
    """Images whose likeliest class has a probability from ``low`` up to ``high``."""

    low: float
    high: float
    confidence: float
    """Mean probability of the likeliest class."""
    accuracy: float
    count: int


def reliability(labels: IntArray, scores: FloatArray, bins: int = 10) -> list[Bin]:
    """Bins of equal width that hold an image, in order; labels ``[N]``, scores ``[N, K]`` probabilities.

    The mean of |accuracy - confidence|, weighted by count, is ``metrics.calibration_error`` (Guo et al. 2017).
    """
    if not len(labels):
        return []
    confidence = scores.max(1)
    right = (scores.argmax(1) == labels).astype(np.float64)
    which = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(which, minlength=bins)
    sums = [np.bincount(which, each, bins) for each in (confidence, right)]
    return [
        Bin(k / bins, (k + 1) / bins, float(sums[0][k] / n), float(sums[1][k] / n), int(n))
        for k, n in enumerate(count)
        if n
    ]
