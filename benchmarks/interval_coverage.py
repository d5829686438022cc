"""How often the 95 % intervals of evaluation/intervals.py hold the truth: ``python -m benchmarks.interval_coverage``.

16 slices a patient; score = shift x label + patient effect + noise, the patient effect having the share
``correlation`` of the variance. Labels differ within a patient ("slice", patient shares drawn from Beta(2,
3)) or not ("patient", 40 % of patients). Truth: AUC .80 for a picture of each class from two patients; the
second score of the paired case has .75 and half of its patient effect and noise in common with the first.
Beside ours stand Obuchowski's clustered DeLong variance (logit scale, t quantile) and the percentile
bootstrap over patients.
"""

import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from evaluation.intervals import (
    Estimate,
    FloatArray,
    IntArray,
    Interval,
    Scored,
    auc,
    difference,
    difference_interval,
    interval,
    jackknife,
    mean,
)
from evaluation.metrics import balanced_accuracy
from foundation.files import write_text
from foundation.machine import commit, machine
from foundation.progress import track
from foundation.randomness import numpy_generator

SLICES = 16
TRUTHS = (0.80, 0.75)
RESAMPLES = 400
REPORT = Path(__file__).parent / "results" / "interval_coverage.md"
Counts = dict[str, list[bool]]


@dataclass(frozen=True)
class Case:
    """One row of the table. folds: the patients are dealt into so many, each with a shift of all its scores."""

    labels: str
    patients: int
    correlation: float
    folds: int = 1


CASES = tuple(
    [Case(kind, n, rho) for kind in ("slice", "patient") for n in (10, 20, 40, 80) for rho in (0.1, 0.4)]
    + [Case("slice", n, rho, 5) for n in (20, 40, 80) for rho in (0.1, 0.4)]
)


def simulate(case: Case, rng: np.random.Generator) -> list[Scored]:
    """The same pictures under the two scores, as ``[1 - p, p]``."""
    patient = np.repeat(np.arange(case.patients), SLICES)
    if case.labels == "patient":
        positive = rng.random(case.patients)[patient] < 0.4
    else:
        positive = rng.random(len(patient)) < rng.beta(2, 3, case.patients)[patient]
    fold = patient % case.folds
    shift = rng.normal(0.0, 1.0 if case.folds > 1 else 0.0, case.folds)[fold]
    effect, noise = (_pair(rng, size) for size in (case.patients, len(patient)))
    scored = []
    for k, truth in enumerate(TRUTHS):
        gap = np.sqrt(2) * stats.norm.ppf(truth)
        score = gap * (positive - 0.5) + np.sqrt(case.correlation) * effect[k][patient]
        score = score + np.sqrt(1 - case.correlation) * noise[k] + shift
        p = 1.0 / (1.0 + np.exp(-score))
        names = np.array([f"{name:03d}" for name in range(case.patients)])[patient]
        strata = np.array([f"{name}/site" for name in range(case.folds)])[fold]
        scored.append(Scored(positive.astype(np.int64), np.stack([1 - p, p], 1), names, strata))
    return scored


def _pair(rng: np.random.Generator, size: int) -> tuple[FloatArray, FloatArray]:
    """Two standard normal vectors with correlation one half."""
    first, other = rng.standard_normal((2, size))
    return first, 0.5 * first + np.sqrt(0.75) * other


def estimate(data: Scored) -> Estimate | None:
    """The AUC, as the mean over folds; None where a fold has one class."""
    found = [auc(data.where(data.strata == stratum)) for stratum in np.unique(data.strata)]
    return mean(found) if all(np.isfinite(each.value) for each in found) else None


def table_of_pairs(data: Scored) -> tuple[FloatArray, IntArray, IntArray]:
    """Concordant pairs ``[P, P]`` of positives of one with negatives of another patient, and the class counts."""
    patients = len(data.labels) // SLICES
    score, positive = data.scores[:, 1], data.labels == 1
    above = (score[:, None] > score) & positive[:, None] & ~positive
    table = above.reshape(patients, SLICES, patients, SLICES).sum((1, 3)).astype(np.float64)
    counted = positive.reshape(patients, SLICES).sum(1)
    return table, counted, SLICES - counted


def bootstrap(tables: list[tuple[FloatArray, IntArray, IntArray]], rng: np.random.Generator) -> list[FloatArray]:
    """AUCs of each score over the same resampled patients (resamples without a class are dropped)."""
    patients = len(tables[0][0])
    weight = rng.multinomial(patients, np.full(patients, 1 / patients), RESAMPLES).astype(np.float64)
    pairs = (weight @ tables[0][1]) * (weight @ tables[0][2])
    return [((weight @ table) * weight).sum(1)[pairs > 0] / pairs[pairs > 0] for table, _, _ in tables]


