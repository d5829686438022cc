"""A site's part: a round is trained once, and what the next one starts from survives on its disk."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import client.training.site_training
from client.site import Site
from federation.records import TrainInstruction, TrainReply, weights_digest
from federation.study import Study
from foundation.errors import DataError, StudyError, TrainingError
from foundation.tensor_files import load_tensors, save_tensors
from ssl_methods.reconstruction.mae import MAE

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Instruct = Callable[..., TrainInstruction]


def same(one: TrainReply, other: TrainReply) -> bool:
    return one.weights.keys() == other.weights.keys() and all(
        torch.equal(one.weights[name], other.weights[name]) for name in one.weights
    )


def rounds_on_disk(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in tmp_path.glob("sites/A/state/*/*") if "round" in path.name)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rounds that were really trained, in order."""
    calls: list[int] = []
    original = client.training.site_training.train_round

    def counted(*arguments: Any) -> Any:
        calls.append(arguments[1])
        return original(*arguments)

    monkeypatch.setattr(client.training.site_training, "train_round", counted)
    yield calls


def test_a_round_changes_the_weights_and_says_what_it_did(
    study: MakeStudy, site: MakeSite, instruction: Instruct
) -> None:
    s = study()
    asked = instruction(s)
    before = {name: value.clone() for name, value in asked.weights.items()}
    reply = site(s).train(asked)
    assert (reply.study_hash, reply.round, reply.site, reply.images) == (s.training_hash(), 1, "A", 9)
    assert reply.weights.keys() == asked.weights.keys()
    assert not torch.equal(
        reply.weights["encoder.blocks.0.attn.qkv.weight"], before["encoder.blocks.0.attn.qkv.weight"]
    )
    assert all(torch.equal(asked.weights[name], value) for name, value in before.items())
    assert reply.metrics["steps"] == 2
    assert reply.metrics["images_seen"] == 8
    assert reply.metrics["loss"] > 0


def test_who(study: MakeStudy, site: MakeSite) -> None:
    info = site(study(), images=7).describe()
    assert (info.site, info.study_hash, info.images) == ("A", study().training_hash(), 7)


def test_a_second_instruction_gets_the_stored_reply(
    study: MakeStudy, site: MakeSite, instruction: Instruct, trained: list[int], restart: Callable[[], None]
) -> None:
    s = study()
    first = site(s).train(instruction(s))
    restart()
    second = site(s).train(instruction(s))
    assert trained == [1]
    assert same(first, second)
    assert (second.metrics, second.images, second.site) == (first.metrics, first.images, first.site)


