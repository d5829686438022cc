"""Drawing of a patient's phantom slices: an anatomy they share, and a lesion each whose texture carries the class.

Lengths are in half image sides (the image spans [-1, 1] both ways), so that any size shows the same anatomy.
Both classes have lesions of the same outlines, areas, mean and spread of brightness, and the same radial power
spectrum; they differ in its directions alone: granular (class 0, every direction) or striated (class 1, one direction).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]
"""One channel ``[size, size]``, or ``[N, size, size]`` of N slices; a tissue's brightness lies within [0, 1]."""

DRAWING_VERSION = 2  # raise it when any drawing changes, so that kept phantoms are drawn anew
GREY, WHITE, FLUID, BONE = 0.42, 0.58, 0.14, 0.85
LESION_BRIGHTNESS = 0.6
LESION_RADIUS = (0.42, 0.52)
TEXTURE_SPREAD = 0.1
TEXTURE_CYCLES = (5.0, 6.5)  # per unit length: a wave is 5 to 6.4 pixels long at 64 pixels
STRIATED_HALF_ANGLE = 0.2  # radians
VESSELS = 4  # dark ones, and as many bright ones
LEFT_LEANING = 0.1  # class 1 lies on the left this much more often: the little that raw pixels can tell


@dataclass(frozen=True)
class Anatomy:
    """What a patient's slices have in common."""

    axes: tuple[float, float]
    tilt: float
    outline: tuple[float, float, float]
    ventricle: tuple[float, float]
    folds: int
    lesion_radius: float
    leaning: float
    """Probability that an image of this patient is of class 1."""


def draw_anatomy(generator: np.random.Generator) -> Anatomy:
    """A new patient."""
    return Anatomy(
        axes=(generator.uniform(0.9, 0.97), generator.uniform(0.8, 0.9)),
        tilt=generator.normal(0.0, 0.1),
        outline=(
            generator.uniform(0.0, 0.03),
            generator.uniform(0.0, 0.03),
            generator.uniform(0.0, 2 * np.pi),
        ),
        ventricle=(generator.uniform(0.1, 0.22), generator.uniform(0.05, 0.09)),
        folds=int(generator.integers(2**31)),
        lesion_radius=generator.uniform(*LESION_RADIUS),
        leaning=generator.beta(3.0, 3.0),
    )


def draw_slices(
    anatomy: Anatomy, labels: NDArray[np.int64], size: int, generator: np.random.Generator
) -> tuple[Image, NDArray[np.bool_]]:
    """Slices ``[N, size, size]`` of a patient as an ideal scanner would see them, and the masks of their lesions.

    ``labels`` ``[N]`` says which texture each lesion has; no mask is empty.
    """
    count = len(labels)
    side = ((np.arange(size, dtype=np.float32) + 0.5) * 2.0 / size - 1.0).astype(np.float32)
    rows, columns = side[:, None], side[None, :]
    level = _each(generator.uniform(0.92, 1.0, count))  # slices further from the middle are smaller
    angle = _each(anatomy.tilt + generator.normal(0.0, 0.03, count))
    y, x = rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle)
    depth = _depth_below_skin(y, x, anatomy, level)
    image = _head(depth, anatomy, size, generator)
    image = _add_ventricles(image, y, x, anatomy, level * _each(generator.uniform(0.85, 1.15, count)))
    image += _vessels(side, count, generator) * _soft(depth - 0.16, size)
    return _add_lesions(image, rows, columns, _soft(depth - 0.14, size), anatomy, labels, generator)


def _each(values: NDArray[np.float64]) -> Image:
    """A number a slice, ``[N]``, as ``[N, 1, 1]``."""
    return values.astype(np.float32)[:, None, None]


def _soft(distance: Image, size: int) -> Image:
    """0 outside, 1 inside, a ramp of about one pixel at distance 0: a drawn edge without stairs."""
    return np.asarray(np.clip(distance * np.float32(size / 2.0) + np.float32(0.5), 0.0, 1.0))


