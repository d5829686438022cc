"""The real apps over a grid that drops, repeats and fails: the weights are those of an undisturbed run."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Error, Message, RecordDict

import client.training.site_training
from client.app import build_app
from federation.flower.records import content_to_reply, reply_to_content
from federation.records import Failure, TrainReply
from foundation.errors import RunError, StudyError
from foundation.files import read_jsonl
from foundation.tensor_files import load_tensors
from server.app import app as server_app
from simulation.runtimes.grid import InProcessGrid
from simulation.sites.site_folders import Federation

Make = Callable[..., Federation]


class PlainGrid(InProcessGrid):
    """Counts what is asked; subclasses disturb the training messages of one round."""

    def __init__(self, federation: Federation) -> None:
        nodes = [{"site-file": str(federation.folder / "sites" / s / "site.yaml")} for s in federation.sites]
        super().__init__(build_app(), nodes, federation.run_config())
        self.config = federation.run_config()
        self.asked: list[tuple[str, int]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies of training messages pass through ``disturb``."""
        for message_id in message_ids:
            message = self._waiting.get(message_id)
            if message is None:
                continue
            replies = super().pull_messages([message_id])
            if message.metadata.message_type != "train":
                return replies
            key = (message.metadata.group_id, message.metadata.dst_node_id)
            self.asked.append(key)
            return self.disturb(key, self.asked.count(key), message, replies)
        return []

    def disturb(self, key: tuple[str, int], times: int, message: Message, replies: list[Message]) -> list[Message]:
        """Nothing here."""
        return replies


class DropsTheFirst(PlainGrid):
    """The site trained, and its reply was lost."""

    def disturb(self, key: Any, times: int, message: Message, replies: list[Message]) -> list[Message]:
        """The first reply of node 3 in round 2 is lost."""
        return [] if key == ("2", 3) and times == 1 else replies


class ErrorFirst(PlainGrid):
    """The site was offline when it was polled: an error from the SuperLink, and the reply is gone."""

    def disturb(self, key: Any, times: int, message: Message, replies: list[Message]) -> list[Message]:
        """Twice an error in round 2, with the SuperLink as its source."""
        if key[0] == "2" and key[1] in (2, 3) and times <= 2:
            error = Message(Error(code=3, reason="node unavailable"), reply_to=message)
            error.metadata.__dict__["_src_node_id"] = 1
            return [error]
        return replies


class Twice(PlainGrid):
    """Every instruction reaches its site twice, and both replies come back."""

    def disturb(self, key: Any, times: int, message: Message, replies: list[Message]) -> list[Message]:
        """Ask again at once."""
        return [*replies, self._app(message, self._contexts[message.metadata.dst_node_id])]


class Foreign(PlainGrid):
    """Node 4 answers first rubbish, then under the name of the site at node 2."""

    def disturb(self, key: Any, times: int, message: Message, replies: list[Message]) -> list[Message]:
        """Rounds 1 and 2 are spoilt."""
        if key == ("1", 4):
            return [Message(RecordDict(), reply_to=message)]
        if key == ("2", 4):
            reply = content_to_reply(replies[0].content)
            assert isinstance(reply, TrainReply)
            stolen = TrainReply(reply.study_hash, reply.round, "A", 10**6, reply.weights, reply.metrics)
            return [Message(reply_to_content(stolen), reply_to=message)]
        return replies


