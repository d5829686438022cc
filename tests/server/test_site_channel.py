"""What a site may answer, at the wire: whatever else comes is named, written down, and the round goes on without it."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict

import server.fleet_channel
import server.requests
import server.site_channel
from federation.audit.log import AuditHead, AuditLog, Extension, verify
from federation.flower.private_identity import assume_identity, set_message_id
from federation.flower.records import (
    confirmation_to_content,
    content_to_instruction,
    content_to_note,
    reply_to_content,
    site_to_content,
    with_note,
)
from federation.keys.certificates import new_key
from federation.keys.signing import Signer
from federation.records import AuditNote, Failure, SiteInfo, TrainInstruction, TrainReply, weights_digest
from federation.study import Study, study_from
from foundation import events
from foundation.files import read_jsonl
from server.fleet_channel import FleetSiteChannel
from server.monitoring.status_writer import StatusWriter
from server.site_channel import GridSiteChannel

SITES = ("A", "B", "C", "D")
NODES = {site: 100 + number for number, site in enumerate(SITES)}
Honest = Callable[[TrainInstruction, str], TrainReply]
ROW = 64 * "5"


@dataclass(frozen=True)
class Asked:
    """One instruction at a site, what an honest site answers, and what it answered before, by round."""

    instruction: TrainInstruction
    reply: TrainReply
    note: AuditNote
    before: dict[int, RecordDict]

    def content(self, **changes: Any) -> RecordDict:
        """The honest answer, with changes to its reply."""
        return with_note(reply_to_content(replace(self.reply, **changes)), self.note)


Bend = Callable[[Asked], list[RecordDict]]


class Wire:
    """A Flower grid over sites with audit logs of their own; ``bend`` makes site C's answers."""

    def __init__(self, place: Path, study: Study, honest: Honest, bend: Bend) -> None:
        assume_identity(1)
        self.logs = {site: AuditLog(place / f"{site}.jsonl", site) for site in SITES}
        self.offline: set[str] = set()
        self.asked_for: list[str] = []
        self.pushed: list[Message] = []
        self._hash, self._honest, self._bend = study.training_hash(), honest, bend
        self._answers: dict[str, list[Message]] = {}
        self._before: dict[str, dict[int, RecordDict]] = {site: {} for site in SITES}

    def get_node_ids(self) -> list[int]:
        return list(NODES.values())

    def send_and_receive(self, messages: Iterable[Message]) -> list[Message]:
        """Every site says who it is."""
        replies = []
        for message in messages:
            set_message_id(message, f"who-{message.metadata.dst_node_id}")
            content = site_to_content(SiteInfo(self.site(message), self._hash, 10))
            replies.append(Message(content, reply_to=message))
        return replies

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages, and let the sites answer at once, for whoever pulls."""
        ids = []
        for message in messages:
            self.pushed.append(message)
            ids.append(f"message-{len(self.pushed)}")
            set_message_id(message, ids[-1])
            if message.metadata.message_type == "train":
                answers = self._answer(self.site(message), message)
                self._answers[ids[-1]] = [Message(content, reply_to=message) for content in answers]
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """What was answered; the same again however often it is asked for."""
        wanted = list(message_ids)
        self.asked_for += wanted
        return [reply for message_id in wanted for reply in self._answers.get(message_id, [])]

    @staticmethod
    def site(message: Message) -> str:
        """The site that a message goes to."""
        return next(site for site, node in NODES.items() if node == message.metadata.dst_node_id)

    def _answer(self, site: str, message: Message) -> list[RecordDict]:
        instruction, reported = content_to_instruction(message.content), content_to_note(message.content)
        assert reported is not None
        log = self.logs[site]
        log.receive("server", reported.extension)
        log.append("update released", round=instruction.round)
        note = AuditNote(log.extension(reported.known), log.known("server"))
        asked = Asked(instruction, self._honest(instruction, site), note, dict(self._before[site]))
        self._before[site][instruction.round] = asked.content()
        return self._bend(asked) if site == "C" else [asked.content()]

    def answers_later(self, message_id: str, content: RecordDict) -> None:
        """Give a message, by its id, the answer that it did not have so far."""
        message = self.pushed[int(message_id.removeprefix("message-")) - 1]
        self._answers[message_id] = [Message(content, reply_to=message)]


def honestly(asked: Asked) -> list[RecordDict]:
    return [asked.content()]


def not_at_all(_: Asked) -> list[RecordDict]:
    return []


def forged(asked: Asked, **changes: Any) -> list[RecordDict]:
    """The honest update with another note on the audit logs."""
    return [with_note(reply_to_content(asked.reply), replace(asked.note, **changes))]


def without_arrays(asked: Asked) -> list[RecordDict]:
    content = asked.content()
    del content["arrays"]
    return [content]


CASES: dict[str, tuple[Bend, str]] = {
    "the reply of the round before": (
        lambda asked: [asked.before.get(asked.reply.round - 1, asked.content(round=9))],
        "reply of another round",
    ),
    "a reply of a round to come": (
        lambda asked: [asked.content(round=asked.reply.round + 1)],
        "reply of another round",
    ),
    "a failure of another round": (
        lambda asked: [reply_to_content(Failure("", 9, "C", "disk-full"))],
        "reply of another round",
    ),
    "a reply of another study": (lambda asked: [asked.content(study_hash=64 * "a")], "reply of another study"),
    "a reply under another site's name": (lambda asked: [asked.content(site="A")], "reply under another site's name"),
    "a reply under a name that is a path": (
        lambda asked: [asked.content(site="../../A")],
        "reply under another site's name",
    ),
    "no note on the audit logs": (lambda asked: [reply_to_content(asked.reply)], "log-not-continued"),
    "a note of the wrong form": (
        lambda asked: [RecordDict({**reply_to_content(asked.reply), "audit": ConfigRecord({"count": "C:/x"})})],
        "unreadable reply",
    ),
    "no tensors": (without_arrays, "unreadable reply"),
    "nothing": (lambda asked: [RecordDict()], "unreadable reply"),
    "a text for a category": (
        lambda asked: [reply_to_content(Failure("", asked.reply.round, "C", "Doe^Jane /data"))],
        "unknown failure",
    ),
}  # fmt: skip


class Rounds:
    """A round loop over a wire, and what it left."""

    def __init__(self, loop: Any, place: Path, honest: Honest) -> None:
        self.loop, self._place, self._honest = loop, place, honest
        self.path = loop.folder / "audit.jsonl"

    def run(self, bend: Bend) -> dict[str, torch.Tensor]:
        """All rounds, with C's answers bent; the final weights."""
        wire = Wire(self._place / "logs", self.loop.study, self._honest, bend)
        audit = AuditLog(self.path, "server")
        weights: dict[str, torch.Tensor] = self.loop.run(
            channel=GridSiteChannel(wire, self.loop.study, audit, len(SITES))  # type: ignore[arg-type]
        )
        return weights

    def rows(self, event: str) -> list[dict[str, Any]]:
        return [row for row in read_jsonl(self.path) if row["event"] == event]


