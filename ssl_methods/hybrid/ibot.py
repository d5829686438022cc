"""iBOT: self-distillation of images and of hidden patches (Zhou et al. 2022, ICLR)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from foundation.schedules import momentum_for_batch
from imaging.config import AreaRange, ImageConfig
from ssl_methods.components.focus import patch_weights
from ssl_methods.components.heads import take
from ssl_methods.components.koleo import koleo
from ssl_methods.components.momentum import ema_update, follower
from ssl_methods.components.multi_crop import by_view, crop_features
from ssl_methods.components.similarity import unit
from ssl_methods.components.token_masks import spared
from ssl_methods.encoders.outputs import feature_dim, grid_shape, masked_tokens, patch_shape, patch_tokens
from ssl_methods.method import Batch, Draws, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.non_contrastive.dino import DINO, Centre, DistillationConfig, teacher_targets
from ssl_methods.reconstruction.mae import only_patches

TRIES = 16
"""Rectangles tried for a mask: more hide no more on average, fewer may leave an image without."""
LEAST_PATCHES = 4
FLATTEST = 0.3
"""Smallest height over width of a rectangle, and the inverse of the largest (BEiT: Bao et al. 2022, algorithm 1)."""


def patch_loss(
    student: Tensor,
    teacher: Tensor,
    counted: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor | float,
) -> Tensor:
    """Cross-entropy of hidden patches (eq. 2): mean over an image's own, then over the images; at least float32.

    student, teacher ``[R, M, K]``: outputs at M places of R images, of which ``counted`` ``[R, M]`` bool are hidden.
    An image without any counts in the second mean with 0, as in their code: so each hidden patch weighs the same
    whatever the batch's other images drew. No gradient enters the teacher or the centre ``[K]``.
    """
    with torch.autocast(student.device.type, enabled=False):
        target = teacher_targets(teacher, centre, teacher_temperature)
        student = student.to(target.dtype) if student.dtype != torch.float64 else student
        each = -(target * (student / student_temperature).log_softmax(dim=-1)).sum(dim=-1)  # [R, M]
        return ((each * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)).mean()


def gram_loss(tokens: Tensor, anchor: Tensor) -> Tensor:
    """The Gram term of DINOv3 (Siméoni et al. 2025, sec. 4.2), which keeps patch features from losing their structure.

    Mean squared difference of the cosines between the patches of an image, at least in float32.

    tokens, anchor ``[B, N, D]``: patch tokens of the same images by two encoders; no gradient enters the anchor.
    The features themselves may move as long as which patch is like which stays. The paper writes the sum over the
    N x N entries (eq. 2) and takes their mean in its code.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        now, then = unit(tokens), unit(anchor.detach())
        return (now @ now.mT - then @ then.mT).square().mean()


def blockwise_masks(
    count: int, grid: Sequence[int], share: tuple[float, float], chance: float, generator: torch.Generator
) -> Tensor:
    """``[count, N]`` bool, true where hidden: unions of rectangles (BEiT), each image for itself.

    With probability ``chance`` an image hides a part of its patches, at most a number drawn uniformly from ``share``
    of them (at least 1); else nothing. A rectangle that would hide more than is left is not taken.
    """
    height, width = grid
    patches = height * width
    drawn = torch.rand(2, count, generator=generator)
    ratio = share[0] + (share[1] - share[0]) * drawn[0]
    wanted = (ratio * patches).long().clamp(min=1) * (drawn[1] < chance)  # [count]
    hidden = torch.zeros(count, height, width, dtype=torch.bool)
    for _ in range(TRIES):
        left = wanted - hidden.sum(dim=(1, 2))
        chances = torch.rand(4, count, generator=generator)
        least = left.clamp(max=LEAST_PATCHES)
        area = least + (left - least) * chances[0]
        slope = math.log(FLATTEST) * (1.0 - 2.0 * chances[1])  # log of height over width
        tall = (area * slope.exp()).sqrt().round().clamp(1, height)
        wide = (area / slope.exp()).sqrt().round().clamp(1, width)
        rows = _span((chances[2] * (height - tall + 1)).floor(), tall, height)  # [count, height]
        columns = _span((chances[3] * (width - wide + 1)).floor(), wide, width)
        added = rows[:, :, None] & columns[:, None, :] & ~hidden
        fits = added.sum(dim=(1, 2)) <= left
        hidden |= added & fits[:, None, None]
    return hidden.flatten(1)


