"""Scores of held pictures, cut by role, site, fold, training seed and label draw, and the estimates made of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from evaluation.intervals import Estimate, FloatArray, IntArray, Metric, Scored, auc, jackknife, mean
from evaluation.metrics import auprc

ALL = "all"
LEFT_OUT = "left-out"
TEST = "test"


@dataclass(frozen=True)
class Cell:
    """One training seed and label draw at one place: each fold's pictures, and all of them together."""

    folds: tuple[Scored, ...]
    whole: Scored


@dataclass(frozen=True)
class Scores:
    """Scores of one encoder under one protocol and label budget, ``[N]`` each; data.strata is "fold/site"."""

    data: Scored
    fold: IntArray
    seed: IntArray
    label_seed: IntArray
    image: NDArray[np.str_]
    site: NDArray[np.str_]
    role: NDArray[np.str_]

    @classmethod
    def of(cls, frame: pd.DataFrame, classes: Sequence[str]) -> "Scores":
        """From a frame as ``scoring.score_frame`` makes it, with seed and label_seed."""
        code = {name: k for k, name in enumerate(classes)}
        fold, site = frame["fold"].to_numpy(np.int64), frame["site"].to_numpy(np.str_)
        data = Scored(
            labels=np.array([code[str(name)] for name in frame["label"]], dtype=np.int64),
            scores=frame[[f"score_{name}" for name in classes]].to_numpy(np.float64),
            patients=frame["patient"].to_numpy(np.str_),
            strata=np.char.add(np.char.add(fold.astype(np.str_), "/"), site),
        )
        return cls(
            data=data,
            fold=fold,
            seed=frame["seed"].to_numpy(np.int64),
            label_seed=frame["label_seed"].to_numpy(np.int64),
            image=frame["image"].to_numpy(np.str_),
            site=site,
            role=frame["role"].to_numpy(np.str_),
        )

    def where(self, keep: NDArray[np.bool_]) -> "Scores":
        """The rows with ``keep``."""
        own = {name: getattr(self, name)[keep] for name in ("fold", "seed", "label_seed", "image", "site", "role")}
        return replace(self, data=self.data.where(keep), **own)

    def at(self, role: str, site: str) -> "Scores":
        """The rows of a role, at one site or (``all``, ``left-out``) at all of them."""
        keep = self.role == role
        return self.where(keep if site in (ALL, LEFT_OUT) else keep & (self.site == site))

    def seeds(self) -> list[int]:
        """All training seeds."""
        return [int(seed) for seed in np.unique(self.seed)]

    def whole_seeds(self) -> list[int]:
        """Training seeds that have as many folds as any."""
        count = {seed: len(np.unique(self.fold[self.seed == seed])) for seed in self.seeds()}
        return [seed for seed in count if count[seed] == max(count.values())]

    def folds(self, seeds: Sequence[int]) -> list[int]:
        """Folds that all these seeds have."""
        own = [set(self.fold[self.seed == seed].tolist()) for seed in seeds]
        return sorted(set.intersection(*own))

    def sites(self, role: str) -> list[str]:
        """Sites with held pictures of this role."""
        return [str(site) for site in np.unique(self.site[self.role == role])]

    def patients(self) -> int:
        """How many patients there are."""
        return len(np.unique(self.data.patients))

    def cells(self, role: str, site: str, seeds: Sequence[int], folds: Sequence[int]) -> list[Cell]:
        """One cell for each training seed and label draw.

        Pictures of left-out sites are held in every fold: theirs is the mean of the folds' scores, as if one fold.
        """
        here = self.at(role, site)
        here = here.where(np.isin(here.fold, list(folds)))
        cells = []
        for seed in seeds:
            for draw in np.unique(here.label_seed):
                own = here.where((here.seed == seed) & (here.label_seed == draw))
                whole = own._averaged() if role == LEFT_OUT else own.data
                parts = [own.data.where(own.fold == fold) for fold in np.unique(own.fold)]
                cells.append(Cell((whole,) if role == LEFT_OUT else tuple(parts), whole))
        return cells

    def _averaged(self) -> Scored:
        """A row for each picture with the mean of its scores; the strata are the sites."""
        _, first, codes = np.unique(self.image, return_index=True, return_inverse=True)
        count = np.bincount(codes)
        columns = [np.bincount(codes, column) / count for column in self.data.scores.T]
        scores: FloatArray = np.stack(columns, axis=1)
        return Scored(self.data.labels[first], scores, self.data.patients[first], self.site[first])


def ranking(name: str, cells: Sequence[Cell]) -> Estimate | None:
    """AUROC or AUPRC: mean over folds, then over label draws and seeds; None where no fold has two classes.

    Scores of two folds' models are not comparable, so their pictures are never ranked together (LeDell et al. 2015).
    """
    estimate = auc if name == "AUROC" else partial(jackknife, metric=auprc)
    repeats = []
    for cell in cells:
        found = [estimate(part) for part in cell.folds]
        found = [each for each in found if np.isfinite(each.value)]
        if not found:
            return None
        repeats.append(mean(found))
    return mean(repeats) if repeats else None


def decision(metric: Metric, cells: Sequence[Cell]) -> Estimate | None:
    """A figure of decisions, all folds' pictures together; mean over label draws and seeds; None where undefined."""
    estimates = [jackknife(cell.whole, metric) for cell in cells]
    return mean(estimates) if estimates and all(np.isfinite(each.value) for each in estimates) else None
