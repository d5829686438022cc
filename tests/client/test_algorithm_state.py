"""What an algorithm keeps at a site: stored with the round, given back in the next one, over restarts and damage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import client.training.site_training
from client.site import Site
from federation.algorithms.algorithm import State, Weights
from federation.algorithms.fedavg import FedAvgConfig
from federation.algorithms.mean import MeanAlgorithm
from federation.records import TrainInstruction
from federation.study import Study
from foundation.tensor_files import load_tensors

NAME = "encoder.patch_embed.proj.weight"
Make = Callable[..., Any]


class Nudge(MeanAlgorithm, name="fedavg"):
    """Starts a round beside the received weights by what it kept: the round before and how far that had moved."""

    Config = FedAvgConfig
    started: ClassVar[list[tuple[int, int]]] = []

    def start(self, round_: int, received: Weights, kept: State) -> Weights:
        self.started.append((round_, int(kept.get("round", torch.tensor(0)))))
        return received | {NAME: received[NAME] + kept["moved"]} if kept else received

    def goes_on(self, round_: int, kept: State) -> bool:
        return int(kept.get("round", torch.tensor(0))) == round_ - 1

    def keep(self, round_: int, received: Weights, trained: Weights, kept: State) -> State:
        return {"round": torch.tensor(round_), "moved": trained[NAME] - received[NAME]}


@pytest.fixture(autouse=True)
def nudged(monkeypatch: pytest.MonkeyPatch) -> None:
    Nudge.started = []
    monkeypatch.setattr(client.training.site_training, "build_algorithm", Nudge)


@pytest.fixture
def rounds(study: Make, site: Make, instruction: Make, ijepa: dict[str, Any], restart: Callable[[], None]) -> Any:
    """``rounds(1, 2, 3)``: these rounds of a site that is started anew before each; the last update."""
    asked: Study = study(method=ijepa, training={"learning_rate": 0.1}, rounds={"count": 4})

    def go(*numbers: int, weights: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        for number in numbers:
            restart()
            here: Site = site(asked)
            sent: TrainInstruction = instruction(asked, number, weights)
            weights = here.train(sent).weights
        assert weights is not None
        return weights

    return go


def stored(tmp_path: Path, round_: int, name: str) -> Path:
    (path,) = tmp_path.glob(f"sites/A/state/*/round-{round_:05d}/{name}.safetensors")
    return path


def test_each_round_has_what_the_one_before_kept(rounds: Make, tmp_path: Path) -> None:
    first = rounds(1)
    kept = load_tensors(stored(tmp_path, 1, "algorithm"))[0]
    assert int(kept["round"]) == 1 and float(kept["moved"].abs().max()) > 0
    second = rounds(2, weights=first)
    assert Nudge.started == [(1, 0), (2, 1)]
    assert torch.equal(load_tensors(stored(tmp_path, 2, "algorithm"))[0]["moved"], second[NAME] - first[NAME])


def test_a_round_starts_from_what_the_algorithm_says(
    rounds: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = rounds(1)
    second = rounds(2, weights=first)
    stored(tmp_path, 2, "update").write_bytes(b"half")
    monkeypatch.setattr(Nudge, "start", MeanAlgorithm.start)
    assert not torch.equal(rounds(2, weights=first)[NAME], second[NAME])


@pytest.mark.parametrize("name", ["algorithm", "local"])
def test_a_damaged_round_is_trained_again_to_the_same_bits(rounds: Make, tmp_path: Path, name: str) -> None:
    first = rounds(1)
    second = rounds(2, weights=first)
    stored(tmp_path, 2, name).write_bytes(b"half")
    again = rounds(2, weights=first)
    assert all(torch.equal(second[key], again[key]) for key in second)
    assert Nudge.started == [(1, 0), (2, 1), (2, 1)]


def test_a_damaged_round_before_is_passed_over(rounds: Make, tmp_path: Path) -> None:
    second = rounds(1, 2)
    stored(tmp_path, 2, "algorithm").write_bytes(b"half")
    rounds(3, weights=second)
    assert Nudge.started[-1] == (3, 1)


def test_local_parts_are_made_anew_where_it_does_not_go_on(
    rounds: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I-JEPA's target follows from round to round; a site that missed round 2 begins with a copy in round 3."""
    first = rounds(1)
    made: list[int] = []
    monkeypatch.setattr("ssl_methods.predictive.ijepa.IJEPA.start_local_parts", lambda self: made.append(1))
    third = rounds(3, weights=first)
    assert made == [1]
    rounds(4, weights=third)
    assert made == [1]
