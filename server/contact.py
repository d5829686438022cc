"""The sites behind a Flower grid, by name: a simulation's, who say who they are, and those that were admitted."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Generic, TypeVar

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from federation.audit import AuditLog
from federation.federated_evaluation import Question, Statistics
from federation.flower import (
    content_to_note,
    content_to_reply,
    content_to_site,
    content_to_statistics,
    delivery_to_content,
    failure_in,
    instruction_to_content,
    question,
    question_to_content,
    said,
    signed,
    weights_to_record,
)
from federation.records import UNKNOWN_SITE, Failure, SiteInfo, TrainInstruction, TrainReply, weights_digest
from federation.secure_aggregation.messages import SecureAggregationError
from federation.secure_flower import SecureAnswer, SecureRequest, content_to_answer, request_to_content
from federation.signing import Signer
from federation.study import Study
from foundation.errors import RunError, StudyError
from foundation.messages import logger
from server.fleet import Fleet
from server.heads import SiteHeads
from server.quorum import needed_replies
from server.status_board import Board

_Told = TypeVar("_Told")
_POLL_S = 0.2
_AGAIN_S = 30.0
_MARGIN_S = 600.0  # a reply on the last second of a round is still read


@dataclass(frozen=True)
class _Sent:
    site: str
    round: int


@dataclass(frozen=True)
class _Asking(Generic[_Told]):
    """One thing that sites are asked: by which action, of which round, with what, and how an answer is read."""

    kind: str
    round: int
    ask: Callable[[str], RecordDict]
    read: Callable[[Message, str], _Told | Failure]


class GridContact:
    """The sites of a simulation: as many as are expected, by the names that they give themselves."""

    def __init__(self, grid: Grid, study: Study, audit: AuditLog, expected: int) -> None:
        self._grid, self._study, self._expected = grid, study, expected
        self._hash = study.training_hash()
        self._heads = SiteHeads(audit, self._hash, private=study.privacy is not None)
        self._nodes: dict[str, int] = {}
        self._open: dict[str, _Sent] = {}

    def sites(self) -> list[SiteInfo]:
        """Wait for the expected number of nodes, ask each once who it is."""
        if self._nodes:
            return [SiteInfo(name, self._hash, 0) for name in self._nodes]
        while len(nodes := list(self._grid.get_node_ids())) < self._expected:
            time.sleep(_POLL_S)
        infos = []
        messages = [self._message(question(self._hash), "", node, "query", 0) for node in sorted(nodes)]
        for reply in self._grid.send_and_receive(messages):
            if reply.has_error():
                raise RunError("a site could not be asked who it is; see that site's log, then go on")
            failure = failure_in(reply.content)
            if failure is not None:
                site = content_to_reply(reply.content).site
                raise StudyError(f"site {site}: cannot take part ({failure}); its own log (state/site.log) says why")
            info = content_to_site(reply.content)
            self._nodes[info.site] = reply.metadata.src_node_id
            infos.append(info)
        return infos

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        """Send the instruction; the weights are encoded once for all sites."""
        self._send(instruction, sites, weights_to_record(instruction.weights))

    def collect(self) -> list[TrainReply | Failure]:
        """Pull what has come. A node that is offline, or a reply that cannot be read, becomes a ``Failure``."""
        replies = list(self._grid.pull_messages(self._askable()))
        if not replies:
            time.sleep(_POLL_S)
        # Of two answers of one site the older head comes first; a site that sends it after the newer was tampered with.
        replies.sort(key=_rows_told)
        return [self._read(reply) for reply in replies if reply.metadata.reply_to_message_id in self._open]

    def enquire(self, asked: Question, sites: Sequence[str], patience_s: float) -> dict[str, Statistics | Failure]:
        """Ask sites about their labels; the answers, or why there is none, of every one of them."""
        arrays = weights_to_record(asked.tensors)

        def ask(site: str) -> RecordDict:
            return question_to_content(asked, arrays, self._heads.note_of_question(site, asked))

        question_ = _Asking("query.evaluate", self._study.rounds.count, ask, partial(self._told, asked=asked))
        answers = self._ask_all(question_, sites, patience_s)
        return {site: answers.get(site, Failure("", 0, site, "no answer before the deadline")) for site in sites}

    def ask_stage(
        self, requests: Mapping[str, SecureRequest], patience_s: float, take: Callable[[SecureAnswer], None]
    ) -> dict[str, str]:
        """Ask each site for its part in a stage of a secure sum; why some have none that ``take`` took, by site.

        ``take`` gets each answer as it comes, so that no more than one masked update is held; it raises
        SecureAggregationError for one that breaks the protocol.
        """

        def ask(site: str) -> RecordDict:
            return request_to_content(requests[site], self._heads.note_of_stage(site, requests[site]))

        def read(reply: Message, site: str) -> str:
            return self._took(reply, requests[site], site, take)

        round_ = next(iter(requests.values())).round
        answers = self._ask_all(_Asking("query.secure", round_, ask, read), list(requests), patience_s)
        told = {site: answers.get(site, "no answer before the deadline") for site in requests}
        reasons = {site: one.category if isinstance(one, Failure) else one for site, one in told.items()}
        return {site: reason for site, reason in reasons.items() if reason}

    def _took(self, reply: Message, request: SecureRequest, site: str, take: Callable[[SecureAnswer], None]) -> str:
        """Judge an answer to a stage; why it does not count, or an empty text."""
        try:
            answer, note = content_to_answer(reply.content), content_to_note(reply.content)
        except RunError:
            return "unreadable reply"
        if answer.site != site:
            return "reply under another site's name"
        if isinstance(answer, SecureAnswer) and (answer.study_hash, answer.round, answer.attempt, answer.stage) != (
            request.study_hash, request.round, request.attempt, request.stage
        ):  # fmt: skip
            return "answer to another stage"
        fault = self._heads.stage_told(answer, note)
        if fault or isinstance(answer, Failure):
            return fault
        try:
            take(answer)
        except SecureAggregationError as error:
            logger.warning(str(error))
            return str(error)
        return ""

    def _ask_all(self, asking: _Asking[_Told], sites: Collection[str], patience_s: float) -> dict[str, _Told | Failure]:
        """Ask all of these sites one thing; what came before the deadline.

        A site that is not there is asked when it comes, one that was cut off is asked again: it answers the same.
        """
        answers, open_ = dict[str, _Told | Failure](), dict[str, str]()
        again: dict[str, float] = {}
        deadline = time.monotonic() + patience_s
        while (missing := sorted(set(sites) - set(answers))) and time.monotonic() < deadline:
            nodes, admitted = self._there_now()
            answers |= {site: Failure("", 0, site, "no longer admitted") for site in missing if site not in admitted}
            open_ = {message: site for message, site in open_.items() if site in nodes}
            waiting = set(open_.values())
            for site in missing:
                if site in nodes and site not in waiting and time.monotonic() >= again.get(site, 0.0):
                    message = self._message(asking.ask(site), site, nodes[site], asking.kind, asking.round)
                    (message_id,) = self._grid.push_messages([message])
                    open_ |= {message_id: site} if message_id else {}
            replies = list(self._grid.pull_messages(list(open_)))
            for reply in replies:
                site = open_.pop(reply.metadata.reply_to_message_id, "")
                if reply.has_error():
                    again[site] = time.monotonic() + _AGAIN_S
                elif site and site not in answers:
                    answers[site] = asking.read(reply, site)
            if not replies:
                time.sleep(_POLL_S)
        return answers

    def _there_now(self) -> tuple[dict[str, int], Collection[str]]:
        """The nodes of the sites that can be asked, by site, and the sites that may be."""
        return self._nodes, self._nodes

    def _told(self, reply: Message, site: str, asked: Question) -> Statistics | Failure:
        try:
            answer, note = content_to_statistics(reply.content), content_to_note(reply.content)
        except RunError:
            return Failure("", 0, site, "unreadable reply")
        if answer.site != site:
            return Failure("", 0, site, "reply under another site's name")
        if isinstance(answer, Statistics) and (answer.study_hash, answer.step, answer.encoder) != (
            self._hash, asked.step, asked.encoder
        ):  # fmt: skip
            return Failure("", 0, site, "answer to another question")
        return self._heads.told(answer, note)

    def _askable(self) -> list[str]:
        """The messages whose replies may be asked for now."""
        return list(self._open)

    def _send(self, instruction: TrainInstruction, sites: Sequence[str], arrays: ArrayRecord) -> list[str]:
        """Push one message a site; the sites whose message was not taken."""
        messages = []
        for site in sites:
            note = self._heads.note_for(site, instruction)
            own = replace(instruction, ledger=self._heads.ledger_of(site))
            content = instruction_to_content(own, arrays, note)
            messages.append(self._message(content, site, self._nodes[site], "train", instruction.round))
        ids = dict(zip(sites, self._grid.push_messages(messages), strict=True))
        self._open |= {message_id: _Sent(site, instruction.round) for site, message_id in ids.items() if message_id}
        return [site for site, message_id in ids.items() if not message_id]

    def _message(self, content: RecordDict, site: str, node: int, kind: str, round_: int) -> Message:
        ttl = 60 * self._study.rounds.deadline_minutes + _MARGIN_S
        return Message(content, node, kind, ttl=ttl, group_id=str(round_))

    def _read(self, reply: Message) -> TrainReply | Failure:
        # An error reply's source is the SuperLink, so the site is found by the message it answers.
        sent = self._open.pop(reply.metadata.reply_to_message_id)
        if reply.has_error():
            return Failure("", sent.round, sent.site, "offline")
        try:
            answer, note = content_to_reply(reply.content), content_to_note(reply.content)
        except RunError:
            answer, note = Failure("", sent.round, sent.site, "unreadable reply"), None
        if isinstance(answer, Failure) and answer.site == UNKNOWN_SITE:
            answer = replace(answer, site=sent.site)  # its own file was not readable, so that it could not say its name
        if (wrong := self._not_to(answer, sent)) is not None:
            answer, note = Failure("", sent.round, sent.site, wrong), None
        return self._heads.received(answer, note)

    def _not_to(self, answer: TrainReply | Failure, sent: _Sent) -> str | None:
        """In what an answer is not one to what was sent; the round loop would wait for the right one in vain."""
        if answer.site != sent.site:
            return "reply under another site's name"
        if answer.round != sent.round:
            return "reply of another round"
        if isinstance(answer, TrainReply) and answer.study_hash != self._hash:
            return "reply of another study"
        return None


def _rows_told(reply: Message) -> int:
    try:
        note = None if reply.has_error() else content_to_note(reply.content)
    except RunError:
        note = None
    return 0 if note is None else note.extension.head.count


class FleetContact(GridContact):
    """The sites that the study lead has admitted, through SuperLink and SuperNodes.

    A node counts for the site whose public key it has shown; what it calls itself must agree. A site that is not there
    is sent the instruction when it comes (back); what it was sent before stays open, so that the update of a site that
    was cut off while it trained is taken as it comes.
    """

    def __init__(self, grid: Grid, study: Study, audit: AuditLog, fleet: Fleet, board: Board, signer: Signer) -> None:
        super().__init__(grid, study, audit, 0)
        self._fleet, self._board, self._signer = fleet, board, signer
        self._instruction: TrainInstruction | None = None
        self._arrays = ArrayRecord()
        self._owed: set[str] = set()
        self._there: set[str] = set()

    def _message(self, content: RecordDict, site: str, node: int, kind: str, round_: int) -> Message:
        signature = self._signer.sign(said(content, kind, str(round_), site))
        return super()._message(signed(content, signature), site, node, kind, round_)

    def sites(self) -> list[SiteInfo]:
        """All admitted sites, as soon as a quorum of them is there."""
        while True:
            self._fleet.refresh()
            admitted, online = self._fleet.admitted(), self._fleet.online()
            needed = needed_replies(self._study, len(admitted))
            self._board.needed(needed)
            if admitted and len(online) >= needed:
                return [SiteInfo(site, self._hash, 0) for site in admitted]
            missing = ", ".join(sorted(set(admitted) - set(online))) or "no site is admitted yet"
            self._board.phase("waiting for sites", f"{len(online)} of {needed} needed; missing: {missing}")
            self._board.online(admitted, online)
            time.sleep(5 * _POLL_S)

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        """Send to the sites that are there; owe it to the others."""
        if self._instruction is not instruction:
            self._instruction, self._arrays = instruction, weights_to_record(instruction.weights)
            self._open = {message: sent for message, sent in self._open.items() if sent.round == instruction.round}
            self._board.round_started(instruction.round, sites)
        self._fleet.refresh()
        self._nodes = self._fleet.online()
        self._there = set(self._nodes)
        now = [site for site in sites if site in self._nodes]
        self._owed |= set(sites) - set(now)
        self._hand_out(now)

    def _hand_out(self, sites: Sequence[str]) -> None:
        if not sites or self._instruction is None:
            return
        refused = self._send(self._instruction, sites, self._arrays)
        self._owed |= set(refused)
        size = sum(len(array.data) for array in self._arrays.values())
        for site in set(sites) - set(refused):
            self._board.sent(site, size)

    def collect(self) -> list[TrainReply | Failure]:
        """As ``GridContact``; sends what is owed to sites that have come back."""
        self._fleet.refresh()
        self._nodes = self._fleet.online()
        self._board.online(self._fleet.admitted(), self._nodes)
        waiting = {sent.site for sent in self._open.values()}
        # A SuperNode that was started anew has forgotten its instruction; one that was only cut off has not, and
        # answers the second one from its disk.
        back = (set(self._nodes) - self._there) & waiting
        self._there = set(self._nodes)
        due = sorted(back | (self._owed & set(self._nodes)))
        self._owed -= set(due)
        self._hand_out(due)
        answers = [*super().collect(), *self._gone()]
        for answer in answers:
            self._board.answered(answer)
        return answers

    def _there_now(self) -> tuple[dict[str, int], Collection[str]]:
        self._fleet.refresh()
        nodes, admitted = self._fleet.online(), self._fleet.admitted()
        self._board.online(admitted, nodes)
        return nodes, admitted

    def _gone(self) -> list[TrainReply | Failure]:
        """A failure for each site that is waited for and was revoked, or whose certificate has expired, meanwhile."""
        asked = {sent.site for sent in self._open.values()} | self._owed
        out = sorted(asked - set(self._fleet.admitted()))
        self._owed -= set(out)
        self._open = {message: sent for message, sent in self._open.items() if sent.site not in out}
        round_ = self._instruction.round if self._instruction else 0
        return [Failure("", round_, site, "no longer admitted") for site in out]

    def _askable(self) -> list[str]:
        # Flower answers a question about an offline node with an error, and throws the node's own answer away.
        return [message for message, sent in self._open.items() if sent.site in self._nodes]

    def deliver(self, weights: dict[str, Tensor], round_: int, patience_s: float) -> list[str]:
        """Send the final weights to all admitted sites; those that have confirmed them in time."""
        digest = weights_digest(weights)
        confirmed: set[str] = set()
        arrays = weights_to_record(weights)
        deadline = time.monotonic() + patience_s
        asked: dict[str, str] = {}
        again: dict[str, float] = {}  # a site whose disk is full, say, is not sent the whole at every turn
        while time.monotonic() < deadline and confirmed != set(self._fleet.admitted()):
            self._fleet.refresh()
            online = self._fleet.online()
            waiting = confirmed | set(asked.values())
            due = [site for site in online if site not in waiting and time.monotonic() >= again.get(site, 0.0)]
            for site in due:
                content = delivery_to_content(self._hash, round_, arrays, self._heads.note_of_delivery(site, digest))
                message = self._message(content, site, online[site], "query.deliver", round_)
                (message_id,) = self._grid.push_messages([message])
                asked[message_id], again[site] = site, time.monotonic() + _AGAIN_S
            for reply in self._grid.pull_messages([m for m, site in asked.items() if site in online]):
                site = asked.pop(reply.metadata.reply_to_message_id)
                if not reply.has_error() and self._heads.delivered(site, reply.content, digest):
                    confirmed.add(site)
            time.sleep(_POLL_S)
        return sorted(confirmed)
