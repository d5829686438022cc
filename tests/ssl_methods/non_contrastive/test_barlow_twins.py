"""Barlow Twins against its equations, channel by channel."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_methods.method import Batch, Method
from ssl_methods.non_contrastive import barlow_twins
from ssl_methods.non_contrastive.barlow_twins import barlow_loss


def slow_loss(first: Tensor, second: Tensor, weight: float) -> float:
    """Eq. 1 and 2 in Python numbers, after BatchNorm with biased variance."""

    def standardised(projections: Tensor) -> list[list[float]]:
        channels = []
        for values in projections.T.tolist():
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            channels.append([(value - mean) / math.sqrt(variance + 1e-5) for value in values])
        return channels

    total = 0.0
    for i, one in enumerate(standardised(first)):
        for j, other in enumerate(standardised(second)):
            c = sum(a * b for a, b in zip(one, other, strict=True)) / len(one)
            total += (1 - c) ** 2 if i == j else weight * c**2
    return total


def pair(seed: int, count: int = 6, width: int = 4) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return first, second + first


@given(seed=st.integers(0, 999), count=st.integers(2, 8), width=st.integers(1, 5))
def test_agrees_with_the_equations(seed: int, count: int, width: int) -> None:
    first, second = pair(seed, count, width)
    assert barlow_loss(first, second, 0.0051).item() == pytest.approx(slow_loss(first, second, 0.0051), rel=1e-9)


def test_the_gradient_is_the_slow_references_by_differences() -> None:
    first, second = pair(0)
    first.requires_grad_()
    barlow_loss(first, second, 0.0051).backward()
    assert first.grad is not None
    for place in ((0, 0), (5, 3)):
        moved = []
        for step in (1e-6, -1e-6):
            near = first.detach().clone()
            near[place] += step
            moved.append(slow_loss(near, second, 0.0051))
        assert first.grad[place].item() == pytest.approx((moved[0] - moved[1]) / 2e-6, rel=1e-4)


def test_by_hand_and_that_scale_and_shift_do_not_matter() -> None:
    # Two channels that are one: all four correlations are 1; the two on the diagonal cost nothing.
    line = torch.tensor([[-1.0, -1.0], [1.0, 1.0]]) * 1000
    assert barlow_loss(line, line * 5 + 3, 0.1).item() == pytest.approx(0.1 * 2, rel=1e-5)
    # Opposite views: the diagonal is at -1, twice (1 + 1)^2.
    assert barlow_loss(line, -line, 0.1).item() == pytest.approx(2 * 4 + 0.1 * 2, rel=1e-5)


def test_unbiased_deviations_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        barlow_twins, "_standardised", lambda rows: (rows - rows.mean(dim=0)) / (rows.var(dim=0) + 1e-5).sqrt()
    )
    first, second = pair(0)
    assert barlow_loss(first, second, 0.0051).item() != pytest.approx(slow_loss(first, second, 0.0051), rel=1e-3)


def test_half_precision_is_computed_in_full() -> None:
    first, second = (each.bfloat16() for each in pair(0))
    with torch.autocast("cpu", torch.bfloat16):
        loss = barlow_loss(first, second, 0.0051)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(slow_loss(first.double(), second.double(), 0.0051), rel=1e-5)


def test_the_method_compares_the_projections_of_its_views(
    build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    method = build("barlow_twins", projection=8, redundancy=0.5).train()
    views = method.make_views(blobs(6), torch.Generator().manual_seed(0))
    first, second = (method.output(method.encoder(views[view])).detach().double() for view in ("first", "second"))
    assert method.loss(views)[0].item() == pytest.approx(slow_loss(first, second, 0.5), rel=1e-4)
