"""Tables of the report about sites: figures site by site, and who was in which role."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.report.cautions import left_out_sites
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.metric_values import (
    LESS_IS_BETTER,
    MetricQuery,
    MetricValue,
    arm_figures,
    arm_order,
    interval_text,
    number,
    select,
    sites_of,
)
from evaluation.statistics.results_schema import Statistic

_ROLE_WORDS = (("train", 0), ("val", 1), ("test", 2), ("out", 3))


@dataclass(frozen=True)
class SiteColumn:
    """A site's name, whether it took no part in training, and how many units were tested there."""

    name: str
    outside: bool
    n: int | None


@dataclass(frozen=True)
class SiteCell:
    """One arm at one site, as printed; ``interval`` is None where there is none."""

    value: str
    interval: str | None


@dataclass(frozen=True)
class SiteRow:
    """One arm over the sites: a cell a site (None: not measured), their mean, the worst site, and best minus worst."""

    title: str
    kind: str
    cells: tuple[SiteCell | None, ...]
    mean: SiteCell | None
    worst: str
    spread: str


@dataclass(frozen=True)
class SplitRow:
    """A site's (patients, images) in each role, None where it has none, and its unreadable images."""

    site: str
    outside: bool
    cells: tuple[tuple[int, int] | None, ...]
    skipped: int


def site_columns(folder: RunFolder, query: MetricQuery) -> list[SiteColumn]:
    """The sites with a figure, those of the federation first, then those that took no part."""
    outside = left_out_sites(folder)
    columns = []
    for site in sites_of(select(folder, query)):
        counts = [figure.n for figure in arm_figures(folder, query, site).values() if figure.n is not None]
        columns.append(SiteColumn(site, site in outside, max(counts, default=None)))
    return sorted(columns, key=lambda column: (column.outside, column.name))


def site_rows(folder: RunFolder, query: MetricQuery, columns: Sequence[SiteColumn]) -> list[SiteRow]:
    """A row an arm. Worst site and spread are over the sites of the federation, not the left-out ones."""
    by_site = {column.name: arm_figures(folder, query, column.name) for column in columns}
    names = sorted({name for figures in by_site.values() for name in figures}, key=lambda n: arm_order(folder, n))
    inside = [column.name for column in columns if not column.outside]
    less = query.metric.lower() in LESS_IS_BETTER
    means = arm_figures(folder, query, statistic=Statistic.SITE_MEAN)
    return [_site_row(folder, name, by_site, inside, means.get(name), less) for name in names]


def _site_row(
    folder: RunFolder,
    name: str,
    by_site: Mapping[str, Mapping[str, MetricValue]],
    inside: Sequence[str],
    mean: MetricValue | None,
    less: bool,
) -> SiteRow:
    own = {site: by_site[site][name].value for site in inside if name in by_site[site]}
    worst = (max if less else min)(own, key=lambda site: own[site]) if len(own) > 1 else None
    return SiteRow(
        title=folder.arm(name).short,
        kind=folder.arm(name).kind,
        cells=tuple(site_cell(figures.get(name)) for figures in by_site.values()),
        mean=site_cell(mean),
        worst=f"{number(own[worst])} ({worst})" if worst else "–",
        spread=number(max(own.values()) - min(own.values())) if worst else "–",
    )


def site_cell(figure: MetricValue | None) -> SiteCell | None:
    """A figure as it stands in a table of sites, or of runs."""
    if figure is None:
        return None
    return SiteCell(number(figure.value), interval_text(figure) if figure.interval else None)


def split_table(folder: RunFolder) -> tuple[list[str], list[SplitRow]]:
    """Roles in the order of use, and a row a site: patients and images of the first fold."""
    splits = folder.splits
    if splits.empty:
        return [], []
    first = splits[splits["fold"] == sorted(splits["fold"].unique(), key=_natural_order)[0]]
    roles = sorted((str(role) for role in first["role"].unique()), key=_role_rank)
    outside = left_out_sites(folder)
    rows = []
    for site, group in first.groupby("site"):
        cells = [group[group["role"] == role] for role in roles]
        counts = tuple((cell["patient"].nunique(), len(cell)) if len(cell) else None for cell in cells)
        rows.append(SplitRow(str(site), str(site) in outside, counts, folder.skipped.get(str(site), 0)))
    return roles, sorted(rows, key=lambda row: (row.outside, row.site))


def skipped_elsewhere(folder: RunFolder, rows: Sequence[SplitRow]) -> str:
    """Unreadable images at sites that the split does not list: ``DU 3, HT 1``."""
    listed = {row.site for row in rows}
    return ", ".join(f"{site} {count}" for site, count in folder.skipped.items() if site not in listed)


def _natural_order(text: str) -> tuple[int, str]:
    return (int(text), "") if text.isdigit() else (0, text)


def _role_rank(role: str) -> tuple[int, str]:
    return next((rank for word, rank in _ROLE_WORDS if word in role.lower()), len(_ROLE_WORDS)), role
