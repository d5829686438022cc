"""L-DAWA against numpy, layer by layer, and where the authors' code would divide by 0."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from federation.algorithms.algorithm import Weights
from federation.algorithms.ldawa import LDAWA, LDAWAConfig, agreement

Make = Callable[..., Any]
SHAPES = {"encoder.w": (3, 4), "encoder.b": (4,), "encoder.scale": ()}
IMAGES = (5, 20, 11)


def rounds_of_replies(count: int = 2) -> list[list[dict[str, Any]]]:
    """About ones, with noise of their own; sites' directions differ, and some of the third's point away."""
    draw, signs = np.random.default_rng(4), (1.0, 1.0, -0.3)
    return [
        [{name: np.asarray(sign + draw.normal(size=shape)) for name, shape in SHAPES.items()} for sign in signs]
        for _ in range(count)
    ]


def start() -> Weights:
    return {name: torch.full(shape, 0.5, dtype=torch.float64) for name, shape in SHAPES.items()}


def ldawa(make: Make, normalised: bool, count: int = 2) -> Weights:
    weights = start()
    for replies in rounds_of_replies(count):
        replies_of_sites = make(*zip(IMAGES, replies, strict=True))
        weights, state = LDAWA(LDAWAConfig(normalised=normalised)).aggregate(weights, replies_of_sites, {})
        assert state == {}
    return weights


def numpys(normalised: bool, count: int = 2) -> dict[str, Any]:
    """One number after the other, by the paper's formula."""
    weights = {name: np.full(shape, 0.5) for name, shape in SHAPES.items()}
    for replies in rounds_of_replies(count):
        for name, shape in SHAPES.items():
            cosines = []
            for reply in replies:
                places = list(np.ndindex(shape))
                product = math.fsum(reply[name][p] * weights[name][p] for p in places)
                own = math.sqrt(math.fsum(reply[name][p] ** 2 for p in places))
                theirs = math.sqrt(math.fsum(weights[name][p] ** 2 for p in places))
                cosine = min(product / own / theirs, 1.0) if shape else 1.0
                cosines.append(max(cosine, 0.0) if normalised else cosine)
            divisor = sum(cosines) if normalised else len(replies)
            weights[name] = sum(c * reply[name] for c, reply in zip(cosines, replies, strict=True)) / divisor
    return weights


@pytest.mark.parametrize("normalised", [False, True], ids=["published", "normalised"])
def test_two_rounds_are_numpys(contributions: Make, normalised: bool) -> None:
    found, expected = ldawa(contributions, normalised), numpys(normalised)
    for name in SHAPES:
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=1e-12, atol=1e-13)


def test_the_setting_does_something(contributions: Make) -> None:
    one, other = ldawa(contributions, normalised=False), ldawa(contributions, normalised=True)
    assert not torch.allclose(one["encoder.w"], other["encoder.w"], atol=1e-2)
    assert LDAWAConfig().normalised is False


def test_by_hand(contributions: Make) -> None:
    """From (1, 0): A (3, 4) has cosine .6, B (2, 0) has 1. Published: ((1.8, 2.4) + (2, 0)) / 2; else / 1.6."""
    before, replies = {"w": torch.tensor([1.0, 0.0])}, contributions((1, {"w": [3.0, 4.0]}), (99, {"w": [2.0, 0.0]}))
    for normalised, expected in ((False, [1.9, 1.2]), (True, [3.8 / 1.6, 1.5])):
        weights, _ = LDAWA(LDAWAConfig(normalised=normalised)).aggregate(before, replies, {})
        assert weights["w"].tolist() == pytest.approx(expected)
        assert weights["w"].dtype == torch.float32


def test_the_cosine_is_at_most_1_and_1_for_scalars_and_zeros() -> None:
    draw = torch.Generator().manual_seed(0)
    for _ in range(50):
        value = torch.randn(7, generator=draw, dtype=torch.float64)
        assert 1 - 1e-12 < agreement(value * 3, value) <= 1.0
        assert agreement(-value, value) == pytest.approx(-1.0)
    assert agreement(torch.tensor(-2.0), torch.tensor(3.0)) == 1.0
    assert agreement(torch.zeros(3), torch.ones(3)) == agreement(torch.ones(3), torch.zeros(3)) == 1.0


@pytest.mark.parametrize("normalised", [False, True])
def test_a_bias_that_starts_at_zero_is_averaged(contributions: Make, normalised: bool) -> None:
    replies = contributions((1, {"b": [1.0, 3.0]}), (7, {"b": [3.0, -1.0]}))
    weights, _ = LDAWA(LDAWAConfig(normalised=normalised)).aggregate({"b": torch.zeros(2)}, replies, {})
    assert weights["b"].tolist() == [2.0, 1.0]


def test_where_all_sites_point_away_the_normalised_form_is_the_plain_mean(contributions: Make) -> None:
    replies = contributions((1, {"w": [-1.0, 3.0]}), (7, {"w": [-3.0, -1.0]}))
    weights, _ = LDAWA(LDAWAConfig(normalised=True)).aggregate({"w": torch.tensor([1.0, 0.0])}, replies, {})
    assert weights["w"].tolist() == [-2.0, 1.0]


def test_what_is_no_parameter_is_merged_and_averaged_by_images(contributions: Make) -> None:
    def state(mean: float, var: float, batches: int) -> dict[str, torch.Tensor]:
        return {
            "bn.weight": torch.full((2,), 1.0),
            "bn.running_mean": torch.full((2,), mean),
            "bn.running_var": torch.full((2,), var),
            "bn.num_batches_tracked": torch.tensor(batches),
            "steps": torch.tensor(batches),
        }

    before, replies = state(0.0, 1.0, 0), contributions((1, state(1.0, 2.0, 4)), (3, state(5.0, 2.0, 8)))
    weights, _ = LDAWA(LDAWAConfig()).aggregate(before, replies, {})
    assert weights["bn.running_mean"].tolist() == [4.0, 4.0]
    assert weights["bn.running_var"].tolist() == [5.0, 5.0]
    assert weights["bn.num_batches_tracked"].item() == weights["steps"].item() == 7
    assert weights["bn.weight"].tolist() == [1.0, 1.0]
    assert list(weights) == list(before)


def test_each_tensor_is_read_once(contributions: Make) -> None:
    replies = contributions((1, {"a": [1.0, 1.0]}), (1, {"a": [3.0, 1.0]}))
    LDAWA(LDAWAConfig()).aggregate({"a": torch.ones(2)}, replies, {})
    assert [reply.reads for reply in replies] == [["a"], ["a"]]
