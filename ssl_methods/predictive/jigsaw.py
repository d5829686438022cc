"""Jigsaw puzzles (Noroozi and Favaro 2016, ECCV): in which order were the nine tiles of an image shuffled?"""

import functools
import itertools
from typing import ClassVar, Literal

import numpy as np
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

GRID = 3
TILES = GRID * GRID


@functools.cache
def permutation_set(count: int) -> tuple[tuple[int, ...], ...]:
    """``count`` orders of nine tiles, far from each other in Hamming distance; the same ones on every machine.

    Greedy (sec. 3.2, alg. 1): each next order is the one whose smallest distance to those chosen is largest; of
    equals the one with the largest sum of distances, then the first in lexicographic order. The paper starts from
    a random order and compares means; this starts from the order as it was, and smallest distances, so that no two
    orders are hard to tell apart.
    """
    every = np.array(list(itertools.permutations(range(TILES))), dtype=np.int8).T.copy()  # [9, 9!], lexicographic
    chosen = [0]
    smallest = np.full(every.shape[1], TILES, dtype=np.int16)
    total = np.zeros(every.shape[1], dtype=np.int16)  # at most 9 * 999
    while len(chosen) < count:
        distance = np.zeros_like(smallest)
        for tile, place in zip(every, every[:, chosen[-1]], strict=True):
            distance += tile != place
        np.minimum(smallest, distance, out=smallest)
        total += distance
        farthest = np.flatnonzero(smallest == smallest.max())
        chosen.append(int(farthest[total[farthest].argmax()]))  # argmax takes the first of equals
    return tuple(tuple(int(place) for place in every[:, row]) for row in chosen)


def tile_side(size: int, gap: float, unit: int) -> int:
    """Pixels of a tile's side: the multiple of ``unit`` nearest to ``1 - gap`` of a cell; 0 where none fits.

    At least half of the gap stays free, so that every tile can be shifted.
    """
    cell = size // GRID
    roomiest = multiple_below((1.0 - gap / 2) * cell, unit)
    nearest = round((1.0 - gap) * cell / unit) * unit
    return min(max(nearest, unit), roomiest)


class JigsawConfig(MethodConfig):
    """Guessing how the tiles of an image were shuffled."""

    name: Literal["jigsaw"] = "jigsaw"
    permutations: int = Field(
        default=100,
        ge=2,
        le=1000,
        description="Orders there are to guess from. The paper has 1000, for a million images; at a hospital's "
        "thousands each of those would be seen a few times only.",
    )
    gap: float = Field(
        default=0.15,
        ge=0.02,
        le=0.5,
        description="Share of a cell's side that a tile leaves free (the paper's 11 of 75 pixels); where in its cell "
        "each tile is cut is drawn anew, so that edges do not fit together.",
    )
    tile_width: int = Field(default=128, ge=1, description="Channels to which each tile's feature is reduced.")
    head_width: int = Field(
        default=512, ge=1, description="Hidden channels of the classifier; the paper's 4096 outweigh a small encoder."
    )


class Jigsaw(ClassifyingMethod, name="jigsaw"):
    """Cut an image into nine tiles, shuffle them, encode each by itself and tell the order.

    The encoder never sees two tiles together: only the head compares them (the paper's siamese context-free
    network). A tile's side is a multiple of a ViT's patch. Against shortcuts each tile is cut at random within its
    cell and standardised by itself. Left out of the paper's: the jitter of colour channels against each other
    and images in grey, which guard against a camera lens's colour fringes.
    """

    Config: ClassVar[type[MethodConfig]] = JigsawConfig
    config: JigsawConfig
    permutations: Tensor

    def __init__(self, config: JigsawConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.side = tile_side(image.size, config.gap, tile_unit(encoder))
        check_tiles(encoder, image, self.side, config.name)
        orders = torch.tensor(permutation_set(config.permutations))  # [P, 9]
        self.register_buffer("permutations", orders, persistent=False)
        tile = [feature_dim(encoder), config.tile_width]
        widths = {"tile": tile, "order": [TILES * config.tile_width, config.head_width, config.permutations]}
        heads = {name: projector(each, normalisation="none", last="biased") for name, each in widths.items()}
        self.head = nn.ModuleDict(heads)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops, where each tile is cut, ``top`` and ``left`` ``[B, 9]``, and the ``order`` ``[B]``."""
        cell, number = self.image.size // GRID, torch.arange(TILES)
        shape, free = (count, TILES), cell - self.side + 1
        return {
            "images": self.augmentation.draw(count, generator),
            "top": number // GRID * cell + torch.randint(free, shape, generator=generator),
            "left": number % GRID * cell + torch.randint(free, shape, generator=generator),
            "order": torch.randint(self.config.permutations, (count,), generator=generator),
        }

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``tiles`` ``[B, 9, C, s, s]`` as shuffled, and ``order`` ``[B]``, the row of ``permutations``.

        At place k of the shuffled tiles stands the tile that was cut at place ``permutations[order, k]``; places are
        counted row by row.
        """
        images = self.augmentation.light(batch.images, draws["images"])
        tiles = standardised(cut(images, draws["top"], draws["left"], self.side))  # [B, 9, C, s, s], as they lie
        places = self.permutations[draws["order"]]  # [B, 9]
        own = torch.arange(len(images), device=images.device)[:, None]
        return {"tiles": tiles[own, places], "order": draws["order"]}

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """The tiles as they are given, and as they lay in the image."""
        tiles, order = views["tiles"][image], self.permutations[views["order"][image]]
        return [("as given", mosaic(tiles, torch.arange(TILES))), ("the answer", mosaic(tiles, order))]

    def answered(self, views: Views) -> tuple[Tensor, Tensor]:
        """The loss of the order, and the share of right answers."""
        tiles = views["tiles"]
        each = self.head["tile"](features(self.encoder, tiles.flatten(0, 1)))  # [B * 9, W]
        each = torch.relu(each).reshape(len(tiles), -1)  # [B, 9 * W]
        return class_loss(self.head["order"](each), views["order"])
