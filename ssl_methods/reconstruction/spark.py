"""SparK (Tian et al. 2023, ICLR): masked image modelling for convolutional encoders, sparse and hierarchical."""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.components.focus import patch_weights
from ssl_methods.components.heads import take
from ssl_methods.components.token_masks import counted, random_masks
from ssl_methods.encoders.decoders import GROUP, NARROWEST
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.encoders.pyramid import pyramid_shapes
from ssl_methods.encoders.sparse import Visible, require_sparse, sparse_maps
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.reconstruction.mae import mae_loss, only_patches, patch_statistics, patchify, unpatchify

FEWEST = 4
"""Mask units along a side, at least, where the study names no unit."""
PAPERS_WIDTH = 768


def mask_unit(asked: int | None, size: int, sides: Sequence[int]) -> int:
    """Side of a mask unit in pixels for images of side ``size`` whose maps have ``sides``, the coarsest last.

    A unit is a power of 2, at most the encoder's total stride, that tiles the image in 2 x 2 units or more, each a
    whole number of places of every map that is not coarser. None: the largest that leaves 4 x 4 units, so that it is
    the total stride, as in the paper, where the image is large enough. StudyError when what is asked is none of these,
    or there is none.
    """
    stride = -(-size // sides[-1])
    powers: list[int] = [2**power for power in range(1, stride.bit_length())]
    fitting = [unit for unit in powers if _fits(unit, size, sides)]
    if not fitting:
        raise StudyError(
            f"spark hides squares of 2, 4, 8, ... pixels, which do not tile image.size {size}: "
            f"set image.size to {max(1, round(size / 8)) * 8}"
        )
    if asked is None:
        return max((unit for unit in fitting if size // unit >= FEWEST), default=fitting[0])
    if asked not in fitting:
        raise StudyError(
            f"method.mask_unit {asked} must be a power of 2, at most the encoder's stride of {stride} pixels, and tile "
            f"image.size {size}: choose {' or '.join(map(str, fitting))}"
        )
    return asked


def _fits(unit: int, size: int, sides: Sequence[int]) -> bool:
    grid = size // unit
    return size % unit == 0 and grid >= 2 and not any(side % grid for side in sides if side >= grid)


class Densify(nn.Module):
    """A stage's map with the stage's mask token in its hidden places, at the decoder's width (sec. 3.2).

    The mask token is an ``nn.Embedding`` as in MAE's decoder, for gradients of single images. A stage that hides
    nothing has none.
    """

    def __init__(self, width_in: int, width: int, hides: bool) -> None:
        super().__init__()
        self.token = nn.Embedding(1, width_in) if hides else None
        if self.token is not None:
            nn.init.trunc_normal_(self.token.weight, std=0.02)
        self.project = nn.Conv2d(width_in, width, 1)

    def forward(self, maps: Tensor, hidden: Tensor | None) -> Tensor:
        """``[B, width, s, s]`` of maps ``[B, D, s, s]`` and hidden ``[B, 1, s, s]`` bool, None where none is."""
        if self.token is not None and hidden is not None:
            place = torch.zeros(len(maps), 1, dtype=torch.long, device=maps.device)
            maps = torch.where(hidden, self.token(place).transpose(1, 2)[..., None].to(maps.dtype), maps)
        return cast(Tensor, self.project(maps))


class LightDecoder(nn.Module):
    """From the maps of visible patches to images ``[B, channels, S, S]``: a UNet's second half (sec. 3.2).

    ``D = block(D of the stage below) + densify(map)`` from the coarsest map on, and blocks without a map up to the
    image's side. A block enlarges to the nearest pixel and convolves 3x3 twice, each with GroupNorm, ReLU6 in
    between. ``width`` channels at the coarsest map, half of them at each further side, but no fewer than 16.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], grid: int, image: ImageConfig, width: int) -> None:
        """shapes: channels and side of the maps, the coarsest first; grid: mask units along the image's side."""
        super().__init__()
        self.sides = [side for _, side in shapes]
        while self.sides[-1] < image.size:
            self.sides.append(min(2 * self.sides[-1], image.size))
        widths = [max(NARROWEST, width // 2**level // GROUP * GROUP) for level in range(len(self.sides))]
        self.densify = nn.ModuleList(
            Densify(channels, own, side >= grid)
            for (channels, side), own in zip(shapes, widths[: len(shapes)], strict=True)
        )
        self.blocks = nn.ModuleList(_block(before, after) for before, after in pairwise(widths))
        self.out = nn.Conv2d(widths[-1], image.channels, 1)

    def forward(self, maps: Sequence[Tensor], hidden: Sequence[Tensor | None]) -> Tensor:
        """``[B, channels, S, S]`` of the maps, the coarsest first, and of where each is hidden."""
        filled = [each(*given) for each, given in zip(self.densify, zip(maps, hidden, strict=True), strict=True)]
        grown = filled[0]
        for level, (side, block) in enumerate(zip(self.sides[1:], self.blocks, strict=True), start=1):
            grown = block(functional.interpolate(grown, size=(side, side), mode="nearest-exact"))
            if level < len(filled):
                grown = grown + filled[level]
        return cast(Tensor, self.out(grown))


def _block(width_in: int, width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(width_in, width, 3, padding=1, bias=False),
        nn.GroupNorm(width // GROUP, width),
        nn.ReLU6(),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        nn.GroupNorm(width // GROUP, width),
    )


class SparKConfig(MethodConfig):
    """Masked modelling with a sparse convolutional encoder."""

    name: Literal["spark"] = "spark"
    mask_ratio: float = Field(default=0.6, gt=0.0, lt=1.0, description="Share of the mask units that are hidden.")
    mask_unit: int | None = Field(
        default=None,
        ge=1,
        description="Side of a mask unit in pixels, a power of 2 and at most the encoder's total stride; default: that "
        "stride, the paper's 32 of 224 pixels, or on a small image the largest that leaves 4 x 4 units.",
    )
    norm_pixels: bool = Field(default=True, description="Restore pixels normalised within each unit, not raw ones.")
    decoder_width: int | None = Field(
        default=None,
        ge=16,
        description="Channels of the decoder at the coarsest map; each larger side has half of them, and at least 16; "
        "default: half of the encoder's, from 64 to the paper's 768.",
    )


class SparK(Method, name="spark"):
    """Hide most of an image, encode the rest sparsely, restore the hidden pixels from all stages' maps.

    Hidden pixels reach nothing, and where units are as large as the encoder's total stride the hidden places stay empty
    at every stage. The encoder is a plain timm model, which afterwards sees whole images as it is.

    Deviations: on small images units are smaller than the total stride, or there would be one or four of them; maps
    coarser than their grid are computed densely (ssl_methods/encoders/sparse.py). Maps finer than a quarter of the
    image are left out: those are a stem's, and the paper has four, of strides 4 to 32. The decoder enlarges to the
    nearest pixel before it convolves, where theirs has transposed convolutions, which leave a checkerboard (Odena et
    al. 2016); GroupNorm stands for their BatchNorm, so that the decoder never couples images; maps come to the
    decoder's width by a 1x1 convolution at every stage, without a normalisation of their own. The share kept is rounded
    down to whole units, as in MAE. They train with LAMB at 2e-4 for 256 images a step and batches of 4096; AdamW's rate
    and betas here are those of MAE.

    An encoder's BatchNorm takes its statistics from the visible places of all images of a batch: it couples them. With
    GroupNorm (``encoder.norm: group``) or LayerNorm each image's gradient is its own. ``training.compile`` leaves the
    encoder as it is.
    """

    Config: ClassVar[type[MethodConfig]] = SparKConfig
    config: SparKConfig

    def __init__(self, config: SparKConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        require_sparse(encoder)
        shapes = [(channels, side) for channels, side, _ in pyramid_shapes(encoder, image)]
        shapes[-1] = (feature_dim(encoder), shapes[-1][1])
        self.unit = mask_unit(config.mask_unit, image.size, [side for _, side in shapes])
        self.grid = image.size // self.unit
        # Of several maps of one side the last, and the last map of all in any case.
        last_of = {side: level for level, (_, side) in enumerate(shapes) if 4 * side <= image.size}
        self.levels = sorted({*last_of.values(), len(shapes) - 1}, reverse=True)
        width = config.decoder_width or min(PAPERS_WIDTH, max(64, shapes[-1][0] // 2))
        self.decoder = LightDecoder([shapes[level] for level in self.levels], self.grid, image, width)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops, and a number for every mask unit, by which it is hidden or not."""
        crops = self.augmentation.draw(count, generator)
        return {"images": crops, "units": torch.rand(count, self.grid**2, generator=generator)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``images`` ``[B, C, S, S]`` (crop, flip), ``keep`` ``[B, K]``, ``masked`` ``[B, M]``: mask units, row-major.

        Where the study focuses also ``counted`` ``[B, M]``: the masked units that are not empty.
        """
        images = self.augmentation.light(batch.images, draws["images"])
        weights = patch_weights(self.config.focus, images, (self.grid, self.grid))
        keep, masked = random_masks(draws["units"], self.config.mask_ratio, weights)
        views = {"images": images, "keep": keep, "masked": masked}
        return views if weights is None else views | {"counted": counted(masked, weights)}

    def predict(self, views: Views) -> Tensor:
        """Images ``[B, C, S, S]`` as predicted from what is not hidden; with ``norm_pixels`` normalised by unit."""
        visible = Visible(views["keep"], self.grid)
        found = sparse_maps(self.encoder, views["images"], visible)
        maps = [found[level] for level in self.levels]
        return cast(Tensor, self.decoder(maps, [visible.hidden(each.shape[-1]) for each in maps]))

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error on the hidden units (sec. 3.3)."""
        return self.image_losses(views).mean(), {}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: mean squared error on each image's hidden units."""
        prediction = take(patchify(self.predict(views), self.unit), views["masked"])  # [B, M, P]
        return mae_loss(
            prediction, views["images"], views["masked"], self.unit, self.config.norm_pixels, views.get("counted")
        )

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """The view, and what of it the encoder sees."""
        whole = views["images"][image]
        return [("view", whole), ("encoder sees", only_patches(whole, views["keep"][image], self.unit))]

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The images ``[B, C, S, S]`` with their hidden units as restored, on the scale that the encoder sees.

        Normalised predictions are put back on the scale of the true unit: its mean and contrast are given, not
        restored.
        """
        patches = patchify(views["images"], self.unit)
        restored = take(patchify(self.predict(views), self.unit), views["masked"]).to(patches.dtype)
        if self.config.norm_pixels:
            mean, deviation = patch_statistics(take(patches, views["masked"]))
            restored = restored * deviation + mean
        places = views["masked"][:, :, None].expand_as(restored)
        return unpatchify(patches.scatter(1, places, restored), self.unit)
