"""Questions about labels at the wire: who is asked, again where that is needed, and which answers count."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict

import server.fleet_channel
import server.requests
import server.site_channel
from federation.audit.log import AuditLog, verify
from federation.federated_evaluation import EvaluationRequest, Statistics
from federation.flower.private_identity import assume_identity, set_message_id
from federation.flower.records import (
    content_to_note,
    content_to_question,
    reply_to_content,
    said,
    signature_of,
    statistics_to_content,
    with_note,
)
from federation.keys.certificates import new_key
from federation.keys.signing import Signer
from federation.records import AuditNote, Failure
from federation.study import study_from
from foundation.files import read_jsonl
from server.fleet_channel import FleetSiteChannel
from server.monitoring.status_writer import StatusWriter

NODES = {"A": 101, "C": 103}
ENCODER = 64 * "e"
Bend = Callable[[RecordDict], RecordDict | None]


@dataclass
class Fleet:
    """Admitted sites, of which some are there; ``each_look`` changes them when somebody looks."""

    names: list[str] = field(default_factory=lambda: ["A", "C"])
    there: set[str] = field(default_factory=lambda: {"A", "C"})
    each_look: list[set[str]] = field(default_factory=list)

    def refresh(self) -> None:
        if self.each_look:
            self.there = self.each_look.pop(0)

    def admitted(self) -> list[str]:
        return self.names

    def online(self) -> dict[str, int]:
        return {site: NODES[site] for site in self.names if site in self.there}


class Wire:
    """A grid over sites with audit logs of their own; ``bends[n]`` makes C's answer to its n-th message."""

    def __init__(self, place: Path) -> None:
        assume_identity(1)
        self.logs = {site: AuditLog(place / f"{site}.jsonl", site) for site in NODES}
        self.bends: list[Bend] = []
        self.pushed: list[tuple[str, Message]] = []
        self._answers: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            site = next(name for name, node in NODES.items() if node == message.metadata.dst_node_id)
            ids.append(f"message-{len(self.pushed)}")
            set_message_id(message, ids[-1])
            self.pushed.append((site, message))
            content: RecordDict | None = self.honest(site, message)
            if site == "C" and self.bends and content is not None:
                content = self.bends.pop(0)(content)
            if content is not None:
                gone = Message(Error(code=7, reason="offline"), reply_to=message)
                self._answers[ids[-1]] = Message(content, reply_to=message) if len(content) else gone
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self._answers.pop(each) for each in message_ids if each in self._answers]

    def honest(self, site: str, message: Message) -> RecordDict:
        asked, reported = content_to_question(message.content), content_to_note(message.content)
        assert reported is not None
        log = self.logs[site]
        log.receive("server", reported.extension)
        log.append("statistics released", step=asked.step)
        value = {"value": torch.tensor([float(ord(site))], dtype=torch.float64)}
        answer = Statistics(asked.study_hash, site, asked.step, asked.encoder, value)
        return with_note(statistics_to_content(answer), AuditNote(log.extension(reported.known), log.known("server")))

    def asked(self) -> list[str]:
        return [site for site, _ in self.pushed]


@dataclass
class Asking:
    """A contact to two sites, with its parts."""

    channel: FleetSiteChannel
    wire: Wire
    fleet: Fleet
    audit: Path
    study_hash: str

    def ask(self, sites: Sequence[str] = ("A", "C")) -> dict[str, str]:
        """The category of a failure, or the answer's value, by site."""
        asked = EvaluationRequest(self.study_hash, "gradient", ENCODER, {"weights": torch.zeros(2)})
        answers = self.channel.enquire(asked, sites, 300.0)
        return {
            site: answer.category if isinstance(answer, Failure) else str(answer.tensors["value"].item())
            for site, answer in answers.items()
        }

    def rows(self, event: str) -> list[dict[str, Any]]:
        return [row for row in read_jsonl(self.audit) if row["event"] == event]


BOTH = {"A": "65.0", "C": "67.0"}


@pytest.fixture
def asking(tmp_path: Path, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Asking:
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    time = SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now)
    for module in (server.site_channel, server.fleet_channel, server.requests):
        monkeypatch.setattr(module, "time", time)
    study = study_from(raw_study, "test")
    wire, fleet, audit = Wire(tmp_path / "logs"), Fleet(), AuditLog(tmp_path / "audit.jsonl", "server")
    status_writer = StatusWriter(tmp_path / "status.json", study.name, study.training_hash(), 3)
    signer = Signer(new_key(), "the server's certificate")
    channel = FleetSiteChannel(wire, study, audit, fleet, status_writer, signer)  # type: ignore[arg-type]
    return Asking(channel, wire, fleet, audit.path, study.training_hash())


