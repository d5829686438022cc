"""Intervals over patients: delete-one-patient jackknife, stratified, on the logit scale, with a t quantile.

Images of one patient are not independent, so the patient is the unit. A figure is kept with its *influences*: one
number a patient, the jackknife's estimate of how far that patient moves it. Influences add up as the figures do, so
means over folds, classes and seeds, and paired differences of two encoders on the same patients, need nothing else.

For the area under the ROC curve the jackknife has a closed form. With one image a patient, and the classes as
strata, it is DeLong's variance (DeLong et al. 1988) but for a factor near 1; with several it does the work of
Obuchowski 1997. Of the ways tried it covers best with few patients: docs/intervals.md has the table, which
``python -m benchmarks.statistics.interval_coverage`` makes.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.results_schema import LOGIT, SYMMETRIC

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

MIN_PATIENTS = 10
MIN_PATIENTS_PER_CLASS = 5
MOST_UNITS = 200
"""With more patients the general jackknife leaves out groups of a stratum's patients, about this many."""
TOO_FEW = "too few patients to say"
NO_SPREAD = "no patient changes the figure"
AT_BOUND = "the figure is at its bound"
UNDEFINED = "not defined here (only one class, or nothing of it)"


@dataclass(frozen=True)
class Estimate:
    """A figure with what each patient does to it.

    influence: ``[P]``, in the order of ``patients``; strata: ``[P]``, the site and fold a patient is drawn within.
    carriers: for each class, how many patients have an image of it.
    """

    value: float
    patients: tuple[str, ...]
    strata: tuple[str, ...]
    influence: FloatArray
    carriers: tuple[int, ...]


@dataclass(frozen=True)
class Interval:
    """Lower and upper end, NaN where there is none. how: its kind (LOGIT, SYMMETRIC), or why there is none."""

    low: float
    high: float
    how: str


@dataclass(frozen=True)
class Scored:
    """Test images with their scores.

    labels: ``[N]`` class codes; scores: ``[N, K]``, higher is likelier; patients, strata: ``[N]``.
    """

    labels: IntArray
    scores: FloatArray
    patients: NDArray[np.str_]
    strata: NDArray[np.str_]

    def where(self, keep: NDArray[np.bool_]) -> "Scored":
        """The images with ``keep``."""
        return Scored(self.labels[keep], self.scores[keep], self.patients[keep], self.strata[keep])


MetricFunction = Callable[[IntArray, FloatArray], float]
"""Labels ``[N]`` and scores ``[N, K]`` to one number."""


def _none(note: str) -> Interval:
    return Interval(float("nan"), float("nan"), note)


