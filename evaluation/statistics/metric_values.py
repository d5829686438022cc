"""One figure of a results table: its value, its interval or the reason there is none, and how it is written down."""

import math
from dataclasses import dataclass, replace

import pandas as pd

from evaluation.report.run_folder import RunFolder
from evaluation.statistics.held_scores import LEFT_OUT
from evaluation.statistics.results_schema import ALL, BESIDE, Role, Statistic

# In the order of a table; the main figure of each kind of task stands before its others.
METRIC_TITLES = {
    "auroc": "AUROC",
    "r2": "R²",
    "dice": "Dice",
    "map50": "mAP at IoU .5",
    "auroc_within_patients": "AUROC within patients",
    "auroc_at_position": "AUROC at the same position",
    "auprc": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "f1": "F1",
    "map": "mAP at IoU .5 to .95",
    "mae": "Mean absolute error",
    "hd95": "95 % Hausdorff distance",
    "ece": "Calibration error",
    "site_leakage": "Site leakage",
    "feature_std": "Spread of features",
}
LESS_IS_BETTER = {"ece", "mae", "hd95"}
_METRIC_ORDER = tuple(METRIC_TITLES)
_PROTOCOL_TITLES = {
    "logistic": "logistic probe on frozen features",
    "ridge": "ridge regression on frozen features",
    "linear_segmentation": "linear layer on frozen patch tokens",
    "frozen_detection": "detection head on the frozen encoder",
    "svm": "linear SVM on frozen features",
    "attention": "attention over a patient’s frozen features",
    "decoder_segmentation": "segmentation decoder, fine-tuned with the encoder",
    "finetune_detection": "detection head, fine-tuned with the encoder",
    "finetune_last": "fine-tuning of the last layers",
    "finetune": "fine-tuning",
    "knn": "k nearest neighbours",
    "federated logistic": "logistic probe, trained where the labels are",
}
_PROTOCOL_ORDER = tuple(_PROTOCOL_TITLES)
_NO_SITES = {ALL, LEFT_OUT}
_ROLES = tuple(Role)


@dataclass(frozen=True)
class MetricValue:
    """A value with its 95 % interval. ``low`` and ``high`` are None together: ``why`` then says the reason.

    ``seeds`` holds the value of each training seed where the run had more than one: the second source of variance.
    """

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    why: str = ""
    seeds: tuple[float, ...] = ()

    @property
    def interval(self) -> tuple[float, float] | None:
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def why_no_interval(self) -> str:
        """The reason that a figure stands without interval, "" when it has one."""
        return "" if self.interval else f"no interval: {self.why}"


@dataclass(frozen=True)
class MetricQuery:
    """What the first page is about: one task under one protocol, metric and share of labels."""

    task: str
    protocol: str
    metric: str
    fraction: str


def number(value: float, signed: bool = False, digits: int = 2) -> str:
    """A figure as it is printed: two digits (or ``digits``), a true minus sign, and a plus where signed."""
    if not math.isfinite(value):
        return "–"
    text = f"{abs(value):.{digits}f}"
    zero = float(text) == 0
    return ("−" if value < 0 and not zero else "+" if signed and not zero else "") + text


def digits_for(figure: MetricValue) -> int:
    """Two digits, or three where two would round a bound to zero and hide on which side of it the interval lies."""
    parts = [figure.value, *(figure.interval or ())]
    return 3 if any(part != 0 and float(f"{part:.2f}") == 0 for part in parts) else 2


def interval_text(figure: MetricValue, signed: bool = False, digits: int = 2) -> str:
    """``0.79 to 0.88``, or the reason that there is no interval."""
    if figure.interval is None:
        return figure.why_no_interval
    return f"{number(figure.interval[0], signed, digits)} to {number(figure.interval[1], signed, digits)}"


def metric_title(metric: str, statistic: str = Statistic.ESTIMATE) -> str:
    """The metric, and which statistic of it where that is not the figure itself."""
    plain = statistic in (Statistic.ESTIMATE, Statistic.SKIPPED)
    return METRIC_TITLES.get(metric.lower(), metric) + ("" if plain else f" {statistic}")


def protocol_title(protocol: str) -> str:
    return _PROTOCOL_TITLES.get(protocol, protocol)


def metric_rank(metric: str) -> int:
    """Where a metric stands in a table: the main figure of its kind of task first, unknown ones last."""
    return _METRIC_ORDER.index(metric.lower()) if metric.lower() in _METRIC_ORDER else len(_METRIC_ORDER)


def protocol_rank(protocol: str) -> int:
    """Where a protocol stands: probes of frozen features first, k nearest neighbours last (it says little of MAE)."""
    return _PROTOCOL_ORDER.index(protocol) if protocol in _PROTOCOL_ORDER else len(_PROTOCOL_ORDER)


def fraction_size(fraction: str) -> tuple[int, float]:
    """Order of a share of labels: few-shot counts first, then fractions."""
    return (0, float(fraction.removeprefix("k="))) if is_shots(fraction) else (1, float(fraction))


