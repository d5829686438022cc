"""Masked autoencoder (He et al. 2022, CVPR; federated: Yan et al. 2023, IEEE TMI)."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.encoders import Kind, feature_dim, grid_side, patch_side, patch_tokens
from ssl_methods.heads import TokenPredictor, check_width, take
from ssl_methods.method import Batch, Family, Method, MethodConfig, Role, Views


def patchify(pictures: Tensor, patch: int) -> Tensor:
    """``[B, C, S, S]`` -> ``[B, N, patch * patch * C]``: row-major patches of row-major pixels with C last."""
    batch, channels, size, _ = pictures.shape
    side = size // patch
    cut = pictures.reshape(batch, channels, side, patch, side, patch)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, side * side, patch * patch * channels)


def unpatchify(patches: Tensor, patch: int) -> Tensor:
    """The inverse of ``patchify``: ``[B, N, patch * patch * C]`` -> ``[B, C, S, S]``."""
    batch, count, values = patches.shape
    side, channels = round(count**0.5), values // patch**2
    cut = patches.reshape(batch, side, side, patch, patch, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(batch, channels, side * patch, side * patch)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and ``sqrt(unbiased variance + 1e-6)`` of each patch's values, ``[B, N, 1]`` each (sec. 3)."""
    return patches.mean(dim=-1, keepdim=True), (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()


def mae_loss(prediction: Tensor, pictures: Tensor, masked: Tensor, patch: int, norm_pixels: bool) -> Tensor:
    """Mean squared error over the masked patches (sec. 3, "reconstruction target"), at least in float32.

    prediction ``[B, M, patch * patch * C]`` at the places ``masked`` ``[B, M]`` of ``pictures`` ``[B, C, S,
    S]``.
    """
    target = take(patchify(pictures, patch), masked)
    target = target if target.dtype == torch.float64 else target.float()
    if norm_pixels:
        mean, deviation = patch_statistics(target)
        target = (target - mean) / deviation
    return (prediction.to(target.dtype) - target).square().mean()


def random_masks(count: int, patches: int, ratio: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random places ``(keep [count, K], masked [count, patches - K])``, each picture for itself.

    K = floor(patches (1 - ratio)) as in the paper's code, at least 1 and at most patches - 1. Each row is in
    rising order.
    """
    kept = min(max(int(patches * (1.0 - ratio)), 1), patches - 1)
    order = torch.rand(count, patches, generator=generator).argsort(dim=1, stable=True)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


class MAEConfig(MethodConfig):
    """Masked autoencoding."""

    name: Literal["mae"] = "mae"
    mask_ratio: float = Field(default=0.75, gt=0.0, lt=1.0, description="Share of the patches that are hidden.")
    norm_pixels: bool = Field(default=True, description="Restore pixels normalised within each patch, not raw ones.")
    decoder_width: int = Field(
        default=96, ge=4, description="Channels of the decoder, a multiple of 4 and of decoder_heads."
    )
    decoder_depth: int = Field(
        default=2,
        ge=1,
        description="Blocks of the decoder. The paper's 8 blocks of 512 cost five times a small encoder, and "
        "it finds one block enough for fine-tuning (table 1a).",
    )
    decoder_heads: int = Field(default=3, ge=1, description="Attention heads of the decoder.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        check_width(self.decoder_width, self.decoder_heads, "decoder")
        return self


class MAE(Method):
    """Hide most patches, encode the rest, restore the hidden pixels with a small decoder."""

    Config: ClassVar[type[MethodConfig]] = MAEConfig
    summary: ClassVar[str] = "restores the pixels of hidden patches"
    paper: ClassVar[str] = "He et al. 2022; federated: Yan et al. 2023"
    family: ClassVar[Family] = "reconstruction"
    per_sample: ClassVar[bool] = True
    encoders: ClassVar[tuple[Kind, ...]] = ("vit",)
    # The decoder is averaged with the encoder, as Yan et al. do.
    parts: ClassVar[dict[str, Role]] = {"encoder": "shared", "decoder": "shared"}
    config: MAEConfig

    def __init__(self, config: MAEConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.patch = patch_side(encoder)
        self.decoder = TokenPredictor(
            feature_dim(encoder),
            self.patch**2 * image.channels,
            grid_side(encoder),
            width=config.decoder_width,
            depth=config.decoder_depth,
            heads=config.decoder_heads,
        )

    def make_views(self, batch: Batch, generator: torch.Generator) -> Views:
        """``pictures`` ``[B, C, S, S]`` (crop, flip), ``keep`` ``[B, K]``, ``masked`` ``[B, M]``."""
        pictures = self.augmentation.light(batch.pictures, generator)
        patches = grid_side(self.encoder) ** 2
        keep, masked = random_masks(len(pictures), patches, self.config.mask_ratio, generator)
        return {"pictures": pictures, "keep": keep.to(pictures.device), "masked": masked.to(pictures.device)}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error on the hidden patches."""
        tokens = patch_tokens(self.encoder, views["pictures"], views["keep"])  # [B, K, D]
        prediction = self.decoder(tokens, views["keep"], views["masked"])  # [B, M, patch * patch * C]
        loss = mae_loss(prediction, views["pictures"], views["masked"], self.patch, self.config.norm_pixels)
        return loss, {}

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The pictures ``[B, C, S, S]`` with their hidden patches as restored, as the encoder sees them.

        Normalised predictions are put back on the scale of the true patch, as in the paper's figures: the
        mean and contrast of a hidden patch are given, not restored.
        """
        patches = patchify(views["pictures"], self.patch)
        tokens = patch_tokens(self.encoder, views["pictures"], views["keep"])
        restored = self.decoder(tokens, views["keep"], views["masked"]).to(patches.dtype)
        if self.config.norm_pixels:
            mean, deviation = patch_statistics(take(patches, views["masked"]))
            restored = restored * deviation + mean
        places = views["masked"][:, :, None].expand_as(restored)
        return unpatchify(patches.scatter(1, places, restored), self.patch)
