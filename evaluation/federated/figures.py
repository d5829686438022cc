"""Figures of sites that keep their labels: what a site tells of its test patients, and the table's rows from that."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.federated.score_histogram import PooledArea
from evaluation.statistics.intervals import (
    MIN_PATIENTS_PER_CLASS,
    UNDEFINED,
    Estimate,
    Interval,
    Scored,
    auc,
    interval,
    jackknife,
    mean,
    variance,
)
from evaluation.statistics.results import CHOSEN_AFTER
from evaluation.statistics.results_schema import ALL, Row, Statistic, Unit
from evaluation.tasks.metrics import auprc, balanced_accuracy, f1

FIGURES: dict[str, Callable[[Scored], Estimate]] = {
    "AUROC": auc,
    "AUPRC": lambda data: jackknife(data, auprc),
    "balanced_accuracy": lambda data: jackknife(data, balanced_accuracy),
    "F1": lambda data: jackknife(data, f1),
}
"""The first is the main one."""
PROTOCOL = "federated logistic"


@dataclass(frozen=True)
class SiteEstimate:
    """A figure of one site, its variance over patients, and how many units (patients or groups); 0: not defined."""

    value: float
    variance: float
    units: int


@dataclass(frozen=True)
class SiteFigures:
    """Of one site's test patients: how many, of the rarest class at least ``fewest``, and one figure each."""

    patients: int
    fewest: int
    figures: Mapping[str, SiteEstimate]


def site_figures(data: Scored) -> SiteFigures:
    """What a site tells of its test images."""
    found, fewest = {}, MIN_PATIENTS_PER_CLASS
    for name, figure in FIGURES.items():
        estimate = figure(data)
        fewest = min([fewest, *(count for count in estimate.carriers if count)])
        if math.isfinite(estimate.value):
            found[name] = SiteEstimate(estimate.value, variance(estimate)[0], len(estimate.patients))
        else:
            found[name] = SiteEstimate(0.0, 0.0, 0)
    return SiteFigures(len(np.unique(data.patients)), fewest, found)


def stand_in(site: str, answer: SiteFigures, name: str) -> Estimate | None:
    """An estimate with the site's value, variance and number of units, as the influences of its patients stay there."""
    figure = answer.figures[name]
    if not figure.units:
        return None
    influence = np.zeros(figure.units)
    if figure.units > 1:  # two units that move the figure against each other give any variance
        influence[:2] = math.sqrt(figure.variance * (figure.units - 1) / (2 * figure.units))
        influence[1] *= -1
    names = tuple(f"{site} {number}" for number in range(figure.units))
    return Estimate(figure.value, names, (site,) * figure.units, influence, (answer.fewest,))


def rows(sites: Mapping[str, SiteFigures], pooled: PooledArea | None, histograms: Sequence[str]) -> list[Row]:
    """Rows from site to note of the results table: each site, their mean by patients, the worst one.

    pooled: the AUROC over the images of the sites ``histograms``, None without any; its n counts those in ``sites``.
    """
    found = []
    for name in FIGURES:
        estimates = {site: stand_in(site, sites[site], name) for site in sorted(sites)}
        counts = {site: sites[site].patients for site in sites}
        found += [_row(site, name, estimate, counts[site]) for site, estimate in estimates.items()]
        defined = {site: estimate for site, estimate in estimates.items() if estimate is not None}
        if len(defined) > 1:
            weights = [counts[site] for site in defined]
            note = f"mean over {len(defined)} sites, weighted by patients"
            whole = _row(ALL, name, mean(list(defined.values()), weights), sum(weights))
            found.append(whole | {"statistic": Statistic.SITE_MEAN, "note": note})
    found += _worst(sites)
    if pooled is not None and math.isfinite(pooled.value):
        own = sum(sites[site].patients for site in histograms if site in sites)
        note = f"from histograms of {len(histograms)} sites, off by at most {pooled.bound:.2g}"
        row = _plain(ALL, "AUROC", pooled.value, own, "labels stay there", Statistic.HISTOGRAMS)
        found.append(row | {"note": note})
    return found


def _worst(sites: Mapping[str, SiteFigures]) -> list[Row]:
    """The worst site by the main figure, where there are two to choose from."""
    main = next(iter(FIGURES))
    values = {site: answer.figures[main].value for site, answer in sorted(sites.items()) if answer.figures[main].units}
    if len(values) < 2:
        return []
    worst = min(values, key=lambda site: values[site])
    return [_plain(worst, main, values[worst], sites[worst].patients, CHOSEN_AFTER, Statistic.WORST_SITE)]


def _row(site: str, metric: str, estimate: Estimate | None, count: int) -> Row:
    bounds = Interval(math.nan, math.nan, UNDEFINED) if estimate is None else interval(estimate)
    row = _plain(site, metric, math.nan if estimate is None else estimate.value, count, bounds.how, Statistic.ESTIMATE)
    return row | {"ci_low": bounds.low, "ci_high": bounds.high}


def _plain(site: str, metric: str, value: float, count: int, how: str, statistic: Statistic) -> Row:
    """A row without bounds; ``how``: the column interval."""
    plain: Row = {"site": site, "metric": metric, "statistic": statistic, "value": value}
    return plain | {
        "ci_low": math.nan,
        "ci_high": math.nan,
        "n": count,
        "unit": Unit.PATIENT,
        "interval": how,
        "note": "",
    }
