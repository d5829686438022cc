"""What is kept of a held image: enough to compute every figure of merit again, and no image."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from evaluation.config import TaskKind
from evaluation.tasks.average_precision import matches
from evaluation.tasks.overlap import overlap_table

Columns = dict[str, Any]


def kept_columns(kind: TaskKind, predictions: Any, truth: Any, classes: Sequence[str]) -> Columns:
    """Columns ``[N]`` of held images from a protocol's predictions and what is true."""
    return _KEPT[kind](predictions, truth, classes)


def _classification(predictions: Any, truth: Any, classes: Sequence[str]) -> Columns:
    scores = {f"score_{name}": predictions[:, k] for k, name in enumerate(classes)}
    return {"label": np.array(classes, dtype=np.str_)[truth], **scores}


def _multilabel(predictions: Any, truth: Any, classes: Sequence[str]) -> Columns:
    columns: Columns = {f"truth_{name}": truth[:, k] for k, name in enumerate(classes)}
    return columns | {f"score_{name}": predictions[:, k] for k, name in enumerate(classes)}


def _regression(predictions: Any, truth: Any, classes: Sequence[str]) -> Columns:
    return {"truth": truth, "value": predictions[:, 0]}


def _segmentation(predictions: Any, truth: Any, classes: Sequence[str]) -> Columns:
    return dict(overlap_table(predictions, truth, classes))


def _detection(predictions: Any, truth: Any, classes: Sequence[str]) -> Columns:
    return {"matches": matches(predictions, truth, len(classes))}


_KEPT: dict[TaskKind, Callable[[Any, Any, Sequence[str]], Columns]] = {
    "classification": _classification,
    "multilabel": _multilabel,
    "regression": _regression,
    "segmentation": _segmentation,
    "detection": _detection,
}
