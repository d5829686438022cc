"""How often the 95 % intervals of evaluation/statistics/intervals.py hold the truth.

    python -m benchmarks.statistics.interval_coverage


16 images a patient; score = shift x label + patient effect + noise, the patient effect having the share
``correlation`` of the variance. Labels differ within a patient ("slice", patient shares drawn from Beta(2,
3)) or not ("patient", 40 % of patients). Truth: AUC .80 for an image of each class from two patients; the
second score of the paired case has .75 and half of its patient effect and noise in common with the first.
Sites: strata within which patients are drawn. Folds: each with a shift of all its scores, mean of the folds'
AUCs. Beside ours stand Obuchowski's clustered DeLong variance (logit scale, t quantile) and the percentile
bootstrap over patients.

Regression: errors of standard deviation 1 and 1.2, of a number of standard deviation 1.8. Segmentation: a
patient's Dice is the mean over the images, logit-normal around 1.5 and 1.3. Both pairs have half of their
patient effect and noise in common.
"""

import re
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.measure import RESULTS, table
from benchmarks.statistics.simulated_patients import (
    AUCS,
    ERRORS,
    MEASURED,
    SLICES,
    Case,
    average_precision,
    classified,
    dice_means,
    measured,
)
from evaluation.statistics.intervals import (
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
    leave_out,
    mean,
    patient_mean,
)
from evaluation.statistics.results_schema import LOGIT
from evaluation.tasks.metrics import auprc, balanced_accuracy
from foundation.files import write_text
from foundation.machine import commit, machine
from foundation.progress import track
from foundation.randomness import numpy_generator

RESAMPLES = 400
REPORT = RESULTS / "statistics" / "interval_coverage.md"
PAGE = Path(__file__).parents[2] / "docs" / "intervals.md"
MARKS = ("<!-- coverage: written by benchmarks/statistics/interval_coverage.py -->", "<!-- end of coverage -->")
Counts = dict[str, list[bool]]

CASES = tuple(
    [Case(kind, n, rho) for kind in ("slice", "patient") for n in (10, 20, 40, 80) for rho in (0.1, 0.4)]
    + [Case("slice", n, rho, sites=4) for n in (20, 40, 80) for rho in (0.1, 0.4)]
    + [Case("slice", n, rho, folds=5) for n in (20, 40, 80) for rho in (0.1, 0.4)]
)
NUMBERS = tuple(
    [Case("numbers", n, rho) for n in (10, 20, 40, 80) for rho in (0.1, 0.4)]
    + [Case("numbers", n, rho, sites=4) for n in (20, 40, 80) for rho in (0.1, 0.4)]
)


def estimate(data: Scored, folds: int) -> Estimate | None:
    """The AUC, as the mean over folds; None where a fold has one class."""
    parts = [data] if folds == 1 else [data.where(data.strata == stratum) for stratum in np.unique(data.strata)]
    found = [auc(part) for part in parts]
    return mean(found) if all(np.isfinite(each.value) for each in found) else None


def table_of_pairs(data: Scored) -> tuple[FloatArray, IntArray, IntArray]:
    """Concordant pairs ``[P, P]`` of positives of one with negatives of another patient, and the class counts."""
    patients = len(data.labels) // SLICES
    score, positive = data.scores[:, 1], data.labels == 1
    above = (score[:, None] > score) & positive[:, None] & ~positive
    pairs = above.reshape(patients, SLICES, patients, SLICES).sum((1, 3)).astype(np.float64)
    counted = positive.reshape(patients, SLICES).sum(1)
    return pairs, counted, SLICES - counted


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
    return Interval(1 / (1 + np.exp(half - centre)), 1 / (1 + np.exp(-half - centre)), LOGIT)


def holds(bounds: Interval, truth: float) -> bool:
    """Whether the truth lies within the bounds."""
    return bool(bounds.low <= truth <= bounds.high)


def one_classification(case: Case, rng: np.random.Generator, counts: Counts) -> bool:
    """Simulate once and count which intervals hold the truth; False where the rules give no interval."""
    first, second = classified(case, rng)
    own, other = estimate(first, case.folds), estimate(second, case.folds)
    if own is None or other is None:
        return False
    single, apart = interval(own), difference_interval(difference(own, other))
    if not np.isfinite(single.low):
        return False
    counts["single"].append(holds(single, AUCS[0]))
    counts["paired"].append(holds(apart, AUCS[0] - AUCS[1]))
    if case.folds > 1:
        return True
    right = float(stats.norm.cdf(np.sqrt(2) * stats.norm.ppf(AUCS[0]) / 2))
    counts["balanced accuracy"].append(holds(interval(jackknife(first, balanced_accuracy)), right))
    counts["AUPRC"].append(holds(interval(jackknife(first, auprc)), average_precision()))
    if case.sites == 1:
        _count_others([table_of_pairs(first), table_of_pairs(second)], rng, counts)
    return True


def _count_others(
    tables: list[tuple[FloatArray, IntArray, IntArray]], rng: np.random.Generator, counts: Counts
) -> None:
    """Count the intervals that others make."""
    counts["Obuchowski"].append(holds(obuchowski(tables[0]), AUCS[0]))
    first, second = bootstrap(tables, rng)
    for name, values, truth in (
        ("percentile", first, AUCS[0]),
        ("percentile paired", first - second, AUCS[0] - AUCS[1]),
    ):
        low, high = np.quantile(values, [0.025, 0.975])
        counts[name].append(bool(low <= truth <= high))


