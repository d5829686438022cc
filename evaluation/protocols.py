"""The table of protocols: what is done with an encoder and labelled pictures to get test scores."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from evaluation.finetune import Trial, finetune_scores
from evaluation.intervals import FloatArray, IntArray
from evaluation.knn import knn_scores
from evaluation.logistic import logistic_scores

Shown = NDArray[Any]
"""Features ``[N, D]`` float64, or pictures ``[N, C, S, S]`` float32 in [0, 1], as the protocol reads."""


@dataclass(frozen=True)
class Labelled:
    """x as the protocol reads it; y: class codes ``[N]``."""

    x: Shown
    y: IntArray


Score = Callable[[Labelled, Labelled, Shown, Trial], FloatArray]
"""Training, validation, test x, and what else is known -> probabilities ``[N, K]`` for the test pictures."""


@dataclass(frozen=True)
class Protocol:
    """reads: what its x is; summary: one line for the report."""

    reads: Literal["features", "pictures"]
    summary: str
    score: Score


def _knn(train: Labelled, validation: Labelled, test: Shown, trial: Trial) -> FloatArray:
    return knn_scores(test, train.x, train.y, trial.classes)


def _logistic(train: Labelled, validation: Labelled, test: Shown, trial: Trial) -> FloatArray:
    return logistic_scores((train.x, train.y), (validation.x, validation.y), test, trial.classes)


def _finetune(train: Labelled, validation: Labelled, test: Shown, trial: Trial) -> FloatArray:
    return finetune_scores(train.x, train.y, test, trial)


PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol("features", "20 nearest neighbours of the frozen features, vote exp(cosine / .07)", _knn),
    "logistic": Protocol(
        "features",
        "logistic regression on the standardised frozen features, strength chosen on validation patients",
        _logistic,
    ),
    "finetune": Protocol("pictures", "all weights trained further on the labels, a fixed number of epochs", _finetune),
}
