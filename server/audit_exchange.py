"""The server's side of the exchange of audit heads: what goes with an instruction, and what an answer has to prove."""

from flwr.app import RecordDict

from federation.audit.log import NOTHING, AuditHead, AuditLog, Row, verify
from federation.federated_evaluation import EvaluationRequest, Statistics
from federation.flower.records import confirmed_weights, content_to_note
from federation.flower.secure_records import SecureAnswer, SecureRequest
from federation.records import AuditNote, Category, Failure, TrainInstruction, TrainReply, noted_tensors, weights_digest
from foundation.errors import RunError
from foundation.messages import logger
from server.ledgers import Ledgers, ledger_party

_Answer = TrainReply | Statistics | SecureAnswer


class AuditExchange:
    """Proves this server's log to each site from the head that the site last acknowledged, and checks theirs.

    What a site acknowledged stands in the server's log, so that a restarted server goes on from there. RunError when
    that log itself is broken. private: the study has a ``privacy`` section, so that updates bear ledger heads.
    """

    def __init__(self, audit: AuditLog, study_hash: str, private: bool = False) -> None:
        self._audit, self._hash, self._private = audit, study_hash, private
        self._ledgers = Ledgers(audit)
        self._acknowledged: dict[str, AuditHead] = {}
        audit.append("run started", study=study_hash)
        verdict = verify(audit.path, self._see)
        if verdict.fault:
            raise RunError(f"{audit.path}: {verdict.line}; find out who changed it before the server goes on")

    def note_for(self, site: str, instruction: TrainInstruction) -> AuditNote:
        """Write that an instruction is sent; what goes with it."""
        round_ = instruction.round
        self._audit.note("instruction sent", site=site, study=self._hash, round=round_, weights=instruction.digest)
        return self._note(site)

    def note_of_delivery(self, site: str, digest: str) -> AuditNote:
        """Write that the final weights are sent; what goes with them."""
        self._audit.append("instruction sent", site=site, study=self._hash, weights=digest)
        return self._note(site)

    def ledger_of(self, site: str) -> AuditHead:
        """The head that is held of a site's privacy ledger: what goes with an instruction of a private study."""
        return self._audit.known(ledger_party(site)) if self._private else NOTHING

    def received(self, answer: TrainReply | Failure, note: AuditNote | None) -> TrainReply | Failure:
        """The answer, or a failure in its place when the site's log does not go on from the head that is held here.

        In a private study the site's ledger has to go on too. A failure may come without a note: a site that does not
        act on an instruction writes only that into its log.
        """
        silent = f"the answer of {answer.site} came without a head of its audit log"
        unmoved = f"the audit log of {answer.site} has no row about the update that came with it"
        failure = self._failure_of(answer, note, answer.round, silent, unmoved)
        if failure is not None:
            return failure
        assert note is not None and not isinstance(answer, Failure)  # or it had been one
        try:
            charged = self._ledgers.receive(answer) if self._private else {}
        except RunError as error:
            return self._refused(answer.site, answer.round, "ledger-not-continued", error)
        noted = noted_tensors(answer.weights, answer.digest) | _of(note.known) | charged
        self._audit.note("update received", site=answer.site, study=answer.study_hash, round=answer.round, **noted)
        return answer

    def _failure_of(
        self, answer: _Answer | Failure, note: AuditNote | None, round_: int, silent: str, unmoved: str
    ) -> Failure | None:
        """The failure that the answer is, or that takes its place where the site's log does not go on; else None.

        The head is held then, of a failure that shows one too.

        silent, unmoved: what is said of an answer that is no failure and shows no head, or none with a row about it.
        """
        if isinstance(answer, Failure):
            self._audit.append("update refused", site=answer.site, round=answer.round, category=answer.category)
            if note is None:
                return answer
        try:
            if note is None:
                raise RunError(silent)
            if not isinstance(answer, Failure) and note.extension.head == self._audit.known(answer.site):
                raise RunError(unmoved)
            self._audit.receive(answer.site, note.extension)
        except RunError as error:
            return self._refused(answer.site, round_, "log-not-continued", error)
        self._acknowledged[answer.site] = note.known
        return answer if isinstance(answer, Failure) else None

    def _refused(self, site: str, round_: int, category: Category, error: RunError) -> Failure:
        """The failure in an answer's place; why stands on the screen and, as a category, in the log."""
        logger.warning(f"site {site}: {error}")
        self._audit.append("update refused", site=site, round=round_, category=category)
        return Failure("", round_, site, category)

    def note_of_question(self, site: str, question: EvaluationRequest) -> AuditNote:
        """Write that a site is asked about its labels; what goes with the question."""
        asked = {"step": question.step, "encoder": question.encoder, "weights": weights_digest(question.tensors)}
        self._audit.note("statistics asked", site=site, study=self._hash, **asked)
        return self._note(site)

    def reported(self, answer: Statistics | Failure, note: AuditNote | None) -> Statistics | Failure:
        """A site's answer about its labels, or a failure in its place, by the rules of ``received``."""
        silent = f"the audit log of {answer.site} says nothing about the answer that came with it"
        failure = self._failure_of(answer, note, 0, silent, silent)
        if failure is not None:
            return failure
        assert note is not None and not isinstance(answer, Failure)  # or it had been one
        noted = noted_tensors(answer.tensors) | _of(note.known)
        self._audit.note("statistics received", site=answer.site, study=answer.study_hash, step=answer.step, **noted)
        return answer

    def note_of_stage(self, site: str, request: SecureRequest) -> AuditNote:
        """Write that a site is asked for its part in a stage of a secure sum; what goes with that."""
        self._audit.note("secure stage sent", site=site, **request.noted())
        return self._note(site)

    def stage_told(self, answer: SecureAnswer | Failure, note: AuditNote | None) -> str:
        """Why a site's answer to a stage does not count, by the rules of ``received``; empty where it does."""
        silent = f"the audit log of {answer.site} says nothing about the answer that came with it"
        failure = self._failure_of(answer, note, answer.round, silent, silent)
        if failure is not None:
            return failure.category
        assert note is not None and not isinstance(answer, Failure)  # or it had been one
        self._audit.note("secure stage received", site=answer.site, **answer.noted(), **_of(note.known))
        return ""

    def delivered(self, site: str, content: RecordDict, digest: str) -> bool:
        """Whether a site's answer to a delivery confirms these weights, and its log goes on."""
        try:
            note = content_to_note(content)
            if note is not None:
                self._audit.receive(site, note.extension)
                self._acknowledged[site] = note.known
            confirmed = note is not None and confirmed_weights(content) == digest
        except RunError as error:
            logger.warning(f"site {site}: {error}")
            confirmed = False
        if confirmed:
            self._audit.append("weights delivered", site=site, study=self._hash, weights=digest)
        return confirmed

    def _note(self, site: str) -> AuditNote:
        # A site that has not answered yet may hold a head all the same: after ``NOTHING`` it is shown all rows.
        return AuditNote(self._audit.extension(self._acknowledged.get(site, NOTHING)), self._audit.known(site))

    def _see(self, row: Row) -> None:
        self._ledgers.see(row)
        if row["event"] in ("update received", "statistics received", "secure stage received"):
            self._acknowledged[row["site"]] = AuditHead(row["acknowledged"], row["acknowledged_hash"])


def _of(head: AuditHead) -> dict[str, int | str]:
    return {"acknowledged": head.count, "acknowledged_hash": head.hash}
