"""Barlow Twins (Zbontar et al. 2021, ICML): redundancy reduction."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.similarity import as_float32
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig


def barlow_loss(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """sum_i (1 - C_ii)^2 + weight sum_{i != j} C_ij^2 of the views' cross-correlations C (eq. 1-2).

    first, second: projections ``[B, D]``, B at least 2. C_ij is the mean over the batch of channel i of the first view
    times channel j of the second, each standardised over the batch as BatchNorm does: by the biased variance plus
    1e-5 (their code; eq. 2 has no epsilon). At least in float32.
    """
    with torch.autocast(first.device.type, enabled=False):
        correlation = _standardised(first).T @ _standardised(second) / len(first)  # [D, D]
        on = correlation.diagonal()
        off = correlation.square().sum() - on.square().sum()
        return (1.0 - on).square().sum() + weight * off


def _standardised(projections: Tensor) -> Tensor:
    projections = as_float32(projections)
    variance, mean = torch.var_mean(projections, dim=0, correction=0)
    return (projections - mean) / (variance + 1e-5).sqrt()


class BarlowTwinsConfig(TwoViewConfig):
    """Decorrelation of the channels of a projection."""

    name: Literal["barlow_twins"] = "barlow_twins"
    redundancy: float = Field(
        default=0.0051, ge=0.0, description="Lambda: weight of the correlations between different channels."
    )
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of the projector; default: those of projection, as in the paper.",
    )
    projection: int = Field(
        default=256,
        ge=2,
        description="Channels that are decorrelated. B images cannot bring the squared correlations of D channels "
        "below about D^2/B: for the paper's 8192 and a batch of 2048 that is, times lambda, 2 % of what "
        "the other term starts from, but half of it and more at a batch of 32. With 256 it is 4 %.",
    )


class BarlowTwins(TwoViewMethod, name="barlow_twins"):
    """Make the channels of two views' projections agree one by one and differ from each other.

    Deviations: a projector of 256 channels where the paper has 8192 (see ``projection``); the loss is not scaled
    down for LARS, which AdamW does not notice.

    The paper trains with LARS at .2; with AdamW the default is training.learning_rate 4e-3 (5e-4 a step of 32).
    """

    Config: ClassVar[type[MethodConfig]] = BarlowTwinsConfig
    config: BarlowTwinsConfig

    def __init__(self, config: BarlowTwinsConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        hidden = config.projector_width or config.projection
        self.projector = projector([feature_dim(encoder), hidden, hidden, config.projection], last="linear")

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance of the cross-correlations from the identity."""
        first = self.projector(features(self.encoder, views["first"]))  # [B, projection]
        second = self.projector(features(self.encoder, views["second"]))
        return barlow_loss(first, second, self.config.redundancy), {}
