"""A server with a key: reply store and checkpoints that say nothing, and that nobody can exchange unnoticed."""

import hashlib
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from federation.algorithms.algorithm import average
from federation.records import TrainReply
from foundation.files import read_json, write_json
from foundation.vault import PLAIN, LockedError, Vault
from server.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint
from server.reply_store import ReplyStore

VAULT, OTHER = Vault(bytes(range(32))), Vault(bytes(range(1, 33)))
EXPECTED = {"w": torch.zeros(300, 300), "n": torch.tensor(0)}


def reply(site: str, round_: int = 2) -> TrainReply:
    draw = torch.Generator().manual_seed(ord(site[0]))
    weights = {"w": torch.randn(300, 300, generator=draw), "n": torch.tensor(5)}
    return TrainReply("hash", round_, site, ord(site[0]), weights, {"loss": 0.1})


def store(folder: Path, vault: Vault = VAULT, round_: int = 2) -> ReplyStore:
    return ReplyStore(folder, "hash", round_, EXPECTED, vault)


def checkpoint(round_: int) -> Checkpoint:
    weights = {"w": torch.full((3,), round_ / 7)}
    return Checkpoint("hash", round_, weights, {"m_t/w": torch.ones(3) / 3}, {"A": 0.1, "B": 1e-9})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_replies_fold_to_the_same_bits_with_and_without_a_key(tmp_path: Path) -> None:
    aggregated = []
    for vault, folder in ((PLAIN, tmp_path / "plain"), (VAULT, tmp_path / "sealed")):
        for site in "ABC":
            store(folder, vault).write(reply(site))
        aggregated.append(average("w", EXPECTED["w"], store(folder, vault).replies()))
    assert torch.equal(*aggregated)
    assert not torch.equal(aggregated[0], EXPECTED["w"])
    stored = b"".join(contents(tmp_path / "sealed").values())
    assert reply("A").weights["w"][7, :4].numpy().tobytes() not in stored
    assert b"loss" not in stored


def test_what_was_just_written_is_read_from_the_disk_too(tmp_path: Path) -> None:
    here = store(tmp_path)
    here.write(reply("A"))
    (found,) = here.replies()
    assert torch.equal(found.tensor("w"), reply("A").weights["w"])
    assert torch.equal(found.piece("w", 66_000, 90_000), reply("A").weights["w"].flatten()[66_000:])


def _flip(folder: Path) -> None:
    path = folder / "round-00002" / "B.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def _another_sites(folder: Path) -> None:
    shutil.copy(folder / "round-00002" / "A.safetensors", folder / "round-00002" / "B.safetensors")


def _another_rounds(folder: Path) -> None:
    store(folder, round_=3).write(reply("B", 3))
    shutil.copy(folder / "round-00003" / "B.safetensors", folder / "round-00002" / "B.safetensors")


@pytest.mark.parametrize("damage", [_flip, _another_sites, _another_rounds])
def test_a_file_that_does_not_belong_is_dropped(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    for site in "ABC":
        store(tmp_path).write(reply(site))
    damage(tmp_path)
    assert [found.site for found in store(tmp_path).replies()] == ["A", "C"]
    assert not (tmp_path / "round-00002" / "B.safetensors").exists()


@pytest.mark.parametrize("wrong", [PLAIN, OTHER], ids=["no key", "another key"])
def test_a_wrong_key_removes_no_reply(tmp_path: Path, wrong: Vault) -> None:
    store(tmp_path).write(reply("A"))
    with pytest.raises(LockedError, match=r"A\.safetensors: is encrypted "):
        store(tmp_path, wrong).replies()
    assert [found.site for found in store(tmp_path).replies()] == ["A"]


def test_a_checkpoint_comes_back_and_its_digests_are_the_stored_files(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, checkpoint(3), 2, VAULT)
    found = latest_checkpoint(tmp_path, "hash", VAULT)
    assert found is not None
    assert (found.round, found.norms) == (3, {"A": 0.1, "B": 1e-9})
    assert torch.equal(found.weights["w"], checkpoint(3).weights["w"])
    assert torch.equal(found.algorithm["m_t/w"], torch.ones(3) / 3)
    folder = tmp_path / "round-00003"
    recorded = read_json(folder / "state.json")["sha256"]
    for name in ("weights.safetensors", "algorithm.safetensors"):
        assert recorded[name] == hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert b"m_t" not in (folder / name).read_bytes()
        assert checkpoint(3).weights["w"].numpy().tobytes() not in (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("written", "read", "said"),
    [
        (VAULT, PLAIN, "is encrypted and no key is set"),
        (VAULT, OTHER, "is encrypted with another key or is damaged"),
        (PLAIN, VAULT, "is not encrypted although a key is set"),
    ],
)
def test_a_wrong_key_stops_and_moves_nothing(tmp_path: Path, written: Vault, read: Vault, said: str) -> None:
    """Falling back would end in a study that starts anew."""
    for round_ in (2, 3):
        write_checkpoint(tmp_path, checkpoint(round_), 2, written)
    before = contents(tmp_path)
    with pytest.raises(LockedError, match=rf"round-00003/weights\.safetensors: {said}"):
        latest_checkpoint(tmp_path, "hash", read)
    assert contents(tmp_path) == before


def _seal_again(folder: Path) -> None:
    """Whoever has no key can still write the digests down anew."""
    path = folder / "state.json"
    names = ("weights.safetensors", "algorithm.safetensors")
    digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}
    write_json(path, read_json(path) | {"sha256": digests})


def _older_weights(folder: Path) -> None:
    shutil.copy(folder.with_name("round-00002") / "weights.safetensors", folder)


def _weights_as_algorithm(folder: Path) -> None:
    shutil.copy(folder / "weights.safetensors", folder / "algorithm.safetensors")


def _another_round(folder: Path) -> None:
    write_json(folder / "state.json", read_json(folder / "state.json") | {"round": 9})


def _another_norm(folder: Path) -> None:
    write_json(folder / "state.json", read_json(folder / "state.json") | {"norms": {"A": 0.1, "B": 2e-9}})


def _flip_a_bit(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[random.Random(0).randrange(67, len(data))] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("change", [_older_weights, _weights_as_algorithm, _another_round, _another_norm, _flip_a_bit])
def test_a_change_by_somebody_without_the_key_is_found(
    tmp_path: Path, change: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also in state.json, which is no secret and not sealed: the weights are bound to what it says."""
    for round_ in (2, 3):
        write_checkpoint(tmp_path, checkpoint(round_), 2, VAULT)
    change(tmp_path / "round-00003")
    _seal_again(tmp_path / "round-00003")
    found = latest_checkpoint(tmp_path, "hash", VAULT)
    assert found is not None
    assert found.round == 2
    assert "is damaged or was put in another file's place" in capsys.readouterr().err
