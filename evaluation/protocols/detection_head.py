"""The centre-based head: the encoder's maps joined from coarse to fine, and what is read in each cell of the finest."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from evaluation.protocols.trial import Trial
from ssl_methods.encoders.pyramid import feature_pyramid, pyramid_shapes

STRIDE = 4
"""Pixels along a side of a cell, as in CenterNet."""
RARE = 0.1
"""What every cell is thought to be before training: a middle with this probability (Lin et al. 2017, focal loss)."""


class Answers(NamedTuple):
    """What is read in each cell of ``[T, T]``.

    heat: logits ``[B, K, T, T]`` that an object's middle lies there; size: logarithms of width and height in cells
    ``[B, 2, T, T]``; offset: place of the middle x, y from the cell's corner, in cells ``[B, 2, T, T]``.
    """

    heat: Tensor
    size: Tensor
    offset: Tensor


class Detector(nn.Module):
    """An encoder and the head. ``frozen``: the encoder's weights and norm statistics stay as they are."""

    def __init__(self, encoder: nn.Module, trial: Trial, *, frozen: bool) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False) if frozen else encoder
        width = trial.config.detection.width
        self.head = CentreHead(pyramid_shapes(encoder, trial.image), cells(trial.image.size), trial.classes, width)

    def forward(self, images: Tensor) -> Answers:
        """Of standardised images ``[B, C, S, S]``."""
        return cast(Answers, self.head(feature_pyramid(self.encoder, images)))


class CentreHead(nn.Module):
    """From the maps of a pyramid to what is read in each cell.

    Each map is brought to ``width`` channels and joined to what came from the coarser ones, enlarged twofold (Lin et
    al. 2017, "Feature pyramid networks", fig. 3, with a convolution in every stage). Maps of finer cells than the
    head's stay out; where the finest is coarser, as most ViTs', more stages enlarge it. GroupNorm, as batches are
    small.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], cells: int, classes: int, width: int) -> None:
        """shapes: ``(D, h, w)`` of each map, the finest first; cells: T, along a side of the finest map."""
        super().__init__()
        *finer, last = shapes
        self.left_out = sum(shape[1] > cells for shape in finer)
        kept = [*finer[self.left_out :], last][::-1]
        self.sides = _sides([shape[1] for shape in kept], cells)
        self.laterals = nn.ModuleList(_normalised(nn.Conv2d(shape[0], width, 1)) for shape in kept)
        self.blocks = nn.ModuleList(_block(width) for _ in self.sides)
        self.heat, self.box = _read_out(width, classes), _read_out(width, 4)
        nn.init.constant_(cast(Any, self.heat)[-1].bias, math.log(RARE / (1 - RARE)))

    def forward(self, pyramid: Sequence[Tensor]) -> Answers:
        """Of the maps ``[B, D, h, w]``, the finest first."""
        kept = list(pyramid)[self.left_out :][::-1]
        grown = torch.zeros((), device=kept[0].device)
        for stage, (side, block) in enumerate(zip(self.sides, self.blocks, strict=True)):
            if stage:
                grown = _enlarged(grown, side)
            if stage < len(kept):
                grown = grown + _enlarged(self.laterals[stage](kept[stage]), side)
            grown = block(grown)
        size, offset = self.box(grown).split(2, dim=1)
        return Answers(self.heat(grown), size, offset)


def cells(size: int) -> int:
    """T, cells along a side of an image of ``size`` pixels."""
    return -(-size // STRIDE)


def _sides(kept: Sequence[int], cells: int) -> list[int]:
    """Sides of each stage: the coarsest map's, then the twofold or the own map's, until it is ``cells``."""
    sides = [min(kept[0], cells)]
    for own in kept[1:]:
        sides.append(min(max(own, 2 * sides[-1]), cells))
    while sides[-1] < cells:
        sides.append(min(2 * sides[-1], cells))
    return sides


def _enlarged(maps: Tensor, side: int) -> Tensor:
    return maps if maps.shape[-1] == side else functional.interpolate(maps, (side, side), mode="nearest")


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    width = convolution.out_channels
    return nn.Sequential(convolution, nn.GroupNorm(math.gcd(width, 8), width))


def _block(width: int) -> nn.Sequential:
    return nn.Sequential(nn.ReLU(), *_normalised(nn.Conv2d(width, width, 3, padding=1)), nn.ReLU())


def _read_out(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, channels, 1))
