"""What a centre-based head should answer for true boxes, its loss, and images mirrored with their boxes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from evaluation.protocols.detection_head import Answers, cells
from imaging.annotations.boxes import Boxes
from imaging.reading.formats import FloatArray
from imaging.views.presets import Preset

SPREAD = 0.54 / 6
"""Deviation of the splat round a middle, as a share of the box's side (Liu et al. 2020, TTFNet, sec. 3.2)."""
LEAST_SIZE = 1e-2
"""Cells; a box of less is learnt as one of this, as its logarithm has no bound."""


@dataclass(frozen=True, eq=False)
class Targets:
    """What ``Answers`` are compared with.

    heat ``[B, K, T, T]``: 1 in the cell of a middle, falling off round it. Of each of M boxes: its image ``[M]``, row
    and column of its cell ``[M]``, logarithms of width and height in cells ``[M, 2]``, and offset x, y ``[M, 2]``.
    """

    heat: Tensor
    image: Tensor
    row: Tensor
    column: Tensor
    size: Tensor
    offset: Tensor


def targets_of(truth: Sequence[Boxes], classes: int, side: int) -> Targets:
    """Of the boxes of B images of ``side`` pixels, on the CPU."""
    grid = cells(side)
    boxes = np.concatenate([true.boxes for true in truth]).astype(np.float64) * grid / side
    kinds = np.concatenate([true.kinds for true in truth])
    image = np.repeat(np.arange(len(truth)), [len(true.kinds) for true in truth])
    middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clip(LEAST_SIZE)
    cell = np.floor(middle).astype(np.int64).clip(0, grid - 1)
    distance = np.arange(grid) - cell[:, :, None]  # [M, 2, T]
    falling = np.exp(-0.5 * (distance / (SPREAD * size[:, :, None])) ** 2)
    heat = np.zeros((len(truth), classes, grid, grid))
    np.maximum.at(heat, (image, kinds), falling[:, 1, :, None] * falling[:, 0, None, :])
    found = (heat, np.log(size), middle - cell)
    exact = [torch.from_numpy(part.astype(np.float32)) for part in found]
    places = [torch.from_numpy(part) for part in (image, cell[:, 1].copy(), cell[:, 0].copy())]
    return Targets(exact[0], *places, *exact[1:])


def centre_loss(answers: Answers, targets: Targets) -> Tensor:
    """Penalty-reduced focal loss of the heatmaps (CenterNet, eq. 1) + L1 of size and offset at the middles (eq. 2, 3).

    All per box. Sizes are learnt as logarithms, so that a small box's counts as much as a large one's; a platelet is a
    fifth of a white cell. Their weight is then 1, where CenterNet's, in pixels, is .1.
    """
    heat, device = answers.heat, answers.heat.device
    truth = targets.heat.to(device)
    likely = torch.sigmoid(heat)
    middle = truth == 1
    at_middle = (1 - likely) ** 2 * functional.logsigmoid(heat)
    elsewhere = (1 - truth) ** 4 * likely**2 * functional.logsigmoid(-heat)
    focal = -torch.where(middle, at_middle, elsewhere).sum()
    image, row, column = (part.to(device) for part in (targets.image, targets.row, targets.column))
    apart = [
        (found[image, :, row, column] - asked.to(device)).abs().sum()
        for found, asked in ((answers.size, targets.size), (answers.offset, targets.offset))
    ]
    return (focal + apart[0] + apart[1]) / max(len(image), 1)


def flipped(
    images: Tensor, truth: Sequence[Boxes], preset: Preset, generator: torch.Generator
) -> tuple[Tensor, list[Boxes]]:
    """Images ``[B, C, S, S]`` and their boxes, some mirrored left-right and some up-down, both alike."""
    draws, side = torch.rand(2, len(images), generator=generator), images.shape[-1]
    boxes = [true.boxes for true in truth]
    for axis, share, draw in ((-1, preset.horizontal_flip, draws[0]), (-2, preset.vertical_flip, draws[1])):
        mirrored = draw < share
        images = torch.where(mirrored[:, None, None, None], images.flip(axis), images)
        boxes = [_mirrored(own, -1 - axis, side) if turn else own for own, turn in zip(boxes, mirrored, strict=True)]
    return images, [Boxes(own, true.kinds) for own, true in zip(boxes, truth, strict=True)]


def _mirrored(boxes: FloatArray, axis: int, side: int) -> FloatArray:
    """Boxes ``[M, 4]`` of an image mirrored along x (axis 0) or y (1)."""
    found = boxes.copy()
    found[:, axis], found[:, axis + 2] = side - boxes[:, axis + 2], side - boxes[:, axis]
    return found
