"""Scores of held images, cut by role, site, fold, training seed and label draw, and the estimates made of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.statistics.intervals import Estimate, mean
from evaluation.statistics.results_schema import ALL

LEFT_OUT = "left-out"
TEST = "test"


@dataclass(frozen=True)
class Metric:
    """A metric: its name in the tables, and how it is estimated from rows of held images.

    estimate: a frame with the columns patient, strata and those of its kind of task; NaN where it is not defined.
    within_fold: rows of two folds' models cannot be held against each other (an order of scores), so that the figure is
    the mean over folds. bounded: in [0, 1], so that its interval is made on the logit scale. biased: why it has none.
    optional: no row where it is not defined.
    """

    name: str
    estimate: Callable[[pd.DataFrame], Estimate]
    within_fold: bool = False
    bounded: bool = True
    less_is_better: bool = False
    biased: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Cell:
    """One training seed and label draw at one place: each fold's rows, and whether they may be put together."""

    folds: tuple[pd.DataFrame, ...]
    separate: bool


@dataclass(frozen=True)
class Scores:
    """Scores of one encoder under one protocol and label budget.

    table: a row a held image (or patient) with fold, seed, label_seed, image, patient, site, role, strata
    ("fold/site") and what the kind of task keeps of an image.
    """

    table: pd.DataFrame

    @classmethod
    def of(cls, frame: pd.DataFrame) -> "Scores":
        """From a frame as ``scoring.score_encoder`` makes it."""
        return cls(frame.assign(strata=frame["fold"].astype(str) + "/" + frame["site"].astype(str)))

    def where(self, keep: "pd.Series[bool]") -> "Scores":
        """The rows with ``keep``."""
        return Scores(self.table[keep])

    def at(self, role: str, site: str) -> "Scores":
        """The rows of a role, at one site or (``all``, ``left-out``) at all of them."""
        keep = self.table["role"] == role
        return self.where(keep if site in (ALL, LEFT_OUT) else keep & (self.table["site"] == site))

    def seeds(self) -> list[int]:
        """All training seeds."""
        return _whole_numbers(self.table["seed"])

    def label_draws(self) -> list[int]:
        """All draws of labelled patients."""
        return _whole_numbers(self.table["label_seed"])

    def whole_seeds(self) -> list[int]:
        """Training seeds that have as many folds as any."""
        count = self.table.groupby("seed")["fold"].nunique()
        return [seed for seed in self.seeds() if count[seed] == count.max()]

    def folds(self, seeds: Sequence[int]) -> list[int]:
        """Folds that all these seeds have."""
        own = [set(self.table.loc[self.table["seed"] == seed, "fold"]) for seed in seeds]
        return sorted(int(fold) for fold in set.intersection(*own))

    def sites(self, role: str) -> list[str]:
        """Sites with held images of this role."""
        return sorted(self.table.loc[self.table["role"] == role, "site"].unique())

    def patients(self) -> int:
        """How many patients there are."""
        return int(self.table["patient"].nunique())

    def cells(self, role: str, site: str, seeds: Sequence[int], folds: Sequence[int]) -> list[Cell]:
        """One cell for each training seed and label draw.

        Images of left-out sites are held in every fold: theirs is the mean of the folds' figures.
        """
        here = self.at(role, site).table
        here = here[here["fold"].isin(list(folds)) & here["seed"].isin(list(seeds))]
        return [
            Cell(tuple(part for _, part in own.groupby("fold")), role == LEFT_OUT)
            for _, own in here.groupby(["seed", "label_seed"])
        ]


def _whole_numbers(column: "pd.Series[int]") -> list[int]:
    return [int(number) for number in np.unique(column)]


def estimated(metric: Metric, cells: Sequence[Cell]) -> Estimate | None:
    """The figure, mean over label draws and seeds; None where some of them have none.

    Within a cell it is that of all folds' rows together or, where they cannot be held against each other, the mean over
    the folds that have one (LeDell et al. 2015).
    """
    found = [_of_cell(metric, cell) for cell in cells]
    kept = [each for each in found if each is not None]
    return mean(kept) if kept and len(kept) == len(found) else None


def _of_cell(metric: Metric, cell: Cell) -> Estimate | None:
    if metric.within_fold or cell.separate:
        parts = [metric.estimate(part) for part in cell.folds]
    else:
        parts = [metric.estimate(pd.concat(cell.folds))] if cell.folds else []
    kept = [each for each in parts if np.isfinite(each.value)]
    return mean(kept) if kept else None


def matrix(frame: pd.DataFrame, prefix: str, names: Sequence[str]) -> NDArray[np.float64]:
    """``[N, K]`` of the columns prefix + name."""
    return frame[[f"{prefix}{name}" for name in names]].to_numpy(np.float64)
