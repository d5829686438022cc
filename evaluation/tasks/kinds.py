"""The kinds of task: which metrics each has, and what is kept of a held image to compute them again."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd

from evaluation.config import RunEvaluation, TaskKind
from evaluation.statistics.held_scores import Metric, matrix
from evaluation.statistics.intervals import (
    Estimate,
    IntArray,
    MetricFunction,
    Scored,
    auc,
    jackknife,
    leave_out,
    mean,
    patient_mean,
)
from evaluation.statistics.matched_auc import auc_at_position, auc_within_patients
from evaluation.tasks.average_precision import average_precision, thresholds_of
from evaluation.tasks.metrics import auprc, balanced_accuracy, calibration_error, f1
from evaluation.tasks.overlap import patient_dice, patient_distance

BIASED_ECE = "few patients make this figure too large, not only uncertain"


@dataclass(frozen=True)
class Kind:
    """metrics: the main one first, by which encoders are compared."""

    summary: str
    metrics: Callable[[RunEvaluation, tuple[str, ...]], tuple[Metric, ...]]


def main_metric(config: RunEvaluation, classes: tuple[str, ...]) -> Metric:
    """The figure by which encoders are compared."""
    return KINDS[config.kind].metrics(config, classes)[0]


def _classification(config: RunEvaluation, classes: tuple[str, ...]) -> tuple[Metric, ...]:
    code = {name: k for k, name in enumerate(classes)}

    def scored(frame: pd.DataFrame) -> Scored:
        labels: IntArray = np.array(frame["label"].map(code), dtype=np.int64)
        return Scored(labels, matrix(frame, "score_", classes), *_patients(frame))

    def decided(metric: MetricFunction) -> Callable[[pd.DataFrame], Estimate]:
        return lambda frame: jackknife(scored(frame), metric)

    bins = config.calibration_bins
    return (
        Metric("AUROC", lambda frame: auc(scored(frame)), within_fold=True),
        Metric("AUROC_within_patients", lambda frame: auc_within_patients(scored(frame)), optional=True),
        Metric(
            "AUROC_at_position",
            lambda frame: auc_at_position(scored(frame), _positions(frame)),
            within_fold=True,
            optional=True,
        ),
        Metric("AUPRC", decided(auprc), within_fold=True),
        Metric("balanced_accuracy", decided(balanced_accuracy)),
        Metric("F1", decided(f1)),
        Metric("ECE", decided(partial(calibration_error, bins=bins)), less_is_better=True, biased=BIASED_ECE),
    )


def _positions(frame: pd.DataFrame) -> np.ndarray:
    """Where each image lies in its series; NaN where that is not known."""
    return np.asarray(frame.get("position", np.full(len(frame), np.nan)), dtype=np.float64)


def _patients(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    return frame["patient"].to_numpy(np.str_), frame["strata"].to_numpy(np.str_)


def _multilabel(config: RunEvaluation, classes: tuple[str, ...]) -> tuple[Metric, ...]:
    def each(estimate: Callable[[Scored], Estimate]) -> Callable[[pd.DataFrame], Estimate]:
        def over_findings(frame: pd.DataFrame) -> Estimate:
            found = [estimate(_one_finding(frame, name)) for name in classes]
            known = [one for one in found if np.isfinite(one.value)]
            return mean(known or found)

        return over_findings

    return (
        Metric("AUROC", each(auc), within_fold=True),
        Metric("AUPRC", each(partial(jackknife, metric=auprc)), within_fold=True),
        Metric("balanced_accuracy", each(partial(jackknife, metric=balanced_accuracy))),
        Metric("F1", each(partial(jackknife, metric=f1))),
    )


def _one_finding(frame: pd.DataFrame, name: str) -> Scored:
    score = frame[f"score_{name}"].to_numpy(np.float64)
    truth = frame[f"truth_{name}"].to_numpy(np.int64)
    return Scored(truth, np.stack([1.0 - score, score], axis=1), *_patients(frame))


def _regression(config: RunEvaluation, classes: tuple[str, ...]) -> tuple[Metric, ...]:
    def left(figure: Callable[[np.ndarray, np.ndarray], float]) -> Callable[[pd.DataFrame], Estimate]:
        def estimate(frame: pd.DataFrame) -> Estimate:
            truth, value = (frame[name].to_numpy(np.float64) for name in ("truth", "value"))

            def kept(keep: np.ndarray) -> float:
                return figure(truth[keep], value[keep]) if keep.any() else float("nan")

            return leave_out(*_patients(frame), kept)

        return estimate

    return (
        Metric("R2", left(explained_share), bounded=False),
        Metric(
            "MAE", left(lambda truth, value: float(np.abs(truth - value).mean())), bounded=False, less_is_better=True
        ),
    )


def explained_share(truth: np.ndarray, value: np.ndarray) -> float:
    """1 - sum of squared errors / sum of squared distances from the mean; NaN where all are equal."""
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1.0 - float(((truth - value) ** 2).sum()) / spread if spread > 0 else float("nan")


def _segmentation(config: RunEvaluation, classes: tuple[str, ...]) -> tuple[Metric, ...]:
    def each(figure: Callable[..., float], *columns: str) -> Callable[[pd.DataFrame], Estimate]:
        def over_structures(frame: pd.DataFrame) -> Estimate:
            found = [_over_patients(frame, name, figure, columns) for name in classes]
            known = [one for one in found if np.isfinite(one.value)]
            return mean(known or found)

        return over_structures

    return (
        Metric("Dice", each(patient_dice, "intersection", "predicted", "truth")),
        Metric("HD95", each(patient_distance, "hd95"), bounded=False, less_is_better=True),
    )


def _over_patients(frame: pd.DataFrame, name: str, figure: Callable[..., float], columns: Sequence[str]) -> Estimate:
    """Mean over the patients who have the structure; only they, so that every encoder is judged on the same ones."""
    has = frame.groupby("patient")[f"truth_{name}"].transform("sum") > 0
    values, patients, strata = [], [], []
    for patient, own in frame[has].groupby("patient"):
        value = figure(*(own[f"{column}_{name}"].to_numpy(np.float64) for column in columns))
        values.append(value)
        patients.append(str(patient))
        strata.append(str(own["strata"].iloc[0]))
    return patient_mean(np.array(values, dtype=np.float64), patients, strata)


def _detection(config: RunEvaluation, classes: tuple[str, ...]) -> tuple[Metric, ...]:
    def at(*thresholds: float) -> Callable[[pd.DataFrame], Estimate]:
        def estimate(frame: pd.DataFrame) -> Estimate:
            matched = frame["matches"].to_numpy(object)

            def kept(keep: np.ndarray) -> float:
                return average_precision(list(matched[keep]), classes, thresholds) if keep.any() else float("nan")

            return leave_out(*_patients(frame), kept)

        return estimate

    return Metric("mAP50", at(0.5), within_fold=True), Metric("mAP", at(*thresholds_of()), within_fold=True)


KINDS: dict[TaskKind, Kind] = {
    "classification": Kind("one class an image (or patient)", _classification),
    "multilabel": Kind("several findings, each there or not", _multilabel),
    "regression": Kind("a number an image", _regression),
    "segmentation": Kind("a class for every pixel", _segmentation),
    "detection": Kind("boxes with a class", _detection),
}
