"""``fedpretext site status``: what a hospital's engineer sees of the client, from the site's own records."""

import fcntl
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from client.approval import approve, withdraw
from client.site import Site
from client.site_file import CLIENT_LOCK, SiteFile, load_site_file
from client.site_log import SiteLog, log_error
from client.site_status import site_status_lines
from federation.audit.log import AuditLog
from federation.records import Category, TrainInstruction, TrainReply
from federation.study import Study
from foundation.errors import DataError, StudyError
from foundation.exclusive import alone_in
from foundation.files import append_jsonl
from foundation.service_log import ServiceLog

WEIGHTS = {"encoder.w": torch.zeros(2**18), "encoder.v": torch.zeros(2**16, dtype=torch.int64)}  # 1.5 MiB


class Here:
    """A hospital with an approved study, and what its client would write down."""

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.file, self.study = path, load_site_file(path), study
        self.hash, self.site = study.training_hash(), Site(load_site_file(path), study)
        self.file.state.mkdir()
        self.log = SiteLog(self.file)

    def approve(self) -> None:
        """As an engineer does."""
        path = self.path.parent / "study.yaml"
        path.write_text(self.study.to_yaml())
        approve(path, self.file, "Dr. Ada", lambda text: True)

    def asked(self, round_: int) -> None:
        """A round's instruction comes."""
        self.log.instructed(TrainInstruction(self.hash, round_, WEIGHTS))

    def sends(self, round_: int, again: bool = False) -> None:
        """A round's update leaves."""
        self.log.released(TrainReply(self.hash, round_, "A", 9, WEIGHTS, {"loss": 1.0}), again)

    def fails(self, error: Exception, category: Category, round_: int) -> None:
        """A round fails."""
        try:
            raise error
        except Exception:
            log_error(self.file.state, round_)
        self.log.refused(category, round_)

    def lines(self, width: int = 80, minutes: float = 12) -> list[str]:
        """What is shown after so many minutes; the times of day are left out."""
        said = site_status_lines(self.path.parent, width, lambda: time.time() + 60 * minutes)
        assert max(map(len, said)) <= width
        return [re.sub(r" \(\d{4}-\d\d-\d\d \d\d:\d\d UTC\)", " (UTC)", line) for line in said]

    def fact(self, label: str, minutes: float = 12) -> str:
        """One fact, its lines joined."""
        lines, found = self.lines(1000, minutes), []
        for line in lines:
            name = line[:10].strip()
            if name == label or (not name and found):
                found.append(line[10:])
            elif found:
                break
        return " / ".join(found)


@pytest.fixture
def here(hospital: Callable[..., Path], study: Callable[..., Study]) -> Here:
    return Here(hospital("A"), study())


def test_a_kit_that_nobody_has_used(here: Here) -> None:
    (here.file.state / "audit.jsonl").unlink()
    assert here.lines(1000) == [
        "site      A",
        "study     approved here: none; no instruction has come yet",
        f"client    not running; start it: fedpretext client {here.path.parent}",
        "now       nothing",
        "asked     nothing yet",
        "sent      nothing yet",
    ]


def test_a_round_in_work_line_by_line(here: Here) -> None:
    here.approve()
    here.asked(1)
    here.sends(1)
    here.asked(2)
    with alone_in(here.file.state, CLIENT_LOCK, "busy"), here.site.rounds.locked(2):
        head = AuditLog(here.file.state / "audit.jsonl", "A").head()
        assert here.lines() == [
            "site      A",
            f"study     tiny ({here.hash[:12]}), approved here",
            "client    running",
            "now       in work on round 2 for 12 min",
            "asked     round 2, 12 min ago (UTC)",
            "sent      round 1, 1.5 MiB, 12 min ago (UTC)",
            "          in all 1 update, 1.5 MiB",
            f"audit     chain is whole: {head.count} rows, head {head.hash[:12]}",
        ]


