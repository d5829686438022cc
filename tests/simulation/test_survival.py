"""kill -9 at random moments, then resume: the weights are those of an undisturbed run, bit for bit."""

import importlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.tensor_files import load_tensors
from simulation.runtimes.table import run_in_process
from simulation.sites.site_folders import Federation

from ..programs import CONTEXT
from ..tiers import slow

# Where a process dies: a function, and how often it is called in a whole run of the study below.
MOMENTS = {
    "training": ("ssl_methods.predictive.ijepa.IJEPA.make_views", 12),
    "a site stores its round": ("client.training.stored_rounds.StoredRounds.keep", 9),
    "tensors are written": ("foundation.vault.Vault.save_tensors", 51),
    "a file is written and not yet renamed": ("foundation.files.os.fsync", 40),
    "a reply is stored": ("server.reply_store.ReplyStore.write", 9),
    "folding": ("federation.algorithms.mean.average", 100),
    "checkpointing": ("server.rounds.write_checkpoint", 3),
    "a checkpoint is renamed": ("server.checkpoint.replace_folder", 3),
    "the reply store is removed": ("server.rounds.ReplyStore.remove", 3),
}


def _die_at(target: str, call: int) -> None:
    """Replace ``target`` by itself, but for the ``call``-th call, which kills this process as a power cut would."""
    parts = target.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:cut]))
            break
        except ImportError:
            continue
    for part in parts[cut:-1]:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, parts[-1])
    calls = 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, parts[-1], dying)


def _run(federation: Federation, target: str | None, call: int) -> None:
    if target is not None:
        _die_at(target, call)
    run_in_process(federation)


def _in_a_process(
    federation: Federation, target: str | None = None, call: int = 0, kill_after: float | None = None
) -> int:
    process = CONTEXT.Process(target=_run, args=(federation, target, call))
    process.start()
    if kill_after is not None:
        time.sleep(kill_after)
        process.kill()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def _weights(federation: Federation) -> dict[str, bytes]:
    tensors, _ = load_tensors(federation.folder / "global.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


Make = Callable[..., Federation]


@pytest.fixture
def disturbed(raw_study: dict[str, Any], federation: Make) -> Federation:
    """I-JEPA, because it keeps a momentum encoder at the site, and kept optimiser state."""
    raw_study["method"] = {"name": "ijepa", "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2}
    return federation(raw_study)


_UNDISTURBED: dict[str, bytes] = {}


@pytest.fixture
def undisturbed(disturbed: Federation, tmp_path: Path) -> dict[str, bytes]:
    """The weights of the same federation that nothing happened to; trained once for all tests here."""
    if not _UNDISTURBED:
        twin = Federation(tmp_path / "undisturbed", disturbed.sites)
        shutil.copytree(disturbed.folder, twin.folder)
        assert _in_a_process(twin) == 0
        _UNDISTURBED.update(_weights(twin))
    return _UNDISTURBED


@pytest.mark.parametrize("moment", [each if each == "checkpointing" else slow(each) for each in MOMENTS])
def test_killed_and_resumed_is_bit_identical(moment: str, disturbed: Federation, undisturbed: dict[str, bytes]) -> None:
    """Two kills in a row at random calls of one function, then the run goes on to its end."""
    target, calls = MOMENTS[moment]
    draw = random.Random(moment)
    codes = [_in_a_process(disturbed, target, draw.randint(1, max(1, calls // 3))) for _ in range(2)]
    assert -signal.SIGKILL in codes, "the function was never called as often as the test expects"
    assert set(codes) <= {0, -signal.SIGKILL}
    assert _in_a_process(disturbed) == 0
    assert _weights(disturbed) == undisturbed


@pytest.mark.slow
def test_killed_at_moments_of_the_clock(disturbed: Federation, undisturbed: dict[str, bytes], tmp_path: Path) -> None:
    """Kills by the clock fall where no function was thought of.

    How long a whole run takes is the machine's affair: where one ends before it is killed, the next attempt starts
    from scratch and has half the time, so that kills fall however fast it is.
    """
    pristine = tmp_path / "pristine"
    shutil.copytree(disturbed.folder, pristine)
    draw, longest, killed = random.Random(5), 0.8, 0
    while killed < 3:
        if _in_a_process(disturbed, kill_after=longest * draw.uniform(0.2, 1.0)) == -signal.SIGKILL:
            killed += 1
        else:
            longest /= 2
            shutil.rmtree(disturbed.folder)
            shutil.copytree(pristine, disturbed.folder)
    assert _in_a_process(disturbed) == 0
    assert _weights(disturbed) == undisturbed


def test_truncated_files_fall_back(disturbed: Federation, undisturbed: dict[str, bytes]) -> None:
    """Files cut short by a power cut are passed over: the round before is done again, to the same bits."""
    run_in_process(disturbed)
    _truncate(disturbed.folder / "checkpoints" / "round-00003" / "weights.safetensors")
    for update in disturbed.folder.glob("sites/*/state/*/round-00003/update.safetensors"):
        _truncate(update)
    (disturbed.folder / "global.safetensors").unlink()
    run_in_process(disturbed)
    assert _weights(disturbed) == undisturbed


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
