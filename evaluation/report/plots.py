"""Drawn figures of the report, each an SVG in a data address: nothing is loaded from anywhere.

Panels are drawn at about the size at which they are read, so that text stays legible on a narrow page.
"""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from evaluation.statistics.calibration import Bin
from evaluation.statistics.metric_values import MetricValue, fraction_size, fraction_title, is_shots, number

INK, MUTED, HAIRLINE = "#1b2530", "#66707a", "#d9dde1"
# Okabe and Ito 2008: told apart with every common colour vision, and given a marker each besides.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
KIND_STYLES: Mapping[str, tuple[str, str, str]] = {
    "federated": ("#0072B2", "o", "-"),
    "pretrained": ("#56B4E9", "h", "-"),
    "centralised": ("#009E73", "s", "-"),
    "local-only": ("#E69F00", "^", "-"),
    "pretrained-init": ("#CC79A7", "D", "-"),
    "supervised": ("#D55E00", "v", "-"),
    "random": ("#66707a", "P", "--"),
    "pixels": ("#000000", "X", ":"),
    "position": ("#7A6A00", "<", ":"),
    "majority": ("#9aa1a8", "*", ":"),
}


@dataclass(frozen=True)
class Panel:
    """A drawn figure. source: a ``data:`` address; alt: what it shows, for those who do not see it."""

    title: str
    source: str
    alt: str


@contextmanager
def _style() -> Iterator[None]:
    with mpl.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "fedpretext",
            "font.family": "sans-serif",
            "font.sans-serif": ["Helvetica Neue", "Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
            "font.size": 8.5,
            "axes.edgecolor": MUTED,
            "axes.labelcolor": INK,
            "axes.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelcolor": INK,
            "ytick.labelcolor": INK,
            "xtick.major.width": 0.6,
            "ytick.major.width": 0.6,
            "xtick.major.size": 3,
            "ytick.major.size": 3,
            "text.color": INK,
        }
    ):
        yield


def _panel(title: str, alt: str, canvas: Canvas) -> Panel:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="svg", metadata={"Date": None})
    return Panel(title, "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode(), alt)


def _axes(width: float, height: float) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(width, height), layout="constrained")
    return canvas, canvas.add_subplot()


def learning_panels(curves: pd.DataFrame) -> list[Panel]:
    """A small panel a site: its loss per round in front, the other sites' in grey; all on one scale.

    curves: rows of one arm (round, site, loss, fold, seed); every fold and seed is a line.
    """
    rows = curves.assign(loss=pd.to_numeric(curves["loss"], errors="coerce"))
    rows = rows[np.isfinite(rows["loss"])].sort_values("round")
    if rows.empty:
        return []
    low, high = float(rows["loss"].min()), float(rows["loss"].max())
    margin = 0.06 * (high - low) or 0.1
    return [_learning_panel(rows, str(site), (low - margin, high + margin)) for site in sorted(rows["site"].unique())]


