"""SimCLR (Chen et al. 2020, ICML), with patients kept out of each other's negatives."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from imaging.config import ImageConfig
from ssl_methods.encoders import Kind, feature_dim, features
from ssl_methods.heads import projector
from ssl_methods.method import Batch, Family, Method, MethodConfig, Role, Views


def nt_xent(
    first: Tensor,
    second: Tensor,
    temperature: float,
    patients: Tensor | None = None,
    groups: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """NT-Xent over the 2B views of B pictures, and which of the 2B anchors counted (``[2B]`` bool).

    first, second: the projections ``[B, D]`` of both views, of any length. Computed at least in float32.
    patients ``[B]``: views of the same patient are not each other's negatives; None: every picture is its own
    patient. groups ``[B]``: all views of one group are each other's positives; None: only the two views of
    one picture are.

    With s_ij = cos(z_i, z_j) / temperature, P(i) the positives of i and N(i) its negatives,
    loss_i = - 1/|P(i)| sum over p in P(i) of [s_ip - log sum over a in P(i) and N(i) of exp(s_ia)]
    (Khosla et al. 2020, eq. 2); with one positive and no masking it is eq. 1 of Chen et al. The mean is over
    the anchors that have a negative. Where none has, the loss is 0 and so is its gradient.
    """
    with torch.autocast(first.device.type, enabled=False):
        views = torch.cat([first, second])  # [2B, D]
        views = functional.normalize(views if views.dtype == torch.float64 else views.float(), dim=1)
        similarity = views @ views.T / temperature  # [2B, 2B]
        positive, negative = _pairs(len(first), patients, groups, first.device)
        candidates = similarity.masked_fill(~(positive | negative), -torch.inf)
        log_probability = similarity - candidates.logsumexp(dim=1, keepdim=True)
        each = -(log_probability * positive).sum(dim=1) / positive.sum(dim=1)  # [2B]
        counted = negative.any(dim=1)
        return (each * counted).sum() / counted.sum().clamp(min=1), counted


def _pairs(count: int, patients: Tensor | None, groups: Tensor | None, device: torch.device) -> tuple[Tensor, Tensor]:
    """Who is whose positive and whose negative among 2B views: two ``[2B, 2B]`` bool tensors."""
    pictures = torch.arange(count, device=device)
    group = (pictures if groups is None else groups).repeat(2)
    patient = (pictures if patients is None else patients).repeat(2)
    oneself = torch.eye(2 * count, dtype=torch.bool, device=device)
    positive = (group[:, None] == group[None, :]) & ~oneself
    negative = (patient[:, None] != patient[None, :]) & ~positive & ~oneself
    return positive, negative


class SimCLRConfig(MethodConfig):
    """Contrastive learning of views."""

    name: Literal["simclr"] = "simclr"
    temperature: float = Field(
        default=0.2,
        gt=0.0,
        le=10.0,
        description="Divides the similarities; the paper has .1 (large) to .5 (small).",
    )
    positives: Literal["view", "patient", "series"] = Field(
        default="view",
        description="What is drawn together: the two views of a picture, or all views of a patient or of a "
        "series; these two harm where the task's label varies within a patient.",
    )
    projector_layers: int = Field(default=3, ge=1, description="Linear layers of the projector.")
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of the projector; default: the encoder's, as in the paper.",
    )
    projection: int = Field(default=128, ge=2, description="Channels of the projection in which views are compared.")


class SimCLR(Method):
    """Draw two views of a picture together and push views of other patients away."""

    Config: ClassVar[type[MethodConfig]] = SimCLRConfig
    summary: ClassVar[str] = "tells views of one picture from those of other patients"
    paper: ClassVar[str] = "Chen et al. 2020"
    family: ClassVar[Family] = "contrastive"
    per_sample: ClassVar[bool] = False
    encoders: ClassVar[tuple[Kind, ...]] = ("vit", "convolutional")
    # The loss reaches the encoder only through the projector: were it personal, every site would pull the
    # common encoder towards its own space. FedAvg over SimCLR averages the whole online network for that
    # reason.
    parts: ClassVar[dict[str, Role]] = {"encoder": "shared", "projector": "shared"}
    fewest_patients: ClassVar[int] = 2
    config: SimCLRConfig

    def __init__(self, config: SimCLRConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        width = feature_dim(encoder)
        hidden = [config.projector_width or width] * (config.projector_layers - 1)
        self.projector = projector([width, *hidden, config.projection])

    def make_views(self, batch: Batch, generator: torch.Generator) -> Views:
        """``first``, ``second`` ``[B, C, S, S]``: two strong views each; ``patients``, ``series`` ``[B]``."""
        return {
            "first": self.augmentation.strong(batch.pictures, generator),
            "second": self.augmentation.strong(batch.pictures, generator),
            "patients": batch.patients,
            "series": batch.series,
        }

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """NT-Xent; also the share of anchors that had no negative and were left out."""
        # One pass over both views: BatchNorm then sees them as one batch, as in the paper.
        projections = self.projector(features(self.encoder, torch.cat([views["first"], views["second"]])))
        first, second = projections.chunk(2)  # [B, projection] each
        groups = {"view": None, "patient": views["patients"], "series": views["series"]}[self.config.positives]
        loss, counted = nt_xent(first, second, self.config.temperature, views["patients"], groups)
        return loss, {"anchors_left_out": 1.0 - counted.float().mean()}
