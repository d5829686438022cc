"""One step a round is pooled training: K sites over the whole loop end with the pooled weights, in float64.

MAE's loss is a mean over images, so that the mean of the sites' gradients, counted by images, is the pooled gradient.
Sites take plain SGD in place of AdamW, each image's masks are given, and nothing is augmented.
"""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import client.training.round
from client.training.round import TrainingContext, train_round
from federation.algorithms import build_algorithm
from federation.audit.log import AuditLog
from federation.records import TrainInstruction, TrainReply
from federation.study import Study, study_from
from foundation.schedules import warmup_cosine
from server.rounds import RoundLoop, RunRecords
from ssl_methods import build_method
from ssl_methods.method import Batch, Method
from ssl_methods.reconstruction.mae import MAE

ROUNDS, PATCHES, VISIBLE, BATCH, RATE = 5, 16, 4, 64, 2.0
SITES = {"A": [0, 1, 2, 3], "B": [4, 5, 6], "C": [7, 8]}
EVERYTHING = [image for images in SITES.values() for image in images]
DRAW = torch.Generator().manual_seed(3)
IMAGES = torch.rand(len(EVERYTHING), 1, 32, 32, generator=DRAW, dtype=torch.float64)
MASKS = torch.stack([torch.randperm(PATCHES, generator=DRAW) for _ in range(ROUNDS * len(EVERYTHING))])
MASKS = MASKS.reshape(ROUNDS, len(EVERYTHING), PATCHES)


def views_of(images: Tensor, round_: int) -> dict[str, Tensor]:
    order = MASKS[round_ - 1][images]
    return {"images": IMAGES[images], "keep": order[:, :VISIBLE], "masked": order[:, VISIBLE:]}


class Store:
    """Some of the images; each is its own patient, so that a batch tells which it has."""

    def __init__(self, images: list[int]) -> None:
        self.patients = self.studies = self.series = np.array(images)

    def __len__(self) -> int:
        return len(self.patients)

    def stored(self, chosen: Any) -> Tensor:
        return torch.zeros(len(chosen), 1, dtype=torch.uint16)  # not looked at: ``views_of`` has the images


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """SGD for AdamW, and the masks of ``now.round``."""
    now = SimpleNamespace(round=0)

    def build(method: Method, training: Any) -> torch.optim.SGD:
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in method.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(method.part_of(name), []).append(parameter)
        return torch.optim.SGD([{"params": v, "part": k, "decays": False} for k, v in groups.items()], lr=0.0)

    def make_views(self: MAE, batch: Batch, generator: Any) -> dict[str, Tensor]:
        return views_of(batch.patients, now.round)

    monkeypatch.setattr(client.training.round, "build_optimiser", build)
    monkeypatch.setattr(client.training.round, "feature_diagnostics_of", lambda context, round_: {})
    monkeypatch.setattr(MAE, "make_views", make_views)
    return now


def model(study: Study) -> Method:
    return build_method(study.method, study.encoder, study.image, study.seed).double()


def pooled(study: Study, optimiser: Callable[[list[Tensor]], torch.optim.SGD]) -> dict[str, Tensor]:
    """All images at one place: a step a round, the gradient counted by the round's rate."""
    method = model(study)
    trained = [p for p in method.parameters() if p.requires_grad]
    step = optimiser(trained)
    for round_ in range(1, ROUNDS + 1):
        step.zero_grad()
        loss: Tensor = method.loss(views_of(torch.tensor(EVERYTHING), round_))[0]
        torch.autograd.backward(loss)
        rate = warmup_cosine((round_ - 0.5) / ROUNDS, RATE * BATCH / 256, warmup=study.training.warmup)
        for parameter in trained:
            assert parameter.grad is not None
            parameter.grad *= rate
        step.step()
    return method.shared_state()


CASES: dict[str, tuple[dict[str, Any], Callable[[list[Tensor]], torch.optim.SGD]]] = {
    "fedavg": ({"name": "fedavg"}, lambda p: torch.optim.SGD(p, lr=1.0)),
    "fedprox": ({"name": "fedprox", "mu": 0.5}, lambda p: torch.optim.SGD(p, lr=1.0)),
    "fedavgm": (
        {"name": "fedavgm", "beta": 0.8, "server_learning_rate": 0.5},
        lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.8),
    ),
    "diloco": ({"name": "diloco"}, lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)),
}


@pytest.mark.parametrize("case", CASES)
def test_k_sites_are_one(
    raw_study: dict[str, Any], tmp_path: Path, script: Any, plain: SimpleNamespace, case: str
) -> None:
    algorithm, optimiser = CASES[case]
    raw_study["training"] = {"epochs": None, "steps": 1, "batch": BATCH, "learning_rate": RATE}
    study = study_from(raw_study | {"algorithm": algorithm, "rounds": {"count": ROUNDS, "deadline_minutes": 1}}, "test")
    method = model(study)
    initial = {name: value.clone() for name, value in method.shared_state().items()}

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        plain.round, store = instruction.round, Store(SITES[site])
        method.load_state_dict(instruction.weights)
        context: Any = TrainingContext(
            study, method, build_algorithm(study.algorithm), store, site, torch.device("cpu")  # type: ignore[arg-type]
        )  # fmt: skip
        train_round(context, instruction.round, {})
        weights = {name: value.clone() for name, value in method.shared_state().items()}
        return TrainReply(instruction.study_hash, instruction.round, site, len(store), weights)

    records = RunRecords(tmp_path, AuditLog(tmp_path / "audit.jsonl", "server"))
    found = RoundLoop(study, records, script(study, tuple(SITES), act), initial).run()
    expected = pooled(study, optimiser)
    assert found.keys() == expected.keys()
    moved = max(float((expected[name] - initial[name]).abs().max()) for name in expected)
    assert moved > 0.01  # or equality would say nothing
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10)
