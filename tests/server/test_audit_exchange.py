"""The exchange of audit heads at the server: what it proves to a site, and what it holds an answer against."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from federation.audit.log import NOTHING, AuditLog, verify
from federation.flower.records import confirmation_to_content, with_note
from federation.records import AuditNote, Failure, TrainInstruction, TrainReply
from foundation.errors import RunError
from foundation.files import read_jsonl
from server.audit_exchange import AuditExchange

STUDY = 64 * "c"
WEIGHTS = {"encoder.w": torch.zeros(2)}


class Pair:
    """A server and the site A, each with its log."""

    def __init__(self, place: Path) -> None:
        self.server, self.site = AuditLog(place / "server.jsonl", "server"), AuditLog(place / "A.jsonl", "A")
        self.exchange = AuditExchange(self.server, STUDY)

    def asked(self, round_: int = 1) -> AuditNote:
        """The server asks for a round; the site takes it in and writes it down."""
        note = self.exchange.note_for("A", TrainInstruction(STUDY, round_, WEIGHTS))
        self.site.receive("server", note.extension)
        self.site.append("update released", round=round_)
        return note

    def answer(self, note: AuditNote) -> AuditNote:
        return AuditNote(self.site.extension(note.known), self.site.known("server"))

    def events(self) -> list[str]:
        return [row["event"] for row in read_jsonl(self.server.path)]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def update(round_: int = 1) -> TrainReply:
    return TrainReply(STUDY, round_, "A", 9, WEIGHTS, {"loss": 1.0})


def test_each_round_is_proved_from_the_head_that_the_other_holds(pair: Pair) -> None:
    """Both logs bind each other: heads travel with every message, and no row is shown twice."""
    first = pair.asked()
    assert first.known == NOTHING and len(first.extension.digests) == first.extension.head.count
    assert pair.exchange.received(update(), pair.answer(first)) == update()
    assert pair.server.known("A") == pair.site.head()
    second = pair.asked(2)
    assert second.known == pair.server.known("A")
    # From the head that the site acknowledged: what the server has written since, no more.
    assert len(second.extension.digests) == second.extension.head.count - first.extension.head.count
    assert pair.exchange.received(update(2), pair.answer(second)) == update(2)
    assert verify(pair.server.path).fault == verify(pair.site.path).fault == ""


def test_a_restarted_server_goes_on_from_its_log(pair: Pair) -> None:
    """Defends the chain across a crash: what a site has acknowledged is in the server's log, not in its memory."""
    first = pair.asked()
    pair.exchange.received(update(), pair.answer(first))
    pair.exchange = AuditExchange(pair.server, STUDY)
    second = pair.asked(2)
    assert len(second.extension.digests) == second.extension.head.count - first.extension.head.count
    assert isinstance(pair.exchange.received(update(2), pair.answer(second)), TrainReply)


def test_a_rewritten_log_of_the_server_is_refused_by_its_sites(pair: Pair, tmp_path: Path) -> None:
    """Defends the sites' record: a server whose log was swapped for another cannot give them work."""
    pair.exchange.received(update(), pair.answer(pair.asked()))
    pair.server.path.unlink()
    pair.server = AuditLog(tmp_path / "server.jsonl", "server")
    pair.exchange = AuditExchange(pair.server, STUDY)
    with pytest.raises(RunError, match="does not go on from its row"):
        pair.asked(2)


def test_a_server_whose_log_is_broken_does_not_go_on(pair: Pair) -> None:
    """Defends the record of updates: one digit changed in an old row, and the server does not start."""
    pair.exchange.received(update(), pair.answer(pair.asked()))
    text = pair.server.path.read_text()
    pair.server.path.write_text(text.replace('"bytes":8', '"bytes":9'))
    with pytest.raises(RunError, match="find out who changed it") as caught:
        AuditExchange(pair.server, STUDY)
    assert "\n" not in str(caught.value)


def test_a_log_of_a_site_that_was_cut_is_refused_and_on_record(pair: Pair) -> None:
    """Defends a site's record against its own administrator: rows that the server has seen cannot be taken back."""
    pair.exchange.received(update(), pair.answer(pair.asked()))
    lines = pair.site.path.read_bytes().splitlines(keepends=True)
    pair.site.path.write_bytes(b"".join(lines[:-1]))
    pair.site = AuditLog(pair.site.path, "A")
    note = pair.exchange.note_for("A", TrainInstruction(STUDY, 2, WEIGHTS))
    pair.site.receive("server", note.extension)
    pair.site.append("update released", round=2)
    with pytest.raises(RunError, match="another party holds the head"):
        pair.answer(note)  # an honest program says so itself
    reported = pair.exchange.received(update(2), AuditNote(pair.site.extension(NOTHING), pair.site.known("server")))
    assert reported == Failure("", 2, "A", "log-not-continued")
    assert pair.events()[-2:] == ["head refused", "update refused"]


@pytest.mark.parametrize("note", [None, "stale"])
def test_an_update_without_a_new_head_is_refused_and_on_record(pair: Pair, note: str | None) -> None:
    """Defends the audit: an update comes with a row about it, or does not count."""
    first = pair.answer(pair.asked())
    pair.exchange.received(update(), first)
    pair.asked(2)
    answer = pair.exchange.received(update(2), None if note is None else first)
    assert answer == Failure("", 2, "A", "log-not-continued")
    assert pair.events()[-1] == "update refused"


def test_a_failure_may_come_without_a_head(pair: Pair) -> None:
    """A site that does not act on a message, such as for an app it has not approved, proves nothing, but is heard."""
    pair.asked()
    failure = Failure("", 1, "A", "app-not-approved")
    assert pair.exchange.received(failure, None) == failure
    assert pair.events()[-1] == "update refused"
    assert pair.server.known("A") == NOTHING


CONFIRMED: dict[str, tuple[Callable[[AuditNote], Any], bool]] = {
    "right": (lambda note: with_note(confirmation_to_content("A", STUDY, 64 * "d"), note), True),
    "another digest": (lambda note: with_note(confirmation_to_content("A", STUDY, 64 * "e"), note), False),
    "no note": (lambda note: confirmation_to_content("A", STUDY, 64 * "d"), False),
    "another chain": (
        lambda note: with_note(
            confirmation_to_content("A", STUDY, 64 * "d"),
            replace(note, extension=replace(note.extension, digests=(64 * "0",))),
        ),
        False,
    ),
}


@pytest.mark.parametrize("case", CONFIRMED)
def test_what_confirms_a_delivery(pair: Pair, case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Defends the claim that a site holds the final weights: its word counts with the digest and its log's head."""
    pair.exchange.received(update(), pair.answer(pair.asked()))
    note = pair.exchange.note_of_delivery("A", 64 * "d")
    pair.site.receive("server", note.extension)
    pair.site.append("weights delivered", weights=64 * "d")
    pair.site.append("weights delivered", weights=64 * "d")
    make, confirmed = CONFIRMED[case]
    assert pair.exchange.delivered("A", make(pair.answer(note)), 64 * "d") is confirmed
    assert pair.events().count("weights delivered") == int(confirmed)
    assert "Traceback" not in capsys.readouterr().err
