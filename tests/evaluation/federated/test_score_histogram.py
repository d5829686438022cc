"""The pooled AUROC from binned scores is never further from the exact one than it says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.federated.score_histogram import BINS, Histogram, histogram, pooled_area
from evaluation.statistics.intervals import FloatArray, IntArray
from evaluation.tasks.metrics import auroc

ROUNDING = 1e-12


def two(positives: FloatArray) -> FloatArray:
    return np.stack([1.0 - positives, positives], axis=1)


def drawn(seed: int, count: int, classes: int, sharpness: float) -> tuple[IntArray, FloatArray]:
    """Labels, and probabilities that go with them, of which some are equal and some lie on an edge of two bins."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, count)
    logits = draw.normal(size=(count, classes)) + sharpness * (labels[:, None] == np.arange(classes))
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    coarse = draw.random(count) < 0.3
    scores[coarse] = scores[coarse].round(2)
    return labels.astype(np.int64), scores


@given(
    seed=st.integers(0, 10_000), counts=st.lists(st.integers(1, 80), min_size=1, max_size=4),
    classes=st.integers(2, 3), sharpness=st.floats(0, 4), fewest=st.sampled_from([1, 3, 5, 10]),
)  # fmt: skip
def test_the_exact_area_is_within_the_bound(
    seed: int, counts: list[int], classes: int, sharpness: float, fewest: int
) -> None:
    sites = {str(i): drawn(seed + i, count, classes, sharpness) for i, count in enumerate(counts)}
    answer = {name: histogram(*site, fewest) for name, site in sites.items()}
    kept = {name: found for name, found in answer.items() if found is not None}
    if not kept:
        return
    labels, scores = (np.concatenate([sites[name][part] for name in kept]) for part in (0, 1))
    exact, found = auroc(labels, scores), pooled_area(kept)
    if np.isnan(exact):
        assert np.isnan(found.value)
        return
    assert abs(found.value - exact) <= found.bound + ROUNDING
    assert 0.0 <= found.value <= 1.0


@given(seed=st.integers(0, 10_000), count=st.integers(2, 200), fewest=st.integers(1, 12), classes=st.integers(2, 3))
def test_no_group_tells_of_fewer(seed: int, count: int, fewest: int, classes: int) -> None:
    labels, scores = drawn(seed, count, classes, 1.0)
    found = histogram(labels, scores, fewest)
    sides = [int(side) for k in range(classes) for side in ((labels == k).sum(), (labels != k).sum())]
    if found is None:
        assert any(0 < side < fewest for side in sides)
        return
    for side in (found.positive, found.negative):
        assert ((side == 0) | (side >= fewest)).all()
        assert (side[found.starts == 0] == 0).all()
    assert (found.positive.sum(1) + found.negative.sum(1) == count).all()


def test_one_bin_counts_half_of_its_pairs() -> None:
    """By hand: 2 positives and 3 negatives, of which one pair of each side shares a bin: 1 of 6 pairs is not told."""
    labels = np.array([1, 1, 0, 0, 0])
    positives = np.array([0.905, 0.501, 0.509, 0.30, 0.10])
    found = pooled_area({"a": histogram(labels, two(positives), 1)})  # type: ignore[dict-item]
    assert found.value == pytest.approx(5.5 / 6)
    assert found.bound == pytest.approx(1 / (2 * 6))
    assert auroc(labels, two(positives)) == pytest.approx(5 / 6)  # the far end of the bound


def test_without_merging_the_bound_is_that_of_ties_within_bins() -> None:
    """sum of positives x negatives of each bin, over twice all pairs, whatever site an image is of."""
    sites = {name: drawn(seed, 150, 2, 1.0) for seed, name in enumerate("abc")}
    found = pooled_area({name: histogram(*site, 1) for name, site in sites.items()})  # type: ignore[misc]
    labels, scores = (np.concatenate([site[part] for site in sites.values()]) for part in (0, 1))
    bins = np.minimum((scores[:, 1] * BINS).astype(int), BINS - 1)
    p, n = (np.bincount(bins[labels == k], minlength=BINS) for k in (1, 0))
    assert found.bound == pytest.approx((p * n).sum() / (2 * p.sum() * n.sum()))


def test_merged_bins_widen_the_bound() -> None:
    labels, scores = drawn(1, 60, 2, 1.0)
    bounds = [pooled_area({"a": histogram(labels, scores, fewest)}).bound for fewest in (1, 5, 20)]  # type: ignore[dict-item]
    assert bounds[0] < bounds[1] < bounds[2] <= 0.5


def test_a_merged_group_of_one_site_overlaps_the_bins_of_another() -> None:
    """A positive in 0 to .5 and a negative at .255: no order is claimed; a negative at .755 lies above for certain."""
    blank = np.zeros((1, BINS), dtype=np.int64)
    every = np.ones((1, BINS), dtype=np.int64)
    halves = blank.copy()
    halves[0, [0, 50]] = 1
    merged = blank.copy()
    merged[0, 0] = 1
    low, high = blank.copy(), blank.copy()
    low[0, 25], high[0, 75] = 1, 1
    positives = Histogram(merged, blank, halves)
    assert vars(pooled_area({"a": positives, "b": Histogram(blank, low, every)})) == {"value": 0.5, "bound": 0.5}
    assert vars(pooled_area({"a": positives, "b": Histogram(blank, high, every)})) == {"value": 0.0, "bound": 0.0}


def test_too_few_images_tell_nothing() -> None:
    labels = np.array([1, 1, 0, 0, 0, 0, 0])
    scores = two(np.linspace(0.1, 0.9, 7))
    assert histogram(labels, scores, 3) is None
    assert histogram(labels, scores, 2) is not None