def test_all_answer_and_it_is_on_record(asking: Asking) -> None:
    assert asking.ask() == BOTH
    assert asking.wire.asked() == ["A", "C"]
    assert [(row["site"], row["step"]) for row in asking.rows("statistics asked")] == [
        ("A", "gradient"),
        ("C", "gradient"),
    ]
    assert sorted(row["site"] for row in asking.rows("statistics received")) == ["A", "C"]
    assert verify(asking.audit).fault == ""


def test_each_question_is_signed_for_its_site(asking: Asking) -> None:
    """Flower lets any admitted node write to any other: without a signature a site's neighbour could ask."""
    asking.ask()
    for site, message in asking.wire.pushed:
        assert signature_of(message.content) is not None
        kind, group = message.metadata.message_type, message.metadata.group_id
        assert kind == "query.evaluate"
        other = "C" if site == "A" else "A"
        assert said(message.content, kind, group, site) != said(message.content, kind, group, other)


def test_a_site_that_is_not_there_is_asked_when_it_comes(asking: Asking) -> None:
    asking.fleet.each_look = [{"A"}, {"A"}, {"A"}, {"A", "C"}]
    assert asking.ask() == BOTH
    assert asking.wire.asked() == ["A", "C"]


def test_a_site_that_was_cut_off_is_asked_again(asking: Asking) -> None:
    asking.wire.bends = [lambda content: None]
    asking.fleet.each_look = [{"A", "C"}, {"A"}, {"A", "C"}]
    assert asking.ask() == BOTH
    assert asking.wire.asked() == ["A", "C", "C"]


def test_a_message_that_could_not_be_delivered_is_sent_again(asking: Asking) -> None:
    asking.wire.bends = [lambda content: RecordDict()]
    assert asking.ask() == BOTH
    assert asking.wire.asked() == ["A", "C", "C"]


def test_a_site_that_never_answers_is_given_up_at_the_deadline(asking: Asking) -> None:
    asking.wire.bends = [lambda content: None]
    assert asking.ask() == {"A": "65.0", "C": "no answer before the deadline"}


def test_a_site_that_is_revoked_is_not_waited_for(asking: Asking) -> None:
    asking.fleet.names.remove("C")
    assert asking.ask() == {"A": "65.0", "C": "no longer admitted"}
    assert asking.wire.asked() == ["A"]


def changed(**config: str) -> Bend:
    def bend(content: RecordDict) -> RecordDict:
        reported = dict(content["config"]) | config  # type: ignore[arg-type]
        return RecordDict({**content, "config": ConfigRecord(reported)})

    return bend


def without(name: str) -> Bend:
    return lambda content: RecordDict({key: record for key, record in content.items() if key != name})


@pytest.mark.parametrize(
    ("bend", "category"),
    [
        (changed(site="A"), "reply under another site's name"),
        (changed(step="moments"), "answer to another question"),
        (changed(encoder=64 * "f"), "answer to another question"),
        (changed(study=64 * "f"), "answer to another question"),
        (changed(step="everything"), "unreadable reply"),
        (without("arrays"), "unreadable reply"),
        (without("config"), "unreadable reply"),
        (without("audit"), "log-not-continued"),
        (lambda content: reply_to_content(Failure("", 3, "C", "labels-not-permitted")), "labels-not-permitted"),
        (lambda content: reply_to_content(Failure("", 3, "C", "Doe^Jane /data")), "unknown failure"),
    ],
)
def test_an_answer_that_does_not_count(asking: Asking, bend: Bend, category: str) -> None:
    asking.wire.bends = [bend]
    assert asking.ask() == {"A": "65.0", "C": category}
    assert [row["site"] for row in asking.rows("statistics received")] == ["A"]
    assert "Doe" not in asking.audit.read_text()


def test_an_old_answer_is_not_taken_twice(asking: Asking) -> None:
    """Defends the sum against a replay: an answer shows a row of the site's log that was not shown before."""
    kept: list[RecordDict] = []
    asking.wire.bends = [lambda content: (kept.append(content), content)[1], lambda content: kept[0]]
    assert asking.ask() == BOTH
    assert asking.ask() == {"A": "65.0", "C": "log-not-continued"}
    assert [row["category"] for row in asking.rows("update refused")] == ["log-not-continued"]


def test_the_question_and_the_answer_come_through(asking: Asking) -> None:
    asking.ask(["A"])
    ((_, message),) = asking.wire.pushed
    asked = content_to_question(message.content)
    assert replace(asked, tensors={}) == EvaluationRequest(asking.study_hash, "gradient", ENCODER, {})
    assert torch.equal(asked.tensors["weights"], torch.zeros(2))
