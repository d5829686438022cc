"""Reading audit logs as an auditor: is one whole, and do two parties' logs agree on each other."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from federation.audit.chain import (
    NOTHING,
    ZEROS,
    AuditHead,
    Row,
    head_in,
    lines,
    link,
    locked,
    parsed,
    row_digest,
    whole,
)
from foundation.errors import RunError


@dataclass(frozen=True)
class VerifiedLog:
    """What the reading of a whole log found: whose it is, how far it is whole, and what is wrong with the next row."""

    path: Path
    party: str
    head: AuditHead
    fault: str = ""
    torn: bool = False

    @property
    def line(self) -> str:
        """In one line."""
        count = self.head.count
        if self.fault:
            return f"chain is broken at row {count + 1}: {self.fault}"
        torn = "; a last line that was not written to its end does not count" if self.torn else ""
        return f"chain is whole: {count} row{'' if count == 1 else 's'}, head {self.head.hash[:12] or 'none'}{torn}"


def verify(path: Path, see: Callable[[Row], object] = lambda row: None) -> VerifiedLog:
    """Read a log up to the first bad row, and show each good one to ``see``. RunError when there is no such file."""
    party, head = "", NOTHING
    with locked(path) as handle:
        end = whole(handle)
        torn = end < os.fstat(handle).st_size
        for line in lines(handle, 0, end):
            row = parsed(line)
            fault = _fault(row, head, party)
            if row is None or fault:
                return VerifiedLog(path, party, head, fault, torn)
            party, head = row["by"], AuditHead(row["n"], row["hash"])
            see(row)
    return VerifiedLog(path, party, head, "", torn)


def _fault(row: Row | None, head: AuditHead, party: str) -> str:
    if row is None:
        return "it is not a row that a log writes"
    if row["n"] != head.count + 1:
        return f"it says that it is row {row['n']}"
    if row["previous"] != (head.hash or ZEROS):
        return "it does not belong after the row before"
    if row["hash"] != link(row["previous"], row_digest(row)):
        return "its content was changed"
    return f"it is of {row['by']!r}, the rows before are of {party!r}" if party and row["by"] != party else ""


@dataclass(frozen=True)
class Agreement:
    """How many heads two logs hold of each other, and a line for each log that is broken or was changed."""

    audit_heads: int
    faults: list[str]


def cross_check(one: Path, other: Path) -> Agreement:
    """Compare two parties' logs: each head that one holds of the other has to be a row of the other.

    A log that was changed is found from the first head that does not fit; the change began somewhere after the last one
    that does. Heads from before an accepted restart are of a log that is lost, and are not compared. RunError when both
    are of one party, or one has no row.
    """
    first, second = _Contents(one), _Contents(other)
    if first.party == second.party:
        raise RunError(f"{one} and {other}: are both logs of {first.party!r}; give those of two parties")
    found = [f"{log.path}: {log.verdict.line}" for log in (first, second) if log.verdict.fault]
    found += [line for line in (_changed(first, second), _changed(second, first)) if line]
    return Agreement(len(first.held(second.party)) + len(second.held(first.party)), found)


class _Contents:
    """A log as a comparison needs it: each row's hash, and the heads of other parties with the rows they are in."""

    def __init__(self, path: Path) -> None:
        self._hashes: list[str] = []
        self._held: dict[str, list[tuple[int, AuditHead]]] = {}
        self.path, self.verdict = path, verify(path, self._see)
        self.party = self.verdict.party
        if not self.party:
            raise RunError(f"{path}: has no row that could be compared; {self.verdict.line}")

    def has(self, head: AuditHead) -> bool:
        """Whether this is a row of the log."""
        return self._hashes[head.count - 1 : head.count] == [head.hash]

    def held(self, party: str) -> list[tuple[int, AuditHead]]:
        """Heads of that party since its last restart, and the number of the row that each is in."""
        return self._held.get(party, [])

    def _see(self, row: Row) -> None:
        self._hashes.append(row["hash"])
        party, head = head_in(row) or ("", NOTHING)
        if party:
            held = self._held.setdefault(party, [])
            held.append((row["n"], head)) if head != NOTHING else held.clear()


def _changed(log: _Contents, holder: _Contents) -> str:
    """What the heads that ``holder`` has of ``log`` say against it: one line, or nothing."""
    fits = 0
    for row, head in holder.held(log.party):
        if log.has(head):
            fits = max(fits, head.count)
            continue
        # A row that the accused has acknowledged was there in time; one it has not may have been made up since.
        acknowledged = any(seen.count >= row and holder.has(seen) for _, seen in log.held(holder.party))
        return (
            f"{log.path}: was rewritten, cut or restored, from row {fits + 1} at the earliest: row {head.count} is not "
            f"the one whose head {holder.path} holds in row {row}{'' if acknowledged else ', if that one is true'}"
        )
    return ""
