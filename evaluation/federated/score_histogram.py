"""The AUROC over all sites from histograms of their scores, with the exact bound of what binning can cost.

A site counts its images of a class, and the others, in 100 bins of the score. Two scores in one bin are not told
apart: such a pair counts one half, so that binning moves the area by at most half of the share of those pairs. A site
with few images in a bin merges it with its neighbours, whose order it then does not tell either; the bound grows
accordingly.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evaluation.statistics.intervals import FloatArray, IntArray

BINS = 100


@dataclass(frozen=True)
class Histogram:
    """Counts of one site for each class that is told from the rest: ``[O, BINS]`` each.

    starts: whether a bin begins a group; the counts of a group stand in its first bin, the others hold 0.
    """

    positive: IntArray
    negative: IntArray
    starts: IntArray


@dataclass(frozen=True)
class PooledArea:
    """The pooled AUROC is within ``bound`` of ``value``; both NaN where a class has no image, or is all there is."""

    value: float
    bound: float


def told_apart(classes: int) -> list[int]:
    """Classes whose scores are looked at: of two the second, of more each against the rest, as ``intervals.auc``."""
    return [1] if classes == 2 else list(range(classes))


def histogram(labels: IntArray, scores: FloatArray, fewest: int) -> Histogram | None:
    """Of class codes ``[N]`` and probabilities ``[N, K]``; in each group 0 or at least ``fewest`` images a side.

    None where even all bins together have fewer: then nothing may be told.
    """
    rows = []
    for k in told_apart(scores.shape[1]):
        bins = np.minimum((scores[:, k] * BINS).astype(np.int64), BINS - 1)
        sides = np.stack(
            [np.bincount(bins[labels == k], minlength=BINS), np.bincount(bins[labels != k], minlength=BINS)]
        )
        starts = _groups(sides, fewest)
        if starts is None:
            return None
        counts = np.zeros_like(sides)
        counts[:, starts] = np.add.reduceat(sides, starts, axis=1)
        begins = np.zeros(BINS, dtype=np.int64)
        begins[starts] = 1
        rows.append((counts[0], counts[1], begins))
    positive, negative, all_starts = (np.stack(column) for column in zip(*rows, strict=True))
    return Histogram(positive, negative, all_starts)


def _groups(sides: IntArray, fewest: int) -> list[int] | None:
    """First bins of the groups: from below, a group ends as soon as neither side has 1 to ``fewest`` - 1 images."""
    starts: list[int] = []
    tells = False
    for place in range(BINS):
        if not tells:
            starts.append(place)
        tells = _tells(sides[:, starts[-1] : place + 1], fewest)
    while tells:  # what is left at the top joins the groups below it
        starts.pop()
        if not starts:
            return None
        tells = _tells(sides[:, starts[-1] :], fewest)
    return starts


def _tells(group: IntArray, fewest: int) -> bool:
    """Whether ``[2, bins]`` would tell of fewer images of a side than may be told."""
    counts = group.sum(axis=1)
    return bool(((counts > 0) & (counts < fewest)).any())


def pooled_area(sites: Mapping[str, Histogram]) -> PooledArea:
    """The AUROC of all sites' images together (more than two classes: mean of one-versus-rest), from their counts."""
    outputs = next(iter(sites.values())).positive.shape[0]
    parts = [_area([_intervals(sites[name], output) for name in sorted(sites)]) for output in range(outputs)]
    return PooledArea(float(np.mean([value for value, _ in parts])), float(np.mean([bound for _, bound in parts])))


def _intervals(site: Histogram, output: int) -> IntArray:
    """``[G, 4]``: first bin, bin after the last, positives, negatives of each group that holds any."""
    first = np.flatnonzero(site.starts[output])
    after = np.append(first[1:], BINS)
    found = np.stack([first, after, site.positive[output][first], site.negative[output][first]], axis=1)
    return np.asarray(found[(found[:, 2] + found[:, 3]) > 0])


def _area(sites: list[IntArray]) -> tuple[float, float]:
    """Of groups that may overlap: a pair of disjoint groups is in order for certain, any other counts one half."""
    first, after, positive, negative = np.concatenate(sites).T
    pairs = float(positive.sum()) * float(negative.sum())
    if pairs == 0:
        return float("nan"), float("nan")
    # Negatives that lie below for certain: those of groups that end before this one begins.
    ends = np.bincount(after, negative, BINS + 1).cumsum()
    begins = np.bincount(first, negative, BINS + 1)[::-1].cumsum()[::-1]
    below, above = ends[first], begins[after]
    doubtful = negative.sum() - below - above
    value = float((positive * (below + doubtful / 2)).sum()) / pairs
    return value, float((positive * doubtful).sum()) / (2 * pairs)
