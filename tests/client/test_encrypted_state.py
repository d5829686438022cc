"""A site with a key: the same training, nothing to read on its disk, and no state lost to a wrong key."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import client.training.site_training
import client.training.stored_rounds
from client.refusals import category_of
from client.site import Site
from client.site_file import load_site_file
from federation.records import TrainInstruction, TrainReply
from federation.study import Study
from foundation.vault import PLAIN, LockedError, Vault

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Instruct = Callable[..., TrainInstruction]
VAULT, OTHER = Vault(bytes(range(32))), Vault(bytes(range(1, 33)))
PARTS = ("update", "local", "optimiser")


@pytest.fixture
def s(study: MakeStudy, ijepa: dict[str, Any]) -> Study:
    """I-JEPA: a momentum encoder stays at the site, and optimiser state."""
    return study(method=ijepa)


@pytest.fixture
def locked(tmp_path: Path, hospital: Callable[..., Path], s: Study) -> Callable[..., Site]:
    """``locked(vault)``: a new Site object over hospital A's folder."""

    def make(vault: Vault = VAULT) -> Site:
        path = tmp_path / "sites" / "A" / "site.yaml"
        return Site(load_site_file(path if path.exists() else hospital("A")), s, vault)

    return make


@pytest.fixture
def state(tmp_path: Path, s: Study) -> Path:
    """The folder of the study's rounds."""
    return tmp_path / "sites" / "A" / "state" / s.training_hash()[:16]


def same(one: TrainReply, other: TrainReply) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def two_rounds(make: Callable[[], Site], s: Study, instruction: Instruct) -> tuple[TrainReply, TrainReply]:
    first = make().train(instruction(s))
    return first, make().train(instruction(s, 2, first.weights))


@pytest.fixture
def undisturbed(locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path) -> tuple[TrainReply, ...]:
    """Two rounds without a key; nothing of them is left on the disk."""
    replies = two_rounds(lambda: locked(PLAIN), s, instruction)
    shutil.rmtree(state)
    return replies


def test_a_site_with_a_key_killed_in_the_middle_goes_on_as_one_without(
    locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path, restart: Callable[[], None],
    undisturbed: tuple[TrainReply, ...], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Killed before its second round is in its place, and started anew."""
    first = locked().train(instruction(s))
    restart()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(client.training.stored_rounds, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            locked().train(instruction(s, 2, first.weights))
    restart()
    second = locked().train(instruction(s, 2, first.weights))
    assert same(first, undisturbed[0])
    assert same(second, undisturbed[1])
    restart()
    # A stored round is given again and not trained.
    monkeypatch.setattr(client.training.site_training, "train_round", killed)
    assert same(locked().train(instruction(s, 2, first.weights)), second)


def test_nothing_of_a_model_is_readable_on_the_disk(
    locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path
) -> None:
    reply = locked().train(instruction(s))
    local, _ = VAULT.at("site", "A", s.training_hash(), "1").load_tensors(state / "round-00001" / "local.safetensors")
    stored = b"".join(contents(state).values())
    assert len(stored) > sum(value.nbytes for value in [*reply.weights.values(), *local.values()])
    name = "encoder.blocks.0.attn.qkv.weight"
    for secret in (reply.weights[name], local["target_" + name]):
        for row in secret[:, :4]:
            assert row.numpy().tobytes() not in stored
    assert b"qkv" not in stored
    assert b"loss" not in stored
    PLAIN.save_tensors(state / "plain", reply.weights)  # the search finds what is there
    assert reply.weights[name][0, :4].numpy().tobytes() in (state / "plain").read_bytes()


@pytest.mark.parametrize("wrong", [PLAIN, OTHER], ids=["no key", "another key"])
@pytest.mark.parametrize("round_", [1, 2])
def test_a_wrong_key_costs_nothing_but_an_error(
    locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path, wrong: Vault, round_: int
) -> None:
    """The stored round is neither removed nor passed over: the momentum encoder is in it."""
    first = locked().train(instruction(s))
    before = contents(state)
    asked = instruction(s) if round_ == 1 else instruction(s, 2, first.weights)
    with pytest.raises(
        LockedError, match=r"^\S+\.safetensors: is encrypted [^\n]+ the key that it was written with$"
    ) as e:
        locked(wrong).train(asked)
    assert category_of(e.value) == "state-damaged"
    after = contents(state)
    assert {name: data for name, data in after.items() if "round" in name} == {
        name: data for name, data in before.items() if "round" in name
    }
    assert locked().train(asked).round == round_


def test_a_plain_file_under_a_key_is_not_read(
    locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path
) -> None:
    """Somebody with the disk but without the key could plant a momentum encoder of his own."""
    first = locked().train(instruction(s))
    PLAIN.save_tensors(state / "round-00001" / "local.safetensors", {})
    with pytest.raises(LockedError, match=r"local\.safetensors: is not encrypted although a key is set"):
        locked().train(instruction(s, 2, first.weights))


@pytest.mark.parametrize("part", PARTS)
def test_damage_is_trained_again_to_the_same_bits(
    locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path, part: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    first = locked().train(instruction(s))
    path = state / "round-00001" / f"{part}.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    assert same(locked().train(instruction(s)), first)
    assert "site A: the stored round 1 is damaged and is trained again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("taken", "put"),
    [
        ("round-00002/local", "round-00002/optimiser"),
        ("round-00001/local", "round-00002/local"),
        ("round-00001/update", "round-00002/update"),
    ],
)
def test_a_file_in_anothers_place_is_not_used(
    locked: Callable[..., Site], s: Study, instruction: Instruct, state: Path, taken: str, put: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    first, second = two_rounds(locked, s, instruction)
    shutil.copy(state / f"{taken}.safetensors", state / f"{put}.safetensors")
    assert same(locked().train(instruction(s, 2, first.weights)), second)
    assert "site A: the stored round 2 is damaged and is trained again" in capsys.readouterr().err
