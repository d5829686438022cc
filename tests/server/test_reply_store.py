"""The reply store keeps whole replies of its own round, and nothing else."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from federation.records import TrainReply
from foundation.errors import RunError
from server.reply_store import ReplyStore

EXPECTED = {"w": torch.zeros(3), "n": torch.tensor(0)}


def reply(site: str, round_: int = 2, study: str = "hash") -> TrainReply:
    return TrainReply(study, round_, site, 7, {"w": torch.ones(3) / 3, "n": torch.tensor(5)}, {"loss": 0.1})


def store(folder: Path, round_: int = 2, study: str = "hash") -> ReplyStore:
    return ReplyStore(folder, study, round_, EXPECTED)


def test_replies_come_back_whole_and_in_name_order(tmp_path: Path) -> None:
    for site in ("site-10", "B", "site-9", "A.1", "a"):
        store(tmp_path).write(reply(site))
    found = store(tmp_path).replies()
    assert [r.site for r in found] == sorted(["site-10", "B", "site-9", "A.1", "a"])
    assert (found[0].images, found[0].metrics) == (7, {"loss": 0.1})
    assert torch.equal(found[0].tensor("w"), torch.ones(3) / 3)
    assert found[0].tensor("n").dtype == torch.int64


def test_a_wrong_reply_is_not_kept(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="lacks tensor 'n'"):
        store(tmp_path).write(TrainReply("hash", 2, "A", 7, {"w": torch.ones(3)}))
    assert store(tmp_path).replies() == []


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def _flip_header(path: Path) -> None:
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _of_another_round(path: Path) -> None:
    store(path.parents[1], 3).write(reply("B", 3))
    shutil.move(path.parents[1] / "round-00003" / "B.safetensors", path)


def _of_another_study(path: Path) -> None:
    store(path.parents[1], study="x").write(reply("B", study="x"))


def _from_other_weights(path: Path) -> None:
    ReplyStore(path.parents[1], "hash", 2, EXPECTED | {"w": torch.full((3,), 0.1)}).write(reply("B"))


@pytest.mark.parametrize(
    "damage", [_cut, _flip_header, _empty, _of_another_round, _of_another_study, _from_other_weights]
)
def test_a_file_that_does_not_belong_is_dropped_so_that_its_site_is_asked_again(
    tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    for site in "ABC":
        store(tmp_path).write(reply(site))
    damage(tmp_path / "round-00002" / "B.safetensors")
    assert [r.site for r in store(tmp_path).replies()] == ["A", "C"]
    assert not (tmp_path / "round-00002" / "B.safetensors").exists()


def test_rounds_do_not_mix_and_one_is_removed_alone(tmp_path: Path) -> None:
    store(tmp_path, 2).write(reply("A", 2))
    store(tmp_path, 3).write(reply("B", 3))
    assert [r.site for r in store(tmp_path, 2).replies()] == ["A"]
    (tmp_path / "round-00002" / ".C.safetensors.99.part").touch()  # a killed writer's
    store(tmp_path, 2).remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-00003"]
    store(tmp_path, 2).remove()  # of nothing
