"""What features look like without any label."""

import numpy as np

from evaluation.protocols.knn import unit_rows
from evaluation.statistics.intervals import FloatArray
from foundation.randomness import numpy_generator
from ssl_methods.diagnostics import COLLAPSED_SPREAD, LOST_SPREAD

MOST_FOR_PAIRS = 5000
"""Images above which their pairs are those of a sample: 12.5 million pairs say it to three digits."""
_ROWS_AT_ONCE = 500


def rankme(features: FloatArray) -> float:
    """Effective rank exp(-sum p log p), p = singular values / their sum + 1e-7 (RankMe, Garrido et al. 2023).

    features ``[N, D]``, neither centred nor scaled.
    """
    singular = np.linalg.svd(features, compute_uv=False)
    share = singular / max(float(singular.sum()), 1e-300) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def feature_spread(features: FloatArray) -> float:
    """Mean deviation of the unit features' coordinates times sqrt(D): near 1 if spread out, 0 if collapsed.

    Chen and He 2021 (SimSiam), fig. 2, where a collapsed encoder has 0 and isotropic features have 1/sqrt(D).
    """
    return float(unit_rows(features).std(0).mean() * np.sqrt(features.shape[1]))


def collapse(features: FloatArray, started_from: FloatArray) -> bool:
    """Whether training has made all images look the same to an encoder; both ``[N, D]``, of the same images.

    So it is where ``feature_spread`` is below 0.1 and below a quarter of what it was before training: the bounds of the
    alarm in training. The second one, as the features of nearly empty images lie close together from the start.
    """
    spread = feature_spread(features)
    return spread < COLLAPSED_SPREAD and spread < LOST_SPREAD * feature_spread(started_from)


def alignment(first: FloatArray, second: FloatArray) -> float:
    """Mean of |u - v|^2 over pairs of unit features of two views of an image: 0 (the same) to 4 (opposite).

    first, second ``[N, D]``: row i of both is image i. Wang and Isola 2020, sec. 4.1.2, with alpha 2.
    """
    return float(np.square(unit_rows(first) - unit_rows(second)).sum(1).mean())


def uniformity(features: FloatArray) -> float:
    """log of the mean of exp(-2 |u - v|^2) over all pairs of images: 0 (all alike) down to about -4 (spread evenly).

    features ``[N, D]``, made unit vectors; of more than ``MOST_FOR_PAIRS`` rows a sample, always the same one. NaN of
    fewer than two rows. Wang and Isola 2020, sec. 4.1.2, with t 2.
    """
    unit = unit_rows(_sample(features))
    count, total = len(unit), 0.0
    if count < 2:
        return float("nan")
    length = np.einsum("nd,nd->n", unit, unit)  # 1, but 0 for a row of zeros
    for start in range(0, count, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        distance = length[rows, None] + length[start:] - 2 * unit[rows] @ unit[start:].T  # [rows, rows and later]
        total += float(np.triu(np.exp(-2 * distance), 1).sum())
    return float(np.log(total / (count * (count - 1) / 2)))


def _sample(features: FloatArray) -> FloatArray:
    if len(features) <= MOST_FOR_PAIRS:
        return features
    chosen = numpy_generator(0, "uniformity").choice(len(features), MOST_FOR_PAIRS, replace=False)
    return features[np.sort(chosen)]
