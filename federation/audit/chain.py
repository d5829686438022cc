"""What an audit log is made of: rows, their hash chain, heads, and how a file of them is read.

A row has its number ``n`` from 1, ``time`` (UTC), ``event``, ``by`` (the party whose log it is) and flat fields. Its
*digest* is the SHA-256 of the row as canonical JSON without ``previous`` and ``hash``; its ``hash`` is the SHA-256 of
``previous`` (the hash of the row before, zeros in the first) followed by the digest, both as 32 bytes. A random
``salt`` in each row makes a chain unlike any other, and keeps a digest from being matched against guessed rows.
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.errors import RunError

Row = dict[str, Any]

OWN_FIELDS = {"n": int, "time": str, "event": str, "by": str, "salt": str, "previous": str, "hash": str}
"""The fields that every row has, and their types."""
ZEROS = 64 * "0"
MOST_DIGESTS = 100_000
"""Rows that one message proves at most (6.4 MB); the next message goes on from there."""
_HASH = re.compile(r"[0-9a-f]{64}")
_BLOCK = 8192  # bytes; about twenty rows


@dataclass(frozen=True)
class AuditHead:
    """A row of a chain by number and hash, mostly the last; 0 and ``""`` where there is none, or none is known.

    RunError when it is neither.
    """

    count: int
    hash: str

    def __post_init__(self) -> None:
        if (self.count, self.hash) != (0, "") and not (self.count > 0 and _HASH.fullmatch(self.hash)):
            raise RunError("the head of an audit log is not a count and 64 hex digits; give one that a log has made")


NOTHING = AuditHead(0, "")


@dataclass(frozen=True)
class Extension:
    """A chain's head, and the digests of the rows that lead to it, the newest last. RunError when malformed."""

    head: AuditHead
    digests: Sequence[str] = ()

    def __post_init__(self) -> None:
        if len(self.digests) > MOST_DIGESTS:
            raise RunError(
                f"the proof of an audit log has {len(self.digests)} digests; a log gives {MOST_DIGESTS} at most"
            )
        if not all(_HASH.fullmatch(digest) for digest in self.digests):
            raise RunError("the proof of an audit log holds what is not 64 hex digits; give one that a log has made")

    def follows(self, known: AuditHead) -> bool:
        """Whether the chain goes on from ``known``, or ends there; True for any chain when ``known`` is ``NOTHING``.

        Digests of rows up to ``known`` may come first: the sender's last word of what is known may be an older one.
        """
        new = self.head.count - known.count
        if known == NOTHING or not 0 <= new <= len(self.digests):
            return known == NOTHING
        value = known.hash
        for digest in self.digests[len(self.digests) - new :]:
            value = link(value, digest)
        return value == self.head.hash


def canonical(row: Row) -> bytes:
    """The row as a line without its end: ASCII JSON, sorted keys, no spaces. ValueError for NaN and infinity."""
    return json.dumps(row, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def row_digest(row: Row) -> str:
    """SHA-256 of what a row says."""
    content = {name: value for name, value in row.items() if name not in ("previous", "hash")}
    return hashlib.sha256(canonical(content)).hexdigest()


def link(previous: str, digest: str) -> str:
    """The hash of the row with this digest after the row with the hash ``previous``."""
    return hashlib.sha256(bytes.fromhex(previous + digest)).hexdigest()


def parsed(line: bytes) -> Row | None:
    """The row in a line without its end; None when it is not exactly what a log writes."""
    try:
        row = json.loads(line.decode("ascii"))
        if not isinstance(row, dict) or any(type(row[name]) is not kind for name, kind in OWN_FIELDS.items()):
            return None
        good = row["n"] > 0 and _HASH.fullmatch(row["previous"]) and _HASH.fullmatch(row["hash"])
        return row if good and canonical(row) == line else None
    except (ValueError, KeyError, RecursionError):
        return None


def head_in(row: Row) -> tuple[str, AuditHead] | None:
    """The party, and its head that is held from this row on; None for a row that is about something else."""
    if row["event"] == "chain restart accepted":
        return str(row.get("party")), NOTHING
    if row["event"] != "head received":
        return None
    try:
        return str(row["party"]), AuditHead(row["count"], row["head"])
    except (KeyError, TypeError, RunError):
        return None  # no log of ours has such a row


@contextmanager
def locked(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """The open file, locked: shared for reading, else for this thread of this process alone. RunError: is missing."""
    try:
        handle = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if flags == os.O_RDONLY else fcntl.LOCK_EX)
        yield handle
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a process forked meanwhile has the file open too
        os.close(handle)


def whole(handle: int) -> int:
    """Where the last whole line ends, in bytes from the start. What follows was left by a killed process."""
    end = os.fstat(handle).st_size
    while end > 0:
        start = max(0, end - _BLOCK)
        found = os.pread(handle, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def lines(handle: int, start: int, end: int) -> Iterator[bytes]:
    """The lines from byte ``start`` up to byte ``end``, without their ends."""
    with os.fdopen(os.dup(handle), "rb") as file:
        file.seek(start)
        while start < end:
            line = file.readline()
            start += len(line)
            yield line[:-1]


def lines_backwards(handle: int) -> Iterator[bytes]:
    """The whole lines from the last to the first, without their ends."""
    end = whole(handle)
    stop, rest = end - 1, b""
    while stop > 0:
        start = max(0, stop - _BLOCK)
        rest, *more = (os.pread(handle, stop - start, start) + rest).split(b"\n")
        yield from reversed(more)
        stop = start
    if end > 0:
        yield rest