def _learning_panel(rows: pd.DataFrame, site: str, limits: tuple[float, float]) -> Panel:
    own = rows[rows["site"] == site]
    rounds = (int(rows["round"].min()), int(rows["round"].max()))
    with _style():
        canvas, axes = _axes(2.0, 1.5)
        for (name, _, _), line in rows.groupby(["site", "fold", "seed"]):
            front = name == site
            axes.plot(
                line["round"],
                line["loss"],
                color=PALETTE[0] if front else HAIRLINE,
                linewidth=1.4 if front else 0.8,
                zorder=3 if front else 1,
                marker="o" if len(line) == 1 else "",
                markersize=3,
            )
        axes.set(ylim=limits, xlabel="round", ylabel="loss")
        axes.set_xlim(rounds[0], rounds[1] if rounds[1] > rounds[0] else rounds[0] + 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        first, last = (float(own[own["round"] == own["round"].agg(end)]["loss"].mean()) for end in ("min", "max"))
        alt = (
            f"Pretraining loss at {site}: {first:.3g} in round {int(own['round'].min())}, "
            f"{last:.3g} in round {int(own['round'].max())}."
        )
        return _panel(site, alt, canvas)


@dataclass(frozen=True)
class Curve:
    """Figures of one arm, keyed by share of labels."""

    title: str
    kind: str
    points: Mapping[str, MetricValue]


def efficiency_panels(curves: Sequence[Curve], metric: str) -> list[Panel]:
    """The metric against labelled patients: one panel for shares of the labels, one for so many a class."""
    panels = []
    for shots, title in ((False, "Share of the labels used"), (True, "Labelled patients per class")):
        kept = [
            Curve(
                curve.title,
                curve.kind,
                {name: f for name, f in curve.points.items() if is_shots(name) == shots},
            )
            for curve in curves
        ]
        if len({name for curve in kept for name in curve.points}) > 1:
            panels.append(_efficiency_panel(kept, metric, title))
    return panels


def _efficiency_panel(curves: Sequence[Curve], metric: str, title: str) -> Panel:
    names = sorted({name for curve in curves for name in curve.points}, key=fraction_size)
    with _style():
        canvas, axes = _axes(4.7, 3.0)
        drawn = [curve for curve in curves if curve.points]
        single = [curve for curve in drawn if curve.kind == "local-only"]
        for index, curve in enumerate(drawn):
            # Arms of one site share a colour and one entry in the key; an underscore keeps the others out of it.
            label = curve.title if curve.kind != "local-only" else "one site, local-only" if curve is single[0] else "_"
            shift = 0.24 * ((index + 0.5) / len(drawn) - 0.5)
            _efficiency_line(axes, curve, names, shift, label)
        axes.set_xticks(range(len(names)), [fraction_title(name) for name in names])
        axes.set(xlabel=title.lower(), ylabel=metric)
        axes.grid(axis="y", color=HAIRLINE, linewidth=0.5)
        axes.set_axisbelow(True)
        canvas.legend(loc="outside upper left", ncols=3, frameon=False, fontsize=8, handlelength=2.2)
        said = "; ".join(
            f"{curve.title} " + ", ".join(f"{number(f.value)} at {fraction_title(n)}" for n, f in curve.points.items())
            for curve in drawn
        )
        return _panel(title, f"{metric} by {title.lower()}: {said}.", canvas)


def _efficiency_line(axes: Axes, curve: Curve, names: Sequence[str], shift: float, label: str) -> None:
    colour, marker, dashes = KIND_STYLES.get(curve.kind, ("#66707a", "o", "-"))
    known = [(index, curve.points[name]) for index, name in enumerate(names) if name in curve.points]
    places = [index + shift for index, _ in known]
    for place, (_, figure) in zip(places, known, strict=True):
        if figure.interval:
            axes.plot([place, place], figure.interval, color=colour, linewidth=0.9, alpha=0.45)
    values = [figure.value for _, figure in known]
    width = 1.8 if curve.kind == "federated" else 1.1
    axes.plot(
        places,
        values,
        color=colour,
        marker=marker,
        linestyle=dashes,
        linewidth=width,
        markersize=4,
        label=label,
    )


@dataclass(frozen=True)
class Reliability:
    """The bins of one encoder's reliability curve."""

    title: str
    bins: Sequence[Bin]


def reliability_panel(curves: Sequence[Reliability]) -> Panel:
    """Share of right answers against confidence, an encoder a colour and a marker; fuller bins have larger marks."""
    with _style():
        canvas, axes = _axes(4.4, 3.7)
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=":")
        for index, curve in enumerate(curves):
            colour, marker = PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)]
            whole = sum(each.count for each in curve.bins)
            x, y = [each.confidence for each in curve.bins], [each.accuracy for each in curve.bins]
            axes.plot(x, y, color=colour, linewidth=1.1, marker=marker, markersize=4, label=curve.title)
            sizes = [16 + 140 * each.count / whole for each in curve.bins]
            axes.scatter(x, y, s=sizes, color=colour, marker=marker, alpha=0.3, linewidths=0)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence in the likeliest class", ylabel="share of right answers")
        axes.grid(color=HAIRLINE, linewidth=0.5)
        axes.set_axisbelow(True)
        canvas.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=8)
        said = "; ".join(
            f"{curve.title} "
            + ", ".join(f"{number(each.accuracy)} right at {number(each.confidence)}" for each in curve.bins)
            for curve in curves
        )
        return _panel("Confidence and truth", f"Reliability curves: {said}.", canvas)


def scatter_panel(points: NDArray[np.float64], groups: Sequence[str], title: str) -> Panel:
    """Features on their first two principal components, a colour and a marker a group.

    points: ``[N, 2]``, N at most some thousands; groups: N names.
    """
    names = sorted(set(groups))
    chosen = np.asarray(groups)
    with _style():
        canvas, axes = _axes(4.4, 3.7)
        for index, name in enumerate(names):
            own = points[chosen == name]
            axes.plot(
                own[:, 0],
                own[:, 1],
                linestyle="",
                marker=MARKERS[index % len(MARKERS)],
                markersize=3.6,
                markeredgewidth=0,
                color=PALETTE[index % len(PALETTE)],
                alpha=0.55,
                label=name,
                rasterized=True,
            )
        axes.set(xticks=[], yticks=[], xlabel="first principal component", ylabel="second")
        canvas.legend(loc="outside upper left", ncols=4, frameon=False, fontsize=8, markerscale=1.8, handletextpad=0.1)
        canvas.set_dpi(200)
        shown = f"{len(points)} images’ features on two principal components"
        alt = f"Scatter of {shown}, {title.lower()}: {', '.join(names)}."
        return _panel(title, alt, canvas)
