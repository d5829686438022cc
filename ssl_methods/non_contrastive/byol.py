"""BYOL: bootstrap your own latent (Grill et al. 2020, NeurIPS)."""

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.schedules import cosine, momentum_for_batch
from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.momentum import ema_update, follower
from ssl_methods.components.similarity import negative_cosine
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig


def byol_loss(predictions: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor]) -> Tensor:
    """Squared distance of unit vectors, 2 - 2 cos, summed over both directions (eq. 2), 0 to 8.

    predictions, targets: of the first and the second view, ``[B, D]`` each; each view predicts the other's target,
    which no gradient enters. At least in float32.
    """
    one, other = negative_cosine(predictions[0], targets[1]), negative_cosine(predictions[1], targets[0])
    return (2.0 + 2.0 * one) + (2.0 + 2.0 * other)


class BYOLConfig(TwoViewConfig):
    """Prediction of a slowly following network's view."""

    name: Literal["byol"] = "byol"
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of projector and predictor; default: twice the encoder's, as the paper's 4096 "
        "are for its ResNet.",
    )
    projection: int = Field(default=256, ge=2, description="Channels of the projection that is predicted.")
    momentum: float = Field(
        default=0.996,
        ge=0.0,
        le=1.0,
        description="Momentum of the target network at the study's start, for a step of momentum_batch images; it "
        "rises by a half cosine to 1.",
    )
    momentum_batch: int = Field(
        default=32,
        ge=1,
        description="Images of the step that `momentum` is stated for. With the paper's 4096 a hospital study of "
        "some thousand steps of 16 to 64 would end near its random start; with 32 the target forgets over "
        "250 steps of 32, as the paper's does over 250 of its own.",
    )


class BYOL(TwoViewMethod, name="byol"):
    """Predict from one view how a network that follows slowly sees the other.

    Deviations: heads are scaled with the encoder; views are those of the modality, alike for both sides (the paper
    blurs one more often and solarises the other). Heads without BatchNorm, which would make the gradient per-sample,
    are not offered: Richemond et al. 2020 get there by weight standardisation and group norms all through a ResNet,
    and over a small ViT, layer norms in the heads collapsed when tried here.

    The paper trains with LARS at .2; with AdamW the default is training.learning_rate 4e-3 (5e-4 a step of 32).
    """

    Config: ClassVar[type[MethodConfig]] = BYOLConfig
    config: BYOLConfig

    def __init__(self, config: BYOLConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        width = feature_dim(encoder)
        hidden = config.projector_width or 2 * width
        self.projector = projector([width, hidden, config.projection], last="linear")
        self.predictor = projector([config.projection, hidden, config.projection], last="linear")
        self.target_encoder = follower(encoder)
        self.target_projector = follower(self.projector)

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance between each view's prediction and the other's target."""
        first, second = views["first"], views["second"]
        predictions = self._online(first), self._online(second)  # [B, projection] each
        with torch.no_grad():
            targets = self._target(first), self._target(second)
        return byol_loss(predictions, targets), {}

    def _online(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.predictor(self.projector(features(self.encoder, images))))

    def _target(self, images: Tensor) -> Tensor:
        return cast(Tensor, self.target_projector(features(self.target_encoder, images)))

    def after_step(self, progress: float, images: int) -> None:
        """Let the target follow (eq. 1; momentum .996 -> 1 by a half cosine, sec. 3.3)."""
        stated = cosine(progress, self.config.momentum, 1.0)
        momentum = momentum_for_batch(stated, images, self.config.momentum_batch)
        ema_update(self.target_encoder, self.encoder, momentum)
        ema_update(self.target_projector, self.projector, momentum)

    def start_local_parts(self) -> None:
        """Start the target as a copy of the online network."""
        ema_update(self.target_encoder, self.encoder, 0.0)
        ema_update(self.target_projector, self.projector, 0.0)
