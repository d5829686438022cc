"""Diagnostics of features: numbers worked by hand, and the same ones as training tells."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.statistics import diagnostics
from evaluation.statistics.diagnostics import alignment, collapse, feature_spread, rankme, uniformity
from foundation.randomness import numpy_generator
from ssl_methods import diagnostics as in_training


def cloud(seed: int, count: int = 40, width: int = 6) -> np.ndarray:
    return numpy_generator(seed, "cloud").normal(size=(count, width))


def test_alignment_by_hand() -> None:
    first = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert alignment(first, 3 * first) == 0.0
    assert alignment(first, np.array([[0.0, 5.0], [0.0, -1.0]])) == pytest.approx((2 + 4) / 2)


def test_uniformity_by_hand() -> None:
    assert uniformity(np.ones((5, 3))) == pytest.approx(0.0, abs=1e-12)
    square = np.array([[1.0, 0.0], [0.0, 1.0], [-2.0, 0.0], [0.0, -1.0]])  # 4 pairs at d^2 2, 2 pairs at 4
    assert uniformity(square) == pytest.approx(math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6))
    assert uniformity(np.array([[0.0, 0.0], [0.0, 3.0]])) == pytest.approx(-2.0), "a row of zeros stays where it is"


def test_uniformity_of_one_image_is_not_a_number() -> None:
    assert math.isnan(uniformity(np.ones((1, 3))))


@given(st.integers(0, 1000), st.integers(2, 40), st.integers(1, 9))
def test_uniformity_does_not_depend_on_the_blocks(seed: int, count: int, rows: int) -> None:
    features = cloud(seed, count)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    pairs = [np.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i in range(count) for j in range(i)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "_ROWS_AT_ONCE", rows)
        assert uniformity(features) == pytest.approx(math.log(np.mean(pairs)), rel=1e-9, abs=1e-12)


def test_uniformity_of_many_images_is_that_of_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    features = cloud(0, 900)
    exact = uniformity(features)
    monkeypatch.setattr(diagnostics, "MOST_FOR_PAIRS", 400)
    assert uniformity(features) == uniformity(features)
    assert 0 < abs(uniformity(features) - exact) < 0.02 * abs(exact)


@given(st.integers(0, 1000))
def test_the_figures_are_those_of_training(seed: int) -> None:
    first, second = cloud(seed), cloud(seed + 1)
    one, two = torch.from_numpy(first), torch.from_numpy(second)
    assert rankme(first) == pytest.approx(in_training.rankme(one))
    assert alignment(first, second) == pytest.approx(in_training.alignment(one, two))
    assert uniformity(first) == pytest.approx(in_training.uniformity(one))


def test_collapse_is_a_small_spread_that_training_made() -> None:
    spread, narrow = cloud(0), np.ones((40, 6)) + 0.001 * cloud(1)
    assert feature_spread(narrow) < 0.1 < feature_spread(spread)
    assert collapse(narrow, started_from=spread)
    assert not collapse(spread, started_from=spread)
    assert not collapse(narrow, started_from=narrow), "nearly empty images lie close together from the start"


def test_a_lost_spread_that_is_still_wide_is_no_collapse() -> None:
    half = np.ones((40, 6)) + 0.5 * cloud(1)
    assert 0.1 < feature_spread(half) < feature_spread(cloud(0))
    assert not collapse(half, started_from=cloud(0))
