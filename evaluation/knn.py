"""k nearest neighbours in an encoder's features (Wu et al. 2018, sec. 3.4; Caron et al. 2021, appendix)."""

import numpy as np

from evaluation.intervals import FloatArray, IntArray

NEIGHBOURS = 20
TEMPERATURE = 0.07


def unit_rows(features: FloatArray) -> FloatArray:
    """Rows of length 1; a row of zeros stays zero."""
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return np.asarray(features / np.where(length > 0, length, 1.0))


def votes(
    query: FloatArray,
    bank: FloatArray,
    labels: IntArray,
    classes: int,
    *,
    neighbours: int,
    temperature: float = TEMPERATURE,
) -> FloatArray:
    """``[Q, K]`` sums of exp(cosine / temperature) over the nearest pictures of the bank, by class.

    query ``[Q, D]``, bank ``[N, D]``, labels ``[N]``. Of equally near pictures the earlier in the bank counts.
    """
    similarity = unit_rows(query) @ unit_rows(bank).T
    nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :neighbours]
    weight = np.exp(np.take_along_axis(similarity, nearest, axis=1) / temperature)
    kind = labels[nearest]
    return np.stack([(weight * (kind == k)).sum(1) for k in range(classes)], axis=1)


def knn_scores(query: FloatArray, bank: FloatArray, labels: IntArray, classes: int) -> FloatArray:
    """Votes of 20 neighbours (of a tenth of the bank, if that is fewer), as shares that sum to 1."""
    neighbours = max(1, min(NEIGHBOURS, len(bank) // 10))
    counted = votes(query, bank, labels, classes, neighbours=neighbours)
    return np.asarray(counted / counted.sum(1, keepdims=True))
