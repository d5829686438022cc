"""The sites of a real federation: those that the study lead has admitted, through SuperLink and SuperNodes."""

import time
from collections.abc import Collection, Sequence

from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from federation.audit.log import AuditLog
from federation.flower.records import delivery_to_content, said, signed, weights_to_record
from federation.keys.signing import Signer
from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply, weights_digest
from federation.study import Study
from server.enrolment.fleet import Fleet
from server.monitoring.status_writer import StatusWriter
from server.quorum import needed_replies
from server.requests import AGAIN_S, POLL_S
from server.site_channel import GridSiteChannel


class FleetSiteChannel(GridSiteChannel):
    """The sites that the study lead has admitted, through SuperLink and SuperNodes.

    A node counts for the site whose public key it has shown; what it calls itself must agree. A site that is not there
    is sent the instruction when it comes (back); what it was sent before stays open, so that the update of a site that
    was cut off while it trained is taken as it comes.
    """

    def __init__(
        self, grid: Grid, study: Study, audit: AuditLog, fleet: Fleet, status_writer: StatusWriter, signer: Signer
    ) -> None:
        super().__init__(grid, study, audit, 0)
        self._fleet, self._status_writer, self._signer = fleet, status_writer, signer
        self._instruction: TrainInstruction | None = None
        self._arrays = ArrayRecord()
        self._owed: set[str] = set()
        self._there: set[str] = set()

    def message(self, content: RecordDict, site: str, node: int, kind: str, round_: int) -> Message:
        """As ``GridContact``, signed by this server."""
        signature = self._signer.sign(said(content, kind, str(round_), site))
        return super().message(signed(content, signature), site, node, kind, round_)

    def sites(self) -> list[SiteInfo]:
        """All admitted sites, as soon as a quorum of them is there."""
        while True:
            self._fleet.refresh()
            admitted, online = self._fleet.admitted(), self._fleet.online()
            needed = needed_replies(self._study, len(admitted))
            self._status_writer.needed(needed)
            if admitted and len(online) >= needed:
                return [SiteInfo(site, self._hash, 0) for site in admitted]
            missing = ", ".join(sorted(set(admitted) - set(online))) or "no site is admitted yet"
            self._status_writer.phase("waiting for sites", f"{len(online)} of {needed} needed; missing: {missing}")
            self._status_writer.online(admitted, online)
            time.sleep(5 * POLL_S)

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        """Send to the sites that are there; owe it to the others."""
        if self._instruction is not instruction:
            self._instruction, self._arrays = instruction, weights_to_record(instruction.weights)
            self._open = {message: sent for message, sent in self._open.items() if sent.round == instruction.round}
            self._status_writer.round_started(instruction.round, sites)
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
            self._status_writer.sent(site, size)

    def collect(self) -> list[TrainReply | Failure]:
        """As ``GridContact``; sends what is owed to sites that have come back."""
        self._fleet.refresh()
        self._nodes = self._fleet.online()
        self._status_writer.online(self._fleet.admitted(), self._nodes)
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
            self._status_writer.answered(answer)
        return answers

    def there_now(self) -> tuple[dict[str, int], Collection[str]]:
        """The nodes of the sites that are online, by site, and the sites that are admitted."""
        self._fleet.refresh()
        nodes, admitted = self._fleet.online(), self._fleet.admitted()
        self._status_writer.online(admitted, nodes)
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
                content = delivery_to_content(self._hash, round_, arrays, self._exchange.note_of_delivery(site, digest))
                message = self.message(content, site, online[site], "query.deliver", round_)
                (message_id,) = self._grid.push_messages([message])
                asked[message_id], again[site] = site, time.monotonic() + AGAIN_S
            for reply in self._grid.pull_messages([m for m, site in asked.items() if site in online]):
                site = asked.pop(reply.metadata.reply_to_message_id)
                if not reply.has_error() and self._exchange.delivered(site, reply.content, digest):
                    confirmed.add(site)
            time.sleep(POLL_S)
        return sorted(confirmed)
