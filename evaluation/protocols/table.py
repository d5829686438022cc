"""The table of protocols: what is done with an encoder and labelled images to get predictions for held images."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evaluation.config import TaskKind
from evaluation.protocols.attention import attention_scores
from evaluation.protocols.detection import finetune_detections, frozen_detections
from evaluation.protocols.finetune import Outcome, finetune_scores
from evaluation.protocols.knn import knn_findings, knn_scores, knn_values
from evaluation.protocols.linear_svm import svm_scores
from evaluation.protocols.logistic import logistic_findings, logistic_scores
from evaluation.protocols.ridge import ridge_values
from evaluation.protocols.segmentation import decoder_masks, linear_masks
from evaluation.protocols.trial import Trial


@dataclass(frozen=True)
class RoleSamples:
    """Images of one role.

    x: features ``[N, D]`` float64, or images ``[N, *image.shape]`` float32 in [0, 1], as the protocol reads; y: what
    is asked of them (held images: None): codes ``[N]`` or ``[N, K]``, numbers ``[N]``, masks ``[N, ...]``, boxes;
    patient: ``[N]``.
    """

    x: NDArray[Any]
    y: Any
    patient: NDArray[np.str_]


Predict = Callable[[RoleSamples, RoleSamples, RoleSamples, Trial], Any]
"""Training, validation and held images to predictions for the held ones."""


@dataclass(frozen=True)
class Protocol:
    """reads: what its x is; summary: one line for the report.

    predict: for each kind of task that it serves. Predictions are probabilities ``[N, K]``, numbers ``[N, 1]``, masks
    ``[N, ...]`` or ``Detected``; with ``by_patient`` a row a patient in order of first appearance. trains_encoder: all
    weights of the encoder change, so that from random weights it is supervised training without pretraining.
    """

    reads: Literal["features", "images"]
    summary: str
    predict: dict[TaskKind, Predict]
    trains_encoder: bool = False
    by_patient: bool = False


def _finetune(outcome: Outcome, last: bool = False) -> Predict:
    def predict(train: RoleSamples, validation: RoleSamples, held: RoleSamples, trial: Trial) -> Any:
        layers = trial.config.finetune.last_layers if last else None
        return finetune_scores(train.x, train.y, held.x, trial, outcome, layers)

    return predict


_FINETUNED: dict[TaskKind, Outcome] = {
    "classification": "class",
    "multilabel": "findings",
    "regression": "value",
}
PROTOCOLS: dict[str, Protocol] = {
    "knn": Protocol(
        "features",
        "20 nearest neighbours of the frozen features, vote exp(cosine / .07)",
        {
            "classification": lambda train, val, held, trial: knn_scores(held.x, train.x, train.y, trial.classes),
            "multilabel": lambda train, val, held, trial: knn_findings(held.x, train.x, train.y),
            "regression": lambda train, val, held, trial: knn_values(held.x, train.x, train.y)[:, None],
        },
    ),
    "logistic": Protocol(
        "features",
        "logistic regression on the standardised frozen features, strength chosen on validation patients",
        {
            "classification": lambda train, val, held, trial: logistic_scores(
                (train.x, train.y), (val.x, val.y), held.x, trial.classes
            ),
            "multilabel": lambda train, val, held, trial: logistic_findings((train.x, train.y), (val.x, val.y), held.x),
        },
    ),
    "svm": Protocol(
        "features",
        "linear support vector machine on the standardised frozen features, strength chosen on validation patients",
        {
            "classification": lambda train, val, held, trial: svm_scores(
                (train.x, train.y), (val.x, val.y), held.x, trial.classes
            ),
        },
    ),
    "ridge": Protocol(
        "features",
        "ridge regression on the standardised frozen features, strength chosen on validation patients",
        {
            "regression": lambda train, val, held, trial: ridge_values((train.x, train.y), (val.x, val.y), held.x)[
                :, None
            ]
        },
    ),
    "attention": Protocol(
        "features",
        "gated attention over a patient's frozen features, trained on the patients' labels",
        {
            "classification": lambda train, val, held, trial: attention_scores(
                (train.x, train.y, train.patient), (held.x, held.patient), trial
            )[0],
        },
        by_patient=True,
    ),
    "finetune": Protocol(
        "images",
        "all weights trained further on the labels, a fixed number of epochs",
        {kind: _finetune(outcome) for kind, outcome in _FINETUNED.items()},
        trains_encoder=True,
    ),
    "finetune_last": Protocol(
        "images",
        "the last layers trained further on the labels, the others frozen",
        {kind: _finetune(outcome, last=True) for kind, outcome in _FINETUNED.items()},
    ),
    "linear_segmentation": Protocol(
        "images",
        "a linear layer on the frozen encoder's maps, enlarged to the image",
        {"segmentation": lambda train, val, held, trial: linear_masks((train.x, train.y), held.x, trial)},
    ),
    "decoder_segmentation": Protocol(
        "images",
        "a UNETR-style decoder, trained with all weights of the encoder",
        {"segmentation": lambda train, val, held, trial: decoder_masks((train.x, train.y), held.x, trial)},
        trains_encoder=True,
    ),
    "frozen_detection": Protocol(
        "images",
        "a centre-based head on the frozen encoder's feature map",
        {"detection": lambda train, val, held, trial: frozen_detections((train.x, train.y), held.x, trial)},
    ),
    "finetune_detection": Protocol(
        "images",
        "a centre-based head, trained with all weights of the encoder",
        {"detection": lambda train, val, held, trial: finetune_detections((train.x, train.y), held.x, trial)},
        trains_encoder=True,
    ),
}
