"""The status: what it says after each event, across restarts and between two writers, and that it never stops a run."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from federation.records import Failure, TrainReply
from foundation.errors import RunError
from server.monitoring import status_writer as module
from server.monitoring.status_writer import STAGES, SiteStatus, Status, StatusWriter, heartbeat, last_sign, read_status

HASH = "ab" * 32
START = 1000.0


class Clock:
    """Time as the writer reads it."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", SimpleNamespace(time=clock, monotonic=clock))
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "seed-0" / "status.json"


@pytest.fixture
def status_writer(clock: Clock, path: Path) -> Callable[..., StatusWriter]:
    """``status_writer()``: a new one on the file, as a restarted server makes one."""
    return lambda study_hash=HASH: StatusWriter(path, "tiny", study_hash, 5)


def update(site: str, round_: int = 1, **metrics: float) -> TrainReply:
    """An update of 6 float32 and 1 int64, 32 bytes."""
    weights = {"w": torch.zeros(2, 3), "n": torch.tensor(7)}
    return TrainReply(HASH, round_, site, 12, weights, metrics)


def test_a_new_board_is_there_at_once(status_writer: Callable[..., StatusWriter], path: Path) -> None:
    made = status_writer()
    assert read_status(path) == made.status == Status("tiny", HASH, 5, started=START, updated=START)
    assert made.status.stage == "starting"


def test_one_round_event_by_event(status_writer: Callable[..., StatusWriter], clock: Clock, path: Path) -> None:
    made = status_writer()
    made.needed(2)
    made.phase("waiting for sites", "1 of 2 needed; missing: b")
    made.online(["a", "b", "c"], {"a": 11})
    clock.now += 5
    made.online(["a", "b", "c"], {"a": 11, "b": 12})
    made.round_started(1, ["a", "b", "c"])
    made.sent("a", 100)
    made.sent("b", 100)
    clock.now += 60
    made.answered(update("a", loss=0.25))
    made.answered(Failure(HASH, 1, "b", "disk-full"))
    status = read_status(path)
    assert status.stage == "training"
    assert (status.phase, status.detail, status.quorum) == ("round 1 of 5", "", 2)
    assert (status.round, status.round_started, status.updated) == (1, START + 5, START + 65)
    assert status.sites == {
        "a": SiteStatus(True, START + 5, "answered", START + 5, START + 65, 1, "", 0.25, 12, 100, 32),
        "b": SiteStatus(True, START + 5, "failed", START + 5, START + 65, 1, "disk-full", None, 0, 100, 0),
        "c": SiteStatus(),
    }


def test_a_site_is_waited_for_from_the_first_instruction_of_the_round(
    status_writer: Callable[..., StatusWriter], clock: Clock
) -> None:
    made = status_writer()
    made.round_started(1, ["a"])
    made.sent("a", 100)
    clock.now += 30
    made.answered(Failure("", 1, "a", "offline"))  # it went away, and is sent the instruction again
    made.sent("a", 100)
    clock.now += 30
    site = made.status.sites["a"]
    assert (site.state, site.waiting(clock.now), site.bytes_sent) == ("in work", 60, 200)
    made.answered(update("a"))
    assert site.waiting(clock.now + 9) == 0
    made.round_started(2, ["a"])
    assert (site.state, site.waiting(clock.now)) == ("not asked", 0)
    made.sent("a", 100)
    assert (site.state, site.asked, site.round) == ("in work", START + 60, 2)
    assert site.waiting(START) == 0  # a clock that was set back


def test_a_failure_is_forgotten_in_the_next_round(status_writer: Callable[..., StatusWriter]) -> None:
    made = status_writer()
    made.round_started(1, ["a"])
    made.answered(Failure(HASH, 1, "a", "out-of-memory"))
    made.round_started(2, ["a"])
    assert (made.status.sites["a"].state, made.status.sites["a"].reason) == ("not asked", "")


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), float("-inf"), None])
def test_the_file_is_json_whatever_loss_a_site_claims(
    loss: float | None, status_writer: Callable[..., StatusWriter], path: Path
) -> None:
    made = status_writer()
    made.answered(update("a", loss=0.5))
    made.answered(update("a", **({} if loss is None else {"loss": loss})))

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse)["sites"]["a"]["loss"] is None


