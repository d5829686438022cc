"""Tables of the report about results: every row, diagnostics of features, seeds, and what was skipped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from evaluation.report.answers import Contrast
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.held_scores import LEFT_OUT
from evaluation.statistics.metric_values import (
    MetricQuery,
    MetricValue,
    arm_order,
    figure_of,
    fraction_size,
    fraction_title,
    interval_text,
    metric_rank,
    metric_title,
    number,
    protocol_rank,
)
from evaluation.statistics.multiple import holm
from evaluation.statistics.results_schema import ALL, Statistic

SITE_TITLES = {ALL: "all sites", LEFT_OUT: "all left-out sites"}


STATISTICS = tuple(Statistic)


@dataclass(frozen=True)
class ResultRow:
    """A row of results.csv, as printed."""

    encoder: str
    protocol: str
    fraction: str
    site: str
    seed: str
    metric: str
    value: str
    interval: str
    n: str
    note: str


@dataclass(frozen=True)
class DiagnosticRow:
    """What an encoder's features look like, as printed: site leakage, rank, spread, alignment, uniformity."""

    title: str
    kind: str
    cells: tuple[str, ...]


def diagnostic_rows(folder: RunFolder) -> list[DiagnosticRow]:
    """A row an encoder with diagnostics of its features; a dash where one was not measured."""
    rows = folder.results[folder.results["protocol"] == "diagnostic"]
    found = []
    for name in sorted((str(name) for name in rows["encoder"].unique()), key=lambda name: arm_order(folder, name)):
        own = {str(metric): figure_of(group) for metric, group in rows[rows["encoder"] == name].groupby("metric")}
        leak, rank = own.get("site_leakage"), own.get("RankMe")
        others = [own.get(metric) for metric in ("feature_std", "alignment", "uniformity")]
        leakage = f"{number(leak.value)} ({interval_text(leak)})" if leak else "–"
        cells = (
            leakage,
            f"{rank.value:.1f}" if rank else "–",
            *(number(each.value) if each else "–" for each in others),
        )
        found.append(DiagnosticRow(folder.arm(name).short, folder.arm(name).kind, cells))
    return found


def seed_spread(folder: RunFolder, query: MetricQuery) -> str:
    """How far training seeds lie apart, in one sentence; "" when no arm was trained more than once."""
    rows = folder.results
    rows = rows[
        (rows["protocol"] == query.protocol)
        & (rows["label_fraction"] == query.fraction)
        & (rows["metric"] == query.metric)
        & (rows["statistic"] == Statistic.SEED_SD)
        & rows["value"].notna()
    ]
    names = sorted(rows["encoder"].unique(), key=lambda name: arm_order(folder, name))
    if not names:
        return ""
    values = {name: float(rows.loc[rows["encoder"] == name, "value"].iloc[0]) for name in names}
    said = ", ".join(f"{folder.arm(name).short} {number(value, digits=3)}" for name, value in values.items())
    what = rows["interval"].iloc[0]
    return f"Standard deviation of {metric_title(query.metric)} ({what}): {said}. No interval here includes it."


def skipped_fractions(folder: RunFolder, query: MetricQuery) -> list[str]:
    """Shares of labels that were asked for and could not be, with the reason."""
    rows = folder.results
    rows = rows[(rows["statistic"] == Statistic.SKIPPED) & (rows["protocol"] == query.protocol)]
    pairs = set(zip(rows["label_fraction"], rows["interval"], strict=True))
    return [
        f"{fraction_title(fraction)} of the labels ({why})"
        for fraction, why in sorted(pairs, key=lambda pair: fraction_size(pair[0]))
    ]


def result_rows(folder: RunFolder) -> list[ResultRow]:
    """Every row of results.csv, in the report's order of arms."""
    rows = [_result_row(folder, row) for _, row in folder.results.iterrows()]
    return [row for _, row in sorted(rows, key=lambda item: item[0])]


def _result_row(folder: RunFolder, row: "pd.Series[Any]") -> tuple[tuple[Any, ...], ResultRow]:
    figure = _figure(row)
    printed = ResultRow(
        encoder=folder.arm(row["encoder"]).short,
        protocol=row["protocol"],
        fraction=fraction_title(row["label_fraction"]),
        site=SITE_TITLES.get(row["site"], row["site"]),
        seed=row["seed"],
        metric=metric_title(row["metric"], row["statistic"]),
        value=number(row["value"], digits=3),
        interval=_three(figure),
        n=f"{row['n']}",
        note=_note(row),
    )
    order = (
        row["task"],
        protocol_rank(row["protocol"]),
        metric_rank(row["metric"]),
        STATISTICS.index(row["statistic"]),
        *(-part for part in fraction_size(row["label_fraction"])),
        row["site"] not in SITE_TITLES,
        row["site"],
        arm_order(folder, row["encoder"]),
        row["seed"],
    )
    return order, printed


@dataclass(frozen=True)
class ComparisonRow:
    """A comparison as printed: both encoders, their difference, p alone and adjusted for all rows (Holm)."""

    own: str
    other: str
    value: str
    interval: str
    p: str
    adjusted: str
    verdict: str


def comparison_table(folder: RunFolder, found: Sequence[Contrast]) -> list[ComparisonRow]:
    """Every comparison of the main question over all sites."""
    adjusted = holm([item.p for item in found])
    return [
        ComparisonRow(
            own=folder.arm(item.own).short,
            other=folder.arm(item.other).short,
            value=number(item.figure.value, signed=True, digits=3),
            interval=_three(item.figure),
            p=_chance(item.p),
            adjusted=_chance(float(both)),
            verdict=str(item.verdict),
        )
        for item, both in zip(found, adjusted, strict=True)
    ]


def _chance(p: float) -> str:
    """A p value of three digits; a dash where there is none."""
    if not math.isfinite(p):
        return "–"
    return "< .001" if p < 0.0005 else f"{p:.3f}"


@dataclass(frozen=True)
class FederatedRow:
    """What sites measured themselves: one encoder, place and figure, as printed."""

    title: str
    kind: str
    site: str
    metric: str
    value: str
    interval: str
    n: str
    note: str


def federated_rows(folder: RunFolder) -> list[FederatedRow]:
    """The main figure of evaluation/federated.csv at each site, its mean and worst site, and from histograms."""
    rows = folder.federated
    if rows.empty:
        return []
    kept = rows[rows["metric"] == min(rows["metric"].unique(), key=metric_rank)]
    return [_federated_row(folder, row) for _, row in kept.iterrows()]


def _federated_row(folder: RunFolder, row: "pd.Series[Any]") -> FederatedRow:
    figure, arm = _figure(row), folder.arm(row["encoder"])
    return FederatedRow(
        title=arm.short,
        kind=arm.kind,
        site=SITE_TITLES.get(row["site"], row["site"]),
        metric=metric_title(row["metric"], row["statistic"]),
        value=number(row["value"]),
        interval=interval_text(figure) if figure and figure.interval else "–",
        n=f"{row['n']}",
        note=_note(row),
    )


def _note(row: "pd.Series[Any]") -> str:
    """The row's note, and why it has no interval."""
    return "; ".join(text for text in (row["interval"] if pd.isna(row["ci_low"]) else "", row["note"]) if text)


def _figure(row: "pd.Series[Any]") -> MetricValue | None:
    return figure_of(pd.DataFrame([row]))


def _three(figure: MetricValue | None) -> str:
    if figure is None or figure.interval is None:
        return "–"
    return " to ".join(number(bound, digits=3) for bound in figure.interval)
