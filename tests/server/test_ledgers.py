"""Privacy ledgers at the server: an update is charged at its site, in a ledger that was not put back, or is refused."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from federation.audit.log import NOTHING, AuditLog, verify
from federation.records import AuditNote, Failure, TrainInstruction, TrainReply
from foundation.files import read_jsonl
from server.audit_exchange import AuditExchange

STUDY = 64 * "c"
WEIGHTS = {"encoder.w": torch.zeros(2)}


class Pair:
    """A server of a private study and the site A, whose ledger is an audit log of its own, as it is in truth."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.server, self.site = AuditLog(place / "audit.jsonl", "server"), AuditLog(place / "A.jsonl", "A")
        self.ledger = AuditLog(place / "ledger.jsonl", "patients")
        self.exchange = AuditExchange(self.server, STUDY, private=True)

    def restart_server(self) -> None:
        self.exchange = AuditExchange(self.server, STUDY, private=True)

    def charge(self) -> None:
        self.ledger.append("update released")

    def update(self, round_: int, charged: bool = True) -> TrainReply:
        """The site charges, unless it only sends a stored update again, and proves its ledger from what is held."""
        held = self.exchange.ledger_of("A")
        if charged:
            self.charge()
        return TrainReply(STUDY, round_, "A", 1, WEIGHTS, {}, self.ledger.extension(held))

    def answer(self, reply: TrainReply) -> TrainReply | Failure:
        """The server's view of a reply that comes with a good audit note."""
        note = self.exchange.note_for("A", TrainInstruction(STUDY, reply.round, WEIGHTS))
        self.site.receive("server", note.extension)
        self.site.append("update released", round=reply.round)
        return self.exchange.received(reply, AuditNote(self.site.extension(note.known), self.site.known("server")))

    def refusals(self) -> list[str]:
        return [row["category"] for row in read_jsonl(self.server.path) if row["event"] == "update refused"]


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(tmp_path)


def refused(round_: int) -> Failure:
    return Failure("", round_, "A", "ledger-not-continued")


def test_each_update_proves_its_ledger_from_the_head_that_the_server_holds(pair: Pair) -> None:
    assert pair.exchange.ledger_of("A") == NOTHING
    for round_ in (1, 2, 3):
        reply = pair.update(round_)
        assert pair.answer(reply) == reply
        assert pair.exchange.ledger_of("A") == verify(pair.ledger.path).head
    assert pair.refusals() == []
    pair.restart_server()
    assert pair.exchange.ledger_of("A") == verify(pair.ledger.path).head  # in the server's audit log, not in its memory
    assert isinstance(pair.answer(pair.update(4)), TrainReply)


def test_an_update_without_a_head_does_not_count(pair: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    assert pair.answer(replace(pair.update(1), ledger=None)) == refused(1)
    assert pair.refusals() == ["ledger-not-continued"]
    assert "the update of A came without the head of its privacy ledger" in capsys.readouterr().err


@pytest.mark.parametrize("restarted", [False, True])
def test_a_new_round_has_to_be_charged(pair: Pair, restarted: bool, capsys: pytest.CaptureFixture[str]) -> None:
    pair.answer(pair.update(1))
    if restarted:
        pair.restart_server()
    assert pair.answer(pair.update(2, charged=False)) == refused(2)
    assert "has no new row for the update that came with it" in capsys.readouterr().err
    assert isinstance(pair.answer(pair.update(2)), TrainReply)


@pytest.mark.parametrize("killed", ["no", "after the update", "before the update was written down"])
def test_a_stored_update_is_taken_again_without_a_charge(pair: Pair, killed: str) -> None:
    """A server that dies with an update in its hands asks for it again; the site sends it again, at no cost."""
    pair.answer(pair.update(1))
    if killed == "before the update was written down":
        pair.charge()
        pair.server.receive("A/ledger", pair.ledger.extension(pair.exchange.ledger_of("A")))
    else:
        pair.answer(pair.update(2))
    if killed != "no":
        pair.restart_server()
    for _ in range(2):
        again = pair.update(2, charged=False)
        assert pair.answer(again) == again
    assert pair.answer(pair.update(3, charged=False)) == refused(3)


def test_a_restored_ledger_is_refused_until_the_lead_accepts_it(
    pair: Pair, fedpretext: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was spent since the backup would be forgotten: the two rows after it are made anew and do not fit."""
    pair.answer(pair.update(1))
    shutil.copy(pair.ledger.path, pair.place / "backup")
    pair.answer(pair.update(2))
    shutil.copy(pair.place / "backup", pair.ledger.path)
    pair.ledger = AuditLog(pair.ledger.path, "patients")
    for _ in range(2):
        pair.charge()
    forged = TrainReply(STUDY, 3, "A", 1, WEIGHTS, {}, pair.ledger.extension(NOTHING))
    assert pair.answer(forged) == refused(3)
    said = capsys.readouterr().err
    assert "the audit log of A/ledger does not go on from its row 3" in said
    assert "accept-restart --ledger" in said
    done = fedpretext("accept-restart", pair.place, "A", "--reason", "disk died", "--ledger")
    assert "privacy ledger is taken as a new one" in done.out
    assert "still spent" in done.out
    assert pair.exchange.ledger_of("A") == NOTHING
    assert isinstance(pair.answer(pair.update(3)), TrainReply)
    assert pair.answer(pair.update(4, charged=False)) == refused(4)
    pair.restart_server()
    assert isinstance(pair.answer(pair.update(4)), TrainReply)


def test_a_study_without_privacy_asks_for_no_ledger(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    pair.answer(pair.update(1))
    pair.exchange = AuditExchange(pair.server, STUDY)
    assert pair.exchange.ledger_of("A") == NOTHING
    reply = TrainReply(STUDY, 2, "A", 9, WEIGHTS, {"loss": 1.0})
    assert pair.answer(reply) == reply
