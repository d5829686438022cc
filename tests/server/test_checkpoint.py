"""Checkpoints: whole or passed over, and said so."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.errors import RunError
from foundation.files import read_json, write_json
from foundation.tensor_files import load_tensors
from foundation.vault import LockedError, Vault
from server.checkpoint import Checkpoint, latest_checkpoint, snapshot_rounds, write_checkpoint, write_snapshot


def checkpoint(round_: int, study: str = "hash") -> Checkpoint:
    return Checkpoint(
        study, round_, {"w": torch.full((3,), float(round_)), "n": torch.tensor(round_)},
        {"m_t/w": torch.ones(3) / 3, "rounds": torch.tensor(round_)}, {"A": 0.1, "B": 1e-9},
    )  # fmt: skip


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_comes_back_as_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(3), keep=2)
    found = latest_checkpoint(tmp_path, "hash")
    assert found is not None
    assert (found.study_hash, found.round, found.norms) == ("hash", 3, {"A": 0.1, "B": 1e-9})
    for ours, theirs in ((found.weights, checkpoint(3).weights), (found.algorithm, checkpoint(3).algorithm)):
        assert ours.keys() == theirs.keys()
        assert all(ours[name].dtype == theirs[name].dtype and torch.equal(ours[name], theirs[name]) for name in ours)


def test_none_where_there_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "nothing", "hash") is None


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for round_ in range(1, 6):
        write_checkpoint(tmp_path, checkpoint(round_), keep=3)
    assert names(tmp_path) == ["round-00003", "round-00004", "round-00005"]


def test_newest_is_by_number_not_by_letter(tmp_path: Path) -> None:
    for round_ in (99_999, 100_000):
        write_checkpoint(tmp_path, checkpoint(round_), keep=2)
    found = latest_checkpoint(tmp_path, "hash")
    assert found is not None
    assert found.round == 100_000


def _cut(folder: Path) -> None:
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def _flip_a_bit(folder: Path) -> None:
    path = folder / "algorithm.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _no_weights(folder: Path) -> None:
    (folder / "weights.safetensors").unlink()


def _no_state(folder: Path) -> None:
    (folder / "state.json").unlink()


def _torn_state(folder: Path) -> None:
    (folder / "state.json").write_text('{"round": 3')


def _state_of_another_form(folder: Path) -> None:
    write_json(folder / "state.json", [1, 2])


def _round_that_is_none(folder: Path) -> None:
    write_json(folder / "state.json", read_json(folder / "state.json") | {"round": "third"})


DAMAGE = [_cut, _flip_a_bit, _no_weights, _no_state, _torn_state, _state_of_another_form, _round_that_is_none]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over_and_said_so(
    tmp_path: Path, damage: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for round_ in (2, 3):
        write_checkpoint(tmp_path, checkpoint(round_), keep=2)
    damage(tmp_path / "round-00003")
    found = latest_checkpoint(tmp_path, "hash")
    assert found is not None
    assert found.round == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'round-00003'}: checkpoint not usable" in said
    assert "going back to the one before it" in said
    # Left for a person to look at, under a name that no later run takes for a checkpoint.
    assert any(name.startswith("damaged-round-00003") for name in names(tmp_path))
    write_checkpoint(tmp_path, checkpoint(3), keep=2)
    again = latest_checkpoint(tmp_path, "hash")
    assert again is not None
    assert again.round == 3
    assert capsys.readouterr().err == ""


def test_all_damaged_is_none(tmp_path: Path) -> None:
    for round_ in (2, 3):
        write_checkpoint(tmp_path, checkpoint(round_), keep=2)
        _cut(tmp_path / f"round-{round_:05d}")
    assert latest_checkpoint(tmp_path, "hash") is None


def test_another_study_is_an_error_and_nothing_is_moved(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(3), keep=2)
    with pytest.raises(
        RunError, match=r"round-00003: is of another study; resume with the study file it was made with$"
    ):
        latest_checkpoint(tmp_path, "other")
    assert names(tmp_path) == ["round-00003"]


def test_a_write_that_fails_leaves_the_old_ones_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, checkpoint(2), keep=2)

    def full(*_: object) -> None:
        raise RunError("no space")

    monkeypatch.setattr("server.checkpoint.write_json", full)
    with pytest.raises(RunError, match="no space"):
        write_checkpoint(tmp_path, checkpoint(3), keep=2)
    assert names(tmp_path) == ["round-00002"]


def test_what_a_killed_writer_left_does_no_harm_and_goes(tmp_path: Path) -> None:
    (tmp_path / ".round-00003.part").mkdir()
    (tmp_path / ".round-00003.part" / "weights.safetensors").write_bytes(b"half")
    assert latest_checkpoint(tmp_path, "hash") is None
    write_checkpoint(tmp_path, checkpoint(3), keep=2)
    assert names(tmp_path) == ["round-00003"]


@pytest.mark.parametrize(
    ("count", "rounds"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (10, [1, 3, 5, 8, 10]), (100, [1, 25, 50, 75, 100])],
)
def test_snapshots_are_at_the_quarters(count: int, rounds: list[int]) -> None:
    assert snapshot_rounds(count) == rounds


def shared(round_: int) -> Checkpoint:
    return Checkpoint("hash", round_, {"encoder.w": torch.full((2,), float(round_)), "predictor.w": torch.ones(2)})


def test_a_snapshot_holds_the_encoder_as_it_is_exported(tmp_path: Path) -> None:
    for round_ in range(1, 11):
        write_snapshot(tmp_path, shared(round_), 10)
    assert names(tmp_path) == [f"round-{n:05d}.safetensors" for n in (1, 3, 5, 8, 10)]
    tensors, _ = load_tensors(tmp_path / "round-00005.safetensors")
    assert {name: value.tolist() for name, value in tensors.items()} == {"w": [5.0, 5.0]}
    before = (tmp_path / "round-00005.safetensors").read_bytes()
    write_snapshot(tmp_path, shared(5), 10)
    assert (tmp_path / "round-00005.safetensors").read_bytes() == before


def test_with_a_key_a_snapshot_is_sealed(tmp_path: Path) -> None:
    write_snapshot(tmp_path, shared(1), 1, Vault(bytes(32)))
    with pytest.raises(LockedError):
        Vault(None).load_tensors(tmp_path / "round-00001.safetensors")
