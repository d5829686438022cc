"""The convolutional autoencoder (Hinton and Salakhutdinov 2006, Science; convolutional: Masci et al. 2011, ICANN)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.encoders.decoders import image_decoder, restoration_loss
from ssl_methods.encoders.outputs import feature_maps
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig


class AutoencoderConfig(MethodConfig):
    """Reproduction of the whole image."""

    name: Literal["autoencoder"] = "autoencoder"
    decoder_width: int = Field(
        default=64,
        ge=16,
        description="Channels of the decoder's first stage; each further stage has half of them, and at least 16.",
    )


class Autoencoder(Method, name="autoencoder"):
    """Encode an image and restore all of it: the floor of the family, which the others must beat to be worth it.

    Nothing is hidden or corrupted (that is what MAE, SimMIM and Models Genesis add), so that the only pressure is the
    bottleneck: the last feature map. A ViT of small patches has as many numbers there as the image has pixels; the
    task is then to copy, and teaches little. The default training.learning_rate is 1e-3.
    """

    Config: ClassVar[type[MethodConfig]] = AutoencoderConfig
    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.decoder = image_decoder(encoder, image, config.decoder_width)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """The crops."""
        return {"images": self.augmentation.draw(count, generator)}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``images`` ``[B, C, ...]``: crop and flip."""
        return {"images": self.augmentation.light(batch.images, draws["images"])}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error over all pixels."""
        return self.image_losses(views).mean(), {}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: mean squared error over all pixels of each image."""
        return restoration_loss(self.decoder(feature_maps(self.encoder, views["images"])), views["images"])

    @torch.no_grad()
    def restore(self, views: Views) -> Tensor:
        """The images ``[B, C, ...]`` as restored, on the scale that the encoder sees."""
        restored: Tensor = self.decoder(feature_maps(self.encoder, views["images"]))
        return restored.to(views["images"].dtype)
