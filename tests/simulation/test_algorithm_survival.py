"""A federation under each algorithm that has state, killed at a site and at the server, ends where it would have."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.training.stored_rounds import StoredRounds
from foundation.tensor_files import load_tensors
from server import rounds
from simulation.runtimes.table import run_in_process
from simulation.sites.site_folders import Federation

from ..programs import CONTEXT
from ..tiers import slow

BYOL = {"name": "byol", "projection": 8, "projector_width": 16}
CASES: dict[str, dict[str, Any]] = {
    "fedavgm": {"algorithm": {"name": "fedavgm"}},
    "diloco": {"algorithm": {"name": "diloco"}},
    "ldawa": {"algorithm": {"name": "ldawa"}},
    "fedema": {"algorithm": {"name": "fedema"}, "method": BYOL},
    "fedu": {"algorithm": {"name": "fedema", "tau": None, "threshold": 1e-3}, "method": BYOL},
}


def _run(federation: Federation, killed: str) -> None:
    """killed: before the second site stores its second round, or before the server writes the next checkpoint."""
    owner, name, last = {
        "site": (StoredRounds, "keep", 5),
        "server": (rounds, "write_checkpoint", 1),
        "": (rounds, "write_checkpoint", 0),
    }[killed]
    original: Callable[..., Any] = getattr(owner, name)
    calls = 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, dying)
    run_in_process(federation)


def _exit_code(federation: Federation, killed: str = "") -> int | None:
    process = CONTEXT.Process(target=_run, args=(federation, killed))
    process.start()
    process.join(120)
    return process.exitcode


def _weights(federation: Federation) -> dict[str, bytes]:
    tensors, _ = load_tensors(federation.folder / "global.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.mark.parametrize("case", [each if each == "fedema" else slow(each) for each in CASES])
def test_killed_on_both_sides_it_ends_where_it_would_have(
    raw_study: dict[str, Any], federation: Callable[..., Federation], tmp_path: Path, case: str
) -> None:
    """Of two rounds the second is killed once at a site and once at the server."""
    raw_study["rounds"] = {"count": 2, "deadline_minutes": 5}
    raw_study["training"]["warmup"] = 0.0
    disturbed = federation(raw_study | CASES[case])
    twin = Federation(tmp_path / "undisturbed", disturbed.sites)
    shutil.copytree(disturbed.folder, twin.folder)
    assert _exit_code(twin) == 0
    assert _exit_code(disturbed, "site") == -signal.SIGKILL
    assert _exit_code(disturbed, "server") == -signal.SIGKILL
    assert _exit_code(disturbed) == 0
    assert _weights(disturbed) == _weights(twin)
