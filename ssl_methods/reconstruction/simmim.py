"""SimMIM (Xie et al. 2022, CVPR): masked image modelling with mask tokens and a one-layer head."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from foundation import vision_import
from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods.components.focus import patch_weights
from ssl_methods.components.similarity import as_float32
from ssl_methods.components.token_masks import counted, random_masks
from ssl_methods.encoders.outputs import feature_dim, grid_side, masked_maps, patch_side, token_dim
from ssl_methods.encoders.volume_encoders import STAGES
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig

PAPERS_UNIT = 32 / 192
"""Side of a mask unit as a share of the image's, in the paper's pretraining."""


def simmim_loss(prediction: Tensor, images: Tensor, hidden: Tensor) -> Tensor:
    """Of each image the mean absolute error over its hidden pixels (sec. 3.4), ``[B]``, at least in float32.

    prediction, images ``[B, C, S, S]``; hidden ``[B, S, S]`` bool, in every image somewhere true. Where all
    images hide as many pixels, the mean over images is the paper's eq. 1.
    """
    images = as_float32(images)
    weight = hidden[:, None].to(images.dtype)  # [B, 1, S, S]
    error = (prediction.to(images.dtype) - images).abs() * weight
    return error.flatten(1).sum(dim=1) / (weight.flatten(1).sum(dim=1) * images.shape[1])


def mask_unit(asked: int | None, size: int, stride: int) -> int:
    """Side of a mask unit in pixels for images of side ``size`` under an encoder of total stride ``stride``.

    None: of all multiples of the stride that tile the image in 2 x 2 units or more the one nearest to the paper's
    32 of 192 pixels. StudyError when what is asked is no such multiple, or there is none.
    """
    fitting = [side for side in range(stride, size // 2 + 1, stride) if size % side == 0]
    if not fitting:
        raise StudyError(
            f"simmim hides units of the encoder's stride, {stride} pixels, which do not tile image.size {size} in "
            f"2 x 2 units or more: set image.size to {max(2, round(size / stride)) * stride}, or a smaller patch_size"
        )
    if asked is None:
        return min(fitting, key=lambda side: abs(side - PAPERS_UNIT * size))
    if asked not in fitting:
        raise StudyError(
            f"method.mask_unit {asked} must be a multiple of the encoder's stride, {stride} pixels, and tile image.size"
            f" {size}: choose {' or '.join(map(str, fitting))}"
        )
    return asked


class SimMIMConfig(MethodConfig):
    """Masked image modelling."""

    name: Literal["simmim"] = "simmim"
    mask_ratio: float = Field(default=0.6, gt=0.0, lt=1.0, description="Share of the mask units that are hidden.")
    mask_unit: int | None = Field(
        default=None,
        ge=1,
        description="Side of a mask unit in pixels, a multiple of a ViT's patch or a Swin's total stride; default: "
        "about a sixth of the image's side, the paper's 32 of 192.",
    )


class SimMIM(Method, name="simmim"):
    """Replace most of an image by a mask token and predict the hidden pixels with one linear layer.

    The encoder sees all places, hidden ones as the mask token plus their position, so that it also takes Swin
    encoders, which cannot drop patches as MAE does; it therefore costs a whole forward pass. The
    paper's training.learning_rate is 1e-4 (8e-4 for a batch of 2048), weight decay .05; the default is for steps of 32.
    """

    Config: ClassVar[type[MethodConfig]] = SimMIMConfig
    config: SimMIMConfig

    def __init__(self, config: SimMIMConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        vit = isinstance(encoder, vision_import.VisionTransformer)
        self.stride = patch_side(encoder) * (1 if vit else 2 ** (STAGES - 1))
        self.unit = mask_unit(config.mask_unit, image.size, self.stride)
        self.mask_token = nn.Embedding(1, token_dim(encoder))
        nn.init.normal_(self.mask_token.weight, std=0.02)
        self.head = nn.Conv2d(feature_dim(encoder), self.stride**2 * image.channels, 1)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops, and a number for every mask unit, by which it is hidden or not."""
        units = (self.image.size // self.unit) ** 2
        crops = self.augmentation.draw(count, generator)
        return {"images": crops, "units": torch.rand(count, units, generator=generator)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``images`` ``[B, C, S, S]`` (crop, flip); ``hidden``, ``counted`` ``[B, U, U]`` bool over mask units.

        ``counted`` are the hidden units that the loss looks at: all of them, unless the study focuses.
        """
        images = self.augmentation.light(batch.images, draws["images"])
        side = self.image.size // self.unit
        weights = patch_weights(self.config.focus, images, (side, side))
        _, masked = random_masks(draws["units"], self.config.mask_ratio, weights)
        nothing = torch.zeros(len(images), side**2, dtype=torch.bool, device=images.device)
        hidden = nothing.scatter(1, masked, True).view(-1, side, side)
        asked = nothing.scatter(1, masked, counted(masked, weights)).view(-1, side, side)
        return {"images": images, "hidden": hidden, "counted": asked}

    def predict(self, views: Views) -> Tensor:
        """The whole images ``[B, C, S, S]`` as predicted from what is not hidden."""
        patches = enlarged(views["hidden"], grid_side(self.encoder)).flatten(1)  # [B, N]
        maps = masked_maps(self.encoder, views["images"], patches, self.mask_token)  # [B, D, h, w]
        return functional.pixel_shuffle(self.head(maps), self.stride)

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean absolute error on the hidden pixels."""
        return self.image_losses(views).mean(), {}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: mean absolute error on each image's hidden pixels."""
        pixels = enlarged(views["counted"], self.image.size)
        return simmim_loss(self.predict(views), views["images"], pixels)

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """The view, and what of it the encoder sees."""
        whole, hidden = views["images"][image], enlarged(views["hidden"], self.image.size)[image]
        return [("view", whole), ("encoder sees", whole.masked_fill(hidden, torch.nan))]

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The images ``[B, C, S, S]`` with their hidden pixels as predicted, on the scale that the encoder sees."""
        hidden = enlarged(views["hidden"], self.image.size)[:, None]
        return torch.where(hidden, self.predict(views).to(views["images"].dtype), views["images"])


def enlarged(mask: Tensor, side: int) -> Tensor:
    """A map ``[B, u, u]`` as ``[B, side, side]``: every place becomes a square; u divides ``side``."""
    factor = side // mask.shape[-1]
    return mask.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
