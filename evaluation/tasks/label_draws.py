"""Which training images' labels a head gets: every draw of every budget, the same for all encoders."""

from dataclasses import dataclass

import numpy as np

from evaluation.inputs import Inputs
from evaluation.statistics.intervals import IntArray
from evaluation.tasks.labels import Drawn, LabelBudget, draw
from foundation.files import digest


@dataclass(frozen=True)
class Labels:
    """Which training images' labels are used in each draw, and the budgets that cannot be drawn."""

    draws: dict[tuple[int, str, int], IntArray]
    """(fold, budget name, draw) to places in ``Images``."""
    skipped: dict[str, str]

    def key(self, fold: int) -> str:
        """A digest of the draws of one fold, which tells them from any others."""
        return digest(*(f"{name}:{repeat}:{places.tolist()}" for name, repeat, places in self.of(fold)))

    def of(self, fold: int) -> list[tuple[str, int, IntArray]]:
        """(budget name, draw, places) of a fold."""
        return [(name, repeat, places) for (f, name, repeat), places in self.draws.items() if f == fold]


def draw_labels(inputs: Inputs) -> Labels:
    """Every draw of every budget, the same for all encoders; one that fails in a fold or draw is skipped whole."""
    config, images = inputs.config, inputs.images
    budgets = [LabelBudget(fraction=f) for f in config.label_fractions] + [LabelBudget(shots=k) for k in config.shots]
    draws: dict[tuple[int, str, int], IntArray] = {}
    skipped: dict[str, str] = {}
    for budget in budgets:
        found: dict[tuple[int, str, int], IntArray] = {}
        for fold in sorted(images.roles):
            places = images.where(fold, "train")
            for repeat in range(1 if budget.whole else config.label_seeds):
                drawn = _draw(inputs, budget, places, repeat, fold)
                if drawn.skipped:
                    skipped.setdefault(budget.name, drawn.skipped)
                found[fold, budget.name, repeat] = places[drawn.keep]
        if budget.name not in skipped:
            draws |= found
    return Labels(draws, skipped)


def _draw(inputs: Inputs, budget: LabelBudget, places: IntArray, repeat: int, fold: int) -> Drawn:
    """Of a classification every class has to be there; of the other kinds only patients are counted."""
    images, told_apart = inputs.images, inputs.config.kind == "classification"
    codes = images.y[places] if told_apart else np.zeros(len(places), dtype=np.int64)
    classes = images.classes if told_apart else ("",)
    return draw(budget, images.patient[places], codes, classes, inputs.config.seed, repeat, fold)