def _direction(y: Image, x: Image) -> tuple[NDArray[np.complex64], Image]:
    """exp(i angle) of a place, whose powers are the waves around an outline, and its distance from 0."""
    place = np.asarray(x + np.complex64(1j) * y, dtype=np.complex64)
    distance = np.asarray(np.abs(place), dtype=np.float32)
    return np.asarray(place / np.maximum(distance, np.float32(1e-6)), dtype=np.complex64), distance


def _depth_below_skin(y: Image, x: Image, anatomy: Anatomy, level: Image) -> Image:
    """Roughly the distance to the head's outline, positive inside."""
    third, fourth, phase = anatomy.outline
    turn, _ = _direction(y, x)
    cube = turn * turn * turn
    wave = 1.0 + (np.complex64(third * np.exp(1j * phase)) * cube).real
    wave += (np.complex64(fourth * np.exp(-1j * phase)) * cube * turn).real
    reach = np.hypot(y / np.float32(anatomy.axes[0]), x / np.float32(anatomy.axes[1])) / (level * wave)
    return np.asarray((1.0 - reach) * level * np.float32(min(anatomy.axes)))


def _head(depth: Image, anatomy: Anatomy, size: int, generator: np.random.Generator) -> Image:
    """Scalp, bone, fluid, then a brain whose grey matter folds into the white; folds shift a little between slices."""
    folds = band_noise(1, size, (1.5, 3.5), np.random.default_rng(anatomy.folds)) * np.float32(0.85)
    folds = folds + np.float32(0.5) * band_noise(len(depth), size, (1.5, 3.5), generator)
    white = _soft(np.asarray((depth - 0.27 + 0.06 * folds) * 0.5, dtype=np.float32), size)
    brain = GREY + (WHITE - GREY) * white
    image = 0.5 * _soft(depth, size)
    image += (BONE - 0.5) * _soft(depth - 0.035, size)
    image += (FLUID - BONE) * _soft(depth - 0.095, size)
    inside = _soft(np.asarray(depth - 0.13 + 0.012 * folds, dtype=np.float32), size)
    return np.asarray(image + (brain - image) * inside, dtype=np.float32)


def _add_ventricles(image: Image, y: Image, x: Image, anatomy: Anatomy, scale: Image) -> Image:
    """Two dark horns beside the midline."""
    long, wide = np.float32(anatomy.ventricle[0]) * scale, np.float32(anatomy.ventricle[1]) * scale
    bow, along = 0.08 + 0.25 * np.abs(y), np.square((y + 0.04) / (2 * long))
    for side in (-1.0, 1.0):
        horn = _soft((1.0 - np.sqrt(along + np.square((x - side * bow) / wide))) * wide, image.shape[-1])
        image = image + (FLUID - image) * horn
    return image


def _vessels(side: Image, count: int, generator: np.random.Generator) -> Image:
    """Round soft spots as vessels and small cysts, darker or brighter than their surroundings, ``[N, size, size]``."""
    size = len(side)
    shape = (count, 2 * VESSELS, 1)
    at = generator.uniform(-0.9, 0.9, (2, *shape)).astype(np.float32)
    strength = 0.04 * generator.integers(1, 5, shape) * np.repeat((-1.0, 1.0), VESSELS)[:, None]
    spread = generator.uniform(max(1.0, size / 40.0), max(3.0, size / 16.0), shape) * 1.2 / size
    across, down = np.exp(-np.square((side - at) / spread.astype(np.float32)))
    return np.asarray(np.swapaxes(down * strength.astype(np.float32), 1, 2) @ across)


