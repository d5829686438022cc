"""``fedpretext status``: what a study lead sees, line by line, on a wide terminal and on a narrow one."""

import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from federation.records import CATEGORIES
from foundation.errors import RunError
from foundation.files import write_json
from server.monitoring import status_table
from server.monitoring.status_table import show, status_lines
from server.monitoring.status_writer import STATES, SiteStatus, Status

HASH = "3f2a91c0d4e1" + "0" * 52
NOW = 1_000_000.0
MIB = 2**20
NARROW, WIDE = 40, 80


def status(**changed: Any) -> Status:
    """Round 7 of 50, begun 14 minutes ago; rounds took 15 minutes. One answered, one late, one failed, one unseen."""
    facts: dict[str, Any] = {
        "study": "retina", "study_hash": HASH, "rounds": 50, "phase": "round 7 of 50", "round": 7,
        "round_started": NOW - 840, "started": NOW - 90000, "updated": NOW - 2, "quorum": 2,
        "round_seconds": [900.0, 850.0, 950.0], "metrics_port": 9464,
        "sites": {
            "west": SiteStatus(),
            "north": SiteStatus(True, NOW, "in work", NOW - 841, 0, 7, "", 0.51234567, 12, 7 * 61 * MIB, 6 * 61 * MIB),
            "east": SiteStatus(True, NOW, "answered", NOW - 840, NOW - 420, 7, "", 0.5, 12, 7 * 61 * MIB, 7 * 61 * MIB),
            "south": SiteStatus(False, NOW - 300, "failed", NOW - 840, NOW - 310, 7, "study-not-approved"),
        },
    }  # fmt: skip
    return Status(**(facts | changed))


def lines(shown: Status, width: int = WIDE, now: float = NOW) -> list[str]:
    said = status_lines(shown, now, width)
    assert max(map(len, said)) <= width
    return said


def test_a_round_on_a_wide_terminal() -> None:
    assert (
        "\n".join(lines(status()))
        == """\
study retina (3f2a91c0d4e1)
round 7 of 50, for 14 min; time left: about 10 h 46 min; a round takes 15 min
4 sites: 2 online (2 needed), 1 answered, 1 in work, 1 failed, 1 late

site   last seen  state                         loss  MiB out  MiB in
east   online     answered in 7 min           0.5000    427.0   427.0
north  online     in work 14 min, late        0.5123    427.0   366.0
south  5 min ago  failed: study-not-approved       -      0.0     0.0
west   never      not asked yet                    -      0.0     0.0

south: study-not-approved: the site has to approve the study (fedpretext site
approve), or its policy forbids it

metrics: http://127.0.0.1:9464/metrics"""
    )


def test_a_round_on_a_narrow_terminal() -> None:
    assert (
        "\n".join(lines(status(), NARROW))
        == """\
study retina (3f2a91c0d4e1)
round 7 of 50, for 14 min; time left:
about 10 h 46 min; a round takes 15 min
4 sites: 2 online (2 needed), 1
answered, 1 in work, 1 failed, 1 late

east: online
  answered in 7 min
  loss 0.5000; MiB out 427.0, in 427.0
north: online
  in work 14 min, late
  loss 0.5123; MiB out 427.0, in 366.0
south: last seen: 5 min ago
  failed: study-not-approved
  loss -; MiB out 0.0, in 0.0
west: last seen: never
  not asked yet
  loss -; MiB out 0.0, in 0.0

south: study-not-approved: the site has
to approve the study (fedpretext site
approve), or its policy forbids it

metrics: http://127.0.0.1:9464/metrics"""
    )


def test_a_state_is_broken_in_two_before_the_table_is() -> None:
    said = lines(status(), 66)
    assert said[6:12] == [
        "site   last seen  state                      loss  MiB out  MiB in",
        "east   online     answered in 7 min        0.5000    427.0   427.0",
        "north  online     in work 14 min, late     0.5123    427.0   366.0",
        "south  5 min ago  failed:                       -      0.0     0.0",
        "                  study-not-approved",
        "west   never      not asked yet                 -      0.0     0.0",
    ]


