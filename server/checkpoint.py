"""Checkpoints: a folder a round, renamed into place when whole, checked by digest when read."""

import hashlib
import json
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from federation.records import encoder_of
from foundation.errors import RunError
from foundation.files import read_json, replace_folder, write_json
from foundation.messages import logger
from foundation.vault import PLAIN, LockedError, Vault

_FILES = ("weights.safetensors", "algorithm.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """All that a killed server needs to go on after ``round``."""

    study_hash: str
    round: int
    weights: dict[str, torch.Tensor]
    algorithm: dict[str, torch.Tensor] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)
    """L2 norm of each accepted update of the last round, by site."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int, vault: Vault = PLAIN) -> None:
    """Write ``folder/round-00003`` and delete all but the newest ``keep``."""
    final = folder / f"round-{checkpoint.round:05d}"
    temporary = folder / f".{final.name}.part"
    shutil.rmtree(temporary, ignore_errors=True)
    place = _place(vault, checkpoint.study_hash, checkpoint.round, checkpoint.norms)
    try:
        place.save_tensors(temporary / _FILES[0], checkpoint.weights)
        place.save_tensors(temporary / _FILES[1], checkpoint.algorithm)
        state: dict[str, Any] = {
            "study_hash": checkpoint.study_hash,
            "round": checkpoint.round,
            "norms": checkpoint.norms,
            "sha256": {name: _sha256(temporary / name) for name in _FILES},
        }
        write_json(temporary / "state.json", state)
        replace_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _folders(folder)[keep:]:
        shutil.rmtree(old)


def snapshot_rounds(count: int) -> list[int]:
    """The rounds whose encoder is kept: the first, the last, and those at a quarter, half and three quarters."""
    return sorted({1, *(-(-count * quarter // 4) for quarter in (1, 2, 3, 4))})


def write_snapshot(folder: Path, checkpoint: Checkpoint, count: int, vault: Vault = PLAIN) -> None:
    """Write the encoder to ``folder/round-00003.safetensors`` if this is one of the ``snapshot_rounds`` of ``count``.

    A round that is done again writes it again. With a key it is sealed, as checkpoints are.
    """
    if checkpoint.round in snapshot_rounds(count):
        place = vault.at("snapshot", checkpoint.study_hash, str(checkpoint.round))
        place.save_tensors(folder / f"round-{checkpoint.round:05d}.safetensors", encoder_of(checkpoint.weights))


def latest_checkpoint(folder: Path, study_hash: str, vault: Vault = PLAIN) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are named, passed over and left for a person to look at.

    RunError when it is of another study, LockedError when it is whole but the key is not its own.
    """
    for path in _folders(folder):
        try:
            state = read_json(path / "state.json")
            damaged = [name for name in _FILES if _sha256(path / name) != state["sha256"][name]]
            if damaged:
                raise RunError(f"{path / damaged[0]}: is damaged (its SHA-256 is not the recorded one)")
            if state["study_hash"] != study_hash:
                raise _OtherStudyError(f"{path}: is of another study; resume with the study file it was made with")
            round_, norms = int(state["round"]), dict(state["norms"])
            place = _place(vault, study_hash, round_, norms)
            weights, algorithm = (place.load_tensors(path / name)[0] for name in _FILES)
            return Checkpoint(study_hash, round_, weights, algorithm, norms)
        except (_OtherStudyError, LockedError):
            raise
        except (RunError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning(f"{path}: checkpoint not usable ({error}); going back to the one before it")
            path.rename(path.with_name(f"damaged-{path.name}-{os.getpid()}"))
    return None


class _OtherStudyError(RunError):
    """Not damage: falling back would not help."""


def _place(vault: Vault, study_hash: str, round_: int, norms: dict[str, float]) -> Vault:
    """Binds the sealed weights to what state.json, which people and programs read, says of them in plain text."""
    return vault.at("checkpoint", study_hash, str(round_), json.dumps(norms, sort_keys=True))


def _folders(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    found = (path for path in folder.glob("round-[0-9]*") if path.is_dir())
    return sorted(found, key=lambda path: (len(path.name), path.name), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
