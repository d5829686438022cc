"""Which training patients' labels are used: shares of the patients, and a few patients of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluation.statistics.intervals import IntArray
from foundation.randomness import numpy_generator

MIN_PATIENTS = 5


@dataclass(frozen=True)
class LabelBudget:
    """A labelled share of the training patients (``fraction``), or ``shots`` patients of each class."""

    fraction: float | None = None
    shots: int | None = None

    @property
    def name(self) -> str:
        """``1``, ``0.1`` or ``k=5``, as in the column label_fraction."""
        return f"k={self.shots}" if self.shots is not None else f"{self.fraction:g}"

    @property
    def whole(self) -> bool:
        """Whether every label is used, so that there is nothing to draw."""
        return self.shots is None and self.fraction == 1.0


@dataclass(frozen=True)
class Drawn:
    """``keep``: the training images whose label is used; ``skipped``: why this budget cannot be, or empty."""

    keep: NDArray[np.bool_]
    skipped: str = ""


def draw(
    budget: LabelBudget,
    patients: NDArray[np.str_],
    labels: IntArray,
    classes: Sequence[str],
    seed: int,
    repeat: int,
    fold: int,
) -> Drawn:
    """The labelled training images of one draw; fractions of the same draw are nested.

    patients, labels: ``[N]`` of the training images. The draw is the same for every encoder. With ``shots``, k
    patients who have the class give all their images of that class.
    """
    generator = numpy_generator(seed, "labels", repeat, fold)
    keep = np.zeros(len(labels), dtype=np.bool_)
    names = np.unique(patients)
    order = names[generator.permutation(len(names))]
    if budget.shots is not None:
        for k, name in enumerate(classes):
            able = set(patients[labels == k])
            chosen = [patient for patient in order if patient in able][: budget.shots]
            if len(chosen) < budget.shots:
                return Drawn(keep, f"class {name} has {len(chosen)} training patients, {budget.shots} are needed")
            keep |= np.isin(patients, chosen) & (labels == k)
        return Drawn(keep)
    count = round((budget.fraction or 0.0) * len(names))
    if count < MIN_PATIENTS and not budget.whole:
        return Drawn(keep, f"{count} of {len(names)} training patients, {MIN_PATIENTS} are needed")
    keep = np.isin(patients, order[:count])
    missing = sorted(set(range(len(classes))) - set(labels[keep].tolist()))
    if missing:
        return Drawn(keep, f"a draw has no training image of class {classes[missing[0]]}")
    return Drawn(keep)