def obuchowski(tables: tuple[FloatArray, IntArray, IntArray]) -> Interval:
    """Clustered DeLong (Obuchowski 1997, eq. 6), logit scale, t quantile with patients - 1 degrees of freedom."""
    table, m, n = tables
    count, rest, patients = m.sum(), n.sum(), len(m)
    value = float(table.sum() / (count * rest))
    x, y = table.sum(1) / rest - m * value, table.sum(0) / count - n * value
    with_m, with_n = int((m > 0).sum()), int((n > 0).sum())
    total = with_m / (with_m - 1) * (x**2).sum() / count**2 + with_n / (with_n - 1) * (y**2).sum() / rest**2
    total += 2 * patients / (patients - 1) * (x * y).sum() / (count * rest)
    half = stats.t.ppf(0.975, patients - 1) * np.sqrt(max(total, 0.0)) / (value * (1 - value))
    centre = np.log(value / (1 - value))
    return Interval(1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre)))


def one_study(case: Case, rng: np.random.Generator, counts: Counts) -> bool:
    """Simulate once and count which intervals hold the truth; False where the rules give no interval."""
    first, second = simulate(case, rng)
    own, other = estimate(first), estimate(second)
    if own is None or other is None:
        return False
    single, apart = interval(own), difference_interval(difference(own, other))
    if single.note:
        return False
    counts["single"].append(single.low <= TRUTHS[0] <= single.high)
    counts["paired"].append(apart.low <= TRUTHS[0] - TRUTHS[1] <= apart.high)
    if case.folds > 1:
        return True
    tables = [table_of_pairs(first), table_of_pairs(second)]
    clustered = obuchowski(tables[0])
    counts["Obuchowski"].append(clustered.low <= TRUTHS[0] <= clustered.high)
    drawn = bootstrap(tables, rng)
    for name, values, truth in (
        ("percentile", drawn[0], TRUTHS[0]),
        ("percentile paired", drawn[0] - drawn[1], TRUTHS[0] - TRUTHS[1]),
    ):
        low, high = np.quantile(values, [0.025, 0.975])
        counts[name].append(bool(low <= truth <= high))
    right = float(stats.norm.cdf(np.sqrt(2) * stats.norm.ppf(TRUTHS[0]) / 2))
    decided = interval(jackknife(first, balanced_accuracy))
    counts["balanced accuracy"].append(bool(decided.low <= right <= decided.high))
    return True


def coverage(case: Case, studies: int) -> dict[str, float]:
    """Share of ``studies`` simulated studies in which each interval holds the truth."""
    rng = numpy_generator(0, "coverage", case.labels, case.patients, str(case.correlation), case.folds)
    counts: Counts = defaultdict(list)
    done = 0
    while done < studies:
        done += one_study(case, rng, counts)
    return {name: float(np.mean(values)) for name, values in counts.items()}


COLUMNS = ("single", "paired", "balanced accuracy", "Obuchowski", "percentile", "percentile paired")


def report(found: dict[Case, dict[str, float]], studies: int, seconds: float) -> str:
    """The table as Markdown."""
    here = machine()
    ours = [value for row in found.values() for name, value in row.items() if name in COLUMNS[:3]]
    inside = sum(0.93 <= value <= 0.97 for value in ours)
    lines = [
        "# Coverage of the 95 % intervals",
        "",
        "`python -m benchmarks.interval_coverage`",
        "",
        " ".join((__doc__ or "").split("\n\n", 1)[1].split()),
        "",
        f"{studies} simulated studies a row (standard error of a coverage of .95: "
        f"{np.sqrt(0.95 * 0.05 / studies):.3f}), counting only studies for which the rules give an interval (10 "
        "patients, 5 with a picture of each class). Five folds: each with a shift of its own, mean of the folds' AUCs.",
        "",
        f"Ours (first three figures): {min(ours):.3f} to {max(ours):.3f}; {inside} of {len(ours)} within .93 to .97.",
        "",
        "| labels | folds | patients | correlation | AUC | paired difference | balanced accuracy "
        "| Obuchowski | percentile bootstrap | percentile, paired |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, row in found.items():
        figures = [f"{row[name]:.3f}" if name in row else "" for name in COLUMNS]
        start = [case.labels, str(case.folds), str(case.patients), f"{case.correlation:g}"]
        lines.append("| " + " | ".join(start + figures) + " |")
    lines += ["", f"{seconds:.0f} s on {here['processor']}, {here['cores']} cores; commit {commit()}", ""]
    return "\n".join(lines)


def main(studies: int = 2000) -> None:
    """Run all cases and write the table."""
    start = time.monotonic()
    found = {case: coverage(case, studies) for case in track(CASES, "coverage")}
    text = report(found, studies, time.monotonic() - start)
    write_text(REPORT, text)
    print(text)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
