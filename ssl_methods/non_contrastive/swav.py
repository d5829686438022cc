"""SwAV: swapping assignments between views (Caron et al. 2020, NeurIPS)."""

from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from imaging.config import AreaRange, ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.multi_crop import MultiCropConfig, crops_of, draw_crops, small_side, view_features
from ssl_methods.components.similarity import as_float32, unit
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig


@torch.no_grad()
def sinkhorn(scores: Tensor, epsilon: float, rounds: int) -> Tensor:
    """Codes ``[N, K]`` of N images: each row sums to 1 and, the nearer the more rounds, each column to N / K.

    scores ``[N, K]``: similarities to the K prototypes. The codes maximise Tr(Q'S) + epsilon H(Q) under equal use of
    all prototypes (eq. 3-5). Their scaling of rows and columns of exp(scores / epsilon) is done here on logarithms, so
    that nothing overflows; at least in float32.
    """
    with torch.autocast(scores.device.type, enabled=False):
        logarithm = as_float32(scores) / epsilon
        for _ in range(rounds):
            logarithm = logarithm - logarithm.logsumexp(dim=0, keepdim=True)  # prototypes: equal shares
            logarithm = logarithm - logarithm.logsumexp(dim=1, keepdim=True)  # images: 1 each
        return logarithm.exp()


def swav_loss(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of predicting each large view's code from every other view (eq. 1-2), at least in float32.

    scores ``[V, B, K]``: similarities to the prototypes of all views, the coded ones first. codes ``[T, B, K]``: of
    the first T views. The pairs of a view with itself are left out.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = as_float32(scores)
        prediction = (scores / temperature).log_softmax(dim=-1)
        each = -torch.einsum("tbk,vbk->tv", codes.to(prediction.dtype), prediction) / scores.shape[1]  # [T, V]
        other = ~torch.eye(len(codes), len(scores), dtype=torch.bool, device=scores.device)
        return (each * other).sum() / other.sum()


class Queue(nn.Module):
    """The latest projections of each large view at this site, newest first."""

    rows: Tensor
    filled: Tensor

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(2, length, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))
        self._full = False  # what the host knows; a full queue stays full until another state is loaded
        cast(Any, self).register_load_state_dict_pre_hook(_forget_full)

    def full(self) -> bool:
        """Whether every row has been written: a zero row has no direction. A GPU's host waits only until it is."""
        self._full = self._full or bool(self.filled >= self.rows.shape[1])
        return self._full

    @torch.no_grad()
    def push(self, newest: Tensor) -> None:
        """Put ``[2, B, D]`` in front; as many of the oldest fall off."""
        length = self.rows.shape[1]
        self.rows.copy_(torch.cat([newest.to(self.rows.dtype), self.rows], dim=1)[:, :length])
        self.filled.add_(newest.shape[1]).clamp_(max=length)


def _forget_full(queue: nn.Module, *_: Any) -> None:
    cast(Any, queue)._full = False


class SwAVConfig(MultiCropConfig):
    """Clustering of views."""

    name: Literal["swav"] = "swav"
    prototypes: int = Field(
        default=256,
        ge=2,
        description="Vectors that the views are assigned to. The paper has 3000 for a thousand classes and balances "
        "them over 4096 images; balancing means little with fewer images than prototypes.",
    )
    queue: int = Field(
        default=0,
        ge=0,
        description="Earlier images that the codes are balanced over besides the batch; 0: none. The paper keeps 15 "
        "batches at batches of 256; on MRI slices in batches of 32 studies without a queue did better.",
    )
    queue_from: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Share of the study after which the queue is used: before, old projections say little (the paper: "
        "after 15 of 200 epochs).",
    )
    temperature: float = Field(default=0.1, gt=0.0, le=10.0, description="Divides the similarities in the prediction.")
    epsilon: float = Field(
        default=0.01,
        gt=0.0,
        le=10.0,
        description="Softness of the codes. With the paper's .05 they stay uniform, and the loss at log(prototypes), "
        "over a hospital's images, which resemble each other more than photographs do.",
    )
    sinkhorn_rounds: int = Field(default=3, ge=1, le=100, description="Rounds of balancing the codes.")
    frozen: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Share of the study in which the prototypes stand still. The paper's first epoch would be a few "
        "steps at a hospital.",
    )
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of the projector; default: the encoder's (the paper: 2048 of 2048).",
    )
    projection: int = Field(default=128, ge=2, description="Channels of the projection and of a prototype.")
    small_crops: int = Field(
        default=6, ge=0, le=32, description="Small crops of each image, which are never given a code."
    )
    small_scale: AreaRange = Field(
        default=(0.05, 0.4),
        description="Area of a small crop. DINO's: the paper's .05 to .14 show little but texture of a radiograph.",
    )


