"""Figures of an attack with their intervals: advantage at a threshold fixed in advance, AUC, guesses."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from evaluation.statistics import intervals
from evaluation.statistics.intervals import FloatArray, Scored

LEVEL = 0.95
FEWEST = 4
"""Patients on each side below which there is no figure."""
FEWEST_FOR_TAIL = 100
"""Non-members below which a false positive rate of 1 % cannot be set."""


@dataclass(frozen=True)
class AttackResult:
    """An advantage over guessing, -1 to 1 (0: none, 1: always right), with its 95 % interval.

    n: patients, or images, that were judged. more: other figures of the same scores, by name; None where there are
    too few patients for one.
    """

    value: float
    low: float
    high: float
    n: int
    more: dict[str, float | None]

    def as_dict(self) -> dict[str, Any]:
        """What ``attacks.json`` says of it."""
        return {name: _rounded(value) for name, value in asdict(self).items()}


def advantage(members: FloatArray, others: FloatArray) -> AttackResult | None:
    """The advantage TPR - FPR of "score above 0: a member" (Yeom et al. 2018, definition 4).

    members ``[M]``, others ``[O]``: a score a patient, higher speaks for a member, with a zero that was fixed without
    looking at who is one (``crowd.by_patient``). The largest TPR - FPR over all thresholds, as often reported, lies
    above 0 for scores that say nothing. Interval: Newcombe 1998, method 10 (of Wilson's intervals), taking patients as
    independent. None with fewer than ``FEWEST`` on a side.
    """
    if min(len(members), len(others)) < FEWEST:
        return None
    hits, alarms = int((members > 0).sum()), int((others > 0).sum())
    low, high = newcombe(hits, len(members), alarms, len(others))
    more = {"tpr": hits / len(members), "fpr": alarms / len(others)} | _auc(members, others) | _tail(members, others)
    return AttackResult(hits / len(members) - alarms / len(others), low, high, len(members) + len(others), more)


def newcombe(hits: int, of: int, alarms: int, out_of: int) -> tuple[float, float]:
    """Interval of hits / of - alarms / out_of (Newcombe 1998, method 10)."""
    p, q = hits / of, alarms / out_of
    low_p, high_p = wilson(hits, of)
    low_q, high_q = wilson(alarms, out_of)
    low = p - q - np.hypot(p - low_p, high_q - q)
    return float(low), float(p - q + np.hypot(high_p - p, q - low_q))


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    z = float(stats.norm.ppf(0.5 + LEVEL / 2))
    p = hits / of
    centre, half = p + z * z / (2 * of), z * np.sqrt(p * (1 - p) / of + z * z / (4 * of * of))
    scale = 1 + z * z / of
    return float((centre - half) / scale), float((centre + half) / scale)


def exact(hits: int, of: int) -> tuple[float, float]:
    """The exact interval of a proportion (Clopper and Pearson 1934)."""
    tail = (1 - LEVEL) / 2
    low = float(stats.beta.ppf(tail, hits, of - hits + 1)) if hits > 0 else 0.0
    return low, float(stats.beta.ppf(1 - tail, hits + 1, of - hits)) if hits < of else 1.0


def guesses(right: int, of: int, chance: float) -> AttackResult:
    """The advantage (rate - chance) / (1 - chance) of guesses of which ``right`` of ``of`` were; interval: exact."""
    low, high = (_above(end, chance) for end in exact(right, of))
    more: dict[str, float | None] = {"right": right / of, "chance": chance}
    return AttackResult(_above(right / of, chance), low, high, of, more)


def _above(rate: float, chance: float) -> float:
    return (rate - chance) / (1 - chance)


def _auc(members: FloatArray, others: FloatArray) -> dict[str, float | None]:
    """Area under the ROC curve, with the jackknife's interval over patients (evaluation/statistics/intervals.py)."""
    scores = np.concatenate([others, members])
    labels = np.repeat([0, 1], [len(others), len(members)]).astype(np.int64)
    names = np.arange(len(scores)).astype(str)
    estimate = intervals.auc(Scored(labels, np.stack([-scores, scores], axis=1), names, labels.astype(str)))
    ends = intervals.interval(estimate, LEVEL)
    return {"auc": estimate.value} | {
        name: float(end) if np.isfinite(end) else None for name, end in (("auc_low", ends.low), ("auc_high", ends.high))
    }


def _tail(members: FloatArray, others: FloatArray) -> dict[str, float | None]:
    """TPR at a FPR of at most 1 %, with its exact interval given the threshold (Carlini et al. 2022, section III)."""
    names = ("tpr_at_1_percent", "tpr_at_1_percent_low", "tpr_at_1_percent_high")
    if len(others) < FEWEST_FOR_TAIL:
        return dict.fromkeys(names)
    threshold = np.sort(others)[-(len(others) // 100) - 1]
    hits = int((members > threshold).sum())
    return dict(zip(names, (hits / len(members), *exact(hits, len(members))), strict=True))


def _rounded(value: Any) -> Any:
    """Four decimals: more would promise what no interval holds."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return round(value, 4) if isinstance(value, float) else value
