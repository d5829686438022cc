"""DINO: self-distillation with no labels (Caron et al. 2021, ICCV)."""

import math
from typing import ClassVar, Literal, Self, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from foundation.schedules import cosine, linear, momentum_for_batch
from imaging.config import ImageConfig
from ssl_methods.components.momentum import ema_update, follower
from ssl_methods.components.multi_crop import (
    MultiCropConfig,
    crop_features,
    crops_of,
    draw_crops,
    small_side,
    view_features,
)
from ssl_methods.components.similarity import as_float32, unit
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig


def teacher_targets(outputs: Tensor, centre: Tensor, temperature: Tensor | float) -> Tensor:
    """softmax((outputs - centre) / temperature) over the last of ``[..., K]`` (sec. 3.1), at least in float32."""
    return ((as_float32(outputs.detach()) - centre) / temperature).softmax(dim=-1)


def dino_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: Tensor | float
) -> Tensor:
    """Mean cross-entropy between the teacher's and the student's views of an image (eq. 2-3), at least in float32.

    student ``[V, B, K]``: outputs for all views, the teacher's first; teacher ``[T, B, K]``: for the first T of them,
    which no gradient enters; centre ``[K]``. The T pairs of a view with itself are left out.
    """
    with torch.autocast(student.device.type, enabled=False):
        target = teacher_targets(teacher, centre, teacher_temperature)  # [T, B, K]
        student = student.to(target.dtype) if student.dtype != torch.float64 else student
        prediction = (student / student_temperature).log_softmax(dim=-1)  # [V, B, K]
        each = -torch.einsum("tbk,vbk->tv", target, prediction) / student.shape[1]  # [T, V]
        other = ~torch.eye(len(teacher), len(student), dtype=torch.bool, device=student.device)
        return (each * other).sum() / other.sum()


def moved_centre(centre: Tensor, mean: Tensor, momentum: float) -> Tensor:
    """m c + (1 - m) mean of the teacher's outputs over views and batch (eq. 4)."""
    return momentum * centre + (1.0 - momentum) * mean


class Centre(nn.Module):
    """The running mean ``[K]`` of a teacher's outputs at this site.

    The loss of a step must see the centre from before it: what a step's batches give is put aside by ``observe`` and
    enters with ``update``, after the step.
    """

    value: Tensor
    total: Tensor
    count: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(outputs))
        self.register_buffer("total", torch.zeros(outputs), persistent=False)
        self.register_buffer("count", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def observe(self, mean: Tensor) -> None:
        """Put the mean ``[K]`` of a batch aside."""
        self.total.add_(mean.to(self.total.dtype))
        self.count.add_(1)

    @torch.no_grad()
    def forget(self) -> None:
        """Drop what a step that was not finished put aside."""
        self.total.zero_()
        self.count.zero_()

    @torch.no_grad()
    def update(self, momentum: float) -> None:
        """Move by the mean of what was put aside, if anything was."""
        moved = moved_centre(self.value, self.total / self.count.clamp(min=1), momentum)
        self.value.copy_(torch.where(self.count > 0, moved, self.value))
        self.forget()


class UnitPrototypes(nn.Module):
    """Cosines ``[..., K]`` of unit vectors ``[..., P]`` to K learned directions.

    A weight-normalised layer of gain 1 (appendix C).
    """

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, width))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, directions: Tensor) -> Tensor:
        """At least in float32: divided by a temperature of .04, a rounding of bfloat16 would be a tenth."""
        with torch.autocast(directions.device.type, enabled=False):
            weight = unit(self.weight)
            return functional.linear(directions.to(weight.dtype), weight)