@pytest.mark.parametrize("silent", [31.0, 180.0])
@pytest.mark.parametrize("phase", ["round 7 of 50", "paused", "waiting for sites"])
def test_a_server_that_does_not_run(phase: str, silent: float) -> None:
    """It says so, what to do, and from where it goes on; ages are as of its last word."""
    shown = status(phase=phase, updated=NOW - silent)
    said = " ".join(lines(shown))
    since = "31 s" if silent == 31 else "3 min"
    assert (
        f"the server is not running: last written {since} ago; start it again (fedpretext server), it goes on from "
        "round 7" in said
    )
    assert "time left" not in said
    assert "by itself" not in said
    assert "metrics:" not in said
    assert [line for line in lines(shown) if line.startswith("south ")] == [
        line for line in lines(replace(shown, updated=NOW - silent), now=NOW + 9999) if line.startswith("south ")
    ]


def test_a_server_that_was_heard_of_half_a_minute_ago_runs() -> None:
    assert "not running" not in " ".join(lines(status(updated=NOW - 30)))
    assert "not running" not in " ".join(lines(status(updated=NOW + 500)))  # the clocks of two machines


def test_one_that_ended_before_its_first_round() -> None:
    said = " ".join(lines(status(phase="starting", round=0, sites={}, updated=NOW - 60)))
    assert said.endswith("it goes on from round 1 starting 50 rounds, none begun yet")


def test_paused_says_why_and_what_to_do() -> None:
    why = "round 7: fewer than 3 of 4 sites gave a usable update in 3 attempts (south: disk-full)"
    assert lines(status(phase="paused", detail=why))[1:5] == [
        "paused: round 7: fewer than 3 of 4 sites gave a usable update in 3 attempts",
        "(south: disk-full)",
        "nothing has to be started again: the server goes on by itself, from round 7",
        "round 7 of 50; a round takes 15 min",
    ]


def test_waiting_says_for_whom() -> None:
    said = lines(status(phase="waiting for sites", detail="1 of 2 needed; missing: south, west", round=0))
    assert said[1:3] == ["waiting for sites: 1 of 2 needed; missing: south, west", "50 rounds, none begun yet"]


def test_finished_is_no_complaint_however_long_ago() -> None:
    shown = status(phase="finished", detail="weights confirmed by east, north", round=50)
    said = lines(shown, now=NOW + 30 * 86400)
    assert said[1:4] == [
        "finished: weights confirmed by east, north",
        "round 50 of 50; a round takes 15 min",
        "4 sites: 2 online (2 needed), 1 answered, 1 in work, 1 failed",
    ]
    assert not any("late" in line or "metrics" in line for line in said)
    assert any(line.startswith("north  online     in work 13 min ") for line in said)  # as of the end


@pytest.mark.parametrize(
    ("seconds", "round_", "lasted", "left"),
    [
        ([100.0, 200.0], 2, 30, "about 9 min"),  # 3 rounds of 150 s, and 120 s of this one: 570 s
        ([100.0, 200.0], 2, 151, "about 7 min"),  # this one is over its time: 450 s
        ([60.0], 5, 20, "about 40 s"),
        ([], 1, 20, "known after a round"),
    ],
)
def test_time_left_by_hand(seconds: list[float], round_: int, lasted: float, left: str) -> None:
    shown = status(
        rounds=5, phase=f"round {round_} of 5", round=round_, round_seconds=seconds, round_started=NOW - lasted
    )
    assert f"; time left: {left}" in " ".join(lines(shown))


@pytest.mark.parametrize("category", [category for category in CATEGORIES if category != "offline"])
def test_every_category_of_failure_has_its_remedy(category: str) -> None:
    failed = SiteStatus(True, NOW, "failed", NOW - 50, NOW, 7, category)
    text = " ".join(lines(status(sites={"b": failed, "a": failed, "c": SiteStatus(True, NOW)})))
    remedy = re.search(rf"a, b: {category}: (.+) metrics:", text)
    assert remedy is not None
    assert len(remedy[1]) > 25
    assert "ask the site for its state/site.log" not in remedy[1]


def test_a_failure_of_another_kind() -> None:
    failed = SiteStatus(True, NOW, "failed", NOW - 50, NOW, 7, "unknown failure")
    assert "a: unknown failure: ask the site for its state/site.log" in lines(status(sites={"a": failed}))


def test_many_sites_and_the_longest_name() -> None:
    sites = {f"{'hospital-' * 4}{number:03d}": SiteStatus(True, NOW) for number in range(100)}
    said = lines(status(sites=sites))
    assert "100 sites: 100 online (2 needed)" in said
    assert [line.split()[0] for line in said if line.startswith("hospital-")] == list(sites)


