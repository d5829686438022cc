"""FedAvg against numbers worked by hand."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.algorithms import ALGORITHMS, algorithm, algorithm_type, build_algorithm
from federation.algorithms.algorithm import average, is_parameter
from federation.algorithms.fedavg import FedAvg, FedAvgConfig

Make = Callable[..., Any]


def aggregate(before: dict[str, torch.Tensor], replies: Any) -> dict[str, torch.Tensor]:
    weights, state = FedAvg(FedAvgConfig()).aggregate(before, replies, {})
    assert state == {}
    return weights


def test_each_site_counts_by_its_images(contributions: Make) -> None:
    before = {"w": torch.zeros(2), "b": torch.zeros(())}
    replies = contributions(
        (10, {"w": [1.0, 2.0], "b": 4.0}),
        (30, {"w": [5.0, -2.0], "b": 0.0}),
    )
    aggregated = aggregate(before, replies)
    assert aggregated["w"].tolist() == [4.0, -1.0]  # 1/4 [1, 2] + 3/4 [5, -2]
    assert aggregated["b"].item() == 1.0
    assert [value.dtype for value in aggregated.values()] == [torch.float32, torch.float32]
    assert list(aggregated) == list(before)


def test_one_site_gives_its_own_weights_bit_for_bit(contributions: Make) -> None:
    value = torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(aggregate({"w": torch.zeros(50)}, contributions((7, {"w": value})))["w"], value)


def test_counters_are_averaged_and_rounded(contributions: Make) -> None:
    replies = contributions(
        (1, {"n": torch.tensor(10), "c": torch.tensor([2, -3], dtype=torch.int32)}),
        (2, {"n": torch.tensor(12), "c": torch.tensor([3, -4], dtype=torch.int32)}),
    )
    aggregated = aggregate({"n": torch.tensor(0), "c": torch.zeros(2, dtype=torch.int32)}, replies)
    assert aggregated["n"].item() == 11  # 34 / 3 = 11.33
    assert aggregated["n"].dtype == torch.int64
    assert aggregated["c"].tolist() == [3, -4]  # 8 / 3 = 2.67 is not cut to 2
    assert aggregated["c"].dtype == torch.int32


def test_sums_are_in_float64(contributions: Make) -> None:
    """In float32 the 1 is lost beside 1e8: 1e8 + 1 - 1e8 = 0."""
    replies = contributions((1, {"w": 1e8}), (1, {"w": 1.0}), (1, {"w": -1e8}))
    lost = torch.tensor(1e8) + torch.tensor(1.0) + torch.tensor(-1e8)
    assert lost.item() == 0.0
    assert aggregate({"w": torch.tensor(0.0)}, replies)["w"].item() == pytest.approx(1 / 3)


@given(
    st.lists(
        st.tuples(st.integers(1, 10**6), st.floats(-1e6, 1e6, width=32)),
        min_size=1,
        max_size=6,
    )
)
def test_the_mean_lies_between_the_sites(sites: list[tuple[int, float]]) -> None:
    replies = [_Number(images, value) for images, value in sites]
    mean = average("w", torch.tensor(0.0), replies).item()
    values = [value for _, value in sites]
    exact = np.average(np.float64(values), weights=[images for images, _ in sites])
    assert mean == pytest.approx(float(np.float32(exact)), rel=1e-6, abs=1e-9)
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


class _Number:
    def __init__(self, images: int, value: float) -> None:
        self.site, self.images, self._value = "A", images, value

    def tensor(self, _: str) -> torch.Tensor:
        return torch.tensor(self._value)

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.tensor(name).reshape(-1)[start:stop]


def test_each_tensor_is_read_once_and_none_is_changed(contributions: Make) -> None:
    """An aggregation holds one model plus one tensor: reading twice would read the reply store twice."""
    before = {"a": torch.zeros(2), "b": torch.ones(2)}
    replies = contributions((1, {"a": [1.0, 1.0], "b": [2.0, 2.0]}), (1, {"a": [3.0, 1.0], "b": [0.0, 2.0]}))
    aggregate(before, replies)
    assert [reply.reads for reply in replies] == [["a", "b"], ["a", "b"]]
    assert before["a"].tolist() == [0, 0]
    assert replies[0].weights["a"].tolist() == [1, 1]


def test_what_a_server_optimiser_may_step() -> None:
    assert is_parameter("encoder.bn1.weight", torch.ones(2))
    assert not is_parameter("encoder.bn1.running_mean", torch.ones(2))
    assert not is_parameter("encoder.bn1.running_var", torch.ones(2))
    assert not is_parameter("encoder.bn1.num_batches_tracked", torch.tensor(3))
    assert not is_parameter("steps", torch.tensor(3))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_is_built_from_its_own_section(name: str) -> None:
    config = algorithm_type(name).Config.model_validate({"name": name})
    built = build_algorithm(config)
    assert type(built) is algorithm_type(name)
    assert built.summary
    assert built.paper
    assert built.fewest_replies >= 1


@given(st.integers(1, 7), st.integers(1, 40))
def test_pieces_change_no_bit(piece: int, numbers: int) -> None:
    """However a tensor is cut, every number is the float64 sum of the sites' numbers in the order given."""
    draw = torch.Generator().manual_seed(numbers)
    values = [torch.randn(numbers, generator=draw) for _ in range(3)]
    replies = [_Tensor(images, value) for images, value in zip((3, 5, 11), values, strict=True)]
    with mock.patch.object(algorithm, "_PIECE", piece):
        found = average("w", torch.zeros(numbers), replies)
    exact = sum((value.double() * (n / 19) for n, value in zip((3, 5, 11), values, strict=True)), torch.zeros(()))
    torch.testing.assert_close(found, exact.float(), rtol=2e-7, atol=0)
    assert torch.equal(found, average("w", torch.zeros(numbers), replies))


class _Tensor:
    def __init__(self, images: int, value: torch.Tensor) -> None:
        self.site, self.images, self._value = "A", images, value

    def tensor(self, _: str) -> torch.Tensor:
        return self._value

    def piece(self, _: str, start: int, stop: int) -> torch.Tensor:
        return self._value[start:stop]
