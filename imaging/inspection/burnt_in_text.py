"""A plain detector of text burnt into images: no learning, nothing to download.

Letters are thin strokes of one brightness on something darker (or brighter), and stand on a common baseline. A white
top-hat keeps what is thinner than a stroke; its connected parts, at several thresholds, that have a letter's shape are
chained where neighbours share baseline, height and brightness. Anatomy makes such parts, but hardly ever three in a
row on one line. It reads nothing: neither letters nor languages matter. It misses slanted and joined writing, single
letters, labels that hardly differ from what is behind them, and letters below 8 pixels or above 64. How often, is
measured: benchmarks/results/burnt_in_text.md.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from imaging.listing.clusters import join
from imaging.reading.formats import FloatArray

FINDS, FALSE_ALARMS = 0.94, 0.01
"""Share of bright drawn labels of 10 to 36 pixels that are found, and of images without text that are reported."""

LONGEST_SIDE = 1024
STROKE = 7  # pixels: thicker than any stroke of letters up to 50 pixels
CONTRASTS = (0.2, 0.35, 0.55)  # of the image's range: letters on bright ground come apart at a higher one
SHORTEST, TALLEST = 5, 64  # pixels; a capital of a 8 pixel font is 5 or 6 high
WIDEST = 2.5  # times its height: two letters that touch, no more
FEWEST = 3

Marks = npt.NDArray[np.float64]
"""``[N, 6]``: top, left, bottom, right (exclusive), brightest value, greatest contrast of what may be a letter."""


@dataclass(frozen=True)
class TextLine:
    """A line of at least three letters, or what looks so, and where it is in the image, in pixels."""

    letters: int
    x: int
    y: int
    height: int


def find_text(pixels: FloatArray) -> TextLine | None:
    """The longest line of text in an image [C, H, W] of any range, None where there is none.

    Channels are averaged. An image with a side above 1024 is first shrunk by a whole factor.
    """
    grey = pixels.mean(axis=0, dtype=np.float64)
    step = -(-max(grey.shape) // LONGEST_SIDE)
    grey = _shrunk(grey, step)
    span = float(np.ptp(grey))
    if span == 0 or min(grey.shape) < 2 * SHORTEST:
        return None
    unit = ((grey - grey.min()) / span).astype(np.float32)
    found: list[TextLine] = []
    for bright in (unit, 1 - unit):  # light letters, then dark ones
        hat = bright - ndimage.grey_opening(bright, size=(STROKE, STROKE))
        for contrast in CONTRASTS:
            found += _lines(_marks(bright, hat, contrast), step)
    return max(found, key=lambda line: line.letters, default=None)


def _shrunk(grey: npt.NDArray[np.float64], step: int) -> npt.NDArray[np.float64]:
    """Means of blocks of ``step`` by ``step`` pixels."""
    height, width = (side // step * step for side in grey.shape)
    blocks = grey[:height, :width].reshape(height // step, step, width // step, step)
    return np.asarray(blocks.mean(axis=(1, 3)))


def _marks(bright: FloatArray, hat: FloatArray, contrast: float) -> Marks:
    """Connected parts of the thin and bright that have the size and shape of a letter."""
    labels, count = ndimage.label(hat > contrast, structure=np.ones((3, 3)))
    if count < FEWEST:
        return np.empty((0, 6))
    rows, columns = np.nonzero(labels)
    order = np.argsort(labels[rows, columns], kind="stable")
    rows, columns = rows[order], columns[order]
    areas = np.bincount(labels[rows, columns])[1:]
    first = np.cumsum(areas) - areas
    top, bottom = np.minimum.reduceat(rows, first), np.maximum.reduceat(rows, first) + 1
    left, right = np.minimum.reduceat(columns, first), np.maximum.reduceat(columns, first) + 1
    peak = np.maximum.reduceat(bright[rows, columns], first)
    steepest = np.maximum.reduceat(hat[rows, columns], first)
    height, width = bottom - top, right - left
    fill = areas / (height * width)
    keep = (height >= SHORTEST) & (height <= TALLEST) & (width <= WIDEST * height) & (fill >= 0.15)
    keep &= (fill <= 0.95) | (width <= 0.4 * height)  # a full box is no letter, unless it is an l or a 1
    marks: Marks = np.column_stack([top, left, bottom, right, peak, steepest])[keep]
    return marks


def _lines(marks: Marks, step: int) -> list[TextLine]:
    """Chains of neighbouring letters, those that stand on one line and are as high as each other."""
    pairs = _neighbours(marks)
    if not len(pairs):
        return []
    roots = join(len(marks), pairs)
    found = []
    for root in np.flatnonzero(np.bincount(roots) >= FEWEST):
        top, left, bottom, _, _, contrast = marks[roots == root].T
        height = float(np.median(bottom - top))
        below, above = float(np.std(bottom)), float(np.std(top))  # round letters and commas reach below the line
        few = len(top) == FEWEST
        level = below <= max(0.5, (0.03 if few else 0.1) * height) and above <= 0.25 * height
        if level and contrast.mean() >= (0.4 if few else 0.3):
            place = [round(float(value) * step) for value in (left.min(), top.min(), height)]
            found.append(TextLine(len(top), *place))
    return found


def _neighbours(marks: Marks) -> npt.NDArray[np.int64]:
    """Pairs ``[P, 2]`` of marks that could be letters side by side."""
    top, left, bottom, right, peak, _ = marks.T
    height = bottom - top
    found = [np.empty((0, 2), dtype=np.int64)]
    shortest = float(SHORTEST)
    while shortest <= TALLEST:  # an octave of heights at a time, so that the search goes no further than it must
        alike = np.flatnonzero((height >= shortest) & (height < 3 * shortest))
        if len(alike) > 1:
            places = np.column_stack([(left + right)[alike] / 2, 8 * bottom[alike]])  # a baseline differs little
            near = cKDTree(places).query_pairs(7 * shortest, output_type="ndarray")
            found.append(alike[near])
        shortest *= 2
    one, other = np.unique(np.sort(np.concatenate(found), axis=1), axis=0).T
    taller, shorter = np.maximum(height[one], height[other]), np.minimum(height[one], height[other])
    gap = np.maximum(left[one], left[other]) - np.minimum(right[one], right[other])
    beside = (gap <= taller) & (gap >= -0.2 * taller) & (taller <= 1.5 * shorter + 1)
    beside &= np.abs(bottom[one] - bottom[other]) <= np.maximum(1, 0.08 * taller)
    beside &= np.abs(peak[one] - peak[other]) <= 0.12
    pairs: npt.NDArray[np.int64] = np.column_stack([one, other])[beside]
    return pairs
