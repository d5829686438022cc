"""MoCo v3 (Chen, Xie and He 2021, ICCV): contrast within the batch, a momentum encoder, a frozen patch projection."""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation import vision_import
from foundation.schedules import cosine, momentum_for_batch
from imaging.config import ImageConfig
from ssl_methods.components.heads import projector
from ssl_methods.components.momentum import ema_update, follower
from ssl_methods.components.similarity import info_nce, unit
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import Batch, Draws, TwoViewMethod, Views
from ssl_methods.method_config import MethodConfig, TwoViewConfig


def key_contrast(
    queries: Tensor, keys: Tensor, temperature: float, patients: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """2 T times InfoNCE of query i with key i against the batch's other keys (alg. 1, ``ctr``); which counted.

    queries, keys ``[B, D]`` of any length; no gradient enters the keys. patients ``[B]``: keys of the query's own
    patient are not negatives; None: every image is its own patient. A query without negatives is left out of
    the mean (``[B]`` bool). The factor keeps the gradient's size over temperatures. At least in float32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        similarity = unit(queries) @ unit(keys.detach()).T / temperature  # [B, B]
        positive = torch.eye(len(queries), dtype=torch.bool, device=queries.device)
        same = positive if patients is None else patients[:, None] == patients[None, :]
        loss, counted = info_nce(similarity, positive, ~same)
        return 2.0 * temperature * loss, counted


class MoCoV3Config(TwoViewConfig):
    """Contrastive learning with a momentum encoder."""

    name: Literal["moco_v3"] = "moco_v3"
    temperature: float = Field(default=0.2, gt=0.0, le=10.0, description="Divides the similarities.")
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Hidden channels of projector and predictor; default: twice the encoder's, as the paper's 4096 "
        "are for its ResNet.",
    )
    projection: int = Field(default=256, ge=2, description="Channels of queries and keys.")
    freeze_patches: bool = Field(
        default=True,
        description="Leave a ViT's patch projection as it starts (random or natural-image weights): without it "
        "training is unstable (sec. 4.2). Other encoders are trained whole.",
    )
    momentum: float = Field(
        default=0.99,
        ge=0.0,
        le=1.0,
        description="Momentum of the key encoder at the study's start, for a step of momentum_batch images; it "
        "rises by a half cosine to 1.",
    )
    momentum_batch: int = Field(
        default=32,
        ge=1,
        description="Images of the step that `momentum` is stated for. With the paper's 4096 a hospital study of "
        "some thousand steps of 16 to 64 would end near its random start; with 32 the key encoder forgets "
        "over 100 steps of 32, as the paper's does over 100 of its own.",
    )


class MoCoV3(TwoViewMethod, name="moco_v3"):
    """Find an image's key, made by an encoder that follows slowly, among the keys of the batch's other patients.

    Deviations: keys of a query's own patient are no negatives; heads are scaled with the encoder. The paper's batch of
    4096 has as many negatives; at 16 to 64 prefer moco_v2, whose negatives do not hang on the batch.

    The paper has training.learning_rate 1.5e-4 for a ViT and training.weight_decay .1, for 94,000 steps of 4096; in a
    study of some thousand steps of 32 the default, 4e-3 (5e-4 a step), suits.
    """

    Config: ClassVar[type[MethodConfig]] = MoCoV3Config
    config: MoCoV3Config

    def __init__(self, config: MoCoV3Config, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        vit = isinstance(encoder, vision_import.VisionTransformer)
        if vit and config.freeze_patches:
            encoder.get_submodule("patch_embed").requires_grad_(False)
        width = feature_dim(encoder)
        hidden = config.projector_width or 2 * width
        # Three and two layers for a ViT; two and two, the last without normalisation, for the rest (their code).
        self.projector = projector([width, *[hidden] * (2 if vit else 1), config.projection])
        predicting = [config.projection, hidden, config.projection]
        self.predictor = projector(predicting, last="normalised" if vit else "linear")
        self.key_encoder = follower(encoder)
        self.key_projector = follower(self.projector)

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``first``, ``second`` ``[B, C, S, S]``: a strong view each; ``patients`` ``[B]``."""
        return super().views_from(batch, draws) | {"patients": batch.patients}

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Contrast of each view's queries with the other's keys; also the share of queries without negatives."""
        queries, keys = [], []
        for images in (views["first"], views["second"]):
            queries.append(self.predictor(self.projector(features(self.encoder, images))))  # [B, projection]
            with torch.no_grad():
                keys.append(self.key_projector(features(self.key_encoder, images)))
        one, counted = key_contrast(queries[0], keys[1], self.config.temperature, views["patients"])
        other, _ = key_contrast(queries[1], keys[0], self.config.temperature, views["patients"])
        return one + other, {"anchors_left_out": 1.0 - counted.float().mean()}

    def after_step(self, progress: float, images: int) -> None:
        """Let the key encoder follow (sec. 3; momentum .99 -> 1 by a half cosine)."""
        stated = cosine(progress, self.config.momentum, 1.0)
        momentum = momentum_for_batch(stated, images, self.config.momentum_batch)
        ema_update(self.key_encoder, self.encoder, momentum)
        ema_update(self.key_projector, self.projector, momentum)

    def start_local_parts(self) -> None:
        """Start what makes the keys as a copy of what makes the queries."""
        ema_update(self.key_encoder, self.encoder, 0.0)
        ema_update(self.key_projector, self.projector, 0.0)
