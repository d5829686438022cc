"""Trains a private study in processes that are killed at chosen moments; prints what was left each time, as JSON.

A program of its own, for tests/client/privacy/test_private_kill.py: it forks processes that have loaded everything
already, and forking is safe in a program that has no other threads.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from client.site import Site
from client.site_file import load_site_file
from federation.privacy.ledger import read_charges
from federation.privacy.plan import plan_of
from federation.records import TrainInstruction
from federation.study import load_study


def killed(here: Site, asked: list[TrainInstruction], after: float) -> bool:
    """Whether a child that trains these rounds was killed ``after`` so many seconds, before it had ended."""
    child = os.fork()
    if child == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
        try:
            for instruction in asked:
                here.train(instruction)
        except BaseException:  # a fork must not go on with its parent's work
            os._exit(1)
        os._exit(0)
    until = time.monotonic() + after
    while time.monotonic() < until:
        if os.waitpid(child, os.WNOHANG)[0] == child:
            return False
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def left(state: Path, ledger: Path, study_hash: str) -> dict[str, list[int]]:
    """The rounds that are charged, and those whose updates lie on the disk."""
    charged = [charge.round for charge in read_charges(ledger) if charge.study == study_hash]
    folders = sorted((state / study_hash[:16]).glob("round-[0-9]*/update.safetensors"))
    return {"charged": charged, "stored": [int(path.parent.name.removeprefix("round-")) for path in folders]}


def main() -> None:
    """``STUDY SITE_FILE KILLS``: kill that many children; a line of JSON after each."""
    place, site_file, kills = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    study, site = load_study(place), load_site_file(site_file)
    assert site.ledger is not None
    here = Site(site, study)
    here.describe()  # decodes, so that children are killed while they train
    weights = {name: value.clone() for name, value in here.update_like().items()}
    rounds = [TrainInstruction(study.training_hash(), round_, weights) for round_ in range(1, study.rounds.count + 1)]
    plan_of(study)
    started = time.monotonic()
    assert not killed(here, rounds[:1], 60.0)
    whole = time.monotonic() - started
    draw = random.Random()
    for number in range(kills):
        done = max(left(site.state, site.ledger, study.training_hash())["stored"])
        # Every other child is asked for what is on the disk already, and then for new rounds.
        was = killed(here, rounds[done - 1 + number % 2 :], draw.uniform(0.0, 3 * whole))
        print(json.dumps(left(site.state, site.ledger, study.training_hash()) | {"killed": was}), flush=True)


if __name__ == "__main__":
    main()