class DINOHead(nn.Module):
    """Directions ``[..., bottleneck]``, unit vectors, of features ``[..., width]``: three linear layers and GELU.

    Appendix C. normalisation "batch": BatchNorm behind the hidden layers, over all leading dimensions together.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, normalisation: Literal["batch", "none"]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before in (width, hidden):
            layers.append(nn.Linear(before, hidden))
            layers += [nn.BatchNorm1d(hidden), nn.GELU()] if normalisation == "batch" else [nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden, bottleneck))
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Unit vectors, at least in float32."""
        rows: Tensor = self.layers(features.flatten(0, -2))
        return unit(rows).reshape(*features.shape[:-1], -1)


class DistillationConfig(MultiCropConfig):
    """What DINO and iBOT have in common."""

    outputs: int = Field(
        default=2048,
        ge=2,
        description="Prototypes, the K classes that the teacher makes up. The paper's 65536 are for 1.3 million "
        "images and 1024 a batch; a hospital's batches would meet most of them never.",
    )
    head_width: int = Field(
        default=512, ge=1, description="Hidden channels of the head; the paper's 2048 outweigh a small encoder."
    )
    head_normalisation: Literal["batch", "none"] = Field(
        default="batch",
        description="Of the head's hidden layers. The paper has none over a ViT, at a batch of 1024; in a "
        "hospital's the head then shows only what all images have in common, and the targets become uniform.",
    )
    bottleneck: int = Field(default=256, ge=2, description="Channels of a prototype.")
    student_temperature: float = Field(default=0.1, gt=0.0, le=10.0, description="Divides the student's outputs.")
    teacher_temperature: float = Field(
        default=0.02,
        gt=0.0,
        le=10.0,
        description="Divides the teacher's outputs after the warm-up. The paper's .07 makes the targets uniform in a "
        "study of some hundred to thousand steps of 32.",
    )
    teacher_temperature_start: float = Field(
        default=0.02,
        gt=0.0,
        le=10.0,
        description="Divides the teacher's outputs at the study's start; the paper warms up from .04 to .07.",
    )
    teacher_warmup: float = Field(
        default=0.3,
        ge=0.0,
        le=1.0,
        description="Share of the study in which the teacher's temperature rises in a straight line, as in the paper's "
        "30 of 100 epochs.",
    )
    centre_momentum: float = Field(
        default=0.9, ge=0.0, le=1.0, description="Momentum of the centre for a step of momentum_batch images."
    )
    momentum: float = Field(
        default=0.996,
        ge=0.0,
        le=1.0,
        description="Momentum of the teacher at the study's start, for a step of momentum_batch images; it rises by "
        "a half cosine to 1.",
    )
    momentum_batch: int = Field(
        default=32,
        ge=1,
        description="Images of the step that the momenta are stated for. With the paper's 1024 a hospital study of "
        "some thousand steps of 16 to 64 would end with the teacher near its random start; with 32 it "
        "forgets over 250 steps of 32, as the paper's does over 250 of its own.",
    )
    frozen: float = Field(
        default=0.05,
        ge=0.0,
        le=1.0,
        description="Share of the study in which the prototypes stand still. The paper's first epoch of 100 would be a "
        "few steps at a hospital.",
    )


class DINOConfig(DistillationConfig):
    """Self-distillation over views."""

    name: Literal["dino"] = "dino"