def _grouped(patients: Sequence[str], strata: Sequence[str]) -> tuple[IntArray, tuple[str, ...], tuple[str, ...]]:
    """The unit of each patient, and the units' names and strata: patients, or groups of them if there are many."""
    share = -(-len(patients) // MOST_UNITS)
    if share == 1:
        return np.arange(len(patients)), tuple(patients), tuple(strata)
    names: dict[tuple[str, int], int] = {}
    seen: Counter[str] = Counter()
    unit = []
    for stratum in strata:
        unit.append(names.setdefault((stratum, seen[stratum] // share), len(names)))
        seen[stratum] += 1
    labels = tuple(f"{stratum} group {number}" for stratum, number in names)
    return np.array(unit, dtype=np.int64), labels, tuple(stratum for stratum, _ in names)


def _units(data: Scored) -> tuple[tuple[str, ...], tuple[str, ...], IntArray, tuple[int, ...]]:
    """Patients, their strata, the patient code of each image, and the carriers of each class."""
    patients, first, codes = np.unique(data.patients, return_index=True, return_inverse=True)
    classes = range(data.scores.shape[1])
    carriers = tuple(len(np.unique(codes[data.labels == k])) for k in classes)
    return tuple(map(str, patients)), tuple(map(str, data.strata[first])), codes.astype(np.int64), carriers


def _scaled(whole: float, without: FloatArray) -> FloatArray:
    """Influences from the figures without each patient; where there is none without a patient, it counts as unmoved.

    Scaled by (P-1)/P, which for a mean gives (value - mean)/P. Each stratum's own (n-1)/n, as in the textbook's
    stratified jackknife, is for figures that give a stratum its weight back when a patient is left out; ours do not,
    and with sites of four or five patients their intervals would cover .89.
    """
    return np.where(np.isfinite(without), whole - without, 0.0) * (len(without) - 1) / max(len(without), 1)


def jackknife(data: Scored, metric: MetricFunction) -> Estimate:
    """Any metric of labels and scores with its influences, computed again without each patient."""
    carriers = _units(data)[3]

    def without(keep: NDArray[np.bool_]) -> float:
        return metric(data.labels[keep], data.scores[keep])

    return leave_out(data.patients, data.strata, without, carriers)


def leave_out(
    patients: NDArray[np.str_],
    strata: NDArray[np.str_],
    figure: Callable[[NDArray[np.bool_]], float],
    carriers: tuple[int, ...] = (),
) -> Estimate:
    """Any figure of rows ``[N]`` with its influences: ``figure(keep)`` is the figure of the rows with ``keep``."""
    names, first, codes = np.unique(patients, return_index=True, return_inverse=True)
    unit, units, where = _grouped(tuple(map(str, names)), tuple(map(str, strata[first])))
    codes = unit[codes]
    whole = figure(np.ones(len(patients), dtype=np.bool_))
    without = np.array([figure(codes != i) for i in range(len(units))])
    return Estimate(whole, units, where, _scaled(whole, without), carriers)


def patient_mean(
    values: FloatArray, patients: Sequence[str], strata: Sequence[str], carriers: tuple[int, ...] = ()
) -> Estimate:
    """The mean of one number a patient (``[P]``, a Dice score say), NaN of none.

    Its jackknife has a closed form: a patient moves the mean by (value - mean) / P.
    """
    if len(set(patients)) < len(patients):
        raise ValueError("a mean over patients needs one value of each")
    order = sorted(range(len(patients)), key=lambda i: patients[i])
    own = np.asarray(values, dtype=np.float64)[order]
    whole = float(own.mean()) if len(own) else float("nan")
    influence = (own - whole) / max(len(own), 1)
    return Estimate(whole, tuple(patients[i] for i in order), tuple(strata[i] for i in order), influence, carriers)


def auc(data: Scored) -> Estimate:
    """Area under the ROC curve (two classes: of the second one's score; more: mean of one-versus-rest), O(N log N).

    NaN where a class has no image or is all there is.
    """
    patients, strata, codes, carriers = _units(data)
    count = data.scores.shape[1]
    chosen = [1] if count == 2 else list(range(count))
    parts = [_auc_without(data.scores[:, k], data.labels == k, codes, len(patients)) for k in chosen]
    whole = float(np.mean([value for value, _ in parts]))
    without = np.mean([loo for _, loo in parts], axis=0)
    return Estimate(whole, patients, strata, _scaled(whole, without), carriers)


def _auc_without(
    scores: FloatArray, positive: NDArray[np.bool_], codes: IntArray, patients: int
) -> tuple[float, FloatArray]:
    """The AUC, and the AUC without each patient: all concordant pairs less the patient's, over the pairs left."""
    count = int(positive.sum())
    rest = len(positive) - count
    if count == 0 or rest == 0:
        return float("nan"), np.full(patients, np.nan)
    high, low = scores[positive], scores[~positive]
    wins, losses = concordance(high, low), len(high) - concordance(low, high)
    row = np.bincount(codes[positive], wins, patients)
    column = np.bincount(codes[~positive], losses, patients)
    m = np.bincount(codes[positive], minlength=patients)
    n = np.bincount(codes[~positive], minlength=patients)
    own = np.zeros(patients)
    for i in np.flatnonzero((m > 0) & (n > 0)):
        mine = codes == i
        own[i] = concordance(scores[mine & positive], scores[mine & ~positive]).sum()
    pairs = ((count - m) * (rest - n)).astype(np.float64)
    left = wins.sum() - row - column + own
    without = np.divide(left, pairs, out=np.full(patients, np.nan), where=pairs > 0)
    return float(wins.sum() / (count * rest)), without


def concordance(high: FloatArray, low: FloatArray) -> FloatArray:
    """For each of ``high``, how many of ``low`` lie below it, a tie counting half."""
    ordered = np.sort(low)
    return (np.searchsorted(ordered, high, "left") + np.searchsorted(ordered, high, "right")) / 2.0


def mean(estimates: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """The mean of figures: over folds or sites (other patients), over seeds or label draws (the same patients).

    weights: positive, by default equal; they need not sum to 1.
    """
    shares = np.ones(len(estimates)) if weights is None else np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    total: dict[str, float] = {}
    strata: dict[str, str] = {}
    for share, estimate in zip(shares, estimates, strict=True):
        for patient, stratum, influence in zip(estimate.patients, estimate.strata, estimate.influence, strict=True):
            total[patient] = total.get(patient, 0.0) + float(share * influence)
            strata.setdefault(patient, stratum)
    patients = tuple(sorted(total))
    same = len({estimate.patients for estimate in estimates}) == 1
    columns = list(zip(*(estimate.carriers for estimate in estimates), strict=True))
    return Estimate(
        value=float(shares @ np.array([estimate.value for estimate in estimates])),
        patients=patients,
        strata=tuple(strata[p] for p in patients),
        influence=np.array([total[p] for p in patients]),
        carriers=tuple(min(column) if same else sum(column) for column in columns),
    )


def difference(first: Estimate, second: Estimate) -> Estimate:
    """``first`` minus ``second`` over the same patients: the influences subtract, which takes their covariance out."""
    if first.patients != second.patients:
        raise ValueError("a paired difference needs the same patients on both sides")
    carriers = tuple(min(pair) for pair in zip(first.carriers, second.carriers, strict=False))
    return Estimate(
        first.value - second.value, first.patients, first.strata, first.influence - second.influence, carriers
    )


def _merged(strata: Sequence[str]) -> list[str]:
    """Strata in which a spread can be seen: one of a single patient joins the smallest of the others."""
    names = list(strata)
    while True:
        sizes = sorted((count, name) for name, count in Counter(names).items())
        if len(sizes) < 2 or sizes[0][0] > 1:
            return names
        names = [sizes[1][1] if name == sizes[0][1] else name for name in names]


def variance(estimate: Estimate) -> tuple[float, int]:
    """Variance of the figure, patients drawn within their strata, and its degrees of freedom (patients less strata)."""
    names = np.array(_merged(estimate.strata))
    total, freedom = 0.0, 0
    for name in np.unique(names):
        own = estimate.influence[names == name]
        if len(own) > 1:
            total += len(own) / (len(own) - 1) * float(((own - own.mean()) ** 2).sum())
            freedom += len(own) - 1
    return total, freedom


def why_none(estimate: Estimate) -> str:
    """The reason why no interval can be given, or an empty string."""
    few = any(0 < count < MIN_PATIENTS_PER_CLASS for count in estimate.carriers)
    if len(estimate.patients) < MIN_PATIENTS or few:
        return TOO_FEW
    total, freedom = variance(estimate)
    return NO_SPREAD if freedom < 1 or not total > 0.0 else ""


def interval(estimate: Estimate, level: float = 0.95) -> Interval:
    """The interval of a figure in [0, 1], symmetric on the logit scale (delta method), t quantile."""
    note = why_none(estimate) or ("" if 0.0 < estimate.value < 1.0 else AT_BOUND)
    if note:
        return _none(note)
    total, freedom = variance(estimate)
    value = estimate.value
    half = _quantile(freedom, level) * np.sqrt(total) / (value * (1.0 - value))
    centre = np.log(value / (1.0 - value))
    low, high = 1.0 / (1.0 + np.exp(-(centre - half))), 1.0 / (1.0 + np.exp(-(centre + half)))
    return Interval(float(low), float(high), LOGIT)


def _quantile(freedom: float, level: float) -> float:
    """Of Student's t, of half the level above the middle."""
    from scipy import special  # a third of a second, which only results need

    return float(special.stdtrit(freedom, 0.5 + level / 2))


def difference_interval(estimate: Estimate, level: float = 0.95) -> Interval:
    """The interval of a difference (or any figure without bounds), symmetric, t quantile."""
    note = why_none(estimate)
    if note:
        return _none(note)
    total, freedom = variance(estimate)
    half = float(_quantile(freedom, level) * np.sqrt(total))
    return Interval(estimate.value - half, estimate.value + half, SYMMETRIC)


def p_value(estimate: Estimate) -> float:
    """Two-sided, of a difference being 0: below .05 exactly where its 95 % interval leaves 0 out; NaN without one."""
    if why_none(estimate):
        return float("nan")
    from scipy import special

    total, freedom = variance(estimate)
    return float(2.0 * special.stdtr(freedom, -abs(estimate.value) / np.sqrt(total)))
