"""Rows of the results table and of the comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.config import RunEvaluation
from evaluation.held import ALL, LEFT_OUT, TEST, Cell, Metric, Scores, estimated
from evaluation.intervals import Estimate, Interval, difference, difference_interval, interval, mean, p_value

COLUMNS = (
    "task", "dataset", "encoder", "protocol", "label_fraction", "site", "seed",
    "metric", "value", "ci_low", "ci_high", "n", "note",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "protocol", "metric", "site", "encoder_a", "encoder_b", "value", "ci_low", "ci_high", "p", "n", "note",
    "label_fraction",
)  # fmt: skip
CLUSTER_NOTE = "unit: picture cluster, interval optimistic"
UNDEFINED = "no interval: not defined here (only one class, or nothing of it)"
NO_FOLD = "no interval: no fold in common"
CHOSEN_AFTER = "no interval: chosen after looking"
SITE_MEAN = "site mean"
"""In the column site: the sites' own figures, weighted by their patients, as where labels may not leave."""

Row = dict[str, Any]


def rows_of(scores: Scores, metrics: Sequence[Metric], config: RunEvaluation, fixed: Mapping[str, Any]) -> list[Row]:
    """All rows of one encoder, protocol and label budget; ``fixed`` are its first columns."""
    seeds = scores.whole_seeds()
    folds = scores.folds(seeds)
    of_seed = str(seeds[0]) if len(seeds) == 1 else ALL
    rows = []
    by_site: dict[str, dict[str, Estimate]] = {metric.name: {} for metric in metrics}
    for role, site in places(scores):
        cells = scores.cells(role, site, seeds, folds)
        where = {"site": site, "seed": of_seed, "n": scores.at(role, site).patients()}
        for metric in metrics:
            estimate = estimated(metric, cells)
            notes = _place_notes(role, metric, cells)
            rows.append(table_row(config, fixed, where, metric, estimate, notes))
            if role == TEST and site != ALL and estimate is not None:
                by_site[metric.name][site] = estimate
    patients = {site: scores.at(TEST, site).patients() for site in scores.sites(TEST)}
    for metric in metrics:
        rows += _site_mean(config, fixed, of_seed, metric, by_site[metric.name], patients)
    rows += _site_spread(config, fixed, of_seed, metrics[0], by_site[metrics[0].name])
    return rows + _repeat_rows(scores, metrics[0], config, fixed, seeds)


def places(scores: Scores) -> list[tuple[str, str]]:
    """(role, site): all test pictures, each site in the federation if there are several, each left-out site."""
    sites = scores.sites(TEST)
    single = [(TEST, site) for site in sites] if len(sites) > 1 else []
    return [(TEST, ALL), *single, *((LEFT_OUT, site) for site in scores.sites(LEFT_OUT))]


def _place_notes(role: str, metric: Metric, cells: Sequence[Cell]) -> list[str]:
    if role == LEFT_OUT:
        return ["site left out of training"]
    if not metric.within_fold or not cells:
        return []
    folds = cells[0].folds
    without = sum(not np.isfinite(metric.estimate(part).value) for part in folds)
    if not 0 < without < len(folds):
        return []
    return [f"{metric.name} over {len(folds) - without} of {len(folds)} folds, not defined in the others"]


def table_row(
    config: RunEvaluation,
    fixed: Mapping[str, Any],
    where: Mapping[str, Any],
    metric: Metric | str,
    estimate: Estimate | float | None,
    notes: Sequence[str] = (),
) -> Row:
    """One row; a bare number has no interval, None has no value either. A figure named only is in [0, 1]."""
    value, bounds = float("nan"), Interval(np.nan, np.nan, UNDEFINED)
    if isinstance(estimate, Estimate):
        value, bounds = estimate.value, _bounds(metric, estimate)
    elif estimate is not None:
        value, bounds = estimate, Interval(np.nan, np.nan)
    said = [*notes, bounds.note, CLUSTER_NOTE if config.unit == "picture cluster" else ""]
    return {
        **fixed, **where, "metric": metric if isinstance(metric, str) else metric.name,
        "value": value, "ci_low": bounds.low, "ci_high": bounds.high,
        "note": "; ".join(note for note in said if note),
    }  # fmt: skip


def _bounds(metric: Metric | str, estimate: Estimate) -> Interval:
    if isinstance(metric, str) or (metric.bounded and not metric.biased):
        return interval(estimate)
    return Interval(np.nan, np.nan, metric.biased) if metric.biased else difference_interval(estimate)


