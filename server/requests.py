"""What sites are asked beside training: each once more until it has answered, or until the deadline."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, Protocol, TypeVar

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federation.federated_evaluation import EvaluationRequest, Statistics
from federation.flower.records import content_to_note, content_to_statistics, question_to_content, weights_to_record
from federation.flower.secure_records import SecureAnswer, SecureRequest, content_to_answer, request_to_content
from federation.records import Failure
from federation.secure_aggregation.messages import SecureAggregationError
from foundation.errors import RunError
from foundation.messages import logger
from server.audit_exchange import AuditExchange

_Told = TypeVar("_Told")
POLL_S = 0.2
AGAIN_S = 30.0


@dataclass(frozen=True)
class _Asking(Generic[_Told]):
    """One thing that sites are asked: by which action, of which round, with what, and how an answer is read."""

    kind: str
    round: int
    ask: Callable[[str], RecordDict]
    read: Callable[[Message, str], _Told | Failure]


class Reachable(Protocol):
    """Sites that can be sent a message."""

    def message(self, content: RecordDict, site: str, node: int, kind: str, round_: int) -> Message:
        """A message for a site."""
        ...

    def there_now(self) -> tuple[dict[str, int], Collection[str]]:
        """The nodes of the sites that can be asked, by site, and the sites that may be."""
        ...


class Requests:
    """Asks sites about their labels and for their parts in secure sums. last_round: the study's."""

    def __init__(self, grid: Grid, reachable: Reachable, exchange: AuditExchange, last_round: int) -> None:
        self._grid, self._reachable, self._exchange, self._last_round = grid, reachable, exchange, last_round

    def enquire(
        self, asked: EvaluationRequest, sites: Sequence[str], patience_s: float
    ) -> dict[str, Statistics | Failure]:
        """Ask sites about their labels; the answers, or why there is none, of every one of them."""
        arrays = weights_to_record(asked.tensors)

        def ask(site: str) -> RecordDict:
            return question_to_content(asked, arrays, self._exchange.note_of_question(site, asked))

        asking = _Asking("query.evaluate", self._last_round, ask, partial(self._answer, asked=asked))
        answers = self._ask_all(asking, sites, patience_s)
        return {site: answers.get(site, Failure("", 0, site, "no answer before the deadline")) for site in sites}

    def ask_stage(
        self, requests: Mapping[str, SecureRequest], patience_s: float, take: Callable[[SecureAnswer], None]
    ) -> dict[str, str]:
        """Ask each site for its part in a stage of a secure sum; why some have none that ``take`` took, by site.

        ``take`` gets each answer as it comes, so that no more than one masked update is held; it raises
        SecureAggregationError for one that breaks the protocol.
        """

        def ask(site: str) -> RecordDict:
            return request_to_content(requests[site], self._exchange.note_of_stage(site, requests[site]))

        def read(reply: Message, site: str) -> str:
            return self._took(reply, requests[site], site, take)

        round_ = next(iter(requests.values())).round
        answers = self._ask_all(_Asking("query.secure", round_, ask, read), list(requests), patience_s)
        reported = {site: answers.get(site, "no answer before the deadline") for site in requests}
        reasons = {site: one.category if isinstance(one, Failure) else one for site, one in reported.items()}
        return {site: reason for site, reason in reasons.items() if reason}

    def _took(self, reply: Message, request: SecureRequest, site: str, take: Callable[[SecureAnswer], None]) -> str:
        """Judge an answer to a stage; why it does not count, or an empty text."""
        try:
            answer, note = content_to_answer(reply.content), content_to_note(reply.content)
        except RunError:
            return "unreadable reply"
        if answer.site != site:
            return "reply under another site's name"
        if isinstance(answer, SecureAnswer) and _stage_of(answer) != _stage_of(request):
            return "answer to another stage"
        fault = self._exchange.stage_told(answer, note)
        if fault or isinstance(answer, Failure):
            return fault
        try:
            take(answer)
        except SecureAggregationError as error:
            logger.warning(str(error))
            return str(error)
        return ""

    def _answer(self, reply: Message, site: str, asked: EvaluationRequest) -> Statistics | Failure:
        try:
            answer, note = content_to_statistics(reply.content), content_to_note(reply.content)
        except RunError:
            return Failure("", 0, site, "unreadable reply")
        if answer.site != site:
            return Failure("", 0, site, "reply under another site's name")
        own = asked.study_hash, asked.step, asked.encoder
        if isinstance(answer, Statistics) and (answer.study_hash, answer.step, answer.encoder) != own:
            return Failure("", 0, site, "answer to another question")
        return self._exchange.reported(answer, note)

    def _ask_all(self, asking: _Asking[_Told], sites: Collection[str], patience_s: float) -> dict[str, _Told | Failure]:
        """Ask all of these sites one thing; what came before the deadline.

        A site that is not there is asked when it comes, one that was cut off is asked again: it answers the same.
        """
        answers, open_ = dict[str, _Told | Failure](), dict[str, str]()
        again: dict[str, float] = {}
        deadline = time.monotonic() + patience_s
        while (missing := sorted(set(sites) - set(answers))) and time.monotonic() < deadline:
            nodes, admitted = self._reachable.there_now()
            answers |= {site: Failure("", 0, site, "no longer admitted") for site in missing if site not in admitted}
            open_ = {message: site for message, site in open_.items() if site in nodes}
            waiting = set(open_.values())
            for site in missing:
                if site in nodes and site not in waiting and time.monotonic() >= again.get(site, 0.0):
                    message = self._reachable.message(asking.ask(site), site, nodes[site], asking.kind, asking.round)
                    (message_id,) = self._grid.push_messages([message])
                    open_ |= {message_id: site} if message_id else {}
            replies = list(self._grid.pull_messages(list(open_)))
            for reply in replies:
                site = open_.pop(reply.metadata.reply_to_message_id, "")
                if reply.has_error():
                    again[site] = time.monotonic() + AGAIN_S
                elif site and site not in answers:
                    answers[site] = asking.read(reply, site)
            if not replies:
                time.sleep(POLL_S)
        return answers


def _stage_of(one: SecureRequest | SecureAnswer) -> tuple[str, int, int, str]:
    return one.study_hash, one.round, one.attempt, one.stage