def test_a_site_that_is_no_longer_admitted_leaves_the_board(
    status_writer: Callable[..., StatusWriter], path: Path
) -> None:
    made = status_writer()
    made.online(["a", "b"], {"b": 1})
    made.online(["a"], {})
    made.phase("paused")
    assert list(read_status(path).sites) == ["a"]


def test_how_long_rounds_took(status_writer: Callable[..., StatusWriter], clock: Clock) -> None:
    made = status_writer()
    assert made.status.mean_round is None
    made.round_started(1, ["a"])
    clock.now += 60
    made.round_started(1, ["a"])  # tried again: one round still
    clock.now += 30
    made.round_started(2, ["a"])
    assert made.status.round_seconds == [90]
    clock.now += 30
    made.round_started(3, ["a"])
    assert made.status.round_seconds == [90, 30]
    assert made.status.mean_round == 60
    for round_ in range(4, 30):
        clock.now += round_
        made.round_started(round_, ["a"])
    assert made.status.round_seconds == list(range(10, 30))


def test_late_is_more_than_twice_the_slowest_answer(status_writer: Callable[..., StatusWriter], clock: Clock) -> None:
    made = status_writer()
    made.round_started(1, "abcd")
    for site in "abcd":
        made.sent(site, 1)
    assert made.status.late(clock.now + 1e6) == set()  # of the first round nobody knows yet how long it takes
    clock.now += 60
    made.answered(update("a"))
    clock.now += 40
    made.answered(update("b"))
    made.answered(Failure(HASH, 1, "c", "disk-full"))
    assert made.status.late(START + 200) == set()
    assert made.status.late(START + 200.5) == {"d"}


def test_before_an_answer_late_is_more_than_twice_a_mean_round(
    status_writer: Callable[..., StatusWriter], clock: Clock
) -> None:
    made = status_writer()
    made.round_started(1, "ab")
    clock.now += 50
    made.round_started(2, "ab")
    made.sent("a", 1)
    assert made.status.late(clock.now + 100) == set()
    assert made.status.late(clock.now + 101) == {"a"}


def test_a_restarted_server_goes_on_from_the_file(
    status_writer: Callable[..., StatusWriter], clock: Clock, path: Path
) -> None:
    made = status_writer()
    made.online(["a", "b"], {"a": 1, "b": 2})
    made.round_started(1, "ab")
    clock.now += 10
    made.round_started(2, "ab")
    made.sent("a", 100)
    made.answered(update("a", 2, loss=0.5))
    clock.now += 5000  # nobody runs
    again = status_writer()
    status = read_status(path)
    assert status.phase == "starting"
    assert (status.started, status.round, status.round_seconds) == (START, 2, [10])
    assert status.sites["a"] == SiteStatus(
        False, START, "answered", START + 10, START + 10, 2, "", 0.5, 12, 100, 32
    )  # fmt: skip
    again.round_started(2, "b")
    clock.now += 20
    again.round_started(3, "ab")
    assert again.status.round_seconds == [10, 20]  # without the time when nobody ran


def test_a_restart_between_two_rounds_counts_no_round(status_writer: Callable[..., StatusWriter], clock: Clock) -> None:
    status_writer().round_started(1, "a")
    clock.now += 5000
    again = status_writer()
    again.round_started(2, "a")
    assert again.status.round_seconds == []


def test_another_studys_file_is_begun_anew(status_writer: Callable[..., StatusWriter], path: Path) -> None:
    status_writer().round_started(3, "ab")
    status_writer("cd" * 32)
    assert read_status(path) == Status("tiny", "cd" * 32, 5, started=START, updated=START)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sites": {}}', '{"study": 3}'])