def test_two_threads_at_once_train_once(
    study: MakeStudy, site: MakeSite, instruction: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = study()
    original = client.training.site_training.train_round
    calls, inside = [], threading.Event()

    def slow(*arguments: Any) -> Any:
        calls.append(arguments[1])
        inside.set()
        time.sleep(0.3)
        return original(*arguments)

    monkeypatch.setattr(client.training.site_training, "train_round", slow)
    replies: list[TrainReply] = []
    sites, asked = [site(s), site(s)], instruction(s)
    threads = [threading.Thread(target=lambda each=each: replies.append(each.train(asked))) for each in sites]
    threads[0].start()
    assert inside.wait(20)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert calls == [1]
    assert len(replies) == 2
    assert same(*replies)


HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_another_process_in_the_same_round_is_waited_for(
    study: MakeStudy, site: MakeSite, instruction: Instruct, trained: list[int], tmp_path: Path
) -> None:
    """The other process holds the study's lock; when it ends (or is killed) the system lets go."""
    s = study()
    folder = tmp_path / "sites" / "A" / "state" / s.training_hash()[:16]
    here, asked = site(s), instruction(s)
    folder.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        thread = threading.Thread(target=here.train, args=(asked,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert trained == []
        other.kill()
    thread.join(60)
    assert trained == [1]


@pytest.mark.parametrize(
    ("name", "damage"), [("update", "cut"), ("update", "gone"), ("local", "zeros"), ("optimiser", "cut")]
)
def test_a_damaged_stored_round_is_trained_again_to_the_same_bits(
    study: MakeStudy, site: MakeSite, instruction: Instruct, trained: list[int], tmp_path: Path, name: str, damage: str
) -> None:
    s = study()
    first = site(s).train(instruction(s))
    (path,) = tmp_path.glob(f"sites/A/state/*/round-00001/{name}.safetensors")
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "gone": data, "zeros": bytes(len(data))}[damage])
    if damage == "gone":
        path.unlink()
    second = site(s).train(instruction(s))
    assert trained == [1, 1]
    assert same(first, second)
    third = site(s).train(instruction(s))
    assert trained == [1, 1]
    assert same(first, third)


def test_other_weights_for_a_stored_round_are_trained_from(
    study: MakeStudy, site: MakeSite, instruction: Instruct, trained: list[int]
) -> None:
    """A server that starts the study anew, or went back, has another history: the stored update is not of it."""
    s = study()
    first = site(s).train(instruction(s, 1))
    other = instruction(s, 1, {name: value * 0.9 for name, value in instruction(s).weights.items()})
    second = site(s).train(other)
    assert trained == [1, 1]
    assert not same(first, second)
    assert same(second, site(s).train(other))
    assert trained == [1, 1]


def two_rounds(
    s: Study, make: MakeSite, instruction: Instruct, between: Callable[[], None] = lambda: None
) -> TrainReply:
    here = make(s)
    first = here.train(instruction(s))
    between()
    return make(s).train(instruction(s, 2, first.weights))


@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_a_restart_between_rounds_changes_nothing(
    study: MakeStudy, site: MakeSite, instruction: Instruct, ijepa: dict[str, Any], restart: Callable[[], None],
    tmp_path: Path, method: str,
) -> None:  # fmt: skip
    s = study(method=ijepa) if method == "ijepa" else study()
    undisturbed = two_rounds(s, site, instruction)
    shutil.rmtree(tmp_path / "sites" / "A" / "state")
    assert same(two_rounds(s, site, instruction, restart), undisturbed)
    shutil.rmtree(tmp_path / "sites" / "A" / "state")
    lost = two_rounds(s, site, instruction, lambda: shutil.rmtree(tmp_path / "sites" / "A" / "state"))
    assert not same(lost, undisturbed)  # without its state the site goes elsewhere: so the state was used


def _forget(tmp_path: Path, name: str) -> None:
    (path,) = tmp_path.glob(f"sites/A/state/*/round-00001/{name}.safetensors")
    save_tensors(path, {})


@pytest.mark.parametrize("part", ["local", "optimiser"])
def test_target_encoder_and_moments_each_matter(
    study: MakeStudy, site: MakeSite, instruction: Instruct, ijepa: dict[str, Any], tmp_path: Path, part: str
) -> None:
    s = study(method=ijepa)
    kept = two_rounds(s, site, instruction)
    shutil.rmtree(tmp_path / "sites" / "A" / "state")
    assert not same(two_rounds(s, site, instruction, lambda: _forget(tmp_path, part)), kept)


def test_the_target_encoder_stays_and_follows(
    study: MakeStudy, site: MakeSite, instruction: Instruct, ijepa: dict[str, Any], tmp_path: Path
) -> None:
    s = study(method=ijepa)
    reply = site(s).train(instruction(s))
    (path,) = tmp_path.glob("sites/A/state/*/round-00001/local.safetensors")
    local, _ = load_tensors(path)
    assert local
    assert all(name.startswith("target_encoder.") for name in local)
    assert not any(name.startswith("target_encoder.") for name in reply.weights)
    name = "blocks.0.attn.qkv.weight"
    start, end = instruction(s).weights[f"encoder.{name}"], reply.weights[f"encoder.{name}"]
    followed = (local[f"target_encoder.{name}"] - start).norm() / (end - start).norm()
    assert 0 < followed < 1  # on its way from where the encoder started to where it is now


def test_a_missed_round_goes_on_from_the_last_one_trained(
    study: MakeStudy, site: MakeSite, instruction: Instruct, ijepa: dict[str, Any], tmp_path: Path
) -> None:
    s = study(method=ijepa)
    first = site(s).train(instruction(s))
    third = site(s).train(instruction(s, 3, first.weights))
    (before,) = tmp_path.glob("sites/A/state/*/round-00003/optimiser.safetensors")
    steps = load_tensors(before)[0]["encoder.blocks.0.attn.qkv.weight/step"].item()
    assert steps == 4  # two of round 1 and two of round 3
    assert third.round == 3


def test_optimiser_state_kept_or_reset(study: MakeStudy, site: MakeSite, instruction: Instruct, tmp_path: Path) -> None:
    kept, reset = study(), study(training={"optimiser_state": "reset"})
    one = site(kept).train(instruction(kept))
    other = site(reset).train(instruction(reset))
    assert same(one, other)  # the first round starts without moments either way
    two_kept = site(kept).train(instruction(kept, 2, one.weights))
    two_reset = site(reset).train(instruction(reset, 2, other.weights))
    assert not same(two_kept, two_reset)
    (path,) = tmp_path.glob(f"sites/A/state/{reset.training_hash()[:16]}/round-00002/optimiser.safetensors")
    assert load_tensors(path)[0] == {}


def test_old_rounds_go_and_the_one_before_stays(
    study: MakeStudy, site: MakeSite, instruction: Instruct, tmp_path: Path, trained: list[int]
) -> None:
    """The server may have crashed before it wrote the last round's result: it will ask for the one before again."""
    s = study(rounds={"count": 9})
    weights = None
    for round_ in (1, 2, 3, 4):
        asked = instruction(s, round_, weights)
        weights = site(s).train(asked).weights
        if round_ == 3:
            third = asked
    assert rounds_on_disk(tmp_path) == ["round-00003", "round-00004"]
    site(s).train(third)
    assert trained == [1, 2, 3, 4]


def test_what_a_killed_process_left_goes(
    study: MakeStudy, site: MakeSite, instruction: Instruct, tmp_path: Path
) -> None:
    s = study()
    here = site(s)
    left = tmp_path / "sites" / "A" / "state" / s.training_hash()[:16] / ".round-00001.part"
    left.mkdir(parents=True)
    (left / "local.safetensors").write_bytes(b"half")
    here.train(instruction(s))
    assert not left.exists()
    assert rounds_on_disk(tmp_path) == ["round-00001"]


def test_two_studies_do_not_mix(study: MakeStudy, site: MakeSite, instruction: Instruct, trained: list[int]) -> None:
    one, other = study(), study(training={"learning_rate": 0.02})
    first, second = site(one).train(instruction(one)), site(other).train(instruction(other))
    assert not same(first, second)
    assert same(site(one).train(instruction(one)), first)
    assert trained == [1, 1]


def test_another_study_is_refused(study: MakeStudy, site: MakeSite, instruction: Instruct, trained: list[int]) -> None:
    with pytest.raises(
        StudyError, match=r"^site A: was asked to train a study that is not the one on this site's disk$"
    ):
        site(study()).train(instruction(study(training={"batch": 3})))
    assert trained == []


def test_one_image_is_too_few(study: MakeStudy, site: MakeSite) -> None:
    with pytest.raises(
        DataError, match=r"^this site has 1 image; pretraining needs at least 2, so leave the site out$"
    ):
        site(study(), images=1, patients=1).describe()


def test_two_images_are_enough(study: MakeStudy, site: MakeSite, instruction: Instruct) -> None:
    s = study()
    assert site(s, images=2, patients=1).train(instruction(s)).metrics["images_seen"] == 2


def test_one_patient_cannot_be_contrasted(study: MakeStudy, site: MakeSite, instruction: Instruct) -> None:
    s = study(method={"name": "simclr"})
    with pytest.raises(DataError) as caught:
        site(s, images=5, patients=1).train(instruction(s))
    assert str(caught.value) == (
        "this site has 1 patient; simclr needs 2, as images of one patient are not each other's negatives: "
        "choose mae or ijepa, or leave the site out"
    )


def test_a_loss_that_is_not_finite_stores_nothing(
    study: MakeStudy, site: MakeSite, instruction: Instruct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s = study()
    original = MAE.loss
    with monkeypatch.context() as patch:
        patch.setattr(MAE, "loss", lambda self, views: (original(self, views)[0] * float("nan"), {}))
        with pytest.raises(
            TrainingError, match=r"^site A, round 1: the loss is not finite; lower training.learning_rate"
        ):
            site(s).train(instruction(s))
    assert rounds_on_disk(tmp_path) == []
    # Mended, the site trains as if nothing had happened.
    mended = site(s).train(instruction(s))
    shutil.rmtree(tmp_path / "sites" / "A" / "state")
    assert same(mended, site(s).train(instruction(s)))


def test_the_final_weights_are_kept_with_the_encoder_apart(
    site: MakeSite, study: MakeStudy, instruction: Instruct, tmp_path: Path
) -> None:
    """What a hospital has of the study in the end: all shared weights, bit for bit, and an encoder to use."""
    here, s = site(study()), study()
    weights = instruction(s).weights
    assert here.keep_final(weights) == weights_digest(weights)
    (folder,) = (tmp_path / "sites" / "A" / "state").glob("*/final.safetensors")
    encoder = load_tensors(folder.with_name("encoder.safetensors"))[0]
    assert set(encoder) == {name[8:] for name in weights if name.startswith("encoder.")}
    assert "timm.create_model" in json.loads(folder.with_name("encoder.json").read_text())["load"]
    with pytest.raises(StudyError, match="weights that are not those of the study"):
        here.keep_final(weights | {"more": torch.zeros(1)})