class SwAV(Method, name="swav"):
    """Predict from one view of an image to which prototypes another view of it was assigned.

    The paper trains with LARS; with AdamW the default is training.learning_rate 4e-3 (5e-4 a step of 32).

    Deviations, for a hospital's batch of 16 to 64: fewer prototypes, sharper codes, prototypes frozen for a share of
    the study and not for one epoch; the projector ends in BatchNorm, as SimCLR's does, so that what all images have
    in common does not fill the projection and the encoder keeps its spread. A queue, where one is asked for, holds
    projections of the site's own images: it never leaves the site, and it outlives rounds and restarts.
    """

    Config: ClassVar[type[MethodConfig]] = SwAVConfig
    config: SwAVConfig

    def __init__(self, config: SwAVConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        width = feature_dim(encoder)
        self.projector = projector([width, config.projector_width or width, config.projection])
        self.prototypes = nn.Linear(config.projection, config.prototypes, bias=False)
        self.queue = Queue(config.queue, config.projection)
        self.small_side = small_side(config, encoder, image)
        # A branch and not a buffer: the shapes differ. A compiled loss is compiled anew once, when it turns true.
        self.queue_used = False
        self._normalise_prototypes()

    @torch.no_grad()
    def _normalise_prototypes(self) -> None:
        self.prototypes.weight.copy_(functional.normalize(self.prototypes.weight, dim=1))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Those of all crops."""
        return draw_crops(self.augmentation, count, generator, self.config, self.small_side)

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``large`` ``[B, 2, C, S, S]``, ``small`` ``[B, V, C, s, s]``: strong views."""
        return crops_of(self.augmentation, batch, draws, self.config, self.small_side)

    def output(self, pooled: Tensor) -> Tensor:
        """The projections ``[B, projection]``."""
        return unit(self.projector(pooled))

    def before_step(self, progress: float) -> None:
        """Bring the prototypes back to length 1 (an average over sites is shorter); start to use a full queue."""
        self._normalise_prototypes()
        self.queue_used = self.config.queue > 0 and progress >= self.config.queue_from and self.queue.full()

    def rate(self, part: str, progress: float, scheduled: float, peak: float) -> float:
        """The prototypes stand still at first (their code; it keeps the codes from chasing the features)."""
        return 0.0 if part == "prototypes" and progress < self.config.frozen else scheduled

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Swapped prediction; also which share of the prototypes is some image's first choice."""
        pooled = view_features(self.encoder, views)  # [2 + V, B, D]
        # One pass of the projector over all views: BatchNorm then sees them as one batch, as in the paper.
        projected = unit(self.projector(pooled.flatten(0, 1))).reshape(*pooled.shape[:2], -1)  # [2 + V, B, P]
        with torch.autocast(pooled.device.type, enabled=False):
            scores = functional.linear(projected, self.prototypes.weight.to(projected.dtype))  # [2 + V, B, K]
        codes = torch.stack([self._codes(scores[view], view) for view in range(2)])  # [2, B, K]
        if self.training and self.config.queue:
            self.queue.push(projected[:2].detach())
        chosen = functional.one_hot(codes.argmax(dim=-1).flatten(), codes.shape[-1]).any(dim=0)
        return swav_loss(scores, codes, self.config.temperature), {"prototypes_used": chosen.float().mean()}

    @torch.no_grad()
    def _codes(self, scores: Tensor, view: int) -> Tensor:
        """Codes ``[B, K]`` of one large view, balanced over the batch and what the queue held before it."""
        balanced = scores.detach()
        if self.queue_used:
            earlier = functional.linear(self.queue.rows[view], self.prototypes.weight.detach())
            balanced = torch.cat([balanced, earlier.to(balanced.dtype)])
        return sinkhorn(balanced, self.config.epsilon, self.config.sinkhorn_rounds)[: len(scores)]

    def after_step(self, progress: float, images: int) -> None:
        """Bring the prototypes back to length 1: so they are sent."""
        self._normalise_prototypes()
