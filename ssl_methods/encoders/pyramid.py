"""Maps of an encoder at several depths, and the UNETR-style decoder from them to a map of the image's size."""

import copy
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from foundation.vision_import import VisionTransformer
from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import patch_embeddings
from ssl_methods.encoders.volume_encoders import is_volume_encoder, is_volume_vit

LEVELS = 4
"""Of a ViT: maps after blocks 3, 6, 9 and 12 of 12, as in UNETR (Hatamizadeh et al. 2022, sec. 3.1)."""
GROUP = 8
"""Channels that are normalised together."""


def feature_pyramid(encoder: nn.Module, images: Tensor) -> list[Tensor]:
    """Maps ``[B, D, h, w]`` (in 3-D ``[B, D, d, h, w]``) from early layers to the last one, the finest first.

    Of a ViT the patch tokens after evenly spaced blocks, four where it has as many, all on the grid of its patches and
    the last ones normalised; of others the map that each stage ends with.
    """
    if is_volume_vit(encoder):
        embedding = cast(Any, encoder).patch_embedding
        return _token_maps(encoder, embedding(images), embedding.grid_size)
    if is_volume_encoder(encoder):
        return list(cast(Any, encoder)(images))
    if isinstance(encoder, VisionTransformer):
        sides = zip(images.shape[2:], cast(Any, encoder).patch_embed.patch_size, strict=True)
        tokens = cast(Any, encoder).norm_pre(patch_embeddings(encoder, images))
        return _token_maps(encoder, tokens, [side // patch for side, patch in sides])
    return list(cast(Any, encoder).forward_intermediates(images, norm=True, intermediates_only=True))


def _token_maps(vit: nn.Module, tokens: Tensor, grid: Sequence[int]) -> list[Tensor]:
    """Tokens ``[B, N, D]`` through the blocks of a ViT; after some of them, on their grid."""
    model = cast(Any, vit)
    depth = len(model.blocks)
    taken = {math.ceil((level + 1) * depth / LEVELS) for level in range(LEVELS)}
    maps = []
    for number, block in enumerate(model.blocks, start=1):
        tokens = block(tokens)
        if number in taken:
            shown = model.norm(tokens) if number == depth else tokens
            maps.append(shown.transpose(1, 2).reshape(len(tokens), -1, *grid))
    return maps


def pyramid_shapes(encoder: nn.Module, image: ImageConfig) -> list[tuple[int, ...]]:
    """``(D, *sides)`` of each map for the study's images, found without computing (on torch's meta device)."""
    shadow = copy.deepcopy(encoder).to("meta").eval()
    with torch.no_grad():
        return [
            tuple(found.shape[1:]) for found in feature_pyramid(shadow, torch.empty(1, *image.shape, device="meta"))
        ]


class PyramidDecoder(nn.Module):
    """From an image and the pyramid of its maps to ``[B, channels, *sides]``, in 2-D and 3-D.

    After UNETR (Hatamizadeh et al. 2022, fig. 1): from the last map on, enlarge twofold, join the map of the level
    above and the image last, and convolve twice around a shortcut. Two deviations let it fit every encoder and small
    batches. A map that has to grow is brought to its stage's channels by a 1x1 convolution and then enlarged, without
    the transposed convolutions, which leave a checkerboard (Odena et al. 2016) and need sides that are powers of two.
    GroupNorm stands for InstanceNorm, which cannot normalise a map of one pixel.

    A stage has ``width`` channels at the image's side and twice as many at half of it, and so on, but no more than
    its map and no fewer than a group.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], image: ImageConfig, channels: int, width: int) -> None:
        """shapes: what ``pyramid_shapes`` says."""
        super().__init__()
        *skipped, (below, *sides) = shapes
        convolution = nn.Conv2d if image.dimensions == 2 else nn.Conv3d
        self.sizes = [*_stage_sizes([shape[1:] for shape in skipped], sides, image.shape[1:]), image.shape[1:]]
        brought = [*(shape[0] for shape in reversed(skipped)), image.channels]  # the image is the finest level
        skips, blocks = [], []
        for given, size in zip(brought, self.sizes, strict=True):
            most = width if size == image.shape[1:] else min(given, width * image.size // size[-1])
            own = max(GROUP, most // GROUP * GROUP)
            skips.append(nn.Sequential(convolution(given, own, 1), nn.GroupNorm(own // GROUP, own)))
            blocks.append(_residual_block(image.dimensions, below + own, own))
            below = own
        self.skips, self.blocks = nn.ModuleList(skips), nn.ModuleList(blocks)
        self.out = convolution(below, channels, 1)

    def forward(self, images: Tensor, pyramid: Sequence[Tensor]) -> Tensor:
        """``[B, channels, *sides]`` of standardised images and what ``feature_pyramid`` gives of them."""
        *finer, grown = pyramid
        brought = [*reversed(finer), images]
        for size, skip, block, maps in zip(self.sizes, self.skips, self.blocks, brought, strict=True):
            joined = torch.cat([_enlarged(grown, size), _enlarged(skip(maps), size)], dim=1)
            grown = block(joined)
        return cast(Tensor, self.out(grown))


def _stage_sizes(skipped: Sequence[Sequence[int]], last: Sequence[int], image: Sequence[int]) -> list[tuple[int, ...]]:
    """Sides of each stage before the image, coarsest first: twice the stage below, never less than the own map.

    Where that is finer than the map (a ViT's), no more than half of the image: the cost is in the finest stages.
    """
    sizes: list[tuple[int, ...]] = []
    below = last
    for own in reversed(skipped):
        most = [max(1, whole // 2) for whole in image]
        size = tuple(max(side, min(2 * part, half)) for side, part, half in zip(own, below, most, strict=True))
        sizes.append(size)
        below = size
    return sizes


def _enlarged(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Maps at another size, to the nearest pixel."""
    return (
        maps
        if tuple(maps.shape[2:]) == tuple(size)
        else functional.interpolate(maps, tuple(size), mode="nearest-exact")
    )


def _residual_block(dimensions: int, width_in: int, width: int) -> nn.Module:
    """Two convolutions of 3 around a shortcut, as in UNETR."""
    from monai.networks.blocks.unetr_block import UnetrBasicBlock  # seconds to import, and few protocols decode

    norm = ("group", {"num_groups": width // GROUP})
    return cast(nn.Module, UnetrBasicBlock(dimensions, width_in, width, 3, 1, norm, res_block=True))