def is_shots(fraction: str) -> bool:
    """True for ``k=5``: so many labelled patients a class, instead of a share of them."""
    return fraction.startswith("k=")


def fraction_title(fraction: str) -> str:
    """``10 %`` or ``5 per class``."""
    shots, size = fraction_size(fraction)[0] == 0, fraction_size(fraction)[1]
    return f"{size:g} per class" if shots else f"{size * 100:g} %"


def question_text(query: MetricQuery) -> str:
    """Metric, protocol and share of labels, in words."""
    labels = f"{fraction_title(query.fraction)} of the training labels"
    return f"{metric_title(query.metric)}, {protocol_title(query.protocol)}, {labels}"


def main_question(folder: RunFolder) -> MetricQuery:
    """The question that the first page answers, out of what was measured.

    The first task, a probe before other protocols, the main figure of the task's kind, and the most labels.
    """
    rows = folder.results
    in_question = rows[rows["encoder"].isin(folder.leads)]
    rows = in_question if not in_question.empty else rows
    if rows.empty:
        return MetricQuery("", "", "", "")
    rows = rows[rows["statistic"].isin([Statistic.ESTIMATE, Statistic.SKIPPED])]
    task = str(rows["task"].iloc[0])
    rows = rows[rows["task"] == task]
    protocol = min(rows["protocol"].unique(), key=protocol_rank)
    rows = rows[rows["protocol"] == protocol]
    metric = min(rows["metric"].unique(), key=metric_rank)
    fraction = max(rows[rows["metric"] == metric]["label_fraction"].unique(), key=fraction_size)
    return MetricQuery(task, str(protocol), str(metric), str(fraction))


def of_protocol(folder: RunFolder, protocol: str) -> pd.DataFrame:
    """Rows of one protocol, and of the references that have a protocol of their own.

    Pixels, majority and the supervised encoder stand beside every protocol: they are not features to be probed.
    """
    rows = folder.results
    own = rows["protocol"] == protocol
    there = set(rows.loc[own, "encoder"])
    beside = rows["encoder"].map(lambda name: name not in there and folder.roles[str(name)] in BESIDE)
    return rows[own | beside.astype(bool)]


def select(folder: RunFolder, query: MetricQuery, statistic: Statistic = Statistic.ESTIMATE) -> pd.DataFrame:
    """The rows of the results that belong to one question: its figures, or another statistic of them."""
    rows = of_protocol(folder, query.protocol)
    return rows[
        (rows["task"] == query.task)
        & (rows["metric"] == query.metric)
        & (rows["label_fraction"] == query.fraction)
        & (rows["statistic"] == statistic)
    ]


def figure_of(rows: pd.DataFrame) -> MetricValue | None:
    """The one figure that rows of one encoder, question and site add up to; None without a finite value.

    One row is the figure. Of several seeds, the row that sums them up (seed ``all``) is; where there is none the value
    is their mean, and no interval is made up for it.
    """
    rows = rows[rows["value"].notna()]
    if rows.empty:
        return None
    if len(rows) == 1:
        return _from_row(rows.iloc[0])
    single = rows[rows["seed"] != ALL]
    seeds = tuple(float(value) for value in single["value"])
    summary = rows.drop(single.index)
    if not summary.empty:
        first = _from_row(summary.iloc[0])
        return replace(first, seeds=seeds if len(seeds) > 1 else ())
    return MetricValue(
        float(single["value"].mean()),
        n=int(single["n"].iloc[0]),
        why=f"mean of {len(seeds)} training seeds, each shown",
        seeds=seeds,
    )


def _from_row(row: "pd.Series[float]") -> MetricValue:
    low, high = float(row["ci_low"]), float(row["ci_high"])
    whole = math.isfinite(low) and math.isfinite(high)
    return MetricValue(
        float(row["value"]),
        low if whole else None,
        high if whole else None,
        int(row["n"]),
        "" if whole else str(row["interval"]),
    )


def arm_figures(
    folder: RunFolder, query: MetricQuery, site: str = ALL, statistic: Statistic = Statistic.ESTIMATE
) -> dict[str, MetricValue]:
    """Figure per encoder for one question at one site, the encoders in question first, baselines last."""
    rows = select(folder, query, statistic)
    rows = rows[rows["site"] == site]
    found = {name: figure_of(group) for name, group in rows.groupby("encoder", sort=False)}
    known = {str(name): figure for name, figure in found.items() if figure is not None}
    return dict(sorted(known.items(), key=lambda item: arm_order(folder, item[0])))


def arm_order(folder: RunFolder, name: str) -> tuple[int, str]:
    """Sorting key of arms in every table and plot of the report."""
    return _ROLES.index(folder.roles.get(name, Role.OTHER)), name


def sites_of(results: pd.DataFrame) -> list[str]:
    """The single sites of a results table, in order of name."""
    return sorted(str(site) for site in results["site"].unique() if site not in _NO_SITES)
