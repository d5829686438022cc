"""k nearest neighbours in an encoder's features (Wu et al. 2018, sec. 3.4; Caron et al. 2021, appendix).

Similarities are computed in float32, some queries at a time. All that may be among the nearest, by a bound on the
rounding error, is ranked again in float64: the neighbours are those that a sort in float64 gives.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.intervals import FloatArray, IntArray

NEIGHBOURS = 20
TEMPERATURE = 0.07
QUERIES_AT_ONCE = 256
GROUPS = 64
"""Groups of the bank for each neighbour, whose largest similarities bound the neighbours' from below."""
CROWD = 64
"""Candidates for each neighbour above which float32 cannot tell images apart: the features have all but collapsed."""


def lengths(features: FloatArray) -> FloatArray:
    """``[N]`` Euclidean lengths of rows; 1 for a row of zeros."""
    length = np.sqrt(np.einsum("nd,nd->n", features, features))
    return np.where(length > 0, length, 1.0)


def unit_rows(features: FloatArray) -> FloatArray:
    """Rows of length 1; a row of zeros stays zero."""
    return np.asarray(features / lengths(features)[:, None])


def nearest(query: FloatArray, bank: FloatArray, neighbours: int) -> tuple[IntArray, FloatArray]:
    """Places in the bank and cosines of the nearest images, both ``[Q, neighbours]``, the nearest first.

    query ``[Q, D]``, bank ``[N, D]``, neighbours <= N. Of equally near images the earlier in the bank comes first.
    """
    asked, length = unit_rows(query), lengths(bank)
    coarse = np.empty((bank.shape[1], len(bank)), dtype=np.float32)
    np.divide(bank.T, length, out=coarse, casting="same_kind")
    similarity = np.empty((min(QUERIES_AT_ONCE, len(asked)), len(bank)), dtype=np.float32)
    places = np.empty((len(asked), neighbours), dtype=np.int64)
    cosines = np.empty((len(asked), neighbours))
    crowded = np.zeros(len(asked), dtype=np.bool_)
    for rows in _blocks(np.arange(len(asked))):
        np.matmul(asked[rows].astype(np.float32), coarse, out=similarity[: len(rows)])
        near = _candidates(similarity[: len(rows)], neighbours, asked.shape[1])
        crowded[rows] = near.sum(1) > CROWD * neighbours
        clear = ~crowded[rows]
        places[rows[clear]], cosines[rows[clear]] = _ranked(asked[rows[clear]], bank, length, near[clear], neighbours)
    if crowded.any():
        first = _first_alike(bank)
        for rows in _blocks(np.flatnonzero(crowded)):
            places[rows], cosines[rows] = _sorted((asked[rows] @ bank.T / length)[:, first], neighbours)
    return places, cosines


def _blocks(rows: IntArray) -> list[IntArray]:
    return [rows[start : start + QUERIES_AT_ONCE] for start in range(0, len(rows), QUERIES_AT_ONCE)]


def _candidates(similarity: NDArray[np.float32], neighbours: int, width: int) -> NDArray[np.bool_]:
    """``[Q, N]``: which images may be among the nearest, however float32 has rounded.

    As many groups as there are neighbours have an image at least as near as ``least``. A product of unit vectors of
    width D is off by less than (D + 2) 2^-24, in whatever order it was summed (Higham 2002, sec. 3.1).
    """
    count = similarity.shape[1]
    size = max(1, count // (GROUPS * neighbours))
    groups = count // size
    largest = similarity[:, : groups * size].reshape(len(similarity), size, groups).max(1)
    least = np.partition(largest, groups - neighbours, axis=1)[:, groups - neighbours]
    error = np.float32(1.01 * (width + 2) * 2.0**-24)
    return np.asarray(similarity >= (least - 2 * error)[:, None])


def _ranked(
    asked: FloatArray, bank: FloatArray, length: FloatArray, near: NDArray[np.bool_], neighbours: int
) -> tuple[IntArray, FloatArray]:
    """The nearest of the candidates, by float64 products that do not depend on an image's place."""
    rows, columns = np.divmod(np.flatnonzero(near), near.shape[1])
    cosine = np.einsum("ij,ij->i", asked[rows], bank[columns]) / length[columns]
    order = np.lexsort((-cosine, rows))  # stable: columns rise within a row
    ends = np.cumsum(np.bincount(rows, minlength=len(near)))
    first = np.concatenate([[0], ends[:-1]])[: len(near)]
    chosen = order[first[:, None] + np.arange(neighbours)]
    return columns[chosen], cosine[chosen]


def _first_alike(bank: FloatArray) -> IntArray:
    """``[N]``: for each row the place of the first one that equals it, so that both can be given the same cosine."""
    whole = np.ascontiguousarray(bank + 0.0).view(np.dtype((np.void, bank.shape[1] * bank.itemsize))).ravel()
    _, first, copy = np.unique(whole, return_index=True, return_inverse=True)
    return np.asarray(first[copy], dtype=np.int64)


def _sorted(cosine: FloatArray, neighbours: int) -> tuple[IntArray, FloatArray]:
    """Places and cosines ``[Q, neighbours]`` of the largest of all, ``[Q, N]``."""
    least = np.partition(cosine, -neighbours, axis=1)[:, -neighbours]
    places = np.empty((len(cosine), neighbours), dtype=np.int64)
    for row, (values, smallest) in enumerate(zip(cosine, least, strict=True)):
        columns = np.flatnonzero(values >= smallest)
        places[row] = columns[np.argsort(-values[columns], kind="stable")[:neighbours]]
    return places, np.take_along_axis(cosine, places, axis=1)


def _shares(query: FloatArray, bank: FloatArray) -> tuple[IntArray, FloatArray]:
    """Places and shares of the vote, both ``[Q, k]``, of 20 neighbours (of a tenth of the bank, if that is fewer)."""
    places, cosines = nearest(query, bank, max(1, min(NEIGHBOURS, len(bank) // 10)))
    weight = np.exp(cosines / TEMPERATURE)
    return places, weight / weight.sum(1, keepdims=True)


def knn_scores(query: FloatArray, bank: FloatArray, labels: IntArray, classes: int) -> FloatArray:
    """``[Q, K]`` votes of 20 neighbours (of a tenth of the bank, if that is fewer), as shares that sum to 1."""
    return knn_findings(query, bank, (labels[:, None] == np.arange(classes)).astype(np.int64))


def knn_findings(query: FloatArray, bank: FloatArray, labels: NDArray[Any]) -> FloatArray:
    """``[Q, L]`` share of the vote of each finding; labels ``[N, L]``, 0 or 1."""
    places, shares = _shares(query, bank)
    return np.asarray(np.einsum("qk,qkl->ql", shares, labels[places].astype(np.float64)))


def knn_values(query: FloatArray, bank: FloatArray, values: FloatArray) -> FloatArray:
    """``[Q]`` mean of the neighbours' values ``[N]``, weighted as votes are."""
    places, shares = _shares(query, bank)
    return np.asarray((shares * values[places]).sum(1))
