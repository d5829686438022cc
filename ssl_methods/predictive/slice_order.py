"""Slice order (Zhang et al. 2017, ISBI) and time interval (Rivail et al. 2019): which of two images comes first?"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from imaging.config import ImageConfig, Relation
from ssl_methods.components.heads import projector
from ssl_methods.components.similarity import as_float32
from ssl_methods.encoders.outputs import feature_dim, features
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig


def order_loss(scores: Tensor, gaps: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of "the second comes later", ``[B]``, 0 where there is no order, and which pairs have one.

    scores ``[B]``: log odds. gaps ``[B]``: how much later the second of each pair lies; 0: no order. At least float32.
    """
    scores = as_float32(scores)
    ordered = gaps != 0
    each = functional.binary_cross_entropy_with_logits(scores, (gaps > 0).to(scores.dtype), reduction="none")
    return each * ordered, ordered


def gap_loss(lengths: Tensor, gaps: Tensor) -> Tensor:
    """Smooth L1 (beta 1) between ``lengths`` and log(1 + |gap|), ``[B]`` each, 0 where the gap is; at least float32."""
    lengths = as_float32(lengths)
    each = functional.smooth_l1_loss(lengths, gaps.abs().log1p().to(lengths.dtype), reduction="none")
    return each * (gaps != 0)


class SliceOrderConfig(MethodConfig):
    """Guessing which of two images of a patient comes first."""

    name: Literal["slice_order"] = "slice_order"
    by: Literal["position", "date"] = Field(
        default="position",
        description="What orders two images: their positions in one series (along the body), or the days on which "
        "they were taken (images of one patient).",
    )
    gap_weight: float = Field(
        default=0.0,
        ge=0.0,
        description="Weight of guessing also how far apart they are, in log(1 + gap). 0 by default: days mean the same "
        "at all sites, but positions are millimetres at one and slice numbers at another.",
    )
    head_width: int = Field(default=256, ge=1, description="Hidden channels of the head.")

    @property
    def partner(self) -> Relation | None:
        """An image of the series at another position, or one of the patient taken on another day."""
        return "placed" if self.by == "position" else "dated"


class SliceOrder(Method, name="slice_order"):
    """Show two images of one patient and tell which comes first, and if wished how far they are apart.

    How far is a regression of log(1 + gap) and not of the gap, since a mistake of a week means much between two weeks
    and nothing between two years; classes of distance would need edges chosen from the sites' data.

    A pair without order (an image without position or date, or with no partner) teaches nothing and is counted. The
    sum is divided by all pairs of the batch and not by those that have an order: otherwise a pair's gradient would
    depend on how many others have one, and would not be its own. AdamW takes no notice of the common factor.
    """

    Config: ClassVar[type[MethodConfig]] = SliceOrderConfig
    config: SliceOrderConfig

    def __init__(self, config: SliceOrderConfig, encoder: nn.Module, image: ImageConfig) -> None:
        super().__init__(config, encoder, image)
        widths = [2 * feature_dim(encoder), config.head_width, 2]
        self.head = projector(widths, normalisation="none", last="biased")

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Both images' crops."""
        return {name: self.augmentation.draw(count, generator) for name in ("first", "second")}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """``first``, ``second`` ``[B, C, S, S]`` (crop, flip) and ``gaps`` ``[B]``, how much later the second lies."""
        assert batch.partners is not None and batch.gaps is not None  # config.partner asks for them
        return {
            "first": self.augmentation.light(batch.images, draws["first"]),
            "second": self.augmentation.light(batch.partners, draws["second"]),
            "gaps": batch.gaps,
        }

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy of the order plus the weighted loss of the distance.

        Also the share of ordered pairs whose order was guessed, and the share of pairs without order.
        """
        gaps = views["gaps"]
        scores, lengths = self._answers(views)
        ordered = gaps != 0
        right = ((scores.detach() > 0) == (gaps > 0)) & ordered
        accuracy = right.sum() / ordered.sum().clamp(min=1)
        scalars = {"accuracy": accuracy, "pairs_left_out": 1.0 - ordered.float().mean()}
        return self._losses(scores, lengths, gaps).mean(), scalars

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: the loss of each pair."""
        return self._losses(*self._answers(views), views["gaps"])

    def _answers(self, views: Views) -> tuple[Tensor, Tensor]:
        """Log odds of "the second comes later", and the guessed log(1 + gap), ``[B]`` each."""
        both = torch.stack([views["first"], views["second"]], dim=1).flatten(0, 1)  # a pair's images in a row
        scores, lengths = self.head(features(self.encoder, both).reshape(len(views["gaps"]), -1)).unbind(dim=1)
        return scores, lengths

    def _losses(self, scores: Tensor, lengths: Tensor, gaps: Tensor) -> Tensor:
        each, _ = order_loss(scores, gaps)
        return each + self.config.gap_weight * gap_loss(lengths, gaps) if self.config.gap_weight > 0 else each
