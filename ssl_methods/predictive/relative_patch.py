"""Relative patch position (Doersch et al. 2015, ICCV): on which side of the first patch does the second lie?"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.components.classification import ClassifyingMethod, class_loss
from ssl_methods.components.heads import projector
from ssl_methods.components.tiles import check_tiles, cut, mosaic, multiple_below, standardised, tile_unit
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import Batch, Draws, Views
from ssl_methods.method_config import MethodConfig

DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
"""Steps down and to the right from the first patch to the second, by label: row by row from the upper left."""


def layout(size: int, unit: int, gap: float, jitter: float) -> tuple[int, int, int]:
    """Side of a patch, gap and jitter in pixels, so that three patches in a row fit into ``size``.

    The side is the largest multiple of ``unit`` that fits; 0 where none does. gap, jitter: shares of the side; the
    jitter is a pixel at least, and the gap so wide that shifted patches never touch.
    """
    side = multiple_below(size / (3 + 2 * gap + 2 * jitter), unit)
    while side > 0:
        shift = max(1, int(jitter * side))
        between = max(2 * shift + 1, int(gap * side))
        if 3 * side + 2 * between + 2 * shift <= size:
            return side, between, shift
        side -= unit
    return 0, 0, 0


class RelativePatchConfig(MethodConfig):
    """Guessing on which side of one patch another one lies."""

    name: Literal["relative_patch"] = "relative_patch"
    pairs: int = Field(
        default=8,
        ge=1,
        le=8,
        description="Neighbours asked for around one first patch. The paper has 1; a first patch with all 8 costs 9 "
        "patches instead of 16.",
    )
    gap: float = Field(
        default=0.4,
        ge=0.05,
        le=1.0,
        description="Distance between patches as a share of their side, so that lines do not run on. The paper's .5 "
        "would leave a ViT no patches of a quarter of the image.",
    )
    jitter: float = Field(
        default=0.07,
        ge=0.01,
        le=0.5,
        description="Largest shift of each patch, as a share of its side (7 of 96 pixels).",
    )
    head_width: int = Field(default=256, ge=1, description="Hidden channels of the classifier.")


class RelativePatch(ClassifyingMethod, name="relative_patch"):
    """Cut a patch and its neighbours from an image, encode each by itself and tell where each neighbour lies.

    The first patch stands where all eight neighbours fit: its own place says nothing about the answer. Against
    shortcuts there is a gap, a shift of each patch, and each patch is standardised by itself; the last stands for
    the paper's dropping of colour channels, which most medical images have not got.
    """

    Config: ClassVar[type[MethodConfig]] = RelativePatchConfig
    config: RelativePatchConfig

    def __init__(self, config: RelativePatchConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.side, self.gap, self.jitter = layout(image.size, tile_unit(encoder), config.gap, config.jitter)
        check_tiles(encoder, image, self.side, config.name)
        widths = [2 * feature_dim(encoder), config.head_width, len(DIRECTIONS)]
        self.head = projector(widths, normalisation="none", last="biased")

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops, the ``directions`` ``[B, N]``, and the ``corners`` ``[B, 1 + N, 2]`` of the patches."""
        crops = self.augmentation.draw(count, generator)
        neighbours, step = self.config.pairs, self.side + self.gap
        directions = torch.rand(count, len(DIRECTIONS), generator=generator).argsort(dim=1)[:, :neighbours]
        steps = torch.cat([torch.zeros(count, 1, 2), torch.tensor(DIRECTIONS).float()[directions]], dim=1).long()
        lowest = step + self.jitter
        places = self.image.size - 2 * lowest - self.side + 1  # where the first patch may stand, along each side
        first = lowest + torch.randint(places, (count, 1, 2), generator=generator)
        shift = torch.randint(-self.jitter, self.jitter + 1, (count, 1 + neighbours, 2), generator=generator)
        return {"images": crops, "directions": directions, "corners": first + steps * step + shift}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``patches`` ``[B, 1 + N, C, s, s]``, the first and its neighbours, and ``directions`` ``[B, N]``, 0 to 7."""
        images = self.augmentation.light(batch.images, draws["images"])
        top, left = draws["corners"].unbind(dim=2)
        return {"patches": standardised(cut(images, top, left, self.side)), "directions": draws["directions"]}

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """The first patch in the middle, and the others where they lay."""
        directions = views["directions"][image]
        places = torch.cat([directions.new_tensor([4]), directions + (directions > 3)])  # 4 is the middle of nine
        return [("patches in place", mosaic(views["patches"][image], places))]

    def answered(self, views: Views) -> tuple[Tensor, Tensor]:
        """The loss of the directions asked for, and the share of right answers."""
        patches, directions = views["patches"], views["directions"]
        each = features(self.encoder, patches.flatten(0, 1)).reshape(*patches.shape[:2], -1)  # [B, 1 + N, D]
        pairs = torch.cat([each[:, :1].expand_as(each[:, 1:]), each[:, 1:]], dim=2)  # [B, N, 2D]
        return class_loss(self.head(pairs), directions)
