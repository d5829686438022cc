"""Drawing of one phantom slice: an anatomy a patient keeps, and a lesion whose texture carries the class.

Lengths are in half picture sides (the picture spans [-1, 1] both ways), so that any size shows the same anatomy.
Both classes have lesions of the same outlines, areas, mean and spread of brightness, and the same radial power
spectrum; they differ in its directions alone: granular (class 0, every direction) or striated (class 1, one direction).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

Picture = NDArray[np.float64]
"""One channel ``[size, size]``; a tissue's brightness lies within [0, 1]."""

DRAWING_VERSION = 1  # raise it when any drawing changes, so that kept phantoms are drawn anew
GREY, WHITE, FLUID, BONE = 0.42, 0.58, 0.14, 0.85
LESION_BRIGHTNESS = 0.6
LESION_RADIUS = (0.42, 0.52)
TEXTURE_SPREAD = 0.1
TEXTURE_CYCLES = (5.0, 6.5)  # per unit length: a wave is 5 to 6.4 pixels long at 64 pixels
STRIATED_HALF_ANGLE = 0.2  # radians
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
    """Probability that a picture of this patient is of class 1."""


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


def draw_slice(
    anatomy: Anatomy, label: int, size: int, generator: np.random.Generator
) -> tuple[Picture, NDArray[np.bool_]]:
    """One slice of a patient as an ideal scanner would see it, and the mask of its lesion (never empty)."""
    rows, columns = np.meshgrid(*[(np.arange(size) + 0.5) * 2.0 / size - 1.0] * 2, indexing="ij")
    level = generator.uniform(0.92, 1.0)  # slices further from the middle are smaller
    y, x = _turned(rows, columns, anatomy.tilt + generator.normal(0.0, 0.03))
    depth = _depth_below_skin(y, x, anatomy, level)
    picture = _head(depth, anatomy, size, generator)
    picture = _add_ventricles(picture, y, x, anatomy, level * generator.uniform(0.85, 1.15))
    picture = _add_vessels(picture, depth, size, generator)
    return _add_lesion(picture, rows, columns, _soft(depth - 0.14, size), anatomy, label, generator)


def _turned(rows: Picture, columns: Picture, angle: float) -> tuple[Picture, Picture]:
    return rows * np.cos(angle) + columns * np.sin(angle), columns * np.cos(angle) - rows * np.sin(angle)


def _soft(distance: Picture, size: int) -> Picture:
    """0 outside, 1 inside, a ramp of about one pixel at distance 0: a drawn edge without stairs."""
    return np.clip(distance * size / 2.0 + 0.5, 0.0, 1.0)


def _depth_below_skin(y: Picture, x: Picture, anatomy: Anatomy, level: float) -> Picture:
    """Roughly the distance to the head's outline, positive inside."""
    third, fourth, phase = anatomy.outline
    angle = np.arctan2(y, x)
    wave = 1.0 + third * np.cos(3 * angle + phase) + fourth * np.cos(4 * angle - phase)
    reach = np.hypot(y / anatomy.axes[0], x / anatomy.axes[1]) / (level * wave)
    return (1.0 - reach) * level * min(anatomy.axes)


def _head(depth: Picture, anatomy: Anatomy, size: int, generator: np.random.Generator) -> Picture:
    """Scalp, bone, fluid, then a brain whose grey matter folds into the white; folds shift a little between slices."""
    folds = band_noise(size, (1.5, 3.5), np.random.default_rng(anatomy.folds))
    folds = 0.85 * folds + 0.5 * band_noise(size, (1.5, 3.5), generator)
    white = _soft((depth - 0.27 + 0.06 * folds) * 0.5, size)
    brain = GREY + (WHITE - GREY) * white
    picture = 0.5 * _soft(depth, size)
    picture += (BONE - 0.5) * _soft(depth - 0.035, size)
    picture += (FLUID - BONE) * _soft(depth - 0.095, size)
    inside = _soft(depth - 0.13 + 0.012 * folds, size)
    return np.asarray(picture * (1 - inside) + brain * inside)