@pytest.fixture(autouse=True)
def fresh_process() -> None:
    """Nothing of another test in this process. Deadlines go by the clock of conftest.py."""
    torch.set_num_threads(1)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Site and round of everything that was really trained."""
    calls: list[tuple[str, int]] = []
    original = client.training.site_training.train_round

    def counted(*arguments: Any) -> Any:
        calls.append((arguments[0].site, arguments[1]))
        return original(*arguments)

    monkeypatch.setattr(client.training.site_training, "train_round", counted)
    return calls


def run(federation: Federation, kind: type[PlainGrid] = PlainGrid) -> tuple[dict[str, bytes], PlainGrid]:
    grid = kind(federation)
    server_app(grid, Context(1, 1, {}, RecordDict(), dict(grid.config)))
    tensors, _ = load_tensors(federation.folder / "global.safetensors")
    return {name: value.numpy().tobytes() for name, value in tensors.items()}, grid


UNDISTURBED: dict[str, bytes] = {}


@pytest.fixture
def disturbed(raw_study: dict[str, Any], federation: Make) -> Federation:
    """Three sites, three rounds, all of them needed; a round that lacks one is tried again after a minute."""
    raw_study["rounds"] |= {"quorum": 1.0, "deadline_minutes": 1}
    return federation(raw_study)


@pytest.fixture
def undisturbed(disturbed: Federation, tmp_path: Path) -> dict[str, bytes]:
    """The weights that every disturbed run must reach; trained once."""
    if not UNDISTURBED:
        twin = Federation(tmp_path / "undisturbed", disturbed.sites)
        shutil.copytree(disturbed.folder, twin.folder)
        UNDISTURBED.update(run(twin)[0])
    return UNDISTURBED


ALL = sorted((site, round_) for site in "ABC" for round_ in (1, 2, 3))


@pytest.mark.parametrize("kind", [DropsTheFirst, ErrorFirst, Twice])
def test_a_disturbed_run_is_trained_once_and_ends_at_the_same_bits(
    disturbed: Federation, undisturbed: dict[str, bytes], trained: list[tuple[str, int]], kind: type[PlainGrid]
) -> None:
    trained.clear()  # the undisturbed run's
    weights, grid = run(disturbed, kind)
    assert weights == undisturbed
    assert sorted(trained) == ALL
    if kind is DropsTheFirst:
        assert grid.asked.count(("2", 3)) == 2
    if kind is ErrorFirst:
        assert grid.asked.count(("2", 2)) == grid.asked.count(("2", 3)) == 3
        assert grid.asked.count(("2", 4)) == 1


def test_a_resumed_run_asks_for_what_is_missing_only(
    disturbed: Federation, undisturbed: dict[str, bytes], trained: list[tuple[str, int]]
) -> None:
    trained.clear()

    class Killed(BaseException):
        pass

    class Kills(PlainGrid):
        def disturb(self, key: Any, times: int, message: Message, replies: list[Message]) -> list[Message]:
            if key == ("2", 3):
                raise Killed
            return replies

    with pytest.raises(Killed):
        run(disturbed, Kills)
    weights, grid = run(disturbed)
    assert weights == undisturbed
    assert sorted(trained) == ALL
    assert grid.asked == [("2", 3), ("2", 4), ("3", 2), ("3", 3), ("3", 4)]


def test_rubbish_and_a_reply_under_another_name_are_left_out(raw_study: dict[str, Any], federation: Make) -> None:
    raw_study["rounds"] |= {"count": 2}
    prepared = federation(raw_study)
    run(prepared, Foreign)
    rows = read_jsonl(prepared.folder / "metrics.jsonl")
    events = [(row["round"], row["site"], row["reason"]) for row in rows if "event" in row]
    assert events == [(1, "C", "unreadable reply"), (2, "C", "reply under another site's name")]
    assert [(row["round"], row["site"], row["images"]) for row in rows if "loss" in row] == [
        (1, "A", 9), (1, "B", 6), (2, "A", 9), (2, "B", 6),
    ]  # fmt: skip


def test_a_site_that_cannot_take_part_is_named_before_anything_is_trained(
    disturbed: Federation, trained: list[tuple[str, int]]
) -> None:
    manifest = disturbed.folder / "sites" / "B" / "manifest.csv"
    manifest.write_text("\n".join(manifest.read_text().splitlines()[:2]) + "\n")
    with pytest.raises(StudyError) as caught:
        run(disturbed)
    assert str(caught.value) == ("site B: cannot take part (data-not-usable); its own log (state/site.log) says why")
    assert trained == []
    assert "this site has 1 image" in (disturbed.folder / "sites" / "B" / "state" / "site.log").read_text()


@pytest.mark.parametrize("answer", ["error", "rubbish"])
def test_a_node_that_does_not_say_who_it_is(disturbed: Federation, answer: str) -> None:
    class Mute(PlainGrid):
        def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
            ids = list(message_ids)
            message = self._waiting[ids[0]]
            if message.metadata.dst_node_id != 3:
                return super().pull_messages(ids)
            if answer == "error":
                return [Message(Error(code=3), reply_to=message)]
            failure = reply_to_content(Failure("", 0, "B", "disk-full"))
            del failure["config"]["failure"]
            return [Message(failure, reply_to=message)]

    with pytest.raises(RunError) as caught:
        run(disturbed, Mute)
    assert "\n" not in str(caught.value)
