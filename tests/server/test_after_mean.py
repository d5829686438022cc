"""What an algorithm makes of the mean, where the mean is the sites', has noise on it, or came from under masks."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import server.rounds
import server.site_noise
from federation.algorithms.algorithm import State, Weights
from federation.algorithms.fedavg import FedAvgConfig
from federation.algorithms.mean import MeanAlgorithm, mean_of
from federation.audit.log import AuditLog
from federation.records import TrainInstruction, TrainReply
from federation.study import Study, study_from
from server.checkpoint import latest_checkpoint
from server.rounds import RoundLoop, RunRecords
from server.secure_round import Mean

INITIAL = {
    "encoder.w": torch.ones(4),
    "encoder.running_mean": torch.zeros(2),
    "encoder.running_var": torch.ones(2),
    "encoder.count": torch.tensor(0),
}
SITES = ("A", "B", "C")
KINDS = ("plain", "noised", "masked")


class Overshoot(MeanAlgorithm, name="fedavg"):
    """Goes 1.5 of the way to the mean and adds the sum of all earlier ways, which its state holds."""

    Config = FedAvgConfig

    def after_mean(self, weights: Weights, mean: Weights, state: State) -> tuple[Weights, State]:
        way = mean["encoder.w"] - weights["encoder.w"]
        before = state.get("way", torch.zeros(4))
        return mean | {"encoder.w": weights["encoder.w"] + 1.5 * way + before}, {"way": before + way}


def answer(instruction: TrainInstruction, site: str) -> TrainReply:
    weights = dict(instruction.weights)
    if instruction.round <= 3:  # what follows is the exchange of statistics
        weights["encoder.w"] = weights["encoder.w"] * 0.5 + ord(site) / 100
    return TrainReply(instruction.study_hash, instruction.round, site, 1, weights)


class Masked:
    """Stands in for the sums: the mean of the same answers."""

    fewest = 3

    def __init__(self, study: Study) -> None:
        self._hash = study.training_hash()

    def mean(self, round_: int, weights: Weights, sites: Sequence[str], quorum: int) -> Mean:
        instruction = TrainInstruction(self._hash, round_, weights)
        return Mean(mean_of(weights, [_Reply(answer(instruction, site)) for site in sites]), tuple(sites), {})


class _Reply:
    def __init__(self, reply: TrainReply) -> None:
        self.site, self.images, self._weights = reply.site, reply.images, reply.weights

    def tensor(self, name: str) -> torch.Tensor:
        return self._weights[name]

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self._weights[name].reshape(-1)[start:stop]


class Killed(BaseException):
    """Nothing in the product catches it."""


Run = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def run(tmp_path: Path, raw_study: dict[str, Any], script: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``run("masked", killed_in=2)``: the loop in a folder of its kind, stopped in a round where one is given."""
    monkeypatch.setattr(server.rounds, "build_algorithm", Overshoot)
    monkeypatch.setattr(server.site_noise.noise, "noised", lambda value, std: value)
    raw_study["rounds"] = {"count": 3, "deadline_minutes": 1}
    raw_study["training"] |= {"epochs": None, "steps": 1}

    def go(kind: str, folder: str = "run", killed_in: int = 0) -> dict[str, torch.Tensor]:
        private = {"unit": "site", "epsilon": 20.0, "delta": 1e-3, "sites": 3, "clip": 10.0}
        study = study_from(raw_study | ({"privacy": private} if kind == "noised" else {}), "test")

        def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
            if instruction.round == killed_in:
                raise Killed
            reply = answer(instruction, site)
            return TrainReply(reply.study_hash, reply.round, site, 1, {} if kind == "masked" else reply.weights)

        place = tmp_path / kind / folder
        records = RunRecords(place, AuditLog(place / "audit.jsonl", "server"))
        secure: Any = Masked(study) if kind == "masked" else None
        initial = {name: value.clone() for name, value in INITIAL.items()}
        weights = RoundLoop(study, records, script(study, SITES, act), initial, secure).run()
        found = latest_checkpoint(place / "checkpoints", study.training_hash())
        assert found is not None
        return weights | {f"state/{name}": value for name, value in found.algorithm.items()}

    return go


@pytest.mark.parametrize("kind", KINDS)
def test_three_rounds_by_hand(run: Run, kind: str) -> None:
    """The exchange of statistics after them, where there is one, is no round: nothing is stepped in it."""
    weights = run(kind)
    value, ways = 1.0, 0.0
    for _ in range(3):
        way = value * 0.5 + 0.66 - value
        value, ways = value + 1.5 * way + ways, ways + way
    assert weights["encoder.w"].tolist() == pytest.approx([value] * 4, rel=1e-6)
    assert weights["state/way"].tolist() == pytest.approx([ways] * 4, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("killed_in", [2, 3])
def test_its_state_is_in_the_checkpoint(run: Run, kind: str, killed_in: int) -> None:
    whole = run(kind)
    with pytest.raises(Killed):
        run(kind, "killed", killed_in)
    resumed = run(kind, "killed")
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
