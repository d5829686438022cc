"""What a person reads of audit logs, on 80 columns."""

import re
from pathlib import Path
from typing import Any

import pytest

from federation.audit.log import AuditLog
from federation.audit.report import WIDTH, report
from foundation.errors import RunError

STUDY, CODE, WEIGHTS = "ab" * 32, "0.1.0", "cd" * 32
TIME = r"\d{4}-\d\d-\d\d \d\d:\d\d"


@pytest.fixture
def logs(tmp_path: Path) -> tuple[AuditLog, AuditLog]:
    """Server and site after two rounds; the second update was sent twice, and a third round was refused."""
    server, site = AuditLog(tmp_path / "server.jsonl", "server"), AuditLog(tmp_path / "a.jsonl", "a")
    site.append("study approved", study=STUDY, person="Dr. Weiß")
    for round_ in (1, 2):
        server.append("instruction sent", site="a", study=STUDY, round=round_)
        site.receive("server", server.extension(site.known("server")))
        update: dict[str, Any] = {"study": STUDY, "round": round_, "bytes": 23_170_000, "weights": WEIGHTS}
        site.append("update released", code=CODE, tensors=152, **update)
        if round_ == 2:
            site.append("update sent again", code=CODE, tensors=152, **update)
        server.receive("a", site.extension(server.known("a")))
        server.append("update received", site="a", **update)
        server.append("round aggregated", round=round_)
    site.append("request refused", study="f" * 64, round=3, category="study-not-approved")
    server.append("update refused", site="a", round=3, category="study-not-approved")
    server.append("site left out", site="b", round=3, reason="no answer before the deadline")
    return server, site


def timeless(lines: list[str]) -> list[str]:
    """Lines with each time and each 12 digits of a head replaced."""
    return [re.sub(r"\b[0-9a-f]{12}$", "HEAD", re.sub(TIME, "2026-11-24 19:48", line)) for line in lines]


def test_what_left_a_site(logs: tuple[AuditLog, AuditLog]) -> None:
    _, site = logs
    found = report(site.path)
    held, head = site.known("server"), site.head()
    assert found.ok
    said = timeless(found.lines)
    assert " ".join(said[: said.index(f"chain is whole: 8 rows, head {'HEAD'}")]) == f"Audit log of a: {site.path}"
    assert said[said.index("chain is whole: 8 rows, head HEAD") + 1 :] == [
        f"head: {head.hash}",
        "",
        "What left this site",
        "time (UTC)        round  study         code     tensors       size  weights",
        "2026-11-24 19:48      1  abababababab  0.1.0        152   22.1 MiB  HEAD",
        "2026-11-24 19:48      2  abababababab  0.1.0        152   22.1 MiB  HEAD",
        "2026-11-24 19:48     2*  abababababab  0.1.0        152   22.1 MiB  HEAD",
        "in all: 66.3 MiB in 3 messages, 1 of them an update sent again (*)",
        f"study: {STUDY}",
        "code: 0.1.0",
        "",
        "Decisions",
        "2026-11-24 19:48  study approved: person Dr. Weiß, study HEAD",
        "2026-11-24 19:48  request refused: category study-not-approved, round 3, study",
        "                  HEAD",
        "",
        "Heads held of other logs",
        f"server: row {held.count}, {held.hash[:12]}, 2026-11-24 19:48",
    ]


def test_what_came_to_the_server(logs: tuple[AuditLog, AuditLog]) -> None:
    server, _ = logs
    said = timeless(report(server.path).lines)
    start = said.index("What sites sent")
    assert said[start:] == [
        "What sites sent",
        "site                  updates       size  refused  left out  last round",
        "a                           2   44.2 MiB        1         0           2",
        "b                           0        0 B        0         1        none",
        "",
        "Decisions",
        "2026-11-24 19:48  update refused: category study-not-approved, round 3, site a",
        "2026-11-24 19:48  site left out: reason no answer before the deadline, round 3,",
        "                  site b",
        "",
        "Heads held of other logs",
        f"a: row {server.known('a').count}, {server.known('a').hash[:12]}, 2026-11-24 19:48",
    ]


def test_two_logs_that_agree(logs: tuple[AuditLog, AuditLog]) -> None:
    server, site = logs
    found = report(server.path, site.path)
    assert found.ok
    assert found.lines[-1] == "server and a: the logs agree on the 4 heads that they hold of each other"


