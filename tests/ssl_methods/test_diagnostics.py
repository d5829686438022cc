"""Diagnostics on clouds of points whose values are known."""

import math

import pytest
import torch
from torch.nn import functional

from ssl_methods.diagnostics import alignment, feature_std, rankme, uniformity


def test_rankme_counts_equal_directions() -> None:
    basis = torch.eye(6)[:4]
    assert rankme(basis) == pytest.approx(4.0, rel=1e-4)
    assert rankme(basis * 100) == pytest.approx(4.0, rel=1e-4)
    assert rankme(torch.ones(10, 5)) == pytest.approx(1.0, abs=1e-4)


def test_rankme_is_the_entropy_of_unequal_directions() -> None:
    share = [0.5, 0.25, 0.25]
    entropy = -sum(p * math.log(p) for p in share)
    assert rankme(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_alignment_is_the_squared_distance_of_directions() -> None:
    first = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert alignment(first, first * 3) == pytest.approx(0.0, abs=1e-6)
    assert alignment(first, torch.tensor([[0.0, 5.0], [0.0, -1.0]])) == pytest.approx((2 + 4) / 2)


def test_uniformity_by_hand() -> None:
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-5)
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # 4 pairs at d^2 2, 2 pairs at 4
    expected = math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)
    assert uniformity(square) == pytest.approx(expected, rel=1e-5)


def test_feature_std_is_one_over_root_d_on_the_sphere_and_0_when_collapsed() -> None:
    spread = functional.normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert feature_std(spread * 7) == pytest.approx(1 / 4, rel=0.02)
    assert feature_std(torch.ones(10, 16)) == pytest.approx(0.0, abs=1e-6)
