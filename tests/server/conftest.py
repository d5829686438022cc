"""A federation without training: sites that answer by a script."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import server.fleet_channel
import server.site_channel
from federation.audit.log import AuditLog
from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply
from federation.study import Study, study_from
from foundation.files import read_jsonl
from server import rounds
from server.rounds import RoundLoop, RunRecords

Answer = TrainReply | Failure | None
INITIAL = {"encoder.w": torch.zeros(4), "encoder.count": torch.tensor(0)}
IMAGES = {"A": 10, "B": 20, "C": 30, "D": 40}


def honest(instruction: TrainInstruction, site: str) -> TrainReply:
    """A site whose update depends on its name, the round and the weights it was given, and on nothing else."""
    weights = {
        "encoder.w": instruction.weights["encoder.w"] * 0.5 + ord(site[0]) / 100 + instruction.round / 10,
        "encoder.count": instruction.weights["encoder.count"] + 2,
    }
    metrics = {"loss": 1.0 / instruction.round}
    return TrainReply(instruction.study_hash, instruction.round, site, IMAGES.get(site, 5), weights, metrics)


class Clock:
    """Time passes only where somebody waits, so that no deadline depends on how busy the machine is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        """Wait."""
        self.now += seconds


CLOCK = Clock()


class Script:
    """A ``Contact``; ``act(instruction, site, times)`` is a site's answer to the times-th instruction of a round."""

    def __init__(
        self,
        study: Study,
        sites: Sequence[str] = ("A", "B", "C", "D"),
        act: Callable[[TrainInstruction, str, int], Answer] | None = None,
    ) -> None:
        self.hash = study.training_hash()
        self.names = sites
        self.act = act or (lambda instruction, site, _: honest(instruction, site))
        self.sent: list[tuple[int, str]] = []
        self.answers: list[TrainReply | Failure] = []

    def sites(self) -> list[SiteInfo]:
        """Every site, with the right study."""
        return [SiteInfo(name, self.hash, 10) for name in self.names]

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        """Take the script's answers down, to be collected later."""
        for site in sites:
            self.sent.append((instruction.round, site))
            answer = self.act(instruction, site, self.sent.count((instruction.round, site)))
            if answer is not None:
                self.answers.append(answer)

    def collect(self) -> list[TrainReply | Failure]:
        """One answer at a time; waits where there is none."""
        if not self.answers:
            CLOCK.sleep(1.0)
            return []
        return [self.answers.pop(0)]


class Loop:
    """A round loop in a folder, run as often as wanted."""

    def __init__(self, study: Study, folder: Path) -> None:
        self.study, self.folder = study, folder

    def run(self, act: Any = None, sites: Sequence[str] = ("A", "B", "C", "D"), channel: Any = None) -> Any:
        """Run to the end; the final weights. The contact is kept as ``self.channel``."""
        self.channel = channel or Script(self.study, sites, act)
        initial = {name: value.clone() for name, value in INITIAL.items()}
        audit = AuditLog(self.folder / "audit.jsonl", "server")
        return RoundLoop(self.study, RunRecords(self.folder, audit), self.channel, initial).run()

    def events(self) -> list[tuple[int, str, str | None, str]]:
        """What a person has to know, from metrics.jsonl."""
        rows = read_jsonl(self.folder / "metrics.jsonl")
        return [(row["round"], row["event"], row["site"], row["reason"]) for row in rows if "event" in row]

    def metrics(self) -> list[tuple[int, str]]:
        """Round and site of each row of figures in metrics.jsonl."""
        rows = read_jsonl(self.folder / "metrics.jsonl")
        return [(row["round"], row["site"]) for row in rows if "event" not in row]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The round loop and the app's polling go by ``CLOCK``; a site that is offline is asked again at once."""
    monkeypatch.setattr(rounds, "time", SimpleNamespace(monotonic=lambda: CLOCK.now))
    for module in (server.site_channel, server.fleet_channel):
        monkeypatch.setattr(module, "time", SimpleNamespace(sleep=CLOCK.sleep))
    monkeypatch.setattr(rounds, "_RESEND_S", 0.0)


@pytest.fixture
def loop(tmp_path: Path, raw_study: dict[str, Any]) -> Callable[..., Loop]:
    """``loop(attempts=2, algorithm=...)``: a loop of three rounds with a deadline of a minute."""

    def make(algorithm: dict[str, Any] | None = None, **settings: Any) -> Loop:
        raw_study["rounds"] = {"count": 3, "deadline_minutes": 1} | settings
        raw_study["algorithm"] = algorithm or {"name": "fedavg"}
        return Loop(study_from(raw_study, "test"), tmp_path / "federation")

    return make


@pytest.fixture
def honest_site() -> Callable[[TrainInstruction, str], TrainReply]:
    """What an undisturbed site answers."""
    return honest


@pytest.fixture
def script() -> type[Script]:
    """The scripted contact, to be changed."""
    return Script
