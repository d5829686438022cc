"""The figures of the report, as the template draws them, and what is written under them."""

from evaluation.report.answers import BASELINE, RIVAL, Contrast, worth_telling
from evaluation.report.forest import Forest, ForestItem, forest
from evaluation.report.plots import Curve, Panel, efficiency_panels, learning_panels
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.metric_values import (
    LESS_IS_BETTER,
    MetricQuery,
    arm_figures,
    figure_of,
    fraction_title,
    metric_title,
    of_protocol,
    protocol_title,
)
from evaluation.statistics.results_schema import ALL, Role, Statistic

_CHANCE = {"auroc": 0.5}


def all_labels(query: MetricQuery) -> str:
    """``all training labels``, or which of them."""
    title = fraction_title(query.fraction)
    return "all training labels" if title == "100 %" else f"{title} of the training labels"


def arms_caption(folder: RunFolder, query: MetricQuery) -> str:
    """What the forest plot of arms shows."""
    figures = arm_figures(folder, query).values()
    counts = {figure.n for figure in figures if figure.n is not None}
    units = f" ({'–'.join(str(n) for n in sorted({min(counts), max(counts)}))} {folder.unit})" if counts else ""
    seeds = " Small marks: single training seeds." if any(figure.seeds for figure in figures) else ""
    baseline, has_majority = "", Role.MAJORITY in folder.roles.values()
    if query.metric.lower() == "auroc":
        baseline = " Chance is 0.50"
        baseline += "; the majority class is there by definition and is not drawn." if has_majority else "."
    return (
        f"{metric_title(query.metric)} of each encoder on unseen {folder.unit}{units}: "
        f"{protocol_title(query.protocol)}, {all_labels(query)}. Lines are 95 % "
        f"intervals over {folder.unit}; a hollow point has none.{seeds}{baseline}"
    )


def difference_caption(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> str:
    """What the forest plot of differences shows."""
    side = "right" if query.metric.lower() not in LESS_IS_BETTER else "left"
    seeds = " Small marks: single training seeds." if any(item.figure.seeds for item in found) else ""
    which = ("federated minus the other", "the federated encoder is ahead")
    if not folder.about_one:
        which = ("the first minus the second", "the first is ahead")
    return (
        f"Difference in {metric_title(query.metric)}, {which[0]}, on the same {folder.unit}. To the "
        f"{side} of the dotted line {which[1]}; where the 95 % interval crosses it, we "
        f"cannot say.{seeds}"
    )


def arms_forest(folder: RunFolder, query: MetricQuery) -> Forest | None:
    """Every arm's figure over all sites of the federation; None when there is none."""
    figures = arm_figures(folder, query)
    items = [
        ForestItem(folder.arm(name).short, folder.arm(name).kind, figure, detail=folder.arm(name).detail)
        for name, figure in figures.items()
        if not _is_trivial(folder, name, query) or len(figures) == 1
    ]
    chance = _CHANCE.get(query.metric.lower(), 0.0)
    return forest(items, chance, "chance" if chance else "zero") if items else None


def _is_trivial(folder: RunFolder, name: str, query: MetricQuery) -> bool:
    """The majority class ranks nothing: its AUROC is chance by definition and would only stretch the axis."""
    return folder.arm(name).kind == "majority" and query.metric.lower() == "auroc"


def difference_forest(folder: RunFolder, found: list[Contrast]) -> Forest | None:
    """Each encoder in question minus the others that it is asked about; None when nothing was compared."""
    items = [ForestItem(item.title, item.kind, item.figure, str(item.verdict)) for item in drawn(folder, found)]
    return forest(items, 0.0, "no difference", signed=True) if items else None


def drawn(folder: RunFolder, found: list[Contrast]) -> list[Contrast]:
    """The comparisons that are drawn: of several encoders, those with their bases and each other."""
    if len(folder.leads) < 2:
        return worth_telling(found)
    return [item for item in found if item.kind in (BASELINE, RIVAL)]


def efficiency(folder: RunFolder, query: MetricQuery) -> list[Panel]:
    """The main figure against the share of labels, and against labelled patients a class, where several were tried."""
    rows = of_protocol(folder, query.protocol)
    rows = rows[(rows["task"] == query.task) & (rows["metric"] == query.metric) & (rows["site"] == ALL)]
    rows = rows[rows["statistic"] == Statistic.ESTIMATE]
    curves = []
    names = [name for name in arm_figures(folder, query) if not _is_trivial(folder, name, query)]
    for name in names:
        groups = rows[rows["encoder"] == name].groupby("label_fraction", sort=False)
        points = {str(fraction): figure for fraction, group in groups if (figure := figure_of(group)) is not None}
        curves.append(Curve(folder.arm(name).short, folder.arm(name).kind, points))
    return efficiency_panels(curves, metric_title(query.metric))


def learning(folder: RunFolder) -> list[Panel]:
    """Pretraining loss per round at each site of the federated arm."""
    own = folder.curves["arm"].isin(folder.leads)
    return learning_panels(folder.curves[own])
