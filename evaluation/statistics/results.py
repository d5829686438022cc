"""Rows of the results table and of the comparisons."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evaluation.config import RunEvaluation
from evaluation.statistics.held_scores import LEFT_OUT, TEST, Cell, Metric, Scores, estimated
from evaluation.statistics.intervals import (
    UNDEFINED,
    Estimate,
    Interval,
    difference,
    difference_interval,
    interval,
    mean,
    p_value,
)
from evaluation.statistics.results_schema import ALL, Row, Statistic, Unit

NO_FOLD = "no fold in common"
CHOSEN_AFTER = "chosen after looking"


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
            if estimate is None and metric.optional:
                continue
            rows.append(table_row(config, fixed, where, metric, estimate, note=_place_note(metric, cells)))
            if role == TEST and site != ALL and estimate is not None:
                by_site[metric.name][site] = estimate
    patients = {site: scores.at(TEST, site).patients() for site in scores.sites(TEST)}
    for metric in metrics:
        rows += _site_mean(config, fixed, of_seed, metric, by_site[metric.name], patients)
    rows += _site_spread(config, fixed, of_seed, metrics[0], by_site[metrics[0].name])
    return rows + _repeat_rows(scores, metrics[0], config, fixed, seeds)


def places(scores: Scores) -> list[tuple[str, str]]:
    """(role, site): all test images, each site in the federation if there are several, each left-out site."""
    sites = scores.sites(TEST)
    single = [(TEST, site) for site in sites] if len(sites) > 1 else []
    return [(TEST, ALL), *single, *((LEFT_OUT, site) for site in scores.sites(LEFT_OUT))]


def _place_note(metric: Metric, cells: Sequence[Cell]) -> str:
    if not metric.within_fold or not cells:
        return ""
    folds = cells[0].folds
    without = sum(not np.isfinite(metric.estimate(part).value) for part in folds)
    if not 0 < without < len(folds):
        return ""
    return f"{metric.name} over {len(folds) - without} of {len(folds)} folds, not defined in the others"


def table_row(
    config: RunEvaluation,
    fixed: Mapping[str, Any],
    where: Mapping[str, Any],
    metric: Metric | str,
    estimate: Estimate | float | None,
    why: str = UNDEFINED,
    **other: Any,
) -> Row:
    """One row; ``why``: the reason that a bare number (or None: no value either) has no interval.

    A figure that is only named is in [0, 1]. other: further columns; by default an estimate over the run's units.
    """
    value, bounds = float("nan"), Interval(np.nan, np.nan, why)
    if isinstance(estimate, Estimate):
        value, bounds = estimate.value, _bounds(metric, estimate)
    elif estimate is not None:
        value = estimate
    return {
        "statistic": Statistic.ESTIMATE,
        "unit": config.unit,
        "note": "",
        **fixed,
        **where,
        "metric": metric if isinstance(metric, str) else metric.name,
        "value": value,
        "ci_low": bounds.low,
        "ci_high": bounds.high,
        "interval": bounds.how,
        **other,
    }


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
    where = {"site": ALL, "statistic": Statistic.SITE_MEAN, "seed": seed, "n": sum(counts)}
    note = f"mean over {len(by_site)} sites, weighted by patients"
    return [table_row(config, fixed, where, metric, mean(list(by_site.values()), counts), note=note)]


def _site_spread(
    config: RunEvaluation, fixed: Mapping[str, Any], seed: str, metric: Metric, by_site: Mapping[str, Estimate]
) -> list[Row]:
    """The worst site in the federation, and best minus worst."""
    if len(by_site) < 2:
        return []
    values = {site: estimate.value for site, estimate in by_site.items()}
    worst = min(values, key=lambda site: -values[site] if metric.less_is_better else values[site])
    spread = max(values.values()) - min(values.values())
    at_worst = {"site": worst, "statistic": Statistic.WORST_SITE, "seed": seed, "n": len(by_site[worst].patients)}
    between = {"site": ALL, "statistic": Statistic.SITE_SPREAD, "seed": seed, "n": len(values), "unit": Unit.SITE}
    return [
        table_row(config, fixed, at_worst, metric, values[worst], CHOSEN_AFTER),
        table_row(config, fixed, between, metric, spread, CHOSEN_AFTER),
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
        why = f"spread over {len(values)} training seeds, fold {', '.join(map(str, folds))}"
        where = {"site": ALL, "seed": ALL, "n": len(values), "statistic": Statistic.SEED_SD, "unit": Unit.SEED}
        rows.append(table_row(config, fixed, where, metric, float(np.std(values, ddof=1)), why))
        for seed in seeds if len(whole) == len(seeds) else []:
            where = {"site": ALL, "seed": str(seed), "n": count}
            rows.append(table_row(config, fixed, where, metric, singles[seed]))
    draws = [scores.where(scores.table["label_seed"] == draw) for draw in scores.label_draws()]
    found = (
        [estimated(metric, own.cells(TEST, ALL, whole, own.folds(whole))) for own in draws] if len(draws) > 1 else []
    )
    values = [each.value for each in found if each is not None]
    if len(values) > 1:
        why = f"spread over {len(values)} draws of the labelled patients"
        where = {"site": ALL, "seed": ALL if len(whole) > 1 else str(whole[0]), "n": len(values)}
        where |= {"statistic": Statistic.LABEL_DRAW_SD, "unit": Unit.LABEL_DRAW}
        rows.append(table_row(config, fixed, where, metric, float(np.std(values, ddof=1)), why))
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
        row = {"metric": metric.name, "site": site, "n": first.at(role, site).patients(), "unit": config.unit}
        row |= {"value": value, "ci_low": bounds.low, "ci_high": bounds.high, "p": chance, "interval": bounds.how}
        rows.append({**fixed, **row})
    return rows