def test_a_damaged_file_is_begun_anew(text: str, status_writer: Callable[..., StatusWriter], path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(text)
    status_writer()
    assert read_status(path) == Status("tiny", HASH, 5, started=START, updated=START)


def test_two_boards_of_one_server_write_in_turn(
    status_writer: Callable[..., StatusWriter], clock: Clock, path: Path
) -> None:
    """The program pauses with its own writer; what the Flower app's said of round and sites stays."""
    program = status_writer()
    program.metrics_at(9464)
    app = status_writer()
    clock.now += 1
    app.online(["a", "b"], {"a": 1})
    app.round_started(4, "ab")
    app.answered(update("a", 4, loss=0.5))
    clock.now += 1
    program.phase("paused", "round 4: fewer than 2 of 2 sites")
    status = read_status(path)
    assert (status.stage, status.round, status.metrics_port) == ("paused", 4, 9464)
    assert status.sites["a"].loss == 0.5
    assert status.sites["a"].online


def test_it_is_written_once_a_second_and_at_once_when_something_happened(
    status_writer: Callable[..., StatusWriter], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = status_writer()
    written = []
    monkeypatch.setattr(module, "write_json", lambda path, value: written.append(value["phase"]))
    for _ in range(30):
        clock.now += 0.125
        made.online(["a"], {"a": 1})
    assert len(written) == 3
    made.phase("paused")
    made.phase("paused")
    assert len(written) == 4
    made.answered(update("a"))
    assert len(written) == 5


def test_a_full_disk_leaves_the_old_one(
    status_writer: Callable[..., StatusWriter], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = status_writer()
    before = path.read_bytes()

    def full(path: Path, value: Any) -> None:
        raise RunError(f"{path}: could not be written (No space left on device)")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_json", full)
        made.phase("paused")
        made.answered(update("a"))
    assert path.read_bytes() == before
    made.phase("round 1 of 5")
    assert list(read_status(path).sites) == ["a"]


def test_a_folder_that_cannot_be_used_does_not_stop_the_run(tmp_path: Path, clock: Clock) -> None:
    (tmp_path / "file").write_text("")
    StatusWriter(tmp_path / "file" / "status.json", "tiny", HASH, 5).round_started(1, "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is damaged"),
        ("[]", "is not what this version of the program writes (the whole: "),
        ('{"study": "t", "study_hash": "ab"}', "(rounds: Field required); restart the server"),
        ('{"study": "t", "study_hash": "ab", "rounds": 5, "sites": {"a": {"state": "ill"}}}', "(sites.a.state: "),
        ('{"study": "t", "study_hash": "ab", "rounds": 5, "sites": {"a": {"loss": "x"}}}', "(sites.a.loss: "),
    ],
)
def test_a_file_that_is_no_status(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(text)
    with pytest.raises(RunError) as caught:
        read_status(tmp_path / "status.json")
    assert str(caught.value).startswith(f"{tmp_path / 'status.json'}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"status\.json: is missing$"):
        read_status(tmp_path / "status.json")


def test_stages() -> None:
    assert [Status("t", HASH, 5, phase=phase).stage for phase in ("round 3 of 5", "paused", "finished")] == [
        "training", "paused", "finished"
    ]  # fmt: skip
    assert {"training", "paused", "finished"} < set(STAGES)


def test_the_heart_beats_while_the_block_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that folds for minutes writes nothing, and is seen to live."""
    monkeypatch.setattr(module, "_BEAT_S", 0.005)
    StatusWriter(path, "tiny", HASH, 5)
    status, content = read_status(path), path.read_bytes()
    old = status.updated - 500
    os.utime(path, (old, old))
    assert last_sign(path, status) == status.updated
    threads = threading.active_count()
    with heartbeat(path):
        deadline = time.monotonic() + 20
        while path.stat().st_mtime == old and time.monotonic() < deadline:
            time.sleep(0.005)
    assert last_sign(path, status) == path.stat().st_mtime > status.updated
    assert path.read_bytes() == content
    assert threading.active_count() == threads


def test_a_heart_beats_where_there_is_no_file_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BEAT_S", 0.001)
    with heartbeat(tmp_path / "status.json"):
        time.sleep(0.02)
    assert not list(tmp_path.iterdir())
