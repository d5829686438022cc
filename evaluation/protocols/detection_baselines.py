"""Baselines of detection without an encoder: nothing anywhere, and blobs on either side of a threshold."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluation.protocols.detection_types import MOST_BOXES, Detected
from evaluation.protocols.logistic import Standard, path
from evaluation.statistics.intervals import FloatArray, IntArray
from evaluation.tasks.average_precision import overlaps
from imaging.annotations.boxes import Boxes

GREYS = 256
SMALLEST = 5e-4
"""Smaller blobs, as a share of the image's pixels, are noise."""
SAME = 0.5
"""Overlap from which a blob is the object in the true box."""
SUREST = 1e-9
"""Scores keep this far from 0 and 1."""

Floats = NDArray[np.float32]


def nothing_found(count: int) -> list[Detected]:
    """No box in any of ``count`` images: average precision 0."""
    nothing = Detected(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0))
    return [nothing] * count


def blobs_found(train: tuple[NDArray[Any], Sequence[Boxes]], test: NDArray[Any], classes: int) -> list[Detected]:
    """Boxes around blobs: pixels that hang together on one side of the image's own threshold (Otsu 1979).

    Dark and bright blobs both count. Which are objects, and of which class, is told by a logistic regression on side,
    size, shape and mean intensities, fitted on the training images' blobs: one that overlaps a true box by half or
    more is of its class, any other is nothing. At most 100 of an image are kept.

    train: images ``[N, C, S, S]`` in [0, 1] and their boxes of ``classes`` classes. No random choice.
    """
    known = [blobs(image) for image in train[0]]
    codes = np.concatenate([_codes(boxes, true) for (boxes, _), true in zip(known, train[1], strict=True)])
    unseen = [blobs(image) for image in test]
    ends = np.cumsum([len(boxes) for boxes, _ in unseen])[:-1]
    described, asked = (np.concatenate([rows for _, rows in part]) for part in (known, unseen))
    likely = _likely(described, codes, asked, classes + 1)[:, 1:].clip(SUREST, 1 - SUREST)
    found = []
    for (boxes, _), scores in zip(unseen, np.split(likely, ends), strict=True):
        order = np.argsort(-scores.max(axis=1), kind="stable")[:MOST_BOXES]
        found.append(Detected(boxes[order], scores.argmax(axis=1)[order], scores.max(axis=1)[order]))
    return found


def blobs(image: NDArray[Any]) -> tuple[Floats, FloatArray]:
    """Boxes ``[M, 4]`` of the blobs of one image ``[C, S, S]``, the dark ones first, and their features ``[M, F]``.

    Black bars beside an image that is not square are no part of it.
    """
    grey = image.mean(axis=0, dtype=np.float64)
    top, left, bottom, right = _shown(grey)
    shown, colours = grey[top:bottom, left:right], image[:, top:bottom, left:right]
    bright = shown > otsu(shown)
    boxes, rows = [], []
    for side, mask in enumerate((~bright, bright)):
        labels = ndimage.label(mask)[0]
        for number, (down, across) in enumerate(ndimage.find_objects(labels), start=1):
            own = labels[down, across] == number
            if own.sum() < SMALLEST * grey.size:
                continue
            height, width = own.shape
            boxes.append((left + across.start, top + down.start, left + across.stop, top + down.stop))
            sizes = (np.log(own.sum() / grey.size), np.log(height * width / grey.size), np.log(width / height))
            rows.append((side, *sizes, own.mean(), *colours[:, down, across][:, own].mean(axis=1, dtype=np.float64)))
    found = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    return found, np.array(rows, dtype=np.float64).reshape(-1, 5 + len(image))


def otsu(grey: FloatArray) -> float:
    """The threshold between the two groups of grey values in [0, 1] whose means lie furthest apart for their sizes."""
    counts, edges = np.histogram(grey, bins=GREYS, range=(0.0, 1.0))
    below = counts.cumsum()[:-1]
    sums = (counts * (edges[:-1] + edges[1:]) / 2).cumsum()
    above = counts.sum() - below
    apart = sums[:-1] / np.maximum(below, 1) - (sums[-1] - sums[:-1]) / np.maximum(above, 1)
    return float(edges[1 + (below * above * apart**2).argmax()])


def _shown(grey: FloatArray) -> tuple[int, int, int, int]:
    """Top, left, bottom and right of what is not all black; of a black image, all."""
    rows, columns = (np.flatnonzero(grey.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return 0, 0, *grey.shape
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _codes(boxes: Floats, truth: Boxes) -> IntArray:
    """``[M]``: 0 for nothing, else 1 + the class of the true box that is overlapped most."""
    if not len(truth.boxes):
        return np.zeros(len(boxes), dtype=np.int64)
    shared = overlaps(boxes, truth.boxes)
    return np.where(shared.max(axis=1) >= SAME, 1 + truth.kinds[shared.argmax(axis=1)], 0)


def _likely(described: FloatArray, codes: IntArray, asked: FloatArray, classes: int) -> FloatArray:
    """Probabilities ``[M, classes]`` of blobs ``asked``; where training has blobs of one class only, it is certain."""
    present = np.unique(codes)
    found = np.zeros((len(asked), classes))
    if len(present) < 2:
        found[:, present] = 1.0
        return found
    standard = Standard.of(described)
    fitted = next(path(standard(described), np.searchsorted(present, codes), len(present), (1.0,)))
    found[:, present] = fitted.probabilities(standard(asked))
    return found
