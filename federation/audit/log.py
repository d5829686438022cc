"""The audit log of a party: it binds because the other parties hold its heads.

A hash chain alone proves nothing: whoever can write the file can compute all hashes anew. So each message between two
parties carries the sender's head with the digests of its rows since the head that the receiver holds (``extension``),
and the head of the receiver's log that the sender holds (``known``), from which the receiver will prove its next one.
The receiver checks that the chain goes on from what it holds, and writes the new head into its own log (``receive``).
A rewritten chain, a cut tail and a restored backup do not go on from there. Of the rows themselves nothing is shown:
that they still are those that were hashed, an auditor sees who is given the file (audit_check.py).

What this does not do: somebody who controls the machine can stop the log, write false rows from now on, and change rows
that no other party has acknowledged yet. The first head of a party is taken on trust.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from federation.audit import chain
from federation.audit.chain import NOTHING, AuditHead, Extension, Row
from federation.audit.check import VerifiedLog, verify
from foundation.errors import RunError, nearest

__all__ = ["NOTHING", "AuditHead", "AuditLog", "Event", "Extension", "Row", "Value", "VerifiedLog", "verify"]

_EveryParty = Literal["log opened", "head received", "head refused", "chain restart accepted"]
_OfLedger = Literal["privacy charged"]  # of patients: privacy/ledger.py
_Permission = Literal["study approved", "approval withdrawn", "app refused", "policy refused", "request refused"]
_SiteRound = Literal["instruction received", "round failed", "update released", "update sent again", "connection lost"]
_SiteAnswer = Literal["statistics released", "weights delivered", "secure stage asked for", "secure stage answered"]
_ServerRun = Literal["server started", "run started", "paused", "study finished", "round aggregated", "round retried"]
_Enrolment = Literal["site enrolled", "site revoked", "site not admitted", "site left out"]
_ServerRound = Literal["instruction sent", "update received", "update refused"]
_ServerQuestion = Literal["statistics asked", "statistics received", "secure stage sent", "secure stage received"]
_AtSite = _Permission | _SiteRound | _SiteAnswer
_AtServer = _ServerRun | _Enrolment | _ServerRound | _ServerQuestion
Event = _EveryParty | _OfLedger | _AtSite | _AtServer
Value = str | int | float | bool
_LOST = "it was rewritten, cut or restored from a backup"


class AuditLog:
    """The log of ``party`` at ``path``, opened where there is none. Threads and processes may write at once.

    A torn last line (its writer was killed, and told nobody of it) is cut off by the next append. RunError when the
    disk is full or the file is not this party's log.
    """

    def __init__(self, path: Path, party: str) -> None:
        self.path, self.party = path, party
        self._held: tuple[int, int, dict[str, AuditHead]] = (0, 0, {})  # inode, bytes read, heads found in them
        with self._writing() as handle:
            self._head(handle)

    def append(self, event: Event, **fields: Value) -> AuditHead:
        """Write one row, wait until it is on the disk, and return the new head. Reads no row but the last."""
        with self._writing() as handle:
            return self._write(handle, event, fields, wait=True)

    def note(self, event: Event, **fields: Value) -> AuditHead:
        """Write one row without waiting for the disk, which ``append`` and ``extension`` do: before anything is proved.

        A process that is killed loses none; a power cut may take rows that no other party has been told of.
        """
        with self._writing() as handle:
            return self._write(handle, event, fields)

    def head(self) -> AuditHead:
        """The last row's number and hash."""
        with chain.locked(self.path) as handle:
            return self._head(handle)

    def extension(self, since: AuditHead) -> Extension:
        """Proof that this log goes on from ``since``, which another party holds, by ``MOST_DIGESTS`` rows at most.

        What the other party holds may be newer than ``since``; for ``NOTHING`` the proof is of the newest rows.
        RunError when ``since`` is not in this log, which then has been rewritten, cut or restored from a backup.
        """
        newer: list[tuple[AuditHead, str]] = []
        with chain.locked(self.path) as handle:
            os.fsync(handle)
            for line in chain.lines_backwards(handle):
                row = self._row(line)
                head = AuditHead(row["n"], row["hash"])
                if head.count <= since.count or (since == NOTHING and len(newer) == chain.MOST_DIGESTS):
                    break
                newer.append((head, chain.row_digest(row)))
            else:
                head = NOTHING
        if since not in (head, NOTHING):
            raise RunError(
                f"{self.path}: another party holds the head of row {since.count}, which is not in this log: {_LOST}. "
                f"If its disk died, let that party accept the restart"
            )
        newer = newer[::-1][: chain.MOST_DIGESTS]
        return Extension(newer[-1][0] if newer else head, tuple(digest for _, digest in newer))

    def known(self, party: str) -> AuditHead:
        """The head that is held of that party's log; ``NOTHING`` before the first and after an accepted restart."""
        with chain.locked(self.path) as handle:
            return self._audit_heads(handle).get(party, NOTHING)

    def receive(self, party: str, extension: Extension) -> None:
        """Check that the party's log goes on from the head that is held of it, and hold its new one.

        RunError when it does not; the refusal is written down.
        """
        head = extension.head
        with self._writing() as handle:
            known = self._audit_heads(handle).get(party, NOTHING)
            if head == known:
                return
            follows = extension.follows(known)
            event: Event = "head received" if follows else "head refused"
            self._write(handle, event, {"party": party, "count": head.count, "head": head.hash}, wait=not follows)
        if not follows:
            raise RunError(
                f"the audit log of {party} does not go on from its row {known.count}, which is known here: {_LOST}. If "
                f"its disk died, accept the restart"
            )

    def accept_restart(self, party: str, reason: str) -> None:
        """Let go of the head of a party whose log is lost, so that its new log is taken; the reason stays on record.

        RunError when no head of that party is held.
        """
        with self._writing() as handle:
            known = self._audit_heads(handle)
            if known.get(party, NOTHING) == NOTHING:
                raise RunError(f"{self.path}: holds no head of a log of {party!r}{nearest(party, known)}")
            self._write(handle, "chain restart accepted", {"party": party, "reason": reason}, wait=True)

    @contextmanager
    def _writing(self) -> Iterator[int]:
        """The locked file, without a torn line and with a first row."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with chain.locked(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND) as handle:
                end = chain.whole(handle)
                if end < os.fstat(handle).st_size:
                    os.ftruncate(handle, end)
                if end == 0:
                    self._write(handle, "log opened", {}, wait=True)
                    _sync_folder(self.path.parent)  # or a power cut could take the whole file
                yield handle
        except OSError as error:
            raise RunError(
                f"{self.path}: could not be written ({error.strerror}); free space or permit writing, then start again"
            ) from error

    def _write(self, handle: int, event: Event, fields: dict[str, Value], wait: bool = False) -> AuditHead:
        row = self._next(self._head(handle), event, fields)
        line, end = chain.canonical(row) + b"\n", os.fstat(handle).st_size
        try:
            while line:
                line = line[os.write(handle, line) :]
            if wait:
                os.fsync(handle)
        except OSError:
            with suppress(OSError):
                os.ftruncate(handle, end)
            raise
        return AuditHead(row["n"], row["hash"])

    def _next(self, head: AuditHead, event: Event, fields: dict[str, Value]) -> Row:
        for name, value in fields.items():
            if name in chain.OWN_FIELDS or not isinstance(value, Value):
                raise ValueError(f"field {name!r} of an audit row is not a field of its own with one text or number")
        row: Row = {
            **fields,
            "n": head.count + 1,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "event": event,
            "by": self.party,
            "salt": secrets.token_hex(16),
        }
        previous = head.hash or chain.ZEROS
        return row | {"previous": previous, "hash": chain.link(previous, chain.row_digest(row))}

    def _head(self, handle: int) -> AuditHead:
        last = next(chain.lines_backwards(handle), None)
        if last is None:
            return NOTHING
        row = self._row(last)
        return AuditHead(row["n"], row["hash"])

    def _row(self, line: bytes) -> Row:
        row = chain.parsed(line)
        if row is None or row["by"] != self.party:
            what = (
                f"is the audit log of {row['by']!r}, not of {self.party!r}" if row else "has a row that no log writes"
            )
            raise RunError(
                f"{self.path}: {what}; keep the file as evidence, move it aside to begin a new log, and let the other "
                f"parties accept the restart"
            )
        return row

    def _audit_heads(self, handle: int) -> dict[str, AuditHead]:
        """The head that is held of each party. Reads only what was written since the last call."""
        inode, end = os.fstat(handle).st_ino, chain.whole(handle)
        read_inode, start, audit_heads = self._held
        if read_inode != inode or start > end:
            start, audit_heads = 0, {}
        audit_heads = dict(audit_heads)
        for line in chain.lines(handle, start, end):
            if b'"event":"head received"' in line or b'"event":"chain restart accepted"' in line:
                found = chain.head_in(self._row(line))
                audit_heads |= dict([found] if found else [])
        self._held = inode, end, audit_heads
        return audit_heads


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
