"""``fedpretext site status``: what this site's client does and did last, from the site's own records alone."""

import fcntl
import re
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from client.approved import approved_name, record_path, record_paths
from client.site_file import AUDIT, CLIENT_LOCK, SiteFile, find_site_file, load_site_file
from federation.audit.log import Row, verify
from foundation.errors import StudyError
from foundation.files import read_jsonl
from foundation.messages import logger
from foundation.wording import mebibytes, one_line, span

_LABEL = 10
_CONSENT = ("study approved", "approval withdrawn")
_RELEASED = ("update released", "update sent again")
_REFUSED = ("app refused", "policy refused", "request refused", "round failed")
_ENDED = (*_RELEASED, *_REFUSED)
_DELIVERED = "weights delivered"
_ENTRY = re.compile(r"^\d{4}-\d\d-\d\dT\S+ round (\d+)$", re.MULTILINE)
_MODULE = re.compile(r"^(?:[a-z_][a-z0-9_]*\.)+(?=[A-Z])")
_TAIL = 65536  # bytes
_SECOND = len("2026-01-01T00:00:00")  # an audit log's times are no finer


def site_status_lines(folder: Path, width: int, clock: Callable[[], float] = time.time) -> list[str]:
    """The site's study, whether its client runs, what was asked, what left and what was refused last.

    ``folder``: a kit, or a site file or its folder. ``clock``: seconds since 1970. Lines of at most ``width`` columns.
    """
    path = find_site_file(folder)
    site_file = load_site_file(path)
    facts = _Records(site_file, clock()).facts(path.parent)
    return [line for label, text in facts for line in _wrapped(label, text, width)]


class _Records:
    """The audit log, the locks and the logs in a site's state folder, read once."""

    def __init__(self, site_file: SiteFile, now: float) -> None:
        self._file, self._state, self._now = site_file, site_file.state, now
        self._last: dict[str, Row] = {}
        self._sizes: list[int] = []
        audit = self._state / AUDIT
        self._verdict = verify(audit, self._see) if audit.exists() else None

    def facts(self, kit: Path) -> Iterator[tuple[str, str]]:
        """Label and text of each line."""
        yield "site", self._file.site
        yield "study", self._study()
        running = _held(self._state / CLIENT_LOCK)
        yield "client", "running" if running else f"not running; start it: fedpretext client {kit}"
        if (warning := self._warning()) is not None:
            yield "warning", warning
        yield "now", self._doing(running)
        asked, released = self._newest("instruction received"), self._newest(*_RELEASED)
        yield "asked", f"round {asked['round']}, {self._ago(asked)}" if asked else "nothing yet"
        if released is None:
            yield "sent", "nothing yet"
        else:
            again = ", sent again" if released["event"] == _RELEASED[1] else ""
            yield "sent", f"round {released['round']}, {mebibytes(released['bytes'])} MiB{again}, {self._ago(released)}"
            count = f"{len(self._sizes)} update{'' if len(self._sizes) == 1 else 's'}"
            yield "", f"in all {count}, {mebibytes(sum(self._sizes))} MiB"
        if (refused := self._newest(*_REFUSED)) is not None:
            which = f"round {refused['round']}: " if refused["round"] else ""
            yield "refused", f"{which}{refused['category']}, {self._ago(refused)}"
            yield "", self._why(refused["round"]) or f"why: see {self._state / 'site.log'}"
        if self._verdict is not None:
            remedy = f"; find out who changed {self._verdict.path}" if self._verdict.fault else ""
            yield "audit", self._verdict.line + remedy

    def _see(self, row: Row) -> None:
        self._last[row["event"]] = row
        if row["event"] in _RELEASED:
            self._sizes.append(row["bytes"])

    def _newest(self, *events: str) -> Row | None:
        rows = [self._last[event] for event in events if event in self._last]
        return max(rows, key=lambda row: row["n"], default=None)

    def _study(self) -> str:
        asked = (event for event, row in self._last.items() if "study" in row and event not in _CONSENT)
        row = self._newest(*asked)
        if row is None:
            known = [f"{name} ({number[:12]})" for name, number in self._approvals()]
            return f"approved here: {', '.join(known) or 'none'}; no instruction has come yet"
        number, record = row["study"][:12], record_path(self._file, row["study"])
        if not record.exists():
            return f"{number}: not approved here"
        try:
            name, own = approved_name(record)
        except StudyError:
            return f"{number}: the record of its approval was changed; look at it again (fedpretext site approve)"
        return f"{name} ({number}), approved here" if own == row["study"] else f"{number}: not approved here"

    def _approvals(self) -> list[tuple[str, str]]:
        """Name and hash of what is approved here, by name; a damaged record is reported on the screen and left out."""
        found = []
        for path in record_paths(self._file):
            try:
                found.append(approved_name(path))
            except StudyError as error:
                logger.warning(f"{error}")
        return sorted(found)

    def _doing(self, running: bool) -> str:
        asked = self._newest("instruction received")
        ended, done = self._newest(*_ENDED), self._newest(_DELIVERED)
        open_ = asked is not None and (ended is None or ended["n"] < asked["n"])
        if any(_held(lock) for lock in self._state.glob("*/lock")):
            return f"in work on round {asked['round']} for {span(self._since(asked))}" if asked and open_ else "in work"
        if done is not None and (asked is None or asked["n"] < done["n"]):
            return f"finished: the study's weights came {self._ago(done)}"
        if asked is not None and open_:
            return f"round {asked['round']} is not being trained; the server asks again for one that was cut off"
        return "waiting for an instruction" if running else "nothing"

    def _warning(self) -> str | None:
        """The client's last warning, where no instruction has come since."""
        rows = [row for row in read_jsonl(self._state / "client.jsonl") if row.get("level") in ("warning", "error")]
        asked = self._newest("instruction received")
        if not rows or (asked is not None and asked["time"][:_SECOND] >= rows[-1]["time"][:_SECOND]):
            return None
        return f"{rows[-1]['event']}, {self._ago(rows[-1])}"

    def _why(self, round_: int) -> str | None:
        """The last line of the newest error in site.log, if it is of this round."""
        log = self._state / "site.log"
        if not log.exists():
            return None
        with log.open("rb") as handle:
            handle.seek(max(0, log.stat().st_size - _TAIL))
            text = handle.read().decode(errors="replace")
        entries = [*_ENTRY.finditer(text)]
        if not entries or int(entries[-1][1]) != round_:
            return None
        lines = [line for line in text[entries[-1].end() :].splitlines() if line.strip()]
        return _MODULE.sub("", lines[-1].strip()) if lines else None

    def _since(self, row: Row) -> float:
        return self._now - datetime.fromisoformat(row["time"]).timestamp()

    def _ago(self, row: Row) -> str:
        return f"{span(self._since(row))} ago ({row['time'][:16].replace('T', ' ')} UTC)"


def _held(lock: Path) -> bool:
    """Whether a running process holds the lock."""
    try:
        with lock.open() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def _wrapped(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        one_line(text),
        width,
        initial_indent=label.ljust(_LABEL),
        subsequent_indent=" " * _LABEL,
        break_on_hyphens=False,
    )
