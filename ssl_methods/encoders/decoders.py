"""A small convolutional decoder from an encoder's last map back to images."""

import copy
import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from imaging.config import ImageConfig
from ssl_methods.components.similarity import as_float32
from ssl_methods.encoders.outputs import feature_dim, feature_maps

GROUP = 8
"""Channels that are normalised together."""
NARROWEST = 16
"""Channels of a stage at least; the last stages have the most pixels and cost the most."""


def map_grid(encoder: nn.Module, image: ImageConfig) -> tuple[int, ...]:
    """Sides of the encoder's last map for the study's images, found without computing (on torch's meta device)."""
    shadow = copy.deepcopy(encoder).to("meta").eval()
    with torch.no_grad():
        return tuple(feature_maps(shadow, torch.empty(1, *image.shape, device="meta")).shape[2:])


class ConvDecoder(nn.Module):
    """From feature maps ``[B, D, *grid]`` to images ``[B, channels, *shape]``, in 2-D and 3-D.

    A 1x1 convolution to ``width`` channels, then as many stages as doublings lie between grid and image: enlarge to
    the nearest pixel, convolve 3x3, GroupNorm, GELU, with half the channels of the stage before; last a 1x1
    convolution, without bound on the values. Enlarging before convolving leaves no checkerboard, as transposed
    convolutions do (Odena et al. 2016). GroupNorm looks at one image at a time, so that the decoder never makes a
    loss coupled; an encoder's own BatchNorm still does. Any factor is reached, also another one along each axis.
    """

    def __init__(self, width_in: int, channels: int, grid: Sequence[int], shape: Sequence[int], width: int) -> None:
        super().__init__()
        convolution = nn.Conv2d if len(shape) == 2 else nn.Conv3d
        factor = max(whole / part for whole, part in zip(shape, grid, strict=True))
        stages = max(1, math.ceil(math.log2(factor)))
        # The last stage has the image's sides, each stage before it half of them and never less than the grid's.
        self.sizes = [
            tuple(max(part, math.ceil(whole / 2**left)) for whole, part in zip(shape, grid, strict=True))
            for left in reversed(range(stages))
        ]
        widths = [max(NARROWEST, width // 2**stage // GROUP * GROUP) for stage in range(stages + 1)]
        self.embed = convolution(width_in, widths[0], 1)
        self.stages = nn.ModuleList(
            nn.Sequential(
                convolution(before, after, 3, padding=1, bias=False), nn.GroupNorm(after // GROUP, after), nn.GELU()
            )
            for before, after in pairwise(widths)
        )
        self.out = convolution(widths[-1], channels, 1)

    def forward(self, maps: Tensor) -> Tensor:
        """``[B, channels, *shape]`` from ``[B, D, *grid]``."""
        grown = self.embed(maps)
        for size, stage in zip(self.sizes, self.stages, strict=True):
            grown = stage(functional.interpolate(grown, size=size, mode="nearest-exact"))
        return cast(Tensor, self.out(grown))


def image_decoder(encoder: nn.Module, image: ImageConfig, width: int) -> ConvDecoder:
    """The decoder that turns what ``feature_maps`` gives of the study's images into such images."""
    return ConvDecoder(feature_dim(encoder), image.channels, map_grid(encoder, image), image.shape[1:], width)


def restoration_loss(prediction: Tensor, images: Tensor) -> Tensor:
    """Of each image the mean squared error over all its pixels, ``[B]`` of ``[B, C, ...]``, at least in float32."""
    images = as_float32(images)
    return (prediction.to(images.dtype) - images).square().flatten(1).mean(dim=1)
