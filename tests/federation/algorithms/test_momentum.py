"""FedAvgM and DiLoCo: momentum at the server, against numpy and against torch's SGD."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federation.algorithms import build_algorithm
from federation.algorithms.algorithm import State, Weights
from federation.algorithms.diloco import DiLoCoConfig
from federation.algorithms.fedavg import FedAvg, FedAvgConfig
from federation.algorithms.fedavgm import FedAvgMConfig
from federation.study import study_from
from foundation.errors import StudyError
from foundation.tensor_files import load_tensors, save_tensors

Make = Callable[..., Any]
Config = FedAvgMConfig | DiLoCoConfig
SHAPES = {"encoder.w": (3, 4), "encoder.b": (4,), "encoder.scale": ()}
IMAGES = (5, 20, 11)
BOTH = [FedAvgMConfig(beta=0.8, server_learning_rate=0.5), DiLoCoConfig(outer_learning_rate=0.6, outer_momentum=0.7)]
both = pytest.mark.parametrize("config", BOTH, ids=["fedavgm", "diloco"])


def rounds_of_replies(count: int) -> list[list[dict[str, Any]]]:
    draw = np.random.default_rng(4)
    return [
        [
            {name: np.asarray(draw.normal(size=shape), dtype=np.float64) for name, shape in SHAPES.items()}
            for _ in IMAGES
        ]
        for _ in range(count)
    ]


def start() -> Weights:
    return {name: torch.full(shape, 0.5, dtype=torch.float64) for name, shape in SHAPES.items()}


def run(make: Make, config: Config, count: int, between: Callable[[State], State] = lambda state: state) -> Weights:
    weights, state = start(), {}
    for replies in rounds_of_replies(count):
        tensors = make(*zip(IMAGES, replies, strict=True))
        weights, state = build_algorithm(config).aggregate(weights, tensors, between(state))
    return weights


def numpys(config: Config, count: int) -> dict[str, Any]:
    """One number after the other, by the formulas of the papers."""
    weights = {name: np.full(shape, 0.5) for name, shape in SHAPES.items()}
    moments = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for replies in rounds_of_replies(count):
        for name, shape in SHAPES.items():
            for place in np.ndindex(shape):
                mean = sum(n * reply[name][place] for n, reply in zip(IMAGES, replies, strict=True)) / sum(IMAGES)
                d = weights[name][place] - mean
                if isinstance(config, FedAvgMConfig):
                    m = config.beta * moments[name][place] + d
                    step = config.server_learning_rate * m
                else:
                    m = config.outer_momentum * moments[name][place] + d
                    step = config.outer_learning_rate * (d + config.outer_momentum * m)
                moments[name][place] = m
                weights[name][place] -= step
    return weights


@both
def test_two_rounds_are_numpys(contributions: Make, config: Config) -> None:
    found, expected = run(contributions, config, 2), numpys(config, 2)
    for name in SHAPES:
        np.testing.assert_allclose(found[name].numpy(), expected[name], rtol=1e-13, atol=1e-14)


def test_two_rounds_by_hand(contributions: Make) -> None:
    """Means 2 and 3 from weight 1. FedAvgM: d -1, m -1, w 2; d -1, m -1.5, w 3.5."""

    def weight(config: Config) -> list[float]:
        weights, state, seen = {"w": torch.tensor(1.0)}, {}, []
        for mean in (2.0, 3.0):
            weights, state = build_algorithm(config).aggregate(weights, contributions((1, {"w": mean})), state)
            seen.append(round(weights["w"].item(), 6))
        return seen

    assert weight(FedAvgMConfig(beta=0.5)) == [2.0, 3.5]
    # DiLoCo, eta 1, beta .5: d -1, m -1, w 1 + 1 + .5 = 2.5; d -.5, m -1, w 2.5 + .5 + .5 = 3.5.
    assert weight(DiLoCoConfig(outer_learning_rate=1.0, outer_momentum=0.5)) == [2.5, 3.5]


@pytest.mark.parametrize("config", [FedAvgMConfig(), DiLoCoConfig()], ids=["fedavgm", "diloco"])
def test_the_defaults_are_torchs_sgd_on_the_update(contributions: Make, config: Config) -> None:
    parameters = {name: torch.nn.Parameter(value) for name, value in start().items()}
    if isinstance(config, DiLoCoConfig):
        optimiser = torch.optim.SGD(parameters.values(), lr=0.7, momentum=0.9, nesterov=True)
    else:
        optimiser = torch.optim.SGD(parameters.values(), lr=1.0, momentum=0.9)
    for replies in rounds_of_replies(3):
        for name, parameter in parameters.items():
            mean = np.average(np.stack([reply[name] for reply in replies]), axis=0, weights=IMAGES)
            parameter.grad = parameter.detach() - torch.from_numpy(np.asarray(mean))
        optimiser.step()
    found = run(contributions, config, 3)
    for name, parameter in parameters.items():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-12, atol=1e-13)


@both
def test_the_state_survives_the_disk_bit_for_bit(contributions: Make, config: Config, tmp_path: Path) -> None:
    def through_disk(state: State) -> State:
        save_tensors(tmp_path / "state", state)
        return load_tensors(tmp_path / "state")[0]

    whole, stored = run(contributions, config, 4), run(contributions, config, 4, through_disk)
    assert all(torch.equal(whole[name], stored[name]) for name in SHAPES)
    lost = run(contributions, config, 4, lambda state: {})
    assert not torch.allclose(whole["encoder.w"], lost["encoder.w"], atol=1e-3)


@both
def test_every_setting_does_something(contributions: Make, config: Config) -> None:
    for setting in type(config).model_fields.keys() - {"name"}:
        other = config.model_copy(update={setting: 0.3})
        one, two = run(contributions, config, 2), run(contributions, other, 2)
        assert not torch.allclose(one["encoder.w"], two["encoder.w"], atol=1e-4), setting


def test_without_momentum_it_is_fedavg(contributions: Make) -> None:
    draw = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(50, generator=draw)}
    replies = contributions(*((n, {"w": torch.randn(50, generator=draw)}) for n in (3, 5)))
    plain, _ = FedAvg(FedAvgConfig()).aggregate(before, replies, {})
    for config in (FedAvgMConfig(beta=0.0), DiLoCoConfig(outer_learning_rate=1.0, outer_momentum=0.0)):
        torch.testing.assert_close(build_algorithm(config).aggregate(before, replies, {})[0], plain, rtol=0, atol=1e-7)


@both
def test_only_parameters_are_stepped(contributions: Make, config: Config) -> None:
    def state(mean: float, var: float, batches: int) -> dict[str, torch.Tensor]:
        return {
            "bn.weight": torch.full((2,), mean + 1),
            "bn.running_mean": torch.full((2,), mean),
            "bn.running_var": torch.full((2,), var),
            "bn.num_batches_tracked": torch.tensor(batches),
        }

    before, replies = state(0.0, 1.0, 0), contributions((1, state(1.0, 2.0, 4)), (3, state(5.0, 2.0, 8)))
    moments: State = {}
    for _ in range(2):
        weights, moments = build_algorithm(config).aggregate(before, replies, moments)
        assert weights["bn.running_mean"].tolist() == [4.0, 4.0]
        assert weights["bn.running_var"].tolist() == [5.0, 5.0]  # 2 + 3/4 of 1 + 1/4 of 9
        assert weights["bn.num_batches_tracked"].item() == 7
        assert moments.keys() == {"bn.weight"}
        assert list(weights) == list(before)
    assert before["bn.weight"].tolist() == [1.0, 1.0]


def test_diloco_wants_the_inner_moments_kept(raw_study: dict[str, Any]) -> None:
    raw_study["algorithm"] = {"name": "diloco"}
    assert study_from(raw_study, "test").training.optimiser_state == "keep"
    raw_study["training"]["optimiser_state"] = "reset"
    with pytest.raises(StudyError) as caught:
        study_from(raw_study, "test")
    assert str(caught.value).endswith(
        "training.optimiser_state reset: algorithm 'diloco' has AdamW's moments stay at the sites from round to round: "
        "set it to keep, or choose fedavgm"
    )
