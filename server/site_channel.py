"""The sites behind a Flower grid, by name, as a simulation has them: who they are is what they say."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from federation.audit.log import AuditLog
from federation.federated_evaluation import EvaluationRequest, Statistics
from federation.flower.records import (
    content_to_note,
    content_to_reply,
    content_to_site,
    instruction_to_content,
    question,
    weights_to_record,
)
from federation.records import UNKNOWN_SITE, Failure, SiteInfo, TrainInstruction, TrainReply
from federation.study import Study
from foundation.errors import RunError, StudyError
from server.audit_exchange import AuditExchange
from server.requests import POLL_S, Requests

_MARGIN_S = 600.0  # a reply on the last second of a round is still read


@dataclass(frozen=True)
class _Sent:
    site: str
    round: int


class GridSiteChannel:
    """The sites of a simulation: as many as are expected, by the names that they give themselves.

    ``requests`` asks them what is no training.
    """

    def __init__(self, grid: Grid, study: Study, audit: AuditLog, expected: int) -> None:
        self._grid, self._study, self._expected = grid, study, expected
        self._hash = study.training_hash()
        self._exchange = AuditExchange(audit, self._hash, private=study.privacy is not None)
        self.requests = Requests(grid, self, self._exchange, study.rounds.count)
        self._nodes: dict[str, int] = {}
        self._open: dict[str, _Sent] = {}

    def sites(self) -> list[SiteInfo]:
        """Wait for the expected number of nodes, ask each once who it is."""
        if self._nodes:
            return [SiteInfo(name, self._hash, 0) for name in self._nodes]
        while len(nodes := list(self._grid.get_node_ids())) < self._expected:
            time.sleep(POLL_S)
        infos = []
        messages = [self.message(question(self._hash), "", node, "query", 0) for node in sorted(nodes)]
        for reply in self._grid.send_and_receive(messages):
            if reply.has_error():
                raise RunError("a site could not be asked who it is; see that site's log, then go on")
            info = content_to_site(reply.content)
            if isinstance(info, Failure):
                why = f"cannot take part ({info.category}); its own log (state/site.log) says why"
                raise StudyError(f"site {info.site}: {why}")
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
            time.sleep(POLL_S)
        # Of two answers of one site the older head comes first; a site that sends it after the newer was tampered with.
        replies.sort(key=_rows_told)
        return [self._read(reply) for reply in replies if reply.metadata.reply_to_message_id in self._open]

    def enquire(
        self, asked: EvaluationRequest, sites: Sequence[str], patience_s: float
    ) -> dict[str, Statistics | Failure]:
        """As ``Requests``."""
        return self.requests.enquire(asked, sites, patience_s)

    def there_now(self) -> tuple[dict[str, int], Collection[str]]:
        """The nodes of the sites that can be asked, by site, and the sites that may be."""
        return self._nodes, self._nodes

    def _askable(self) -> list[str]:
        """The messages whose replies may be asked for now."""
        return list(self._open)

    def _send(self, instruction: TrainInstruction, sites: Sequence[str], arrays: ArrayRecord) -> list[str]:
        """Push one message a site; the sites whose message was not taken."""
        messages = []
        for site in sites:
            note = self._exchange.note_for(site, instruction)
            own = replace(instruction, ledger=self._exchange.ledger_of(site))
            content = instruction_to_content(own, arrays, note)
            messages.append(self.message(content, site, self._nodes[site], "train", instruction.round))
        ids = dict(zip(sites, self._grid.push_messages(messages), strict=True))
        self._open |= {message_id: _Sent(site, instruction.round) for site, message_id in ids.items() if message_id}
        return [site for site, message_id in ids.items() if not message_id]

    def message(self, content: RecordDict, site: str, node: int, kind: str, round_: int) -> Message:
        """A message for a site, which is read as long as its round may last."""
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
        return self._exchange.received(answer, note)

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
