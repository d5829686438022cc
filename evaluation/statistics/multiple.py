"""Several comparisons at once: Holm's step-down adjustment, and the sentence about it."""

from collections.abc import Sequence

import numpy as np

from evaluation.statistics.intervals import FloatArray

LEVEL = 0.05


def holm(p: Sequence[float]) -> FloatArray:
    """``[M]`` adjusted p values: the chance of any false one below LEVEL is at most LEVEL, whatever hangs together.

    Holm 1979: the k-th smallest (from 0) of m is multiplied by m - k, and is no smaller than those before it, nor
    larger than 1. NaN (a comparison without interval) stays NaN and is no member of the family.
    """
    values = np.asarray(p, dtype=np.float64)
    adjusted = np.full(len(values), np.nan)
    order = [int(place) for place in np.argsort(values, kind="stable") if np.isfinite(values[place])]
    steps = values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(order) else steps
    return adjusted


def holm_sentence(names: Sequence[str], p: Sequence[float]) -> str:
    """How many comparisons were made and which differences are left after the adjustment; "" for fewer than two."""
    if len(names) < 2:
        return ""
    values, adjusted = np.asarray(p, dtype=np.float64), holm(p)
    judged = int(np.isfinite(values).sum())
    alone = [name for name, value in zip(names, values, strict=True) if value < LEVEL]
    left = [name for name, value in zip(names, adjusted, strict=True) if value < LEVEL]
    without = f", {len(names) - judged} of them without an interval" if judged < len(names) else ""
    start = f"{len(names)} comparisons were made{without}."
    if not alone:
        return f"{start} None has an interval that excludes zero."
    some = f"{len(alone)} {'has an interval that excludes' if len(alone) == 1 else 'have intervals that exclude'} zero"
    if not left:
        return f"{start} {some}; none is left after Holm's adjustment for that many."
    which = "all are" if len(left) == len(alone) > 1 else f"{len(left)} {'is' if len(left) == 1 else 'are'}"
    return f"{start} {some}; {which} left after Holm's adjustment for that many: {', '.join(left)}."
