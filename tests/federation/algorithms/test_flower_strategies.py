"""Flower's strategies behind our adapter, against numpy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federation.algorithms.flower_strategies import FedAdam, FedAdamConfig, FedMedian, FedMedianConfig
from foundation.tensor_files import load_tensors, save_tensors

Make = Callable[..., Any]
SHAPES = {"encoder.w": (3, 4), "encoder.b": (4,), "encoder.scale": ()}
IMAGES = (5, 20, 11)


def rounds_of_replies(count: int = 3) -> list[list[dict[str, np.ndarray[Any, Any]]]]:
    draw = np.random.default_rng(4)
    return [
        [
            {name: np.asarray(draw.normal(size=shape), dtype=np.float32) for name, shape in SHAPES.items()}
            for _ in IMAGES
        ]
        for _ in range(count)
    ]


class NumpyAdam:
    """Reddi et al. 2021, algorithm 2 (FedAdam), with Adam's bias correction as Flower 1.41 has it: exponent t + 1."""

    def __init__(self, eta: float, beta_1: float, beta_2: float, tau: float) -> None:
        self.eta, self.beta_1, self.beta_2, self.tau = eta, beta_1, beta_2, tau
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.t = 0

    def step(self, x: np.ndarray[Any, Any], replies: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        delta = np.average(np.float64(replies), axis=0, weights=IMAGES) - x
        self.t += 1
        self.m = self.beta_1 * self.m + (1 - self.beta_1) * delta
        self.v = self.beta_2 * self.v + (1 - self.beta_2) * delta**2
        rate = self.eta * np.sqrt(1 - self.beta_2 ** (self.t + 1)) / (1 - self.beta_1 ** (self.t + 1))
        return np.float32(x + rate * self.m / (np.sqrt(self.v) + self.tau))


def start() -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, 0.5) for name, shape in SHAPES.items()}


def replies_for(contributions: Make, replies: list[dict[str, Any]]) -> Any:
    return contributions(*zip(IMAGES, replies, strict=True))


CONFIG = FedAdamConfig(server_learning_rate=0.03, beta_1=0.8, beta_2=0.95, tau=0.01)


def test_fedadam_is_numpys_adam_over_three_rounds(contributions: Make) -> None:
    reference = {name: NumpyAdam(0.03, 0.8, 0.95, 0.01) for name in SHAPES}
    weights, state = start(), {}
    expected = {name: value.numpy() for name, value in weights.items()}
    for replies in rounds_of_replies():
        weights, state = FedAdam(CONFIG).aggregate(weights, replies_for(contributions, replies), state)
        for name, shape in SHAPES.items():
            expected[name] = reference[name].step(expected[name], [reply[name] for reply in replies])
            assert weights[name].dtype == torch.float32
            assert weights[name].shape == shape
            np.testing.assert_allclose(weights[name].numpy(), expected[name], rtol=2e-5, atol=2e-6)
    assert int(state["rounds"]) == 3
    assert set(state) == {"rounds", *(f"{m}/{name}" for m in ("m_t", "v_t") for name in SHAPES)}


def test_fedadam_goes_on_from_stored_state_bit_for_bit(contributions: Make, tmp_path: Path) -> None:
    def run(stored: bool) -> dict[str, torch.Tensor]:
        weights, state = start(), {}
        for replies in rounds_of_replies(4):
            weights, state = FedAdam(CONFIG).aggregate(weights, replies_for(contributions, replies), state)
            if stored:
                save_tensors(tmp_path / "state", state)
                state, _ = load_tensors(tmp_path / "state")
        return weights

    through_disk, uninterrupted = run(stored=True), run(stored=False)
    assert all(torch.equal(through_disk[name], uninterrupted[name]) for name in SHAPES)


def test_fedadam_without_its_state_goes_elsewhere(contributions: Make) -> None:
    weights, state = start(), {}
    first, second = rounds_of_replies(2)
    weights, state = FedAdam(CONFIG).aggregate(weights, replies_for(contributions, first), state)
    with_state, _ = FedAdam(CONFIG).aggregate(weights, replies_for(contributions, second), state)
    without, _ = FedAdam(CONFIG).aggregate(weights, replies_for(contributions, second), {})
    assert not torch.allclose(with_state["encoder.w"], without["encoder.w"], atol=1e-4)


