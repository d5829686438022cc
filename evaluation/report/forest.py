"""Forest plots as tables: a row a figure, its interval to scale beside the words. Positions are in per cent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evaluation.statistics.metric_values import MetricValue, digits_for, interval_text, number


@dataclass(frozen=True)
class Tick:
    """A mark on the axis: where, and what it says."""

    x: float
    text: str


@dataclass(frozen=True)
class ForestRow:
    """One figure: ``x`` of the value, ``low`` and ``high`` of its interval (None: no interval), and of seeds."""

    title: str
    kind: str
    x: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    value: str
    interval: str
    verdict: str
    detail: str


@dataclass(frozen=True)
class Forest:
    """Rows on one axis. ``reference`` is the place of the line that figures are held against (chance, zero)."""

    rows: tuple[ForestRow, ...]
    ticks: tuple[Tick, ...]
    reference: float | None
    reference_text: str
    has_verdicts: bool


@dataclass(frozen=True)
class ForestItem:
    """What goes into a row, before it has a place on the axis."""

    title: str
    kind: str
    figure: MetricValue
    verdict: str = ""
    detail: str = ""


_STEPS = tuple(digit * 10.0**power for power in range(-2, 7) for digit in (1, 2, 5))
_MOST_TICKS = 6


def nice_ticks(low: float, high: float) -> list[float]:
    """At most six round numbers a step apart that enclose low and high (or as many as the widest step needs)."""
    for step in _STEPS:
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        last = max(last, first + 1)
        if last - first + 1 <= _MOST_TICKS:
            return [round(index * step, 10) for index in range(first, last + 1)]
    return [low, high]


def forest(items: Sequence[ForestItem], reference: float, reference_text: str, signed: bool = False) -> Forest:
    """Lay figures out on one axis.

    reference: drawn when it lies within the axis; of differences (``signed``) it always does.
    """
    ends = [bound for item in items for bound in (item.figure.value, *(item.figure.interval or ()), *item.figure.seeds)]
    ticks = nice_ticks(min([*ends, reference] if signed else ends), max([*ends, reference] if signed else ends))
    left, width = ticks[0], ticks[-1] - ticks[0]

    def place(value: float) -> float:
        return round(100 * (value - left) / width, 2)

    digits = 2 if all(float(f"{tick:.2f}") == tick for tick in ticks) else 3
    # One number of digits down the column; a difference that two digits would round to zero gives all of them three.
    shown = max(digits_for(item.figure) for item in items) if signed else 2
    inside = left <= reference <= ticks[-1]
    return Forest(
        rows=tuple(_row(item, place, signed, shown) for item in items),
        ticks=tuple(Tick(place(tick), number(tick, signed, digits)) for tick in ticks),
        reference=place(reference) if inside else None,
        reference_text=reference_text,
        has_verdicts=any(item.verdict for item in items),
    )


def _row(item: ForestItem, place: Callable[[float], float], signed: bool, digits: int) -> ForestRow:
    figure = item.figure
    low, high = figure.interval or (None, None)
    return ForestRow(
        title=item.title,
        kind=item.kind,
        x=place(figure.value),
        low=None if low is None else place(low),
        high=None if high is None else place(high),
        seeds=tuple(place(value) for value in figure.seeds),
        value=number(figure.value, signed, digits),
        interval=interval_text(figure, signed, digits),
        verdict=item.verdict,
        detail=item.detail,
    )