class DINO(Method, name="dino"):
    """Predict from every crop of an image how a slowly following teacher classifies its large crops.

    The classes are the teacher's own; that it does not put all images in one is due to the centre, that it does not
    spread each over all of them to its low temperature.

    Deviations, without which the targets became uniform on MRI slices in batches of 32: BatchNorm in the head, and a
    teacher temperature of .02 throughout. Also fewer prototypes, a narrower head, and the mean of the patch tokens
    where the paper has a class token. The paper: AdamW at training.learning_rate 5e-4, weight_decay .04 to
    final_weight_decay .4, clip 3; the default rate is .004, which is 5e-4 for a step of 32.

    The teacher and the centre stay at the site: the centre is the mean of that teacher's outputs.
    """

    Config: ClassVar[type[MethodConfig]] = DINOConfig
    config: DistillationConfig
    temperature: Tensor

    def __init__(self, config: DistillationConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.head = DINOHead(feature_dim(encoder), config.head_width, config.bottleneck, config.head_normalisation)
        self.prototypes = UnitPrototypes(config.bottleneck, config.outputs)
        followed = {name: follower(part) for name, part in self._followed().items()}
        self.teacher = nn.ModuleDict(followed)
        self.centre = Centre(config.outputs)
        self.register_buffer("temperature", torch.tensor(self._teacher_temperature(0.0)), persistent=False)
        self.small_side = small_side(config, encoder, image)

    def _followed(self) -> dict[str, nn.Module]:
        """What the teacher has a slow copy of, by name."""
        return {"encoder": self.encoder, "head": self.head, "prototypes": self.prototypes}

    def train(self, mode: bool = True) -> Self:
        """The teacher drops no path, but takes BatchNorm's statistics from the batch, as in the paper."""
        super().train(mode)
        for module in self.teacher.modules():
            module.training = mode and isinstance(module, _BatchNorm)
        return self

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Those of all crops."""
        return draw_crops(self.augmentation, count, generator, self.config, self.small_side)

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``large`` ``[B, 2, C, S, S]``, ``small`` ``[B, V, C, s, s]``: strong views."""
        return crops_of(self.augmentation, batch, draws, self.config, self.small_side)

    def output(self, pooled: Tensor) -> Tensor:
        """The directions ``[..., bottleneck]`` that are compared with the prototypes, of ``[..., D]``."""
        return cast(Tensor, self.head(pooled))

    def _teacher_temperature(self, progress: float) -> float:
        start, end, share = (
            self.config.teacher_temperature_start,
            self.config.teacher_temperature,
            self.config.teacher_warmup,
        )
        return linear(progress / share, start, end) if share > 0 else end

    def before_step(self, progress: float) -> None:
        """Set the teacher's temperature (a straight line over the first part of the study)."""
        self.temperature.fill_(self._teacher_temperature(progress))
        self.centre.forget()

    def rate(self, part: str, progress: float, scheduled: float, peak: float) -> float:
        """The prototypes stand still at first (appendix C, "freezing the last layer")."""
        return 0.0 if part == "prototypes" and progress < self.config.frozen else scheduled

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy; also the entropy of the targets as a share of log K: it ends at 0 or 1 in collapse."""
        student = self.prototypes(self.head(view_features(self.encoder, views)))  # [2 + V, B, K]
        with torch.no_grad():
            pooled = crop_features(self.teacher["encoder"], views["large"])  # [2, B, D]
            teacher = self.teacher["prototypes"](self.teacher["head"](pooled))  # [2, B, K]
        return self._distil(student, teacher)

    def _distil(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the outputs ``[2 + V, B, K]`` and ``[2, B, K]``; the centre's share is put aside."""
        loss = dino_loss(student, teacher, self.centre.value, self.config.student_temperature, self.temperature)
        target = teacher_targets(teacher, self.centre.value, self.temperature)
        entropy = torch.special.entr(target).sum(dim=-1).mean() / math.log(target.shape[-1])
        if self.training:
            self.centre.observe(teacher.float().mean(dim=(0, 1)))
        return loss, {"target_entropy": entropy}

    def after_step(self, progress: float, images: int) -> None:
        """Let the centre and the teacher follow (eq. 4; sec. 3.1, momentum .996 -> 1 by a half cosine)."""
        per_step = self.config.momentum_batch
        self.centre.update(momentum_for_batch(self.config.centre_momentum, images, per_step))
        momentum = momentum_for_batch(cosine(progress, self.config.momentum, 1.0), images, per_step)
        for name, part in self._followed().items():
            ema_update(self.teacher[name], part, momentum)

    def start_local_parts(self) -> None:
        """Start the teacher as a copy of the student, as the paper does."""
        for name, part in self._followed().items():
            ema_update(self.teacher[name], part, 0.0)
