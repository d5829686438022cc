"""Models Genesis: restoration of corrupted images (Zhou et al. 2019, MICCAI; 2021, Medical Image Analysis)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import Fraction, ImageConfig
from imaging.views.augment import full_precision
from ssl_methods.components.corruptions import Chances, corrupt, decided, draw
from ssl_methods.encoders.decoders import image_decoder, restoration_loss
from ssl_methods.encoders.outputs import feature_maps
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig


class ModelsGenesisConfig(MethodConfig):
    """Restoration of images from four corruptions."""

    name: Literal["models_genesis"] = "models_genesis"
    bezier: Fraction = Field(
        default=0.9, description="Probability that intensities go through a random monotone curve."
    )
    shuffle: Fraction = Field(default=0.5, description="Probability that pixels are shuffled inside small windows.")
    paint: Fraction = Field(default=0.9, description="Probability that parts of the image are painted over.")
    outpaint: Fraction = Field(
        default=0.8, description="Share of the painted images that are painted outside a few blocks, not inside."
    )
    decoder_width: int = Field(
        default=64,
        ge=16,
        description="Channels of the decoder's first stage; each further stage has half of them, and at least 16.",
    )


class ModelsGenesis(Method, name="models_genesis"):
    """Restore an image whose intensities, texture and parts were changed.

    Deviations: flips (their .4) are the modality preset's, since a mirrored CT is no anatomy, and crops are the
    study's size (theirs: 64 x 64 x 32 voxels). They train a U-Net; here only the encoder is kept, so that the decoder
    has no skip connections: what it restores has gone through the last feature map. Images are in standardised
    units; corruptions see them in [0, 1], by the least and greatest value of each view's channel. The default
    training.learning_rate is 1e-3.
    """

    Config: ClassVar[type[MethodConfig]] = ModelsGenesisConfig
    config: ModelsGenesisConfig

    def __init__(self, config: ModelsGenesisConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.decoder = image_decoder(encoder, image, config.decoder_width)
        self.chances = Chances(config.bezier, config.shuffle, config.paint, config.outpaint)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops and the corruptions."""
        crops = self.augmentation.draw(count, generator)
        return {"images": crops, "corruptions": decided(draw((count, *self.image.shape), generator), self.chances)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``images`` ``[B, C, ...]`` (crop, flip) and ``corrupted``, the same images corrupted."""
        images = self.augmentation.light(batch.images, draws["images"])
        with full_precision(images.device):
            places = tuple(range(2, images.ndim))
            low, high = images.amin(dim=places, keepdim=True), images.amax(dim=places, keepdim=True)
            span = (high - low).clamp(min=1e-6)  # an empty channel is all 0, and stays so but for what is painted
            corrupted = corrupt((images - low) / span, draws["corruptions"]) * span + low
        return {"images": images, "corrupted": corrupted}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over all pixels between the restored and the uncorrupted image (their eq. 1)."""
        return self.image_losses(views).mean(), {}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: mean squared error over all pixels of each image."""
        return restoration_loss(self.decoder(feature_maps(self.encoder, views["corrupted"])), views["images"])

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The images ``[B, C, ...]`` as restored from their corrupted ones, on the scale that the encoder sees."""
        restored: Tensor = self.decoder(feature_maps(self.encoder, views["corrupted"]))
        return restored.to(views["images"].dtype)
