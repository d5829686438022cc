"""Masked autoencoder (He et al. 2022, CVPR; federated: Yan et al. 2023, IEEE TMI)."""

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.components.focus import patch_weights
from ssl_methods.components.heads import TokenPredictor, check_width, take, width_and_heads
from ssl_methods.components.similarity import as_float32
from ssl_methods.components.token_masks import counted, random_masks
from ssl_methods.encoders.outputs import block_count, feature_dim, grid_shape, patch_shape, patch_tokens
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig


def patchify(images: Tensor, patch: int | Sequence[int]) -> Tensor:
    """``[B, C, S, S]`` -> ``[B, N, P]``: row-major patches of P = patch * patch * C values, row-major with C last.

    Volumes ``[B, C, D, H, W]`` likewise. ``patch`` is the side of a patch, or its sides by axis.
    """
    batch, channels, *sizes = images.shape
    sides = [patch] * len(sizes) if isinstance(patch, int) else list(patch)
    grid = [size // side for size, side in zip(sizes, sides, strict=True)]
    axes = len(sizes)
    cut = images.reshape(batch, channels, *(part for pair in zip(grid, sides, strict=True) for part in pair))
    places, inside = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return cut.permute(0, *places, *inside, 1).reshape(batch, math.prod(grid), math.prod(sides) * channels)


def unpatchify(patches: Tensor, patch: int | Sequence[int], grid: Sequence[int] | None = None) -> Tensor:
    """The inverse of ``patchify``: ``[B, N, P]`` -> ``[B, C, S, S]``, or of volumes ``[B, C, D, H, W]``.

    ``grid``: patches along each axis; None: a square one of 2 axes.
    """
    batch, count, values = patches.shape
    grid = [round(count**0.5)] * 2 if grid is None else list(grid)
    sides = [patch] * len(grid) if isinstance(patch, int) else list(patch)
    axes, channels = len(grid), values // math.prod(sides)
    cut = patches.reshape(batch, *grid, *sides, channels)
    order = [axis for pair in zip(range(1, 1 + axes), range(1 + axes, 1 + 2 * axes), strict=True) for axis in pair]
    whole = [count * side for count, side in zip(grid, sides, strict=True)]
    return cut.permute(0, 1 + 2 * axes, *order).reshape(batch, channels, *whole)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and ``sqrt(unbiased variance + 1e-6)`` of each patch's values, ``[B, N, 1]`` each (sec. 3)."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def mae_loss(
    prediction: Tensor,
    images: Tensor,
    masked: Tensor,
    patch: int | Sequence[int],
    norm_pixels: bool,
    counted: Tensor | None = None,
) -> Tensor:
    """Of each image the mean squared error over its masked patches (sec. 3, "reconstruction target"), ``[B]``.

    At least in float32. prediction ``[B, M, P]`` at the places ``masked`` ``[B, M]`` of ``images`` ``[B, C, S, S]``
    or volumes ``[B, C, D, H, W]``; ``patch`` as ``patchify`` takes it. counted ``[B, M]`` bool: the masked patches that
    count, in every image at least one; None: all.
    """
    target = as_float32(take(patchify(images, patch), masked))
    if norm_pixels:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    error = (prediction.to(target.dtype) - target).square().mean(dim=2)  # [B, M]
    if counted is None:
        return error.mean(dim=1)
    return (error * counted).sum(dim=1) / counted.sum(dim=1)


