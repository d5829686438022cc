"""What travels for a study's section ``federated_evaluation``: questions about labels, and sums in answer.

Each site keeps some of its labelled patients out of its pretraining. After the last round the server asks for the
moments of the training images' features, then, again and again, for the gradient of a logistic probe's loss, and in
the end for figures of the probe on the site's own test patients (evaluation/federated/logistic.py has the mathematics).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from evaluation.federated.figures import FIGURES
from evaluation.federated.logistic import outputs_of
from evaluation.federated.score_histogram import BINS

Step = Literal["moments", "gradient", "figures", "histogram"]
STEPS: tuple[str, ...] = get_args(Step)


@dataclass(frozen=True)
class EvaluationRequest:
    """What the server asks of a site's labelled images.

    encoder: digest of the encoder's tensors (``records.weights_digest``). tensors: for "moments" those of the encoder,
    else ``probe_like``.
    """

    study_hash: str
    step: Step
    encoder: str
    tensors: dict[str, Tensor]


@dataclass(frozen=True)
class Statistics:
    """A site's answer: sums over its labelled images, or figures of its test patients, as ``answer_like``."""

    study_hash: str
    site: str
    step: Step
    encoder: str
    tensors: dict[str, Tensor]


def probe_like(width: int, classes: int) -> dict[str, Tensor]:
    """Names, shapes and types of a probe as it is sent to a site, for features of D = ``width``."""
    shapes = {"centre": (width,), "spread": (width,), "weights": (width + 1, outputs_of(classes))}
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}


def answer_like(step: Step, width: int, classes: int) -> dict[str, Tensor]:
    """Names, shapes and types of an answer.

    figures: value, variance and units of each of ``FIGURES``; units 0: not defined at this site. fewest: patients of
    the rarest class, 5 at most.
    """
    outputs = outputs_of(classes)
    shapes: dict[Step, dict[str, tuple[int, ...]]] = {
        "moments": {"count": (1,), "mean": (width,), "deviations": (width,)},
        "gradient": {"value": (1,), "gradient": (width + 1, outputs)},
        "figures": {"patients": (1,), "fewest": (1,), "figures": (len(FIGURES), 3)},
        "histogram": {"positive": (outputs, BINS), "negative": (outputs, BINS), "starts": (outputs, BINS)},
    }
    kind = torch.int64 if step == "histogram" else torch.float64
    return {name: torch.zeros(shape, dtype=kind) for name, shape in shapes[step].items()}
