"""The tables of results: their columns, declared once. Every table is written and read typed through this file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd

from foundation.errors import RunError
from foundation.files import write_text

Row = dict[str, Any]
ALL = "all"
"""In the column site: all test patients of the federation. In the column seed: all training seeds together."""


class Role(StrEnum):
    """What an encoder is, in the order of every table and plot. A run states it; it is never read out of a name."""

    FEDERATED = "federated"
    PRETRAINED = "pretrained"
    CENTRALISED = "centralised"
    LOCAL_ONLY = "local-only"
    PRETRAINED_INIT = "pretrained-init"
    SUPERVISED = "supervised"
    RANDOM = "random"
    PIXELS = "pixels"
    POSITION = "position"
    MAJORITY = "majority"
    OTHER = "other"


LEADS = (Role.FEDERATED, Role.PRETRAINED)
"""Encoders in question: the others are what they are held against."""
BESIDE = (Role.PIXELS, Role.POSITION, Role.MAJORITY, Role.SUPERVISED)
"""They stand beside every protocol, under one of their own: they are no features to be probed."""


class Statistic(StrEnum):
    """What a row's value is of its metric."""

    ESTIMATE = "estimate"
    SITE_MEAN = "site mean"
    """The sites' own figures, weighted by their patients, as where labels may not leave."""
    WORST_SITE = "worst site"
    SITE_SPREAD = "spread between sites"
    SEED_SD = "seed sd"
    LABEL_DRAW_SD = "label draw sd"
    HISTOGRAMS = "from histograms"
    """Over the sites' histograms of scores together."""
    SKIPPED = "skipped"
    """Not measured: the value is missing, and the column interval says why."""


class Unit(StrEnum):
    """What n counts, and what an interval is over."""

    PATIENT = "patient"
    CLUSTER = "image cluster"
    SITE = "site"
    SEED = "training seed"
    LABEL_DRAW = "label draw"


LOGIT, SYMMETRIC = "jackknife, logit scale", "jackknife, symmetric"
"""In the column interval: how it was made. Where there is none, the column says why."""

_TYPES: Mapping[str, type] = {
    "value": float,
    "ci_low": float,
    "ci_high": float,
    "p": float,
    "n": int,
    "role": Role,
    "role_a": Role,
    "role_b": Role,
    "statistic": Statistic,
    "unit": Unit,
}
"""Every other column is text."""


@dataclass(frozen=True)
class Table:
    """A table's columns in order."""

    columns: tuple[str, ...]

    def frame(self, rows: Sequence[Mapping[str, Any]] = ()) -> pd.DataFrame:
        """The rows typed: float64 with NaN for none, int64 for counts, text otherwise. ValueError for a wrong value."""
        table = pd.DataFrame(list(rows), columns=list(self.columns))
        return table.assign(**{name: _typed(table[name], _TYPES.get(name, str)) for name in self.columns})

    def read(self, path: Path) -> pd.DataFrame:
        """The table in a CSV file. RunError where a column is missing, or holds what it may not."""
        written = pd.read_csv(path, dtype=str, keep_default_na=False)
        absent = [name for name in self.columns if name not in written]
        if absent:
            raise RunError(f"{path}: lacks the column {', '.join(absent)}; evaluate the run again with this version")
        try:
            return self.frame([{str(name): text for name, text in row.items()} for row in written.to_dict("records")])
        except ValueError as error:
            raise RunError(f"{path}: {error}; evaluate the run again") from error

    def write(self, path: Path, rows: pd.DataFrame) -> None:
        """Write rows that ``frame`` made."""
        write_text(path, rows[list(self.columns)].to_csv(index=False))


RESULTS = Table(
    (
        "task",
        "dataset",
        "encoder",
        "role",
        "protocol",
        "label_fraction",
        "site",
        "seed",
        "metric",
        "statistic",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "unit",
        "interval",
        "note",
    )
)
COMPARISONS = Table(
    (
        "task",
        "protocol",
        "label_fraction",
        "metric",
        "site",
        "encoder_a",
        "role_a",
        "encoder_b",
        "role_b",
        "value",
        "ci_low",
        "ci_high",
        "p",
        "n",
        "unit",
        "interval",
        "note",
    )
)


def _typed(column: "pd.Series[Any]", kind: type) -> "pd.Series[Any]":
    if kind is float:
        return pd.Series(
            [float(text) if text not in ("", None) else float("nan") for text in column], column.index, float
        )
    if kind is int:
        return column.astype("int64")
    if issubclass(kind, StrEnum):
        return pd.Series([str(kind(text)) for text in column], column.index, object)
    return pd.Series(["" if pd.isna(text) else str(text) for text in column], column.index, object)


def records(frame: pd.DataFrame) -> list[Row]:
    """Rows as mappings by column, None where a figure is not a number, so that they can be JSON."""
    return [
        {str(name): None if isinstance(value, float) and pd.isna(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
