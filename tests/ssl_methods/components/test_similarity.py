"""Cosine losses against numbers worked by hand, and what no gradient may reach."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssl_methods.components.similarity import as_float32, info_nce, negative_cosine, unit


def test_negative_cosine_by_hand_and_without_gradient_into_the_target() -> None:
    prediction = torch.tensor([[3.0, 4.0], [0.0, 2.0]], requires_grad=True)
    target = torch.tensor([[1.0, 0.0], [0.0, 5.0]], requires_grad=True)
    loss = negative_cosine(prediction, target)
    loss.backward()
    assert loss.item() == pytest.approx(-(0.6 + 1.0) / 2, rel=1e-6)
    assert prediction.grad is not None and target.grad is None


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_the_length_of_a_vector_does_not_matter(seed: int, scale: float) -> None:
    first, second = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert negative_cosine(first * scale, second).item() == pytest.approx(negative_cosine(first, second).item())
    torch.testing.assert_close(unit(first).norm(dim=1), torch.ones(4, dtype=torch.float64))


def test_info_nce_by_hand() -> None:
    similarity = torch.tensor([[1.0, 0.0, 5.0], [0.0, 0.0, 0.0], [9.0, 1.0, 2.0]])
    positive = torch.tensor([[True, False, False], [False, True, False], [False, True, False]])
    negative = torch.tensor([[False, True, False], [False, False, False], [False, False, True]])
    loss, counted = info_nce(similarity, positive, negative)
    # Anchor 0: e / (e + 1), the third candidate is neither; anchor 1 has no negative; anchor 2: e / (e + e^2).
    by_hand = (math.log(math.e + 1) - 1 + math.log(1 + math.e)) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert counted.tolist() == [True, False, True]


def test_half_precision_is_raised_and_double_is_kept() -> None:
    assert as_float32(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32
    assert as_float32(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