def _add_ventricles(picture: Picture, y: Picture, x: Picture, anatomy: Anatomy, scale: float) -> Picture:
    """Two dark horns beside the midline."""
    size = picture.shape[0]
    long, wide = anatomy.ventricle[0] * scale, anatomy.ventricle[1] * scale
    for side in (-1.0, 1.0):
        across = x - side * (0.08 + 0.25 * np.abs(y))
        horn = _soft((1.0 - np.hypot((y + 0.04) / (2 * long), across / wide)) * wide, size)
        picture = picture * (1 - horn) + FLUID * horn
    return picture


def _add_vessels(picture: Picture, depth: Picture, size: int, generator: np.random.Generator) -> Picture:
    """Discs of MONAI's synthetic image as vessels and small cysts, darker or brighter than their surroundings."""
    from monai.data.synthetic import create_test_image_2d  # slow to import

    state = np.random.RandomState(int(generator.integers(2**31)))
    largest = max(3, size // 16)
    for sign in (-0.16, 0.16):
        discs, _ = create_test_image_2d(
            size,
            size,
            num_objs=4,
            rad_max=largest,
            rad_min=max(1, size // 40),
            num_seg_classes=4,
            random_state=state,
        )
        picture = picture + sign * gaussian_filter(discs, size / 120.0) * _soft(depth - 0.16, size)
    return picture


def _add_lesion(
    picture: Picture,
    rows: Picture,
    columns: Picture,
    brain: Picture,
    anatomy: Anatomy,
    label: int,
    generator: np.random.Generator,
) -> tuple[Picture, NDArray[np.bool_]]:
    """Put a lobed lesion at a random place in one hemisphere; its texture alone depends on ``label``."""
    size = picture.shape[0]
    left = generator.random() < 0.5 + LEFT_LEANING * (2 * label - 1)
    centre = (generator.uniform(-0.38, 0.38), generator.uniform(0.1, 0.32) * (-1.0 if left else 1.0))
    dy, dx = rows - centre[0], columns - centre[1]
    angle = np.arctan2(dy, dx)
    radius = anatomy.lesion_radius * generator.uniform(0.85, 1.15)
    edge = sum(generator.uniform(0.0, 0.09) * np.cos(k * angle + generator.uniform(0.0, 2 * np.pi)) for k in (2, 3, 5))
    inside = brain * _soft(radius * (1.0 + edge) - np.hypot(dy, dx), size)
    mask = inside >= 0.5
    texture = lesion_texture(size, label, generator)
    texture = (texture - texture[mask].mean()) / texture[mask].std()
    return picture * (1 - inside) + (LESION_BRIGHTNESS + TEXTURE_SPREAD * texture) * inside, mask


def lesion_texture(size: int, label: int, generator: np.random.Generator) -> Picture:
    """Noise of one band of wavelengths: of every direction (label 0) or of one random direction (label 1)."""
    direction = generator.uniform(0.0, np.pi)
    return band_noise(size, TEXTURE_CYCLES, generator, direction if label == 1 else None)


def band_noise(
    size: int, band: tuple[float, float], generator: np.random.Generator, direction: float | None = None
) -> Picture:
    """White noise kept in a ring of frequencies (cycles per unit length), of spread 1; or in a wedge of that ring."""
    fy, fx = _frequencies(size)
    reach = np.hypot(fy, fx)
    kept = (reach >= band[0]) & (reach <= band[1])
    if direction is not None:
        turn = np.arctan2(fy, fx) - direction
        kept &= np.abs(np.arctan(np.tan(turn))) <= STRIATED_HALF_ANGLE
    noise = np.fft.irfft2(np.fft.rfft2(generator.standard_normal((size, size))) * kept, s=(size, size))
    return np.asarray(noise / noise.std())


@cache
def _frequencies(size: int) -> tuple[Picture, Picture]:
    """Down and across, in cycles per unit length, as ``rfft2`` orders them."""
    down, across = np.fft.fftfreq(size, d=2.0 / size), np.fft.rfftfreq(size, d=2.0 / size)
    fy, fx = np.meshgrid(down, across, indexing="ij")
    return fy, fx