def only_patches(image: Tensor, places: Tensor, patch: int | Sequence[int]) -> Tensor:
    """An image or volume ``[C, ...]`` with NaN outside the patches ``places`` ``[K]``, for a person to look at."""
    patches = patchify(image[None], patch)  # [1, N, P]
    sides = [patch] * (image.ndim - 1) if isinstance(patch, int) else list(patch)
    grid = [size // side for size, side in zip(image.shape[1:], sides, strict=True)]
    shown = torch.full_like(patches, torch.nan)
    shown[:, places] = patches[:, places]
    return unpatchify(shown, sides, grid)[0]


class MAEConfig(MethodConfig):
    """Masked autoencoding."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0, description="Share of the patches that are hidden.")
    norm_pixels: bool = Field(default=True, description="Restore pixels normalised within each patch, not raw ones.")
    decoder_width: int | None = Field(
        default=None,
        ge=4,
        description="Channels of the decoder, a multiple of 4 and of decoder_heads; default: half the encoder's, at "
        "least 64 (the paper: 512, its encoders have 768 to 1280).",
    )
    decoder_depth: int | None = Field(
        default=None,
        ge=1,
        description="Blocks of the decoder; default: a third of the encoder's. The paper's 8 (its encoders have 12 to "
        "32) of 512 channels cost five times a small encoder, and it finds one enough for fine-tuning (table 1a).",
    )
    decoder_heads: int | None = Field(
        default=None, ge=1, description="Attention heads of the decoder; default: of 32 channels each, as the paper's."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_width(self.decoder_width, self.decoder_heads, "decoder")
        return self


class MAE(Method, name="mae"):
    """Hide most patches, encode the rest, restore the hidden pixels with a small decoder."""

    Config: ClassVar[type[MethodConfig]] = MAEConfig
    config: MAEConfig

    def __init__(self, config: MAEConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.patch, self.grid = patch_shape(encoder), grid_shape(encoder)
        wide = feature_dim(encoder)
        width, heads = width_and_heads(wide, len(self.grid), config.decoder_width, config.decoder_heads)
        depth = config.decoder_depth or max(1, block_count(encoder) // 3)
        values = math.prod(self.patch) * image.channels
        self.decoder = TokenPredictor(wide, values, self.grid, width=width, depth=depth, heads=heads)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops, and a number for every patch, by which it is hidden or not."""
        crops = self.augmentation.draw(count, generator)
        return {"images": crops, "patches": torch.rand(count, math.prod(self.grid), generator=generator)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``images`` as given (crop, flip), ``keep`` ``[B, K]``, ``masked`` ``[B, M]``.

        Where the study focuses also ``counted`` ``[B, M]``: the masked patches that are not empty.
        """
        images = self.augmentation.light(batch.images, draws["images"])
        weights = patch_weights(self.config.focus, images, self.grid)
        keep, masked = random_masks(draws["patches"], self.config.mask_ratio, weights)
        views = {"images": images, "keep": keep, "masked": masked}
        return views if weights is None else views | {"counted": counted(masked, weights)}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error on the hidden patches."""
        return self.image_losses(views).mean(), {}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: mean squared error on each image's hidden patches."""
        tokens = patch_tokens(self.encoder, views["images"], views["keep"])  # [B, K, D]
        prediction = self.decoder(tokens, views["keep"], views["masked"])  # [B, M, P]
        return mae_loss(
            prediction, views["images"], views["masked"], self.patch, self.config.norm_pixels, views.get("counted")
        )

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """The view, and what of it the encoder sees."""
        whole = views["images"][image]
        return [("view", whole), ("encoder sees", only_patches(whole, views["keep"][image], self.patch))]

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The images or volumes with their hidden patches as restored, as the encoder sees them.

        Normalised predictions are put back on the scale of the true patch, as in the paper's figures: the
        mean and contrast of a hidden patch are given, not restored.
        """
        patches = patchify(views["images"], self.patch)
        tokens = patch_tokens(self.encoder, views["images"], views["keep"])
        restored = self.decoder(tokens, views["keep"], views["masked"]).to(patches.dtype)
        if self.config.norm_pixels:
            mean, deviation = patch_statistics(take(patches, views["masked"]))
            restored = restored * deviation + mean
        places = views["masked"][:, :, None].expand_as(restored)
        return unpatchify(patches.scatter(1, places, restored), self.patch, self.grid)