def _span(start: Tensor, length: Tensor, side: int) -> Tensor:
    """``[count, side]`` bool: the places from ``start`` on, ``length`` of them."""
    line = torch.arange(side)
    return (line >= start[:, None]) & (line < (start + length)[:, None])


class IBOTConfig(DistillationConfig):
    """Self-distillation over views and hidden patches."""

    name: Literal["ibot"] = "ibot"
    mask_chance: float = Field(
        default=0.5, gt=0.0, le=1.0, description="Share of the large crops in which the student sees patches hidden."
    )
    mask_share: AreaRange = Field(
        default=(0.1, 0.5), description="Share of the patches that is hidden in such a crop, drawn uniformly."
    )
    patch_weight: float = Field(default=1.0, ge=0.0, description="Weight of the hidden patches beside the images.")
    koleo_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of KoLeo, which spreads the images' features; DINOv2 has .1. Off: in a hospital's batch "
        "the nearest neighbour is often the same patient's next slice.",
    )
    gram_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of the Gram term, which keeps the likeness of patches as it was at gram_from; DINOv3: 2. "
        "Off: it mends what only very long training spoils.",
    )
    gram_from: float = Field(
        default=0.5, ge=0.0, le=1.0, description="Share of the study after which the Gram term counts."
    )


class IBOT(DINO, name="ibot"):
    """DINO on images and on patches: the student says what the teacher sees at the places hidden from it.

    Deviations: the mean of the patch tokens stands for the image, where the paper has a class token; the rest as in
    DINO's file, the temperatures shared by images and patches (theirs are equal). Head and prototypes are the same
    for both, as in the paper.

    KoLeo is taken on the student's pooled features of each large view, before the head, and summed over the two, as in
    DINOv2. The Gram term's anchor is the encoder as it was at the first step after gram_from: DINOv3 takes a teacher of
    early days and renews it, but in a federation what a site receives is an average over sites and the same everywhere.
    Where gram_from falls on a round's start, all sites have the same anchor, which costs no bytes and lets none
    pull the common encoder its own way; it stays at the site and is not renewed.
    """

    Config: ClassVar[type[MethodConfig]] = IBOTConfig
    config: IBOTConfig

    def __init__(self, config: IBOTConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        self.mask_token = nn.Embedding(1, feature_dim(encoder))
        nn.init.trunc_normal_(self.mask_token.weight, std=0.02)
        self.patch_centre = Centre(config.outputs)
        self.grid = grid_shape(encoder)
        # Places looked at in every image, so that shapes do not change from step to step.
        self.most_hidden = max(1, int(config.mask_share[1] * math.prod(self.grid)))
        self.gram_used = False
        if config.gram_weight > 0:
            self.teacher["anchor"] = follower(encoder)
            self.teacher.register_buffer("anchored", torch.zeros((), dtype=torch.bool))
        self._anchored = False  # what the host knows of it, without waiting for a GPU; another state may have none
        cast(Any, self).register_load_state_dict_pre_hook(_forget_anchored)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """DINO's; ``masks`` ``[2 B, N]`` bool, and a number for every patch where the study focuses."""
        draws, config = super().draw(count, generator), self.config
        masks = blockwise_masks(2 * count, self.grid, config.mask_share, config.mask_chance, generator)
        spare = {} if config.focus == "none" else {"spare": torch.rand(masks.shape, generator=generator)}
        return draws | {"masks": masks} | spare

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """DINO's ``large`` and ``small``; ``masks`` ``[B, 2, N]`` bool: the patches of a large crop that are hidden."""
        views, masks, config = super().views_from(batch, draws), draws["masks"], self.config
        weights = patch_weights(config.focus, views["large"].flatten(0, 1), self.grid, self.teacher["encoder"])
        if weights is not None:
            masks = spared(masks, weights, draws["spare"])
        return views | {"masks": masks.reshape(len(batch.images), 2, -1)}

    def show(self, views: Views, image: int) -> list[tuple[str, Tensor]]:
        """Each large crop as the teacher and as the student sees it, and the small crops."""
        shown: list[tuple[str, Tensor]] = []
        for view, crop in enumerate(views["large"][image]):
            seen = (~views["masks"][image, view]).nonzero()[:, 0]
            masked = only_patches(crop, seen, patch_shape(self.encoder))
            shown += [(f"large {view + 1}", crop), (f"large {view + 1}, student sees", masked)]
        return shown + super().show({name: views[name] for name in views if name == "small"}, image)

    def before_step(self, progress: float) -> None:
        """Also take the Gram term's anchor when its time comes."""
        super().before_step(progress)
        self.patch_centre.forget()
        # A branch and not a buffer: a compiled loss is compiled anew once, and early steps save a pass.
        self.gram_used = self.config.gram_weight > 0 and progress >= self.config.gram_from
        if self.gram_used and not self._anchored:
            if not bool(self.teacher.get_buffer("anchored")):
                ema_update(self.teacher["anchor"], self.encoder, 0.0)
                self.teacher.get_buffer("anchored").fill_(True)
            self._anchored = True

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the images' term, the hidden patches' and, where the study asks for them, KoLeo and Gram."""
        large, masks = by_view(views["large"]), by_view(views["masks"])  # [2B, C, S, S], [2B, N]
        tokens = masked_tokens(self.encoder, large, masks, self.mask_token)  # [2B, N, D]
        pooled = tokens.mean(dim=1).reshape(2, len(views["large"]), -1)  # [2, B, D]
        small = [crop_features(self.encoder, views["small"])] if "small" in views else []
        pooled = torch.cat([pooled, *small])  # [2 + V, B, D]
        places = masks.float().topk(self.most_hidden, dim=1).indices  # [2B, M], the hidden ones first
        student, student_patches = _together(self.head, pooled, take(tokens, places))
        with torch.no_grad():
            seen = patch_tokens(self.teacher["encoder"], large)  # [2B, N, D]
            whole = seen.mean(dim=1).reshape(2, len(views["large"]), -1)
            teacher, teacher_patches = _together(self.teacher["head"], whole, seen)
            outputs = self.teacher["prototypes"](teacher)  # [2, B, K]
        images, scalars = self._distil(self.prototypes(student), outputs)
        patches = self._patch_term(student_patches, teacher_patches, places, masks.gather(1, places))
        loss = images + self.config.patch_weight * patches
        scalars |= {"image_loss": images, "patch_loss": patches}
        if self.config.koleo_weight > 0:
            scalars["koleo"] = koleo(pooled[0]) + koleo(pooled[1])  # of the large views
            loss = loss + self.config.koleo_weight * scalars["koleo"]
        if self.gram_used:
            with torch.no_grad():
                anchor = patch_tokens(self.teacher["anchor"], large)
            scalars["gram"] = gram_loss(tokens, anchor)
            loss = loss + self.config.gram_weight * scalars["gram"]
        return loss, {name: value.detach() for name, value in scalars.items()}

    def _patch_term(self, student: Tensor, teacher: Tensor, places: Tensor, hidden: Tensor) -> Tensor:
        """The hidden patches' loss of directions: the student's ``[2B, M, P]``, the teacher's ``[2B, N, P]``.

        The student's are at ``places`` ``[2B, M]``, of which ``hidden`` are. The patches' centre is of all patches,
        hidden or not (their code). The prototypes are linear: their mean output is the output of the mean direction,
        and the teacher's outputs are made at hidden places only.
        """
        with torch.no_grad():
            outputs = self.teacher["prototypes"](take(teacher, places))  # [2B, M, K]
            mean = self.teacher["prototypes"](teacher.mean(dim=(0, 1)))  # [K]
        loss = patch_loss(
            self.prototypes(student),
            outputs,
            hidden,
            self.patch_centre.value,
            self.config.student_temperature,
            self.temperature,
        )
        if self.training:
            self.patch_centre.observe(mean)
        return loss

    def after_step(self, progress: float, images: int) -> None:
        """Also move the patches' centre."""
        super().after_step(progress, images)
        self.patch_centre.update(momentum_for_batch(self.config.centre_momentum, images, self.config.momentum_batch))


def _forget_anchored(method: nn.Module, *_: Any) -> None:
    cast(Any, method)._anchored = False


def _together(head: nn.Module, pooled: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """The head's directions of ``pooled`` ``[V, B, D]`` and ``tokens`` ``[R, M, D]``, in one pass.

    BatchNorm then has the same statistics for both, as the prototypes are the same.
    """
    found: Tensor = head(torch.cat([pooled.flatten(0, 1), tokens.flatten(0, 1)]))
    rows = pooled.shape[:2].numel()
    return found[:rows].reshape(*pooled.shape[:2], -1), found[rows:].reshape(*tokens.shape[:2], -1)
