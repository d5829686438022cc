"""FedProx: its term and its gradient by hand. What it does to a site is in tests/client/training/test_round.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from federation.algorithms.fedavg import FedAvg, FedAvgConfig
from federation.algorithms.fedprox import FedProx, FedProxConfig


def test_the_term_and_its_gradient_by_hand() -> None:
    trained = {"a": torch.tensor([1.0, 2.0], requires_grad=True), "b": torch.tensor([[3.0]], requires_grad=True)}
    received = {"a": torch.tensor([0.0, 4.0]), "b": torch.tensor([[3.0]])}
    term = FedProx(FedProxConfig(mu=0.5)).penalty(trained, received)
    assert term is not None
    assert term.item() == 1.25  # 0.5 / 2 * (1 + 4 + 0)
    term.backward()  # type: ignore[no-untyped-call]  # torch declares no types for it
    assert trained["a"].grad is not None
    assert trained["a"].grad.tolist() == [0.5, -1.0]  # mu (w - w_t)
    assert trained["b"].grad is not None
    assert trained["b"].grad.tolist() == [[0.0]]


def test_without_mu_there_is_no_term() -> None:
    assert FedProx(FedProxConfig(mu=0.0)).penalty({"a": torch.ones(1)}, {"a": torch.zeros(1)}) is None
    assert FedAvg(FedAvgConfig()).penalty({"a": torch.ones(1)}, {"a": torch.zeros(1)}) is None


def test_a_negative_pull_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        FedProxConfig(mu=-1.0)


def test_the_aggregation_is_fedavgs(contributions: Callable[..., Any]) -> None:
    draw = torch.Generator().manual_seed(0)
    replies = contributions(*((n, {"w": torch.randn(9, generator=draw)}) for n in (3, 5, 9)))
    before = {"w": torch.zeros(9)}
    ours, _ = FedProx(FedProxConfig(mu=0.3)).aggregate(before, replies, {})
    theirs, _ = FedAvg(FedAvgConfig()).aggregate(before, replies, {})
    assert torch.equal(ours["w"], theirs["w"])
