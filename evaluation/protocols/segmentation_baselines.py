"""Baselines of segmentation without an encoder: nothing anywhere, and each pixel by its intensity and place."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluation.protocols.logistic import Standard, path
from evaluation.statistics.intervals import FloatArray, IntArray
from foundation.randomness import numpy_generator

SAMPLED = 20_000
"""Training pixels that the regression is fitted on."""
BLURS = (1 / 64, 1 / 16)
"""Deviations of the two Gaussian blurs, as shares of the image's side."""

Mask = NDArray[np.uint8]


def background_masks(shape: Sequence[int]) -> Mask:
    """Masks ``[N, S, S]`` or ``[N, D, S, S]`` of that shape without any structure: Dice 0 where there is one."""
    return np.zeros(tuple(shape), dtype=np.uint8)


def pixel_masks(train: tuple[NDArray[Any], NDArray[Any]], test: NDArray[Any], classes: int, seed: int) -> Mask:
    """Masks of the test images by a logistic regression over single pixels (voxels).

    Each pixel has its intensities, those of two Gaussian blurs, and its place. The regression is fitted on 20,000
    training pixels, equally many of each class, so that rare structures count; the classes' true shares then come back
    as priors, and the likeliest class is taken.

    train: images ``[N, C, S, S]`` (or ``[N, C, D, S, S]``) in [0, 1] and masks ``[N, S, S]`` of ``classes`` values.
    """
    images, masks = train
    chosen, values, present = _sample(masks, classes, seed)
    described = _described_pixels(images, chosen)
    if len(present) == 1:
        return np.full((len(test), *test.shape[2:]), present[0], dtype=np.uint8)
    standard = Standard.of(described)
    codes = np.searchsorted(present, values).astype(np.int64)
    fitted = next(path(standard(described), codes, len(present), (1.0,)))
    counts = np.bincount(masks.reshape(-1), minlength=classes)[present]
    prior = counts / np.bincount(codes)  # up to a factor: true share by sampled share
    found = [(fitted.probabilities(standard(described_pixels(image))) * prior).argmax(1) for image in test]
    return np.asarray(present[np.stack(found)], dtype=np.uint8).reshape(len(test), *test.shape[2:])


def described_pixels(image: NDArray[Any]) -> FloatArray:
    """``[pixels, F]`` of one image ``[C, *sides]``: intensities, two blurs of them, places and their squares.

    Places run from -1 to 1; with the square a class can be likelier in the middle than on both sides.
    """
    exact, sides = image.astype(np.float64), image.shape[1:]
    blurred = [ndimage.gaussian_filter(exact, (0, *(share * side for side in sides))) for share in BLURS]
    lines = [(2 * np.arange(side) + 1) / side - 1 for side in sides]
    places = np.stack(np.meshgrid(*lines, indexing="ij"))
    rows = np.concatenate([exact, *blurred, places, places**2])
    return np.ascontiguousarray(rows.reshape(len(rows), -1).T)


def _sample(masks: NDArray[Any], classes: int, seed: int) -> tuple[IntArray, IntArray, IntArray]:
    """Places in the flattened masks in order, their classes, and which classes there are."""
    flat, draw = masks.reshape(-1), numpy_generator(seed, "pixels")
    where = {value: np.flatnonzero(flat == value) for value in range(classes)}
    present = [value for value, places in where.items() if len(places)]
    each = SAMPLED // len(present)
    chosen = [draw.choice(where[value], min(each, len(where[value])), replace=False) for value in present]
    places = np.sort(np.concatenate(chosen)).astype(np.int64)
    return places, flat[places].astype(np.int64), np.array(present, dtype=np.int64)


def _described_pixels(images: NDArray[Any], chosen: IntArray) -> FloatArray:
    """``[len(chosen), F]``, an image at a time."""
    pixels = int(np.prod(images.shape[2:]))
    number, place = np.divmod(chosen, pixels)
    return np.concatenate([described_pixels(images[one])[place[number == one]] for one in np.unique(number)])