SITES = st.builds(
    SiteStatus,
    online=st.booleans(),
    seen=st.sampled_from([0.0, NOW - 1e7, NOW, NOW + 100]),
    state=st.sampled_from(STATES),
    asked=st.floats(NOW - 1e7, NOW + 100),
    answered=st.floats(NOW - 1e7, NOW + 100),
    reason=st.text(st.characters()),
    loss=st.none() | st.floats(),
    bytes_sent=st.integers(0, 10**16),
    bytes_received=st.integers(0, 10**16),
)


@given(
    sites=st.dictionaries(st.text(st.characters(), min_size=1), SITES, max_size=4),
    words=st.tuples(st.text(st.characters()), st.text(st.characters()), st.sampled_from(["paused", "round 7 of 50"])),
    width=st.integers(NARROW, 200),
    silent=st.sampled_from([0.0, 5000.0]),
)
def test_whatever_sites_say_it_fits_and_moves_no_cursor(
    sites: dict[str, SiteStatus], words: tuple[str, str, str], width: int, silent: float
) -> None:
    study, detail, phase = words
    said = status_lines(status(study=study, detail=detail, phase=phase, sites=sites, updated=NOW - silent), NOW, width)
    assert all(line.isprintable() for line in said)
    assert max(map(cell_len, said)) <= width  # a letter may be two columns wide, or none


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    """``file(**changes)``: a status.json that was written just now."""

    def make(**changed: Any) -> Path:
        path = tmp_path / "status.json"
        write_json(path, asdict(status(**({"updated": time.time()} | changed))))
        return path

    return make


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of 80 columns gets; a second passes only where it is waited for."""
    written = io.StringIO()
    console = partial(Console, file=written, force_terminal=True, width=WIDE, height=50, color_system="standard")
    monkeypatch.setattr(status_table, "Console", console)
    monkeypatch.setattr(status_table, "time", SimpleNamespace(time=time.time, sleep=lambda seconds: None))
    return written


def test_where_it_is_no_terminal_it_is_plain_and_printed_once(
    file: Callable[..., Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "66")
    path = file()
    for once in (True, False):
        show(path, once)
        out = capsys.readouterr().out
        assert out.startswith("study retina (3f2a91c0d4e1)\nround 7 of 50, for ")
        assert max(map(len, out.splitlines())) <= 66
        assert "\x1b" not in out
        assert not any(line.endswith(" ") for line in out.splitlines())


def test_once_on_a_terminal_is_in_colour(file: Callable[..., Path], terminal: io.StringIO) -> None:
    show(file(phase="paused", detail="disk full"), once=True)
    text = terminal.getvalue()
    assert text.count("study retina") == 1
    assert "\x1b[1;33mpaused: disk full\x1b[0m" in text
    assert "\x1b[?25l" not in text  # the cursor is not hidden: nothing is live


def test_it_refreshes_until_the_study_is_finished(
    file: Callable[..., Path], terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = file()
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        file(phase="finished" if len(waited) == 3 else f"round {7 + len(waited)} of 50", round=7 + len(waited))

    monkeypatch.setattr(status_table.time, "sleep", sleep)
    show(path, once=False)
    assert waited == [1.0, 1.0, 1.0]
    text = terminal.getvalue()
    assert [text.index(f"round {number} of 50") for number in (7, 8, 9, 10)] == sorted(
        text.index(f"round {number} of 50") for number in (7, 8, 9, 10)
    )
    assert text.rindex("finished") > text.index("round 9 of 50")
    assert text.endswith("\x1b[?25h")  # the cursor is back


def test_ctrl_c_ends_it_with_the_table_on_the_screen(
    file: Callable[..., Path], terminal: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status_table.time, "sleep", interrupt)
    show(file(), once=False)
    assert "in work" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[?25h")


def test_a_heartbeat_is_a_sign_of_life(file: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    """A server that aggregates or pauses writes no status for minutes; the file's time of change says that it lives."""
    path = file(phase="paused", detail="disk full", updated=time.time() - 200)
    show(path, once=True)
    assert "not running" not in capsys.readouterr().out
    os.utime(path, (time.time() - 200,) * 2)
    show(path, once=True)
    assert "the server is not running: last written 3 min ago" in capsys.readouterr().out


def test_no_status(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"status\.json: is missing$"):
        show(tmp_path / "status.json", once=True)
