"""CKA against the definition, pair by pair, and what it must not see."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.statistics.similarity import linear_cka
from foundation.randomness import numpy_generator


def table(seed: int, count: int = 30, width: int = 5) -> np.ndarray:
    return numpy_generator(seed, "table").normal(size=(count, width))


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """Song et al. 2012: a mean over all pairs, quadruples and triples of different images."""
    count = len(k)
    pairs = np.mean([k[i, j] * l[i, j] for i, j in permutations(range(count), 2)])
    quadruples = np.mean([k[i, j] * l[q, r] for i, j, q, r in permutations(range(count), 4)])
    triples = np.mean([k[i, j] * l[i, q] for i, j, q in permutations(range(count), 3)])
    return float(pairs + quadruples - 2 * triples)


@pytest.mark.parametrize("count", [4, 5, 7])
def test_is_the_mean_over_different_images(count: int) -> None:
    x, y = table(1, count, 3) + 2, table(2, count, 4) * 9
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert linear_cka(x, y) == pytest.approx(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)))


def test_by_hand() -> None:
    """Of images at 0, 0, 1, 1 and at 0, 1, 0, 1: no pair is near in both."""
    first, second = np.array([[0.0], [0.0], [1.0], [1.0]]), np.array([[0.0], [1.0], [0.0], [1.0]])
    # Centred to -1/2 and 1/2: k_i = l_i = 1/4, |X^T Y|^2 = 0 and |X^T X|^2 = 1, so with n = 4
    # HSIC(X, Y) ~ 0 - 2 * 1/4 + 1/6 = -1/3 and HSIC(X, X) ~ 1 - 2 * 1/4 + 1/6 = 2/3.
    assert linear_cka(first, second) == pytest.approx(-0.5)


@given(st.integers(0, 1000), st.integers(5, 40), st.integers(1, 60), st.floats(0.001, 1000))
def test_one_with_what_is_only_turned_scaled_and_shifted(seed: int, count: int, width: int, scale: float) -> None:
    x = table(seed, count, width)
    turned = np.linalg.qr(numpy_generator(seed, "turn").normal(size=(width, width)))[0]
    assert linear_cka(x, x) == pytest.approx(1.0)
    assert linear_cka(x, scale * x @ turned + 3) == pytest.approx(1.0)


@given(st.integers(0, 1000), st.integers(4, 30))
def test_symmetric_bounded_and_blind_to_the_order_of_images(seed: int, count: int) -> None:
    x, y = table(seed, count), table(seed + 1, count, 8)
    found = linear_cka(x, y)
    order = numpy_generator(seed, "order").permutation(count)
    assert -1 - 1e-9 <= found <= 1 + 1e-9
    assert linear_cka(y, x) == pytest.approx(found)
    assert linear_cka(x[order], y[order]) == pytest.approx(found)


def test_about_0_for_independent_features_even_with_more_columns_than_images() -> None:
    found = [linear_cka(table(2 * n, 30, 300), table(2 * n + 1, 30, 300)) for n in range(40)]
    assert abs(np.mean(found)) < 0.02
    assert linear_cka(table(0, 3000), table(1, 3000)) == pytest.approx(0.0, abs=0.01)


def test_not_a_number_where_there_is_nothing_to_compare() -> None:
    assert math.isnan(linear_cka(table(0, 3), table(1, 3)))
    assert math.isnan(linear_cka(np.full((9, 2), 0.1), table(1, 9)))