def _site_mean(
    config: RunEvaluation,
    fixed: Mapping[str, Any],
    seed: str,
    metric: Metric,
    by_site: Mapping[str, Estimate],
    patients: Mapping[str, int],
) -> list[Row]:
    """The patient-weighted mean of the sites' own figures: what a federation that keeps its labels can know."""
    if len(by_site) < 2:
        return []
    counts = [patients[site] for site in by_site]
    where = {"site": SITE_MEAN, "seed": seed, "n": sum(counts)}
    note = f"mean over {len(by_site)} sites, weighted by patients"
    return [table_row(config, fixed, where, metric, mean(list(by_site.values()), counts), [note])]


def _site_spread(
    config: RunEvaluation, fixed: Mapping[str, Any], seed: str, metric: Metric, by_site: Mapping[str, Estimate]
) -> list[Row]:
    """The worst site in the federation, and best minus worst."""
    if len(by_site) < 2:
        return []
    values = {site: estimate.value for site, estimate in by_site.items()}
    worst = min(values, key=lambda site: -values[site] if metric.less_is_better else values[site])
    spread = max(values.values()) - min(values.values())
    at_worst = {"site": worst, "seed": seed, "n": len(by_site[worst].patients)}
    between = {"site": ALL, "seed": seed, "n": len(values)}
    return [
        table_row(config, fixed, at_worst, f"{metric.name} worst site", values[worst], [CHOSEN_AFTER]),
        table_row(config, fixed, between, f"{metric.name} spread between sites", spread, [CHOSEN_AFTER]),
    ]


def _repeat_rows(
    scores: Scores, metric: Metric, config: RunEvaluation, fixed: Mapping[str, Any], whole: Sequence[int]
) -> list[Row]:
    """Training seeds and label draws as variances of their own; single seeds where all have the same folds."""
    rows = []
    seeds, count = scores.seeds(), scores.at(TEST, ALL).patients()
    folds = scores.folds(seeds)
    singles = {seed: estimated(metric, scores.cells(TEST, ALL, [seed], folds)) for seed in seeds} if folds else {}
    values = [single.value for single in singles.values() if single is not None]
    if len(values) > 1:
        note = f"no interval: spread over {len(values)} training seeds, fold {', '.join(map(str, folds))}"
        where = {"site": ALL, "seed": ALL, "n": len(values)}
        rows.append(table_row(config, fixed, where, f"{metric.name} seed sd", float(np.std(values, ddof=1)), [note]))
        for seed in seeds if len(whole) == len(seeds) else []:
            where = {"site": ALL, "seed": str(seed), "n": count}
            rows.append(table_row(config, fixed, where, metric, singles[seed]))
    draws = [scores.where(scores.table["label_seed"] == draw) for draw in scores.label_draws()]
    found = (
        [estimated(metric, own.cells(TEST, ALL, whole, own.folds(whole))) for own in draws] if len(draws) > 1 else []
    )
    values = [each.value for each in found if each is not None]
    if len(values) > 1:
        note = f"no interval: spread over {len(values)} draws of the labelled patients"
        where = {"site": ALL, "seed": ALL if len(whole) > 1 else str(whole[0]), "n": len(values)}
        spread = float(np.std(values, ddof=1))
        rows.append(table_row(config, fixed, where, f"{metric.name} label draw sd", spread, [note]))
    return rows


def comparison_rows(
    first: Scores, second: Scores, metric: Metric, config: RunEvaluation, fixed: Mapping[str, Any]
) -> list[Row]:
    """The main figure of ``first`` minus ``second`` over the folds both have: all test sites, each, those left out."""
    own, other = first.whole_seeds(), second.whole_seeds()
    folds = sorted(set(first.folds(own)) & set(second.folds(other)))
    together = [(LEFT_OUT, LEFT_OUT)] if first.sites(LEFT_OUT) else []
    rows = []
    for role, site in [*places(first), *together]:
        pair = [
            estimated(metric, scores.cells(role, site, seeds, folds)) if folds else None
            for scores, seeds in ((first, own), (second, other))
        ]
        value, chance = float("nan"), float("nan")
        bounds = Interval(np.nan, np.nan, UNDEFINED if folds else NO_FOLD)
        if pair[0] is not None and pair[1] is not None:
            apart = difference(pair[0], pair[1])
            value, bounds, chance = apart.value, difference_interval(apart), p_value(apart)
        cluster = CLUSTER_NOTE if config.unit == "picture cluster" else ""
        said = [bounds.note, str(fixed.get("note", "")), cluster]
        row = {"metric": metric.name, "site": site, "n": first.at(role, site).patients(), "value": value}
        row |= {"ci_low": bounds.low, "ci_high": bounds.high, "p": chance, "note": "; ".join(filter(None, said))}
        rows.append({**fixed, **row})
    return rows
