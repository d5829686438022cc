"""Baselines without learning of features, by kind of task: one answer for all, position in the series, bare pixels."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.config import TaskKind
from evaluation.protocols.detection_baselines import blobs_found, nothing_found
from evaluation.protocols.logistic import logistic_findings, logistic_scores
from evaluation.protocols.ridge import ridge_values
from evaluation.protocols.segmentation_baselines import background_masks, pixel_masks
from evaluation.statistics.intervals import FloatArray, IntArray

SIDE, VOLUME_SIDE = 32, 16
COMPONENTS = 60
PIXELS = "pixels"
POSITION = "position"
MAJORITY = "majority"
_READ_AT_ONCE = 64


@dataclass(frozen=True)
class Roles:
    """Places of the images whose labels are used, of those that settings are chosen on, and of the held ones."""

    train: IntArray
    validation: IntArray
    held: IntArray


@dataclass
class Seen:
    """All labelled images without an encoder.

    read: places to images; classes: columns of a prediction; position: ``[N]`` in its series, or None.
    """

    read: Callable[[IntArray], Tensor]
    target: Any
    classes: int
    count: int
    position: FloatArray | None = None
    _small: list[FloatArray] = field(default_factory=list)

    def small(self) -> FloatArray:
        """``small_pixels`` of every image, made once."""
        if not self._small:
            starts = range(0, self.count, _READ_AT_ONCE)
            blocks = [np.arange(start, min(start + _READ_AT_ONCE, self.count)) for start in starts]
            self._small.append(np.concatenate([small_pixels(self.read(block)) for block in blocks]))
        return self._small[0]


Baseline = Callable[[Seen, Roles, int], Any]
"""What is seen, roles and a seed to predictions for the held images."""


def majority_scores(train: IntArray, test: int, classes: int) -> FloatArray:
    """``[test, K]``: the class shares of the training images, the same for every test image (AUROC .5)."""
    shares = np.bincount(train, minlength=classes) / len(train)
    return np.tile(shares, (test, 1))


def small_pixels(images: Tensor) -> FloatArray:
    """Images ``[B, C, S, S]`` as rows ``[B, C * 32 * 32]``, each small pixel the mean of those it covers.

    Volumes ``[B, C, D, S, S]`` as rows ``[B, C * 16 * 16 * 16]``.
    """
    exact = images.to(torch.float32)
    flat = exact.ndim == 4
    small = functional.adaptive_avg_pool2d(exact, SIDE) if flat else functional.adaptive_avg_pool3d(exact, VOLUME_SIDE)
    return small.flatten(1).numpy().astype(np.float64)


def principal(
    train: FloatArray, others: tuple[FloatArray, ...], components: int = COMPONENTS
) -> tuple[FloatArray, ...]:
    """``train`` and ``others`` on the first principal components of ``train`` (fewer where it has fewer)."""
    centre = train.mean(0)
    _, singular, right = np.linalg.svd(train - centre, full_matrices=False)
    kept = right[:components][singular[:components] > 1e-9 * max(float(singular.max(initial=0.0)), 1e-300)]
    return tuple((rows - centre) @ kept.T for rows in (train, *others))


_Known = tuple[FloatArray, Any]
_Described = Callable[[Seen, Roles], tuple[_Known, _Known, FloatArray]]
"""Rows of training and validation images with their targets, and of the held ones."""


def _classes_by(described: _Described) -> Baseline:
    return lambda seen, roles, seed: logistic_scores(*described(seen, roles), seen.classes)


def _means(seen: Seen, roles: Roles, seed: int) -> FloatArray:
    """The mean of each column of the training target, the same for every held image."""
    known = np.asarray(seen.target[roles.train], dtype=np.float64).reshape(len(roles.train), -1)
    return np.tile(known.mean(0), (len(roles.held), 1))


def _findings_by(described: _Described) -> Baseline:
    return lambda seen, roles, seed: logistic_findings(*described(seen, roles))


def _numbers_by(described: _Described) -> Baseline:
    return lambda seen, roles, seed: ridge_values(*described(seen, roles))[:, None]


def _on_components(seen: Seen, roles: Roles) -> tuple[_Known, _Known, FloatArray]:
    """Pixels on the principal components of the training images."""
    small, y = seen.small(), seen.target
    known, chosen, unseen = principal(small[roles.train], (small[roles.validation], small[roles.held]))
    return (known, y[roles.train]), (chosen, y[roles.validation]), unseen


def _by_position(seen: Seen, roles: Roles) -> tuple[_Known, _Known, FloatArray]:
    """Four numbers of each image's position: it, its square, its cube, and how far from the middle it is.

    An image without one counts as one in the middle.
    """
    assert seen.position is not None
    p, y = np.where(np.isfinite(seen.position), seen.position, 0.5), seen.target
    rows = np.stack([p, p**2, p**3, np.abs(p - 0.5)], axis=1)
    return (rows[roles.train], y[roles.train]), (rows[roles.validation], y[roles.validation]), rows[roles.held]


def _images(seen: Seen, places: IntArray) -> Any:
    return seen.read(places).numpy()


def _mask_pixels(seen: Seen, roles: Roles, seed: int) -> Any:
    known = (_images(seen, roles.train), seen.target[roles.train])
    return pixel_masks(known, _images(seen, roles.held), seen.classes, seed)


def _blobs(seen: Seen, roles: Roles, seed: int) -> Any:
    known = (_images(seen, roles.train), [seen.target[place] for place in roles.train])
    return blobs_found(known, _images(seen, roles.held), seen.classes)


BASELINES: dict[TaskKind, dict[str, Baseline]] = {
    "classification": {
        PIXELS: _classes_by(_on_components),
        POSITION: _classes_by(_by_position),
        MAJORITY: lambda seen, roles, seed: majority_scores(seen.target[roles.train], len(roles.held), seen.classes),
    },
    "multilabel": {
        PIXELS: _findings_by(_on_components),
        POSITION: _findings_by(_by_position),
        MAJORITY: _means,
    },
    "regression": {PIXELS: _numbers_by(_on_components), POSITION: _numbers_by(_by_position), MAJORITY: _means},
    "segmentation": {
        PIXELS: _mask_pixels,
        MAJORITY: lambda seen, roles, seed: background_masks(seen.target[roles.held].shape),
    },
    "detection": {PIXELS: _blobs, MAJORITY: lambda seen, roles, seed: nothing_found(len(roles.held))},
}


def baselines_of(kind: TaskKind, positions: bool) -> dict[str, Baseline]:
    """The baselines of a kind of task; the position's only where it is known, and then always."""
    return {name: one for name, one in BASELINES[kind].items() if positions or name != POSITION}
