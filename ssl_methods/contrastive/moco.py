"""MoCo v2 (He et al. 2020, CVPR; Chen, Fan et al. 2020): a queue of keys stands for a large batch."""

from typing import Any, ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.schedules import momentum_for_batch
from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.momentum import ema_update, follow_statistics, follower
from ssl_methods.components.similarity import info_nce, unit
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.encoders.statistics import batch_norms
from ssl_methods.method import Batch, Draws, TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig

NOBODY = -1
"""The patient of an empty place in the queue."""


def moco_loss(
    queries: Tensor,
    keys: Tensor,
    queue: Tensor,
    temperature: float,
    patients: Tensor | None = None,
    queue_patients: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of every query with its own key against the queue (He et al. 2020, eq. 1); which counted, ``[B]`` bool.

    queries, keys ``[B, D]`` of any length; no gradient enters the keys. queue ``[K, D]``: unit vectors. patients
    ``[B]``, queue_patients ``[K]``: keys of the query's own patient and empty places (``NOBODY``) are not
    negatives; None: all of the queue is. A query without negatives is left out of the mean. At least in float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        queries, keys = unit(queries), unit(keys.detach())
        own = (queries * keys).sum(dim=1, keepdim=True)  # [B, 1]
        others = queries @ queue.to(queries.dtype).T  # [B, K]
        negative = torch.ones_like(others, dtype=torch.bool)
        if patients is not None and queue_patients is not None:
            negative = (patients[:, None] != queue_patients[None, :]) & (queue_patients != NOBODY)
        positive = torch.ones_like(own, dtype=torch.bool)
        return info_nce(
            torch.cat([own, others], dim=1) / temperature,
            torch.cat([positive, torch.zeros_like(negative)], dim=1),
            torch.cat([~positive, negative], dim=1),
        )


class KeyQueue(nn.Module):
    """The last keys of a site, first in first out, and whose they are."""

    keys: Tensor
    patients: Tensor
    place: Tensor

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, width))  # unit vectors
        self.register_buffer("patients", torch.full((size,), NOBODY))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))  # of the oldest key, the next to go

    @torch.no_grad()
    def enter(self, keys: Tensor, patients: Tensor) -> None:
        """Put keys ``[B, D]`` of ``patients`` ``[B]`` in the places of the oldest; of too many the last ones stay."""
        size = len(self.keys)
        places = (self.place + torch.arange(len(keys), device=self.keys.device)) % size
        self.keys[places[-size:]] = keys[-size:].to(self.keys.dtype)
        self.patients[places[-size:]] = patients[-size:]
        self.place.copy_((self.place + len(keys)) % size)


class MoCoConfig(TwoViewConfig):
    """Contrastive learning against a queue."""

    name: Literal["moco_v2"] = "moco_v2"
    temperature: float = Field(default=0.2, gt=0.0, le=10.0, description="Divides the similarities.")
    queue: int = Field(
        default=512,
        ge=1,
        le=65536,
        description="Keys that a site remembers as negatives. The paper's 65536 are a twentieth of ImageNet, but some "
        "times all images of a hospital, so that most would be older keys of the same ones; 512 are 16 batches of "
        "32, made by nearly the same key encoder.",
    )
    projector_width: int | None = Field(
        default=None, ge=1, description="Hidden channels of the projector; default: the encoder's, as in the paper."
    )
    projection: int = Field(default=128, ge=2, description="Channels of queries and keys.")
    momentum: float = Field(
        default=0.999,
        ge=0.0,
        le=1.0,
        description="Momentum of the key encoder for a step of momentum_batch images; constant.",
    )
    momentum_batch: int = Field(
        default=8,
        ge=1,
        description="Images of the step that `momentum` is stated for. The paper's 256 need a quarter of a million "
        "images to forget; with 8 the key encoder forgets over 250 steps of 32 and leaves its random start "
        "within a hospital's study, yet hardly moves while a key is in the queue.",
    )