def test_it_fits_a_narrow_terminal(here: Here) -> None:
    here.approve()
    here.asked(1)
    here.sends(1)
    here.fails(DataError("/images/0001.dcm: is cut short; copy it again from the archive"), "data-not-usable", 2)
    with alone_in(here.file.state, CLIENT_LOCK, "busy"):
        lines = site_status_lines(here.path.parent, 40, lambda: time.time() + 720)
    said = re.sub(r"\d{4}-\d\d-\d\d(\s+)\d\d:\d\d", r"YYYY-MM-DD\1HH:MM", "\n".join(lines))
    assert said.splitlines()[3:-1] == [
        "client    running",
        "now       waiting for an instruction",
        "asked     round 1, 12 min ago",
        "          (YYYY-MM-DD HH:MM UTC)",
        "sent      round 1, 1.5 MiB, 12 min ago",
        "          (YYYY-MM-DD HH:MM UTC)",
        "          in all 1 update, 1.5 MiB",
        "refused   round 2: data-not-usable, 12",
        "          min ago (YYYY-MM-DD HH:MM UTC)",
        "          DataError: /images/0001.dcm:",
        "          is cut short; copy it again",
        "          from the archive",
        "audit     chain is whole: 5 rows, head",
    ]


def test_where_the_site_stands(here: Here) -> None:
    """From approval to the final weights."""
    here.approve()
    assert here.fact("study") == f"approved here: tiny ({here.hash[:12]}); no instruction has come yet"
    with alone_in(here.file.state, CLIENT_LOCK, "busy"):
        assert here.fact("now") == "waiting for an instruction"
        here.asked(1)
        with here.site.rounds.locked(1):
            assert here.fact("now") == "in work on round 1 for 12 min"
        assert here.fact("now") == "round 1 is not being trained; the server asks again for one that was cut off"
        here.asked(1)
        here.sends(1)
        assert here.fact("now") == "waiting for an instruction"
        here.asked(2)
        here.fails(StudyError("x"), "study-not-approved", 2)
        assert here.fact("now") == "waiting for an instruction"
        here.log.delivered(here.hash, "ab" * 32)
        assert here.fact("now") == "finished: the study's weights came 12 min ago (UTC)"
        here.asked(3)  # the study is run anew
        assert here.fact("now").startswith("round 3 is not being trained; ")
    here.sends(3)
    assert here.fact("now") == "nothing"


def test_what_was_sent_again_is_counted(here: Here) -> None:
    here.asked(1)
    here.sends(1)
    here.sends(1, again=True)
    assert here.fact("sent") == "round 1, 1.5 MiB, sent again, 12 min ago (UTC) / in all 2 updates, 3.0 MiB"
    here.sends(2)
    assert here.fact("sent") == "round 2, 1.5 MiB, 12 min ago (UTC) / in all 3 updates, 4.5 MiB"


@pytest.mark.parametrize("category", ["app-not-approved", "study-not-approved", "log-not-continued", "disk-full"])
def test_every_kind_of_refusal(category: Category, here: Here) -> None:
    here.fails(DataError("what is wrong; the remedy"), category, 3)
    assert here.fact("refused") == f"round 3: {category}, 12 min ago (UTC) / DataError: what is wrong; the remedy"


def test_the_last_refusal_is_shown(here: Here) -> None:
    here.fails(DataError("first"), "data-not-usable", 3)
    here.fails(ValueError("second"), "internal-error", 0)
    assert here.fact("refused") == "internal-error, 12 min ago (UTC) / ValueError: second"


def test_why_it_was_refused_is_not_guessed(here: Here) -> None:
    """The newest error is of another round: the log is named in place of it."""
    here.log.refused("disk-full", 4)
    answer = f"round 4: disk-full, 12 min ago (UTC) / why: see {here.file.state / 'site.log'}"
    assert here.fact("refused") == answer
    log_error(here.file.state, 3, "of round 3")
    assert here.fact("refused") == answer
    log_error(here.file.state, 4, "the app is not that of an approved study")
    assert here.fact("refused").endswith(" / the app is not that of an approved study")


