"""Areas under the ROC curve over pairs that share a patient, or a position in the series.

Among all pairs of a slice with a tumour and one without, most lie at different heights, and a model that knows nothing
but the height orders them. Of pairs that agree in what is not the finding only the finding is left to tell.
"""

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.intervals import Estimate, FloatArray, Scored, concordance, leave_out, mean, patient_mean

NEAR = 0.1
"""Pairs at most this share of the series' length apart count as at the same position."""


def auc_within_patients(data: Scored) -> Estimate:
    """The mean over patients of the AUC among each one's own images; NaN where no patient has images of two classes.

    Of more than two classes the mean of one-versus-rest, as ``intervals.auc``.
    """
    found = [_of_class_within(data, k) for k in _classes(data)]
    known = [one for one in found if np.isfinite(one.value)]
    return mean(known or found)


def auc_at_position(data: Scored, position: FloatArray) -> Estimate:
    """The AUC over pairs at most ``NEAR`` apart, whosever they are; NaN where there is no such pair.

    position: ``[N]`` in its series, 0 to 1; an image without one (NaN) is in no pair.
    """
    found = [_of_class_at(data, position, k) for k in _classes(data)]
    known = [one for one in found if np.isfinite(one.value)]
    return mean(known or found)


def _classes(data: Scored) -> list[int]:
    count = data.scores.shape[1]
    return [1] if count == 2 else list(range(count))


def _of_class_within(data: Scored, k: int) -> Estimate:
    values, patients, strata = [], [], []
    for patient in np.unique(data.patients):
        own = data.where(data.patients == patient)
        positive = own.labels == k
        high, low = own.scores[positive, k], own.scores[~positive, k]
        if len(high) and len(low):
            values.append(float(concordance(high, low).mean() / len(low)))
            patients.append(str(patient))
            strata.append(str(own.strata[0]))
    return patient_mean(np.array(values, dtype=np.float64), patients, strata)


def _of_class_at(data: Scored, position: FloatArray, k: int) -> Estimate:
    positive = data.labels == k
    near = np.abs(position[positive][:, None] - position[~positive][None, :]) <= NEAR  # False beside a NaN
    high, low = data.scores[positive, k][:, None], data.scores[~positive, k][None, :]
    wins = ((high > low) + 0.5 * (high == low)) * near

    def without(keep: NDArray[np.bool_]) -> float:
        rows, columns = keep[positive].astype(np.float64), keep[~positive].astype(np.float64)
        pairs = rows @ near @ columns
        return float(rows @ wins @ columns / pairs) if pairs > 0 else float("nan")

    carriers = tuple(len(np.unique(data.patients[part])) for part in (~positive, positive))
    return leave_out(data.patients, data.strata, without, carriers)
