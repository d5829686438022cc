"""Rows of the results table and of the comparisons."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from evaluation.config import RunEvaluation
from evaluation.held import ALL, LEFT_OUT, TEST, Cell, Scores, decision, ranking
from evaluation.intervals import Estimate, Interval, Metric, difference, difference_interval, interval
from evaluation.metrics import balanced_accuracy, calibration_error, f1

COLUMNS = (
    "task", "dataset", "encoder", "protocol", "label_fraction", "site", "seed",
    "metric", "value", "ci_low", "ci_high", "n", "note",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "protocol", "metric", "site", "encoder_a", "encoder_b", "value", "ci_low", "ci_high", "n", "note",
    "label_fraction",
)  # fmt: skip
CLUSTER_NOTE = "unit: picture cluster, interval optimistic"
ONE_CLASS = "no interval: only one class here"
NO_FOLD = "no interval: no fold in common"
CHOSEN_AFTER = "no interval: chosen after looking"
WITHOUT_INTERVAL = {"ECE": "no interval: few patients make this figure too large, not only uncertain"}
"""Figures whose estimate is biased, so that an interval around it would promise too much."""

Row = dict[str, Any]


def decision_metrics(config: RunEvaluation) -> dict[str, Metric]:
    """Figures counted over all folds' decisions together."""
    bins = config.calibration_bins
    return {
        "balanced_accuracy": balanced_accuracy,
        "F1": f1,
        "ECE": partial(calibration_error, bins=bins),
    }


def rows_of(scores: Scores, config: RunEvaluation, fixed: Mapping[str, Any]) -> list[Row]:
    """All rows of one encoder, protocol and label budget; ``fixed`` are its first columns."""
    seeds = scores.whole_seeds()
    folds = scores.folds(seeds)
    of_seed = str(seeds[0]) if len(seeds) == 1 else ALL
    rows, by_site = [], {}
    for role, site in places(scores):
        cells = scores.cells(role, site, seeds, folds)
        where = {"site": site, "seed": of_seed, "n": scores.at(role, site).patients()}
        notes = _place_notes(role, cells)
        for name in ("AUROC", "AUPRC"):
            estimate = ranking(name, cells)
            rows.append(table_row(config, fixed, where, name, estimate, notes))
            if name == "AUROC" and role == TEST and site != ALL and estimate is not None:
                by_site[site] = estimate
        for name, metric in decision_metrics(config).items():
            rows.append(table_row(config, fixed, where, name, decision(metric, cells), notes))
    return rows + _site_spread(config, fixed, of_seed, by_site) + _repeat_rows(scores, config, fixed, seeds)


def places(scores: Scores) -> list[tuple[str, str]]:
    """(role, site): all test pictures, each site in the federation if there are several, each left-out site."""
    sites = scores.sites(TEST)
    single = [(TEST, site) for site in sites] if len(sites) > 1 else []
    return [(TEST, ALL), *single, *((LEFT_OUT, site) for site in scores.sites(LEFT_OUT))]


def _place_notes(role: str, cells: Sequence[Cell]) -> list[str]:
    if role == LEFT_OUT:
        return ["site left out of training"]
    folds = len(cells[0].folds)
    single = sum(len(np.unique(part.labels)) < 2 for part in cells[0].folds)
    return [f"AUROC over {folds - single} of {folds} folds, the others have one class"] if 0 < single < folds else []


def table_row(
    config: RunEvaluation,
    fixed: Mapping[str, Any],
    where: Mapping[str, Any],
    metric: str,
    estimate: Estimate | float | None,
    notes: Sequence[str] = (),
) -> Row:
    """One row; a bare number has no interval, None has no value either."""
    value, bounds = float("nan"), Interval(np.nan, np.nan, ONE_CLASS)
    if isinstance(estimate, Estimate):
        biased = WITHOUT_INTERVAL.get(metric)
        value, bounds = estimate.value, Interval(np.nan, np.nan, biased) if biased else interval(estimate)
    elif estimate is not None:
        value, bounds = estimate, Interval(np.nan, np.nan)
    said = [*notes, bounds.note, CLUSTER_NOTE if config.unit == "picture cluster" else ""]
    return {
        **fixed, **where, "metric": metric, "value": value, "ci_low": bounds.low, "ci_high": bounds.high,
        "note": "; ".join(note for note in said if note),
    }  # fmt: skip


