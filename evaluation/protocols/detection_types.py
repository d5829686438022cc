"""What is found in an image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.intervals import FloatArray, IntArray

MOST_BOXES = 100
"""Detections of an image that COCO counts, and the baselines keep."""


@dataclass(frozen=True, eq=False)
class Detected:
    """The answer to ``imaging.annotations.boxes.Boxes``, the surest first.

    boxes: float32 ``[M, 4]``, x0, y0, x1, y1 in pixels of the encoder's image; kinds: int64 ``[M]``, places in the
    task's classes; scores: float64 ``[M]`` in (0, 1).
    """

    boxes: NDArray[np.float32]
    kinds: IntArray
    scores: FloatArray
