"""A site's audit log beside its app: instructions, releases, refusals, and heads exchanged with the server."""

import traceback
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from client.site_file import AUDIT, SiteFile
from federation.audit.log import AuditHead, AuditLog, Event, verify
from federation.federated_evaluation import Statistics
from federation.flower.secure_records import SecureAnswer, SecureRequest
from federation.records import AuditNote, Category, TrainInstruction, TrainReply, noted_tensors
from foundation.errors import RunError
from foundation.machine import versions

SERVER = "server"
_REFUSALS: dict[str, Event] = {
    "app-not-approved": "app refused",
    "study-not-approved": "policy refused",
    "log-not-continued": "request refused",
    "not-the-server": "request refused",
    "labels-not-permitted": "policy refused",
    "budget-spent": "policy refused",
    "ledger-not-continued": "request refused",
    "secure-sum-refused": "request refused",
}


class LogNotContinuedError(RunError):
    """The server's log, or this site's own, does not go on from the head that the other party holds."""


class SiteLog:
    """One message's part in the audit log."""

    def __init__(self, site_file: SiteFile) -> None:
        self._log = AuditLog(site_file.state / AUDIT, site_file.site)
        self._since: AuditHead | None = None

    def check(self, note: AuditNote | None) -> None:
        """Hold the server's head, and see that this site's log goes on from what the server holds of it.

        LogNotContinuedError when a log was rewritten, cut or restored from a backup, or the message shows no head.
        """
        if note is None:
            raise LogNotContinuedError("the server's message shows no head of its audit log; nothing is done for it")
        try:
            self._log.receive(SERVER, note.extension)
            self._log.extension(note.known)
        except RunError as error:
            raise LogNotContinuedError(str(error)) from error
        self._since = note.known

    def instructed(self, instruction: TrainInstruction) -> None:
        """A round is asked for."""
        study, received = instruction.study_hash, instruction.digest
        self._log.note("instruction received", study=study, round=instruction.round, weights=received)

    def released(self, reply: TrainReply, again: bool) -> None:
        """An update is about to leave; ``again``: it was trained before and is sent another time."""
        event: Event = "update sent again" if again else "update released"
        ledger = {} if reply.ledger is None else {"ledger": reply.ledger.head.hash}
        noted = {"tensors": len(reply.weights), **noted_tensors(reply.weights, reply.digest)}
        noted |= {"metrics": ", ".join(sorted(reply.metrics)), "code": _code(), **ledger}
        self._log.note(event, study=reply.study_hash, round=reply.round, **noted)

    def reported(self, reported: Statistics) -> None:
        """Sums over labelled images, or figures of test patients, are about to leave."""
        noted = {"step": reported.step, "encoder": reported.encoder, **noted_tensors(reported.tensors), "code": _code()}
        self._log.note("statistics released", study=reported.study_hash, **noted)

    def asked_for(self, request: SecureRequest) -> None:
        """A stage of a secure sum is asked for."""
        self._log.note("secure stage asked for", **request.noted())

    def answered(self, answer: SecureAnswer) -> None:
        """Its answer is about to leave."""
        self._log.note("secure stage answered", **answer.noted(), code=_code())

    def delivered(self, study_hash: str, digest: str) -> None:
        """The study's final weights have come and lie on this site's disk."""
        self._log.append("weights delivered", study=study_hash, weights=digest)

    def refused(self, category: Category, round_: int) -> None:
        """The site does not do what it was asked."""
        self._log.append(_REFUSALS.get(category, "round failed"), category=category, round=round_)

    def note(self) -> AuditNote | None:
        """What goes with the answer: None where the message's own note was not accepted."""
        if self._since is None:
            return None
        return AuditNote(self._log.extension(self._since), self._log.known(SERVER))


@cache
def _code() -> str:
    """The program's version, looked up once: a probe takes dozens of answers."""
    return versions()["fedpretext"]


def check_own_log(site_file: SiteFile) -> None:
    """LogNotContinuedError when this site's audit log is broken."""
    path = site_file.state / AUDIT
    verdict = verify(path) if path.exists() else None
    if verdict is not None and verdict.fault:
        raise LogNotContinuedError(f"{path}: {verdict.line}; find out who changed it before this site goes on")


def log_error(state: Path, round_: int, text: str | None = None) -> None:
    """Append the error being handled, or ``text``, to the site's own log, which stays at the site."""
    try:
        state.mkdir(parents=True, exist_ok=True)
        with (state / "site.log").open("a") as handle:
            now = datetime.now(UTC).isoformat(timespec="seconds")
            handle.write(f"{now} round {round_}\n{text or traceback.format_exc()}\n")
    except OSError:
        return  # a full disk must not turn a category into a crash