def _site_spread(
    config: RunEvaluation, fixed: Mapping[str, Any], seed: str, by_site: Mapping[str, Estimate]
) -> list[Row]:
    """The worst site in the federation, and best minus worst."""
    if len(by_site) < 2:
        return []
    values = {site: estimate.value for site, estimate in by_site.items()}
    worst = min(values, key=lambda site: values[site])
    spread = max(values.values()) - values[worst]
    at_worst = {"site": worst, "seed": seed, "n": len(by_site[worst].patients)}
    between = {"site": ALL, "seed": seed, "n": len(values)}
    return [
        table_row(config, fixed, at_worst, "AUROC worst site", values[worst], [CHOSEN_AFTER]),
        table_row(config, fixed, between, "AUROC spread between sites", spread, [CHOSEN_AFTER]),
    ]


def _repeat_rows(scores: Scores, config: RunEvaluation, fixed: Mapping[str, Any], whole: Sequence[int]) -> list[Row]:
    """Training seeds and label draws as variances of their own; single seeds where all have the same folds."""
    rows = []
    seeds, count = scores.seeds(), scores.at(TEST, ALL).patients()
    folds = scores.folds(seeds)
    singles = {seed: ranking("AUROC", scores.cells(TEST, ALL, [seed], folds)) for seed in seeds} if folds else {}
    values = [single.value for single in singles.values() if single is not None]
    if len(values) > 1:
        note = f"no interval: spread over {len(values)} training seeds, fold {', '.join(map(str, folds))}"
        where = {"site": ALL, "seed": ALL, "n": len(values)}
        rows.append(table_row(config, fixed, where, "AUROC seed sd", float(np.std(values, ddof=1)), [note]))
        for seed in seeds if len(whole) == len(seeds) else []:
            where = {"site": ALL, "seed": str(seed), "n": count}
            rows.append(table_row(config, fixed, where, "AUROC", singles[seed]))
    draws = [scores.where(scores.label_seed == draw) for draw in np.unique(scores.label_seed)]
    found = [ranking("AUROC", own.cells(TEST, ALL, whole, own.folds(whole))) for own in draws] if len(draws) > 1 else []
    values = [each.value for each in found if each is not None]
    if len(values) > 1:
        note = f"no interval: spread over {len(values)} draws of the labelled patients"
        where = {"site": ALL, "seed": ALL if len(whole) > 1 else str(whole[0]), "n": len(values)}
        rows.append(table_row(config, fixed, where, "AUROC label draw sd", float(np.std(values, ddof=1)), [note]))
    return rows


def comparison_rows(first: Scores, second: Scores, config: RunEvaluation, fixed: Mapping[str, Any]) -> list[Row]:
    """AUROC of ``first`` minus ``second`` over the folds both have: all test sites, each site, the left-out ones."""
    own, other = first.whole_seeds(), second.whole_seeds()
    folds = sorted(set(first.folds(own)) & set(second.folds(other)))
    together = [(LEFT_OUT, LEFT_OUT)] if first.sites(LEFT_OUT) else []
    rows = []
    for role, site in [*places(first), *together]:
        pair = [
            ranking("AUROC", scores.cells(role, site, seeds, folds)) if folds else None
            for scores, seeds in ((first, own), (second, other))
        ]
        value, bounds = float("nan"), Interval(np.nan, np.nan, ONE_CLASS if folds else NO_FOLD)
        if pair[0] is not None and pair[1] is not None:
            apart = difference(pair[0], pair[1])
            value, bounds = apart.value, difference_interval(apart)
        cluster = CLUSTER_NOTE if config.unit == "picture cluster" else ""
        said = [bounds.note, str(fixed.get("note", "")), cluster]
        row = {"metric": "AUROC", "site": site, "n": first.at(role, site).patients(), "value": value}
        row |= {"ci_low": bounds.low, "ci_high": bounds.high, "note": "; ".join(filter(None, said))}
        rows.append({**fixed, **row})
    return rows