def _add_lesions(
    image: Image,
    rows: Image,
    columns: Image,
    brain: Image,
    anatomy: Anatomy,
    labels: NDArray[np.int64],
    generator: np.random.Generator,
) -> tuple[Image, NDArray[np.bool_]]:
    """Put a lobed lesion at a random place in one hemisphere of each slice; its texture alone depends on the label."""
    count, size = len(labels), image.shape[-1]
    left = generator.random(count) < 0.5 + LEFT_LEANING * (2 * labels - 1)
    down, across = generator.uniform(-0.38, 0.38, count), generator.uniform(0.1, 0.32, count) * np.where(left, -1, 1)
    turn, distance = _direction(rows - _each(down), columns - _each(across))
    radius = anatomy.lesion_radius * generator.uniform(0.85, 1.15, count)
    lobes = generator.uniform(0.0, 0.09, (3, count)) * np.exp(1j * generator.uniform(0.0, 2 * np.pi, (3, count)))
    second, third, fifth = lobes.astype(np.complex64)[:, :, None, None]
    square = turn * turn
    edge = 1.0 + (square * (second + turn * (third + square * fifth))).real
    inside = brain * _soft(_each(radius) * edge - distance, size)
    mask = inside >= 0.5
    texture = _standardised(lesion_texture(size, labels, generator), mask)
    return image + (LESION_BRIGHTNESS + TEXTURE_SPREAD * texture - image) * inside, mask


def _standardised(texture: Image, mask: NDArray[np.bool_]) -> Image:
    """The texture with mean 0 and spread 1 within each slice's mask."""
    sizes = mask.sum(axis=(1, 2), keepdims=True)
    texture = texture - (texture * mask).sum(axis=(1, 2), keepdims=True) / sizes
    spread = np.sqrt((np.square(texture) * mask).sum(axis=(1, 2), keepdims=True) / sizes)
    return np.asarray(texture / spread, dtype=np.float32)


def lesion_texture(size: int, labels: NDArray[np.int64], generator: np.random.Generator) -> Image:
    """Noise of one band of wavelengths: of every direction (label 0) or of one random direction (label 1)."""
    direction = generator.uniform(0.0, np.pi, len(labels))
    return band_noise(len(labels), size, TEXTURE_CYCLES, generator, np.where(labels == 1, direction, np.nan))


def band_noise(
    count: int,
    size: int,
    band: tuple[float, float],
    generator: np.random.Generator,
    direction: NDArray[np.float64] | None = None,
) -> Image:
    """``[count, size, size]`` of noise from a ring of frequencies (cycles per unit length), each of spread 1.

    direction: ``[count]`` angles; noise is kept to a wedge of the ring around its angle, or not where it is NaN.
    The spectrum itself is drawn, and only within the ring: the same random numbers as white noise would give there.
    """
    fy, fx, places = _ring(size, band)
    drawn = generator.standard_normal((count, 2, len(fy)), dtype=np.float32)
    spectrum = drawn[:, 0] + np.complex64(1j) * drawn[:, 1]
    spectrum[:, fx == 0] *= np.float32(np.sqrt(2.0))  # irfft2 halves the power of this column, whose ends are conjugate
    if direction is not None:
        along = np.abs(fy * np.sin(direction)[:, None] + fx * np.cos(direction)[:, None])
        spectrum *= ~(along < np.cos(STRIATED_HALF_ANGLE) * np.hypot(fy, fx))
    full = np.zeros((count, size * (size // 2 + 1)), np.complex64)
    full[:, places] = spectrum
    noise = np.fft.irfft2(full.reshape(count, size, -1), s=(size, size))
    return np.asarray(noise / noise.std(axis=(1, 2), keepdims=True), dtype=np.float32)


@cache
def _ring(size: int, band: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Frequencies down and across of the places that lie in a band, and these places in a flat ``rfft2``."""
    fy, fx = (part.reshape(-1) for part in frequencies(size))
    reach = np.hypot(fy, fx)
    places = np.flatnonzero((reach >= band[0]) & (reach <= band[1]))
    return fy[places], fx[places], places


def frequencies(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Down and across, in cycles per unit length, ``[size, size // 2 + 1]`` each, as ``rfft2`` orders them."""
    down, across = np.fft.fftfreq(size, d=2.0 / size), np.fft.rfftfreq(size, d=2.0 / size)
    fy, fx = np.meshgrid(down, across, indexing="ij")
    return fy, fx
