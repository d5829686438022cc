"""kill -9 of a server that adds the noise: whatever it has sent out is charged in its ledger."""

import os
import random
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from federation.audit.log import AuditLog
from federation.privacy.ledger import Ledger
from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply
from federation.study import Study, study_from
from server import rounds
from server.checkpoint import latest_checkpoint
from server.rounds import RoundLoop, RunRecords
from server.site_noise import LEDGER_NAME

from ..programs import CONTEXT

KILLS, COUNT = 10, 25
_SYNCS = 20  # writes of a round that are waited for, about: a process that is to die within two rounds
INITIAL = {"encoder.w": torch.zeros(8)}


class Still:
    """A contact to three sites that do not move, which writes down, before each instruction, which weights are out."""

    def __init__(self, study: Study, sent: Path) -> None:
        self._hash, self._sent = study.training_hash(), sent
        self._answers: list[TrainReply | Failure] = []

    def sites(self) -> list[SiteInfo]:
        return [SiteInfo(site, self._hash, 1) for site in "ABC"]

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        with self._sent.open("a") as file:
            file.write(f"{instruction.round - 1} {instruction.weights['encoder.w'].numpy().tobytes().hex()}\n")
        self._answers += [TrainReply(self._hash, instruction.round, site, 1, instruction.weights) for site in sites]

    def collect(self) -> list[TrainReply | Failure]:
        answers, self._answers = self._answers, []
        return answers


def _run(raw: dict[str, Any], folder: Path, dies_at: int) -> None:
    """Run the loop; the ``dies_at``-th wait for the disk kills the process, before or after it by turns."""
    calls, sync = 0, os.fsync

    def dying(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == dies_at and dies_at % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        sync(handle)
        if calls == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = dying
    rounds.layers_of = lambda *_: {"encoder.w": "stem"}
    study = study_from(raw, "test")
    audit = AuditLog(folder / "audit.jsonl", "server")
    RoundLoop(study, RunRecords(folder, audit), Still(study, folder / "sent"), INITIAL).run()


@pytest.mark.slow
def test_ten_kills_and_no_weights_went_out_uncharged(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw_study["privacy"] = {"unit": "site", "epsilon": 20.0, "sites": 3}
    raw_study["training"] |= {"epochs": None, "steps": 1}
    raw_study["rounds"] = {"count": COUNT, "deadline_minutes": 1}
    draw, study, killed = random.Random(6), study_from(raw_study, "test"), 0
    for attempt in range(KILLS + 1):
        dies_at = draw.randint(1, 2 * _SYNCS) if attempt < KILLS else 0
        process = CONTEXT.Process(target=_run, args=(raw_study, tmp_path, dies_at))
        process.start()
        process.join(60)
        assert process.exitcode in (0, -signal.SIGKILL)
        killed += process.exitcode == -signal.SIGKILL
        _check(tmp_path, study)
    assert killed == KILLS
    assert process.exitcode == 0
    checkpoint = latest_checkpoint(tmp_path / "checkpoints", study.training_hash())
    assert checkpoint is not None
    assert checkpoint.round == COUNT


def _check(folder: Path, study: Study) -> None:
    """One charge at least for each noised weights that were sent out, or are on the disk to be sent."""
    lines = set((folder / "sent").read_text().splitlines()) if (folder / "sent").exists() else set()
    out = {line for line in lines if not line.startswith("0 ")}
    found = latest_checkpoint(folder / "checkpoints", study.training_hash())
    if found is not None:
        out.add(f"{found.round} {found.weights['encoder.w'].numpy().tobytes().hex()}")
    charged = len(Ledger(folder / LEDGER_NAME).releases()) if (folder / LEDGER_NAME).exists() else 0
    assert charged >= len(out)
    # A round is never sent out with two noises: after a kill the server goes on from what it had sent, or anew.
    assert len({line.split()[0] for line in out}) == len(out)