def test_a_long_log_is_read_from_its_end(here: Here) -> None:
    log_error(here.file.state, 4, "x" * 200_000 + "\nhalf a letter \u00e9" * 10_000)
    log_error(here.file.state, 5, "this one\x1b[2J\n\n")
    here.log.refused("disk-full", 5)
    assert here.fact("refused").endswith(" / this one?[2J")


def test_a_lost_connection_is_told_until_an_instruction_comes(here: Here) -> None:
    log = ServiceLog(here.file.state / "client.jsonl")
    log.write("info", "site A: joining")
    assert here.fact("warning") == ""
    log.write("warning", "site A: the server does not admit this site's key")
    log.write("info", "trying again in 2 s")
    assert here.fact("warning") == "site A: the server does not admit this site's key, 12 min ago (UTC)"
    here.asked(1)
    assert here.fact("warning") == ""
    later = datetime.now(UTC) + timedelta(minutes=2)
    append_jsonl(log.path, {"time": later.isoformat(), "level": "warning", "event": "cut off again"})
    assert here.fact("warning") == "cut off again, 10 min ago (UTC)"


def test_an_approval_that_does_not_hold(here: Here) -> None:
    here.approve()
    here.asked(1)
    (record,) = (here.file.state / "approvals").iterdir()
    text = record.read_text()
    record.write_text(text.replace("learning_rate: 0.01", "learning_rate: 0.02"))
    assert record.read_text() != text
    assert here.fact("study") == (
        f"{here.hash[:12]}: the record of its approval was changed; look at it again (fedpretext site approve)"
    )
    record.write_text(text)
    withdraw(here.file, here.hash)
    assert here.fact("study") == f"{here.hash[:12]}: not approved here"


def test_a_log_that_was_changed(here: Here) -> None:
    here.asked(1)
    here.sends(1)
    path = here.file.state / "audit.jsonl"
    path.write_text(path.read_text().replace('"bytes":1572864', '"bytes":1'))
    assert here.fact("sent") == "nothing yet"  # no row that does not hold is believed
    answer = here.fact("audit")
    assert answer.startswith("chain is broken at row 3: its content was changed; find out who changed ")
    assert answer.endswith(str(path))


def test_looking_holds_no_lock(here: Here) -> None:
    with alone_in(here.file.state, CLIENT_LOCK, "busy"), here.site.rounds.locked(1):
        pass
    here.lines()
    with (here.file.state / "client.lock").open() as one, (here.file.state / here.hash[:16] / "lock").open() as other:
        for lock in (one, other):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_looking_writes_nothing(here: Here) -> None:
    def seen() -> dict[Path, Any]:
        return {path: path.read_bytes() for path in here.path.parent.rglob("*") if path.is_file()}

    here.approve()
    here.asked(1)
    before = seen()
    here.lines()
    assert seen() == before


def test_it_takes_a_kit_or_a_site_file(here: Here, tmp_path: Path) -> None:
    by_folder, by_file = (site_status_lines(place, 80, lambda: 0.0) for place in (here.path.parent, here.path))
    assert by_folder == by_file
    with pytest.raises(StudyError, match=r"site\.yaml"):
        site_status_lines(tmp_path, 80)


def test_the_state_may_be_elsewhere(here: Here, tmp_path: Path) -> None:
    """The site file says where."""
    moved = tmp_path / "elsewhere"
    here.file.state.rename(moved)
    here.path.write_text(here.path.read_text().replace("state: state", f"state: {moved}"))
    found: SiteFile = load_site_file(here.path)
    SiteLog(found).instructed(TrainInstruction(here.hash, 5, WEIGHTS))
    assert here.fact("asked") == "round 5, 12 min ago (UTC)"