@pytest.mark.parametrize("setting", ["server_learning_rate", "beta_1", "beta_2", "tau"])
def test_every_setting_of_fedadam_does_something(contributions: Make, setting: str) -> None:
    def run(config: FedAdamConfig) -> torch.Tensor:
        weights, state = start(), {}
        for replies in rounds_of_replies(2):
            weights, state = FedAdam(config).aggregate(weights, replies_for(contributions, replies), state)
        return weights["encoder.w"]

    other = CONFIG.model_copy(update={setting: 0.5})
    assert not torch.allclose(run(CONFIG), run(other), atol=1e-5)


def statistics(mean: float, var: float, batches: int) -> dict[str, torch.Tensor]:
    return {
        "bn.weight": torch.full((2,), mean + 1),
        "bn.running_mean": torch.full((2,), mean),
        "bn.running_var": torch.full((2,), var),
        "bn.num_batches_tracked": torch.tensor(batches),
    }


@pytest.mark.parametrize("algorithm", [FedAdam(CONFIG), FedMedian(FedMedianConfig())], ids=["fedadam", "fedmedian"])
def test_norm_statistics_are_merged_and_counters_averaged(contributions: Make, algorithm: Any) -> None:
    """Stepping a variance with Adam can make it negative; a median of counters means nothing."""
    before = statistics(0.0, 1.0, 0)
    replies = contributions((1, statistics(1.0, 2.0, 4)), (1, statistics(3.0, 6.0, 5)), (2, statistics(8.0, 8.0, 9)))
    weights, state = algorithm.aggregate(before, replies, {})
    assert weights["bn.running_mean"].tolist() == [5.0, 5.0]  # (1 + 3 + 16) / 4
    assert weights["bn.running_var"].tolist() == [15.5, 15.5]  # mean 6, and (16 + 4 + 18) / 4 between the sites
    assert weights["bn.num_batches_tracked"].item() == 7  # 27 / 4 = 6.75
    assert weights["bn.num_batches_tracked"].dtype == torch.int64
    assert list(weights) == list(before)
    assert not any("running" in name or "tracked" in name for name in state)
    assert not torch.equal(weights["bn.weight"], before["bn.weight"])


def test_fedmedian_is_numpys_median(contributions: Make) -> None:
    (replies,) = rounds_of_replies(1)
    weights, state = FedMedian(FedMedianConfig()).aggregate(start(), replies_for(contributions, replies), {})
    for name in SHAPES:
        np.testing.assert_array_equal(weights[name].numpy(), np.median([r[name] for r in replies], axis=0))
    assert set(state) == {"rounds"}


def test_fedmedian_of_an_even_number(contributions: Make) -> None:
    replies = contributions(*((1, {"w": value}) for value in (1.0, 100.0, 2.0, 4.0)))
    weights, _ = FedMedian(FedMedianConfig()).aggregate({"w": torch.tensor(0.0)}, replies, {})
    assert weights["w"].item() == 3.0


def test_one_wild_site_moves_the_median_little_and_images_do_not_count(contributions: Make) -> None:
    replies = contributions((10**6, {"w": 1e9}), (1, {"w": 1.0}), (1, {"w": 1.5}))
    weights, _ = FedMedian(FedMedianConfig()).aggregate({"w": torch.tensor(0.0)}, replies, {})
    assert weights["w"].item() == 1.5


def test_a_median_needs_three() -> None:
    assert FedMedian.fewest_replies == 3
    assert FedAdam.fewest_replies == 1


def test_folding_changes_neither_weights_nor_state(contributions: Make) -> None:
    first, second = rounds_of_replies(2)
    weights, state = FedAdam(CONFIG).aggregate(start(), replies_for(contributions, first), {})
    kept_weights = {name: value.clone() for name, value in weights.items()}
    kept_state = {name: value.clone() for name, value in state.items()}
    FedAdam(CONFIG).aggregate(weights, replies_for(contributions, second), state)
    assert all(torch.equal(weights[name], value) for name, value in kept_weights.items())
    assert all(torch.equal(state[name], value) for name, value in kept_state.items())
