"""The log of a program that runs for months: a line for a person, the same for machines, and never in the way."""

import errno
import io
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from foundation import service_log
from foundation.files import read_jsonl
from foundation.service_log import ServiceLog, rotate


@pytest.fixture
def log(tmp_path: Path) -> ServiceLog:
    return ServiceLog(tmp_path / "run" / "server.jsonl")


def test_a_line_for_a_person_and_a_row_for_machines(log: ServiceLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.write("info", "listening on 0.0.0.0:8443")
    log.write("warning", "site north: is late", site="north", seconds=61.5, round=3)
    assert capsys.readouterr().err == "listening on 0.0.0.0:8443\nsite north: is late\n"
    first, second = read_jsonl(log.path)
    assert set(first) == {"time", "level", "event"}
    assert datetime.now(UTC) - datetime.fromisoformat(first.pop("time")) < timedelta(minutes=1)
    assert first == {"level": "info", "event": "listening on 0.0.0.0:8443"}
    assert second.pop("time").endswith("+00:00")
    assert second == {
        "level": "warning", "event": "site north: is late", "site": "north", "seconds": 61.5, "round": 3
    }  # fmt: skip


def test_another_partys_words_can_neither_forge_a_line_nor_move_the_cursor(
    log: ServiceLog, capsys: pytest.CaptureFixture[str]
) -> None:
    log.write("error", "the SuperNode ended (\x1b[2J\nstudy tiny: finished)")
    answer = "the SuperNode ended (?[2J study tiny: finished)"
    assert capsys.readouterr().err == f"{answer}\n"
    assert [row["event"] for row in read_jsonl(log.path)] == [answer]
    assert len(log.path.read_text().splitlines()) == 1


def test_brackets_are_no_markup(log: ServiceLog, capsys: pytest.CaptureFixture[str]) -> None:
    log.write("info", "[bold]listening on [::1]:8443")
    assert capsys.readouterr().err == "[bold]listening on [::1]:8443\n"


def test_a_torn_last_line_costs_only_itself(log: ServiceLog) -> None:
    log.write("info", "one")
    with log.path.open("a") as handle:
        handle.write('{"time": "2026-')  # its writer was killed
    log.write("info", "two")
    assert [row["event"] for row in read_jsonl(log.path)] == ["one", "two"]


def test_a_log_that_has_grown_is_put_aside_once(log: ServiceLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_log, "LARGEST", 1000)
    for number in range(60):
        log.write("info", f"line {number:02d}")
    assert sorted(path.name for path in log.path.parent.iterdir()) == ["server.jsonl", "server.jsonl.1"]
    kept = [row["event"] for path in (log.path.with_name("server.jsonl.1"), log.path) for row in read_jsonl(path)]
    assert kept == [f"line {number:02d}" for number in range(60 - len(kept), 60)]
    assert 1000 < log.path.with_name("server.jsonl.1").stat().st_size < 1100


def test_rotate_touches_nothing_else(tmp_path: Path) -> None:
    rotate(tmp_path / "superlink.log")
    assert not list(tmp_path.iterdir())
    path = tmp_path / "superlink.log"
    with path.open("wb") as handle:
        handle.truncate(service_log.LARGEST)
    rotate(path)
    assert path.exists()
    os.truncate(path, service_log.LARGEST + 1)
    rotate(path)
    assert [path.name for path in tmp_path.iterdir()] == ["superlink.log.1"]


def test_a_file_that_cannot_be_written_does_not_stop_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").write_text("")
    ServiceLog(tmp_path / "full" / "server.jsonl").write("info", "goes on")
    assert capsys.readouterr().err == "goes on\n"


class Full(io.StringIO):
    """Standard error, sent into a file on a disk that is full."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nor_does_a_screen_that_cannot(log: ServiceLog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Full())
    log.write("info", "goes on")
    assert json.loads(log.path.read_text())["event"] == "goes on"
