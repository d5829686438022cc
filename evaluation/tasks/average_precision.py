"""Average precision of detections, counted as COCO does (Lin et al. 2014; its code, for objects of all sizes).

In each image and class, detections take their true box in the order of their scores: of those not taken the one they
overlap most, where the overlap (intersection over union) reaches the threshold. What takes none is a false alarm.
Average precision is the mean, over the 101 recalls 0, .01, ..., 1, of the best precision at that recall or a greater
one, 0 where it is not reached; the figure is its mean over thresholds and over the classes that have a true box.

Two deviations. Detections of equal score come in together, so that the order of the images does not matter. COCO
counts the 100 surest of an image *and class*; here it is all that the caller gives.

Taking is done once, an image at a time (``matches``), and kept as text, from which the precision of any selection of
images is made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from evaluation.protocols.detection_types import Detected
from evaluation.statistics.intervals import FloatArray, IntArray
from imaging.annotations.boxes import Boxes

THRESHOLDS: tuple[float, ...] = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0.0, 1.0, 101)
KEPT_TABLES = 20_000
"""Images whose text is not read again for every selection."""

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Table:
    """What came of one image's detections, the surest first.

    truth: ``[K]`` true boxes of each class; kinds, scores: ``[M]``; hits: ``[M, 10]``, whether a true box was taken at
    each of ``THRESHOLDS``.
    """

    truth: IntArray
    kinds: IntArray
    scores: FloatArray
    hits: BoolArray

    def written(self) -> str:
        """One line of JSON; a detection's hits are the bits of a whole number, the first threshold's the lowest."""
        bits = self.hits @ (1 << np.arange(len(THRESHOLDS)))
        scores = [float(f"{score:.7g}") for score in self.scores]
        columns = {"truth": self.truth.tolist(), "kinds": self.kinds.tolist(), "scores": scores, "hits": bits.tolist()}
        return json.dumps(columns, separators=(",", ":"))


@lru_cache(maxsize=KEPT_TABLES)
def read_table(text: str) -> Table:
    """What ``written`` wrote."""
    columns = json.loads(text)
    truth, kinds, bits = (np.array(columns[name], dtype=np.int64) for name in ("truth", "kinds", "hits"))
    hits = (bits[:, None] >> np.arange(len(THRESHOLDS))) & 1 > 0
    return Table(truth, kinds, np.array(columns["scores"], dtype=np.float64), hits)


def thresholds_of() -> tuple[float, ...]:
    """COCO's overlaps .5, .55, ..., .95."""
    return THRESHOLDS


def matches(detected: Sequence[Detected], truth: Sequence[Boxes], classes: int) -> list[str]:
    """For each image the text of its table, enough for average precision; nothing of it says where a box is."""
    return [_match(found, true, classes).written() for found, true in zip(detected, truth, strict=True)]


def average_precision(tables: Sequence[str], classes: Sequence[str], thresholds: Sequence[float]) -> float:
    """Of the images with these texts the mean over ``thresholds`` and classes, in [0, 1]; NaN without a true box.

    thresholds: some of ``THRESHOLDS``.
    """
    images = [read_table(text) for text in tables]
    places = [THRESHOLDS.index(threshold) for threshold in thresholds]
    truth = sum((table.truth for table in images), np.zeros(len(classes), dtype=np.int64))
    if not truth.any():
        return float("nan")
    kinds, scores, hits = (
        np.concatenate([getattr(table, name) for table in images]) for name in ("kinds", "scores", "hits")
    )
    found = [
        _of_class(scores[kinds == kind], hits[kinds == kind][:, places], int(count))
        for kind, count in enumerate(truth)
        if count
    ]
    return float(np.mean(found))


def overlaps(first: NDArray[np.float32], second: NDArray[np.float32]) -> FloatArray:
    """Intersection over union ``[M, N]`` of boxes ``[M, 4]`` and ``[N, 4]``; 0 for boxes without extent."""
    one, other = first.astype(np.float64)[:, None], second.astype(np.float64)[None]
    low, high = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    shared = np.clip(high - low, 0.0, None).prod(-1)
    areas = [np.clip(boxes[..., 2:] - boxes[..., :2], 0.0, None).prod(-1) for boxes in (one, other)]
    return np.asarray(shared / np.maximum(areas[0] + areas[1] - shared, 1e-12))


def _match(found: Detected, truth: Boxes, classes: int) -> Table:
    order = np.argsort(-found.scores, kind="stable")
    boxes, kinds = found.boxes[order], found.kinds[order]
    hits = np.zeros((len(order), len(THRESHOLDS)), dtype=np.bool_)
    for kind in range(classes):
        own = kinds == kind
        hits[own] = _taken(overlaps(boxes[own], truth.boxes[truth.kinds == kind]))
    return Table(np.bincount(truth.kinds, minlength=classes), kinds, found.scores[order], hits)


def _taken(overlap: FloatArray) -> BoolArray:
    """``[M, 10]``, whether each detection takes a true box; overlap ``[M, N]``, the surest detection first."""
    needed = np.array(THRESHOLDS)[:, None]
    hits = np.zeros((len(overlap), len(needed)), dtype=np.bool_)
    free = np.ones((len(needed), overlap.shape[1]), dtype=np.bool_)
    for row in np.flatnonzero((overlap >= THRESHOLDS[0]).any(axis=1)):
        open_to = np.where(free & (overlap[row] >= needed), overlap[row], 0.0)  # [10, N]
        best, hits[row] = open_to.argmax(axis=1), open_to.any(axis=1)
        free[hits[row], best[hits[row]]] = False
    return hits


def _of_class(scores: FloatArray, hits: BoolArray, truth: int) -> float:
    """Mean over thresholds of one class's average precision; scores ``[M]``, hits ``[M, T]``, ``truth`` true boxes."""
    order = np.argsort(-scores)
    last = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # of each run of equal scores
    right = hits[order].cumsum(axis=0)[last]  # [R, T]
    recall = right / truth
    precision = np.maximum.accumulate((right / (last + 1)[:, None])[::-1], axis=0)[::-1]
    reached = np.concatenate([precision, np.zeros((1, hits.shape[1]))])
    found = [reached[np.searchsorted(recall[:, place], RECALLS), place] for place in range(hits.shape[1])]
    return float(np.mean(found))
