"""Every number about a round that may leave a site: a closed table. A new metric is added here, or it stays."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from federation.study import Study
from ssl_methods.watched import FEATURE_SPREAD, OUTPUT_RANK, OUTPUT_SPREAD

DIGITS = 6  # enough for a curve, too few to carry an image
_SMALLEST = 1e-12  # below it a number is sent as 0: the exponent of a float would otherwise carry something too


@dataclass(frozen=True)
class OutgoingMetric:
    """A mean over a round, or a measure of features, that a site may tell.

    most: the largest absolute value; a number beyond it stays. tells_count: the number of images can be worked out
    from it (a share of a batch is a whole number over the batch).
    """

    meaning: str
    most: float = 1e9
    tells_count: bool = False


def _share(meaning: str) -> OutgoingMetric:
    return OutgoingMetric(meaning, 1.0, tells_count=True)


OUTGOING_METRICS: dict[str, OutgoingMetric] = {
    # Of every round (client/training/round.py).
    "loss": OutgoingMetric("mean loss"),
    # The rate is that of the last step, which tells how many there were.
    "learning_rate": OutgoingMetric("the encoder's learning rate at the last step", 1e3, tells_count=True),
    "images_seen": OutgoingMetric("images seen, repeats counted", 1e12, tells_count=True),
    "steps": OutgoingMetric("optimiser steps", 1e9, tells_count=True),
    "seconds": OutgoingMetric("duration", 1e8, tells_count=True),
    # The collapse watch (ssl_methods/diagnostics.py), over 32 images together.
    FEATURE_SPREAD: OutgoingMetric("spread of the encoder's features"),
    "rankme": OutgoingMetric("effective rank of the features, at most the number of images", tells_count=True),
    "alignment": OutgoingMetric("mean distance between features of an image and of its view"),
    "uniformity": OutgoingMetric("how evenly features lie on the sphere"),
    OUTPUT_SPREAD: OutgoingMetric("spread of what the loss compares"),
    OUTPUT_RANK: OutgoingMetric("effective rank of what the loss compares", tells_count=True),
    # The methods' own.
    "accuracy": _share("share of pretext questions answered rightly"),
    "anchors_left_out": _share("share of views without a negative"),
    "pairs_left_out": _share("share of images without a neighbour"),
    "prototypes_used": _share("share of prototypes that were chosen"),
    "target_std": OutgoingMetric("spread of I-JEPA's targets"),
    "target_entropy": OutgoingMetric("entropy of DINO's targets"),
    "image_loss": OutgoingMetric("iBOT's loss of whole images"),
    "patch_loss": OutgoingMetric("iBOT's loss of patches"),
    "koleo": OutgoingMetric("spread term"),
    "gram": OutgoingMetric("Gram anchoring term"),
    "invariance": OutgoingMetric("VICReg's and LeJEPA's term"),
    "variance": OutgoingMetric("VICReg's term"),
    "covariance": OutgoingMetric("VICReg's term"),
    "sigreg": OutgoingMetric("LeJEPA's distance from the normal distribution"),
    "rotation_loss": OutgoingMetric("Swin UNETR's term"),
    "contrast_loss": OutgoingMetric("Swin UNETR's term"),
    "inpainting_loss": OutgoingMetric("Swin UNETR's term"),
}


def known_metric(study: "Study", name: str) -> str | None:
    """The entry of ``OUTGOING_METRICS`` that ``name`` is in this study: ``loss`` of ``mae_loss`` in a sum; or None."""
    if name in OUTGOING_METRICS:
        return name
    own = [name.removeprefix(f"{label}_") for label in study.method.members() if name.startswith(f"{label}_")]
    return next((base for base in own if base in OUTGOING_METRICS), None)


def rounded(value: float) -> float:
    """``value`` to six significant digits, 0 where it is next to nothing."""
    return float(f"{value:.{DIGITS}g}") if abs(value) >= _SMALLEST else 0.0
