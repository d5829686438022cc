"""SimCLR (Chen et al. 2020, ICML), with patients kept out of each other's negatives."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.similarity import info_nce, unit
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import Batch, Draws, TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    patients: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """NT-Xent over the 2B views of B images, and which of the 2B anchors counted (``[2B]`` bool).

    first, second: the projections ``[B, D]`` of both views, of any length. Computed at least in float32.
    patients ``[B]``: views of the same patient are not each other's negatives; None: every image is its own
    patient. groups ``[B]``: all views of one group are each other's positives; None: only the two views of
    one image are.

    ``info_nce`` of s_ij = cos(z_i, z_j) / temperature; with one positive and no masking it is eq. 1 of Chen et al.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = unit(torch.cat([first, second]))  # [2B, D]
        similarity = views @ views.T / temperature  # [2B, 2B]
        return info_nce(similarity, *_pairs(len(first), patients, groups, first.device))


def _pairs(count: int, patients: Tensor | None, groups: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Who is whose positive and whose negative among 2B views: two ``[2B, 2B]`` bool tensors."""
    images = torch.arange(count, device=device)
    group = (images if groups is None else groups).repeat(2)
    patient = (images if patients is None else patients).repeat(2)
    oneself = torch.eye(2 * count, dtype=torch.bool, device=device)
    positive = (group[:, None] == group[None, :]) & ~oneself
    negative = (patient[:, None] != patient[None, :]) & ~positive & ~oneself
    return positive, negative


def positive_groups(batch: Batch, positives: str) -> Tensor:
    """``[B]``: images with the same number are each other's positives.

    By patient, study or series all views in the batch that share it; otherwise only an image's two views, as of two
    neighbours in a batch it is not said that they are neighbours.
    """
    singletons = torch.arange(len(batch.images), device=batch.patients.device)
    return {"patient": batch.patients, "study": batch.studies, "series": batch.series}.get(positives, singletons)


class SimCLRConfig(TwoViewConfig):
    """Contrastive learning of views."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(
        default=0.2,
        gt=0.0,
        le=10.0,
        description="Divides the similarities; the paper has .1 (large) to .5 (small).",
    )
    projector_layers: int = Field(default=3, ge=1, description="Linear layers of the projector.")
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of the projector; default: the encoder's, as in the paper.",
    )
    projection: int = Field(default=128, ge=2, description="Channels of the projection in which views are compared.")


class SimCLR(TwoViewMethod, name="simclr"):
    """Draw two views of an image together and push views of other patients away."""

    Config: ClassVar[type[MethodConfig]] = SimCLRConfig
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        width = feature_dim(encoder)
        hidden = [config.projector_width or width] * (config.projector_layers - 1)
        self.projector = projector([width, *hidden, config.projection])

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``first``, ``second`` ``[B, C, S, S]``: a strong view each; ``patients``, ``groups`` ``[B]``.

        The second view is of the partner where the study asks for one. Groups are the positives.
        """
        views = super().views_from(batch, draws)
        return views | {"patients": batch.patients, "groups": positive_groups(batch, self.config.positives)}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent; also the share of anchors that had no negative and were left out."""
        # One pass over both views: BatchNorm then sees them as one batch, as in the paper.
        projections = self.projector(features(self.encoder, torch.cat([views["first"], views["second"]])))
        first, second = projections.chunk(2)  # [B, projection] each
        loss, counted = nt_xent(first, second, self.config.temperature, views["patients"], views["groups"])
        return loss, {"anchors_left_out": 1.0 - counted.float().mean()}