@pytest.fixture
def rounds(loop: Callable[..., Any], tmp_path: Path, honest_site: Honest) -> Rounds:
    """Three rounds of four sites, of which half are enough; an answer that is awaited in vain costs a minute."""
    return Rounds(loop(quorum=0.5), tmp_path, honest_site)


@pytest.fixture
def without_c(loop: Callable[..., Any]) -> dict[str, torch.Tensor]:
    """The weights of an undisturbed study of the three other sites."""
    undisturbed = loop(quorum=0.5)
    undisturbed.folder = undisturbed.folder.with_name("undisturbed")
    weights: dict[str, torch.Tensor] = undisturbed.run(sites=("A", "B", "D"))
    return weights


@pytest.mark.parametrize("case", CASES)
def test_a_false_answer_is_named_and_the_round_goes_on(
    rounds: Rounds, without_c: dict[str, torch.Tensor], case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Defends the model against replayed, misdirected and unproven replies: none is averaged, each is on record."""
    bend, category = CASES[case]
    weights = rounds.run(bend)
    assert {name: value.tolist() for name, value in weights.items()} == {
        name: value.tolist() for name, value in without_c.items()
    }
    assert {(row["site"], row["round"], row["category"]) for row in rounds.rows("update refused")} == {
        ("C", number, category) for number in (1, 2, 3)
    }
    assert [(row["site"], row["round"], row["reason"]) for row in rounds.rows("site left out")] == [
        ("C", number, category) for number in (1, 2, 3)
    ]
    assert {row["site"] for row in rounds.rows("update received")} == {"A", "B", "D"}
    assert rounds.loop.events() == [(number, events.LEFT_OUT, "C", category) for number in (1, 2, 3)]
    assert verify(rounds.path).fault == ""
    said = capsys.readouterr()
    assert all(word not in text for text in (said.out, said.err, rounds.path.read_text()) for word in ("Doe", "/data"))


def test_an_honest_wire_leaves_nobody_out(rounds: Rounds) -> None:
    """The forgeries above are refused for what is forged in them."""
    rounds.run(honestly)
    assert rounds.rows("update refused") == rounds.rows("site left out") == []
    assert [row["site"] for row in rounds.rows("update received")] == 3 * list(SITES)


def test_an_answer_that_comes_twice_counts_once(rounds: Rounds, loop: Callable[..., Any]) -> None:
    """Defends the average against a site that would weigh double: one answer a message, one update a site."""
    weights = rounds.run(lambda asked: [asked.content(), asked.content(images=4000)])
    once = loop(quorum=0.5)
    once.folder = once.folder.with_name("once")
    expected = once.run()
    assert {name: value.tolist() for name, value in weights.items()} == {
        name: value.tolist() for name, value in expected.items()
    }
    received = [(row["site"], row["round"]) for row in rounds.rows("update received")]
    assert sorted(received) == [(site, number) for site in SITES for number in (1, 2, 3)]


def of_another_chain(asked: Asked) -> Extension:
    return Extension(AuditHead(99, ROW), (ROW, ROW))


def restored(asked: Asked) -> Extension:
    """As a backup has it: rows that go on, but not from the row that the server has seen."""
    return Extension(AuditHead(asked.note.extension.head.count, ROW), asked.note.extension.digests)


def untold(asked: Asked) -> Extension:
    """The head that the server holds already: the log has no row about this update."""
    held = content_to_note(asked.before[1])
    assert held is not None
    return Extension(held.extension.head)


@pytest.mark.parametrize("extension", [of_another_chain, restored, untold])
def test_an_update_that_the_sites_log_does_not_prove_is_refused(
    rounds: Rounds, extension: Callable[[Asked], Extension]
) -> None:
    """Defends the audit: after its first answer a site can neither swap its log, nor send updates beside it."""
    rounds.run(lambda asked: honestly(asked) if asked.reply.round == 1 else forged(asked, extension=extension(asked)))
    refused = [(row["site"], row["round"], row["category"]) for row in rounds.rows("update refused")]
    assert refused == [("C", number, "log-not-continued") for number in (2, 3)]
    assert [(row["site"], row["round"]) for row in rounds.rows("site left out")] == [("C", 2), ("C", 3)]
    assert [row["round"] for row in rounds.rows("update received") if row["site"] == "C"] == [1]


# ---- admitted sites, behind SuperNodes


class Admitted:
    """A fleet that a test changes."""

    def __init__(self, sites: Sequence[str]) -> None:
        self.names, self.there = list(sites), list(sites)

    def refresh(self) -> None:
        """Nothing changes by itself."""

    def admitted(self) -> list[str]:
        return self.names

    def online(self) -> dict[str, int]:
        return {site: NODES[site] for site in self.names if site in self.there}


@dataclass
class Fleeted:
    """A contact to admitted sites, its parts, and the first round's instruction."""

    channel: FleetSiteChannel
    wire: Wire
    fleet: Admitted
    audit: AuditLog
    instruction: TrainInstruction

    def got(self) -> list[tuple[str, str]]:
        """What comes now: site, and the category of a failure."""
        return [
            (answer.site, answer.category if isinstance(answer, Failure) else "") for answer in self.channel.collect()
        ]


@pytest.fixture
def fleeted(
    tmp_path: Path, raw_study: dict[str, Any], honest_site: Honest, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Fleeted]:
    """``fleeted(bend)``: sites A and C."""
    clock = SimpleNamespace(now=0.0)

    def sleep(seconds: float) -> None:
        clock.now += seconds

    time = SimpleNamespace(sleep=sleep, monotonic=lambda: clock.now)
    for module in (server.site_channel, server.fleet_channel, server.requests):
        monkeypatch.setattr(module, "time", time)

    def make(bend: Bend = honestly) -> Fleeted:
        study = study_from(raw_study, "test")
        wire, fleet = Wire(tmp_path / "logs", study, honest_site, bend), Admitted(["A", "C"])
        audit = AuditLog(tmp_path / "audit.jsonl", "server")
        status_writer = StatusWriter(tmp_path / "status.json", study.name, study.training_hash(), 3)
        signer = Signer(new_key(), "the server's certificate")
        channel = FleetSiteChannel(wire, study, audit, fleet, status_writer, signer)  # type: ignore[arg-type]
        weights = {"encoder.w": torch.zeros(4), "encoder.count": torch.tensor(0)}
        return Fleeted(channel, wire, fleet, audit, TrainInstruction(study.training_hash(), 1, weights))

    return make


def test_a_site_that_is_revoked_in_a_round_is_not_waited_for(fleeted: Callable[..., Fleeted]) -> None:
    """Defends the federation against a site that was excluded: what it may still send is not even asked for."""
    all_ = fleeted(not_at_all)
    all_.channel.instruct(all_.instruction, ["A", "C"])
    all_.fleet.names.remove("C")
    assert sorted(all_.got()) == [("A", ""), ("C", "no longer admitted")]
    all_.wire.asked_for.clear()
    all_.wire.answers_later("message-2", reply_to_content(Failure("", 1, "C", "offline")))
    assert all_.got() == []
    assert all_.wire.asked_for == []


def test_an_answer_is_not_asked_for_while_its_site_is_away(fleeted: Callable[..., Fleeted]) -> None:
    """Flower answers a question about an offline node with an error and throws the node's own answer away."""
    all_ = fleeted()
    all_.channel.instruct(all_.instruction, ["A", "C"])
    all_.fleet.there.remove("C")
    assert all_.got() == [("A", "")]
    assert all_.wire.asked_for == ["message-1"]
    all_.fleet.there.append("C")
    assert all_.got()[0] == ("C", "")


def test_a_site_that_comes_later_is_sent_what_it_is_owed(fleeted: Callable[..., Fleeted]) -> None:
    all_ = fleeted()
    all_.fleet.there.remove("C")
    all_.channel.instruct(all_.instruction, ["A", "C"])
    assert [all_.wire.site(message) for message in all_.wire.pushed] == ["A"]
    all_.fleet.there.append("C")
    assert sorted(all_.got()) == [("A", ""), ("C", "")]
    assert [all_.wire.site(message) for message in all_.wire.pushed] == ["A", "C"]


def test_the_last_word_of_a_round_that_is_over_is_not_taken(fleeted: Callable[..., Fleeted]) -> None:
    """Defends against a late replay: an answer to an instruction of a former round finds nobody who asked."""
    all_ = fleeted(not_at_all)
    all_.channel.instruct(all_.instruction, ["A", "C"])
    assert all_.got() == [("A", "")]
    all_.channel.instruct(replace(all_.instruction, round=2), ["A", "C"])
    all_.wire.answers_later("message-2", reply_to_content(Failure("", 1, "C", "disk-full")))
    assert all_.got() == [("A", "")]
    assert [row["round"] for row in read_jsonl(all_.audit.path) if row["event"] == "update received"] == [1, 2]


def test_final_weights_count_as_delivered_only_by_their_digest(fleeted: Callable[..., Fleeted]) -> None:
    """Defends the claim that all sites hold the same weights: another digest, or none, is no confirmation."""
    all_ = fleeted()
    real = all_.wire.push_messages

    def push(messages: Iterable[Message]) -> list[str]:
        taken = list(messages)
        ids = real(taken)
        for message_id, message in zip(ids, taken, strict=True):
            reported, site = content_to_note(message.content), all_.wire.site(message)
            assert reported is not None
            log = all_.wire.logs[site]
            log.receive("server", reported.extension)
            digest = weights_digest(all_.instruction.weights) if site == "A" else 64 * "0"
            note = AuditNote(log.extension(reported.known), log.known("server"))
            content = with_note(confirmation_to_content(site, all_.instruction.study_hash, digest), note)
            all_.wire.answers_later(message_id, content)
        return ids

    all_.wire.push_messages = push  # type: ignore[method-assign]
    assert all_.channel.deliver(all_.instruction.weights, 3, patience_s=2.0) == ["A"]
    rows = [row for row in read_jsonl(all_.audit.path) if row["event"] == "weights delivered"]
    assert [row["site"] for row in rows] == ["A"]
