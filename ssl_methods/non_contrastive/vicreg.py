"""VICReg: variance, invariance and covariance (Bardes et al. 2022, ICLR)."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.similarity import as_float32
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig


def invariance(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of ``[B, D]`` projections, over channels too (their code; eq. 5 sums over them)."""
    return functional.mse_loss(first, second)


def variance(projections: Tensor) -> Tensor:
    """How far the channels' deviations fall short of 1: mean of max(0, 1 - sqrt(unbiased variance + 1e-4)), eq. 1-2."""
    return functional.relu(1.0 - (projections.var(dim=0) + 1e-4).sqrt()).mean()


def covariance(projections: Tensor) -> Tensor:
    """Sum of the squared covariances of different channels over D; the covariances by B - 1 (eq. 3-4)."""
    count, width = projections.shape
    centred = projections - projections.mean(dim=0)
    matrix = centred.T @ centred / (count - 1)  # [D, D]
    return (matrix.square().sum() - matrix.diagonal().square().sum()) / width


def vicreg_loss(first: Tensor, second: Tensor, weights: tuple[float, float, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the three terms of projections ``[B, D]``, B at least 2 (eq. 6), and the terms, detached.

    weights: of invariance, variance and covariance. The variance term is the mean of the views' (their code; eq. 6 has
    the sum), the covariance term the sum. At least in float32.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = as_float32(first), as_float32(second)
        terms = {
            "invariance": invariance(first, second),
            "variance": (variance(first) + variance(second)) / 2.0,
            "covariance": covariance(first) + covariance(second),
        }
        loss = torch.stack([weight * term for weight, term in zip(weights, terms.values(), strict=True)]).sum()
        return loss, {name: term.detach() for name, term in terms.items()}


class VICRegConfig(TwoViewConfig):
    """Agreement of views whose channels vary and differ."""

    name: Literal["vicreg"] = "vicreg"
    invariance: float = Field(default=25.0, ge=0.0, description="Weight of the distance between the views.")
    variance: float = Field(default=25.0, ge=0.0, description="Weight of the channels' missing deviation.")
    covariance: float = Field(default=1.0, ge=0.0, description="Weight of the covariances between channels.")
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of the projector; default: those of projection, as in the paper.",
    )
    projection: int = Field(
        default=256,
        ge=2,
        description="Channels that are decorrelated. B images cannot bring the covariance term of D channels of "
        "deviation 1 below about D/B a view: 4 for the paper's 8192 and a batch of 2048, 256 at a batch of 32, which "
        "drowns the rest. With 256 channels it is 8.",
    )


class VICReg(TwoViewMethod, name="vicreg"):
    """Draw two views together while every channel keeps varying over the batch and says something of its own.

    Deviation: a projector of 256 channels where the paper has 8192 (see ``projection``).

    The paper trains with LARS at .2; with AdamW the default is training.learning_rate 4e-3 (5e-4 a step of 32).
    """

    Config: ClassVar[type[MethodConfig]] = VICRegConfig
    config: VICRegConfig

    def __init__(self, config: VICRegConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        hidden = config.projector_width or config.projection
        self.projector = projector([feature_dim(encoder), hidden, hidden, config.projection], last="linear")

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The three terms, weighted; also each of them."""
        first = self.projector(features(self.encoder, views["first"]))  # [B, projection]
        second = self.projector(features(self.encoder, views["second"]))
        weights = (self.config.invariance, self.config.variance, self.config.covariance)
        return vicreg_loss(first, second, weights)