def test_two_logs_that_do_not(logs: tuple[AuditLog, AuditLog]) -> None:
    server, site = logs
    site.path.write_bytes(b"".join(site.path.read_bytes().splitlines(keepends=True)[:4]))
    found = report(server.path, site.path)
    assert not found.ok
    at = found.lines.index("server and a: the logs do not agree; they hold 3 heads of each other")
    answer = (
        f"was rewritten, cut or restored, from row 5 at the earliest: row 7 is not the one whose head {server.path} "
        f"holds in row 7, if that one is true"
    )
    assert "".join("".join(found.lines[at + 1 :]).split()).endswith("".join(answer.split()))  # a long path is broken up
    assert report(site.path).ok, "alone it is whole"


def test_a_broken_chain_is_reported_up_to_its_first_bad_row(logs: tuple[AuditLog, AuditLog]) -> None:
    server, site = logs
    text = site.path.read_text()
    site.path.write_text(text.replace('"round":1', '"round":9'))
    found = report(server.path, site.path)
    assert not found.ok
    said = timeless(found.lines)
    at = said.index("chain is broken at row 4: its content was changed")
    assert said[at + 1] == "What follows is of the rows before it; do not trust the rows after it."
    assert said[at + 4 : at + 6] == ["What left this site", "nothing"]
    assert said[at + 7 : at + 9] == ["Decisions", "2026-11-24 19:48  study approved: person Dr. Weiß, study HEAD"]
    compared = said.index("server and a: the logs do not agree; they hold 3 heads of each other")
    assert "chain is broken at row 4: its content was changed" in " ".join(" ".join(said[compared:]).split())
    assert not report(site.path).ok


def test_a_fresh_log_has_nothing_to_tell(tmp_path: Path) -> None:
    for party, title in (("a", "What left this site"), ("server", "What sites sent")):
        said = report(AuditLog(tmp_path / party, party).path).lines
        assert said[-8:] == [title, "nothing", "", "Decisions", "none", "", "Heads held of other logs", "none"]


def test_a_restart_is_a_decision(logs: tuple[AuditLog, AuditLog]) -> None:
    server, _ = logs
    server.accept_restart("a", "disk died")
    said = timeless(report(server.path).lines)
    assert "2026-11-24 19:48  chain restart accepted: party a, reason disk died" in said
    assert said[-1] == "a: none since its restart was accepted, 2026-11-24 19:48"


def test_rows_without_the_usual_fields_are_shown_too(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "a", "a")
    log.append("update released", bytes="many")
    log.append("paused")
    said = timeless(report(log.path).lines)
    assert "2026-11-24 19:48      ?  ?             ?              ?        0 B  ?" in said
    assert "2026-11-24 19:48  paused" in said


SIZES = {
    0: "0 B", 999: "999 B", 1000: "1.0 KiB", 1023948: "999.9 KiB", 1023949: "1.0 MiB", 10**9: "953.7 MiB",
    2**30: "1.0 GiB", 10**15: "909.5 TiB", 10**19: "9094947.0 TiB",
}  # fmt: skip


@pytest.mark.parametrize("count", SIZES)
def test_sizes(tmp_path: Path, count: int) -> None:
    log = AuditLog(tmp_path / "a", "a")
    log.append("update released", bytes=count)
    assert f"in all: {SIZES[count]} in 1 messages, 0 of them an update sent again (*)" in report(log.path).lines


def test_no_text_moves_the_cursor_or_is_wider_than_the_screen(tmp_path: Path) -> None:
    bad = "\x1b[2J\x1b]0;title\x07\n\r\u202e" + "long-word" * 30
    server, site = AuditLog(tmp_path / "server", "server"), AuditLog(tmp_path / "a", "a")
    site.append("update released", study=bad, round=bad, code=bad, tensors=bad, bytes=10**9, weights=bad)
    site.append("policy refused", reason=bad, **{bad: bad})
    site.receive("server", server.extension(site.known("server")))
    server.append("update received", site=bad, round=100_000, bytes=10**14)
    for line in report(server.path, site.path).lines:
        assert line.isprintable()
        assert len(line) <= WIDTH, line


def test_a_missing_log_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"none: is missing$"):
        report(tmp_path / "none")


def test_no_log_no_lines() -> None:
    assert report().lines == []
    assert report().ok


def test_sites_are_not_compared_with_each_other(logs: tuple[AuditLog, AuditLog], tmp_path: Path) -> None:
    server, site = logs
    other = AuditLog(tmp_path / "b.jsonl", "b")
    lines = report(site.path, other.path, server.path).lines
    assert lines[-2:] == [
        "a and server: the logs agree on the 4 heads that they hold of each other",
        "b and server: hold no heads of each other yet, so that nothing can be compared",
    ]