class MoCoV2(TwoViewMethod, name="moco_v2"):
    """Find an image's key, made by an encoder that follows slowly, among the keys of other patients.

    Deviations: the queue starts empty and not with random vectors, and the first step has no gradient; keys of a
    query's own patient are no negatives. The key encoder is in evaluation mode: its BatchNorm, where the encoder has
    it, uses running statistics that follow the encoder's as its weights do (Cai et al. 2021), this batch's queries
    among them, and stay at the site from round to round. With statistics of the batch a query and its key could find
    each other by the batch they share, which the paper prevents by shuffling over several GPUs.
    A site knows a patient in the queue by the code of its manifest row order: where the manifest changes
    between two rounds, keys can count as another patient's until they have left the queue.

    The paper trains with SGD at .03; with AdamW the default is training.learning_rate 4e-3 (5e-4 a step of 32).
    """

    Config: ClassVar[type[MethodConfig]] = MoCoConfig
    config: MoCoConfig

    def __init__(self, config: MoCoConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        width = feature_dim(encoder)
        widths = [width, config.projector_width or width, config.projection]
        self.projector = projector(widths, normalisation="none", last="biased")
        self.key_encoder = follower(encoder).eval()
        self.key_projector = follower(self.projector).eval()
        self.queue = KeyQueue(config.queue, config.projection)
        self._fresh: list[tuple[Tensor, Tensor]] = []

    def train(self, mode: bool = True) -> Self:
        """Training mode for all but the key encoder."""
        super().train(mode)
        self.key_encoder.eval()
        self.key_projector.eval()
        return self

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``first``, ``second`` ``[B, *image.shape]``: a strong view each, for query and key; ``patients`` ``[B]``."""
        return super().views_from(batch, draws) | {"patients": batch.patients}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """InfoNCE against the queue as it was before this batch; also the share of queries without negatives."""
        queries = self.projector(features(self.encoder, views["first"]))  # [B, projection]
        if self.training:
            momentum = momentum_for_batch(self.config.momentum, len(queries), self.config.momentum_batch)
            follow_statistics(self.key_encoder, self.encoder, momentum)
        with torch.no_grad():
            keys = unit(self.key_projector(features(self.key_encoder, views["second"])))
        loss, counted = moco_loss(
            queries, keys, self.queue.keys, self.config.temperature, views["patients"], self.queue.patients
        )
        self._remember(keys, views["patients"])
        return loss, {"anchors_left_out": 1.0 - counted.float().mean()}

    def _note(self, keys: Tensor, patients: Tensor) -> None:
        self._fresh.append((keys, patients))

    # Outside of a compiled loss, of which the length of the list would be a constant. torch gives this no types.
    _remember = cast(Any, torch)._disable_dynamo(_note)  # torch.compiler.disable, not imported before a first call

    def before_step(self, progress: float) -> None:
        """Forget keys of a step that was not finished."""
        self._fresh.clear()

    def after_step(self, progress: float, images: int) -> None:
        """Let this step's keys into the queue and the key encoder follow (He et al. 2020, eq. 2)."""
        for keys, patients in self._fresh:
            self.queue.enter(keys, patients)
        self._fresh.clear()
        momentum = momentum_for_batch(self.config.momentum, images, self.config.momentum_batch)
        ema_update(self.key_encoder, self.encoder, momentum)
        ema_update(self.key_projector, self.projector, momentum)

    def start_local_parts(self) -> None:
        """Start what makes the keys as a copy of what makes the queries, as the paper does.

        Running statistics that came with the weights (natural images', other sites') give way at the first step.
        """
        ema_update(self.key_encoder, self.encoder, 0.0)
        for layer in batch_norms(self.key_encoder):
            assert layer.num_batches_tracked is not None
            layer.num_batches_tracked.zero_()
        ema_update(self.key_projector, self.projector, 0.0)