def one_measurement(case: Case, rng: np.random.Generator, counts: Counts) -> bool:
    """The same for Dice, and for errors and explained variance of a regression."""
    found, (high, low) = measured(case, rng), dice_means()
    names, first = np.unique(found.patients, return_index=True)
    dice = [patient_mean(own, names.tolist(), found.strata[first].tolist()) for own in found.dice]
    counts["Dice"].append(holds(interval(dice[0]), high))
    counts["Dice paired"].append(holds(difference_interval(difference(*dice)), high - low))
    where = found.patients, found.strata

    def explained(keep: np.ndarray) -> float:
        return float(1.0 - (found.errors[0][keep] ** 2).sum() / (found.truth[keep].var() * keep.sum()))

    errors = [leave_out(*where, partial(_absolute_error, own)) for own in found.errors]
    each = np.sqrt(2 / np.pi)  # of a normal error of standard deviation 1
    counts["MAE"].append(holds(difference_interval(errors[0]), ERRORS[0] * each))
    counts["MAE paired"].append(holds(difference_interval(difference(*errors)), (ERRORS[0] - ERRORS[1]) * each))
    counts["R2"].append(holds(difference_interval(leave_out(*where, explained)), 1 - (ERRORS[0] / MEASURED) ** 2))
    return True


def _absolute_error(errors: FloatArray, keep: np.ndarray) -> float:
    return float(np.abs(errors[keep]).mean())


def coverage(case: Case, studies: int) -> dict[str, float]:
    """Share of ``studies`` simulated studies in which each interval holds the truth."""
    strata = (case.sites,) if case.sites > 1 else ()
    rng = numpy_generator(0, "coverage", case.labels, case.patients, str(case.correlation), case.folds, *strata)
    one = one_measurement if case.labels == "numbers" else one_classification
    counts: Counts = defaultdict(list)
    done = 0
    while done < studies:
        done += one(case, rng, counts)
    return {name: float(np.mean(values)) for name, values in counts.items()}


OURS = {"single": "AUC", "paired": "paired difference", "balanced accuracy": "balanced accuracy", "AUPRC": "AUPRC"}
_PERCENTILE = {"percentile": "percentile bootstrap", "percentile paired": "percentile, paired"}
OTHERS = {"Obuchowski": "Obuchowski", **_PERCENTILE}
OF_NUMBERS = {"Dice": "Dice", "Dice paired": "Dice, paired", "MAE": "MAE", "MAE paired": "MAE, paired", "R2": "R2"}

Found = Mapping[Case, Mapping[str, float]]


def rows(found: Found, columns: Mapping[str, str], kinds: bool) -> list[str]:
    """A table with a row a case; empty where a figure was not counted."""
    start = ["labels"] * kinds + ["sites", "folds", "patients", "correlation"]
    body = [
        [case.labels] * kinds
        + [str(case.sites), str(case.folds), str(case.patients), f"{case.correlation:g}"]
        + [f"{row[name]:.3f}" if name in row else "" for name in columns]
        for case, row in found.items()
    ]
    return table([*start, *columns.values()], body)


def summary(found: Found, columns: Sequence[str]) -> str:
    """The range of all our figures in one sentence."""
    ours = [value for row in found.values() for name, value in row.items() if name in columns]
    inside = sum(0.93 <= value <= 0.97 for value in ours)
    return f"Ours: {min(ours):.3f} to {max(ours):.3f}; {inside} of {len(ours)} within .93 to .97."


def tables(found: Found, studies: int) -> list[str]:
    """What the page and the report have in common."""
    numbers = {case: row for case, row in found.items() if case.labels == "numbers"}
    classes = {case: row for case, row in found.items() if case not in numbers}
    return [
        f"{studies} simulated studies a row (standard error of a coverage of .95: "
        f"{np.sqrt(0.95 * 0.05 / studies):.3f}), counting only studies for which the rules give an interval (10 "
        "patients, 5 with an image of each class).",
        "",
        summary(found, [*OURS, *OF_NUMBERS]),
        "",
        *rows(classes, OURS | OTHERS, kinds=True),
        "",
        *rows(numbers, OF_NUMBERS, kinds=False),
    ]


def report(found: Found, studies: int, seconds: float) -> str:
    """The result as Markdown."""
    here = machine()
    return "\n".join(
        [
            "# Coverage of the 95 % intervals",
            "",
            f"`{' '.join(['python -m benchmarks.statistics.interval_coverage', *sys.argv[1:]])}`",
            "",
            *(" ".join(part.split()) + "\n" for part in (__doc__ or "").split("\n\n")[1:]),
            *tables(found, studies),
            "",
            f"{seconds:.0f} s on {here['processor']}, {here['cores']} cores; commit {commit()}",
            "",
        ]
    )


def on_page(page: str, lines: Sequence[str]) -> str:
    """The page with these lines between its marks."""
    start, end = MARKS
    pattern = re.compile(f"{re.escape(start)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: "\n".join([start, "", *lines, "", end]), page)


def main(studies: int = 2000) -> None:
    """Run all cases, write the result and put its tables on the page in docs/."""
    start = time.monotonic()
    cases = (*CASES, *NUMBERS)
    with ProcessPoolExecutor() as pool:
        shares = pool.map(coverage, cases, [studies] * len(cases))
        found = dict(zip(cases, track(shares, "coverage", len(cases)), strict=True))
    text = report(found, studies, time.monotonic() - start)
    write_text(REPORT, text)
    write_text(PAGE, on_page(PAGE.read_text(), tables(found, studies)))
    print(text)


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]))
