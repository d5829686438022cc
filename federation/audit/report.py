"""What audit logs say, for the console: what left a site, what was decided, whether logs are whole and agree."""

import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from federation.audit.chain import NOTHING, OWN_FIELDS, AuditHead, Row, head_in
from federation.audit.check import Agreement, cross_check, verify
from foundation.wording import one_line

WIDTH = 80
_LEFT = ("update released", "update sent again")
_HEADS, _ROUND = ("log opened", "head received"), ("instruction sent", "instruction received", "update received")
_ANSWERS = ("statistics asked", "statistics received", "statistics released")
_TRAFFIC = (*_LEFT, *_HEADS, *_ROUND, "round aggregated", *_ANSWERS)
_LEFT_WIDTHS = (-16, 5, -12, -7, 7, 9, -12)  # below 0: to the left; with two spaces between them, 80
_SITE_WIDTHS = (-20, 7, 9, 7, 8, 10)


@dataclass(frozen=True)
class Report:
    """Lines of at most 80 columns, and whether every log is whole and no two contradict each other."""

    lines: list[str]
    ok: bool


def report(*paths: Path) -> Report:
    """What each log says; where the server's and a site's are given, whether they agree. RunError: one is missing."""
    logs = [_Log(path) for path in paths]
    lines = [line for log in logs for line in (*log.lines(), "")]
    ok = not any(log.verdict.fault for log in logs)
    for one, other in combinations(logs, 2):
        if "server" in (one.party, other.party) and "" not in (one.party, other.party):
            agreement = cross_check(one.path, other.path)
            ok = ok and not agreement.faults
            lines += _wrapped(one_line(f"{one.party} and {other.party}: {_said_of(agreement)}"), "  ")
            lines += [part for fault in agreement.faults for part in _wrapped(one_line(fault), "  ")]
    return Report(lines[:-1] if lines and not lines[-1] else lines, ok)


def _said_of(agreement: Agreement) -> str:
    if agreement.faults:
        return f"the logs do not agree; they hold {agreement.audit_heads} heads of each other"
    if agreement.audit_heads == 0:
        return "hold no heads of each other yet, so that nothing can be compared"
    return f"the logs agree on the {agreement.audit_heads} heads that they hold of each other"


class _Log:
    """One log, read once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._left: list[Row] = []
        self._of_labels: list[Row] = []
        self._decisions: list[Row] = []
        self._audit_heads: dict[str, tuple[AuditHead, str]] = {}
        self._sites: dict[str, Counter[str]] = {}
        self.verdict = verify(path, self._see)
        self.party = self.verdict.party

    def lines(self) -> list[str]:
        """The report on this log alone."""
        lines = [*_wrapped(f"Audit log of {one_line(self.party) or 'nobody'}: {one_line(str(self.path))}")]
        lines += _wrapped(self.verdict.line)
        if self.verdict.fault:
            lines += _wrapped("What follows is of the rows before it; do not trust the rows after it.")
        lines += [f"head: {self.verdict.head.hash or 'none'}"]
        lines += self._server_lines() if self.party == "server" else self._site_lines()
        lines += ["", "Decisions", *([line for row in self._decisions for line in _decision(row)] or ["none"])]
        return [*lines, "", "Heads held of other logs", *(self._head_lines() or ["none"])]

    def _see(self, row: Row) -> None:
        event = row["event"]
        if event in _LEFT:
            self._left.append(row)
        if event == "statistics released":
            self._of_labels.append(row)
        if event not in _TRAFFIC:
            self._decisions.append(row)
        if (found := head_in(row)) is not None:
            self._audit_heads[found[0]] = found[1], row["time"]
        if "site" in row:
            site = self._sites.setdefault(str(row["site"]), Counter())
            site[event] += 1
            if event == "update received":
                site["bytes"] += _number(row, "bytes")
                site["round"] = max(site["round"], _number(row, "round"))

    def _site_lines(self) -> list[str]:
        lines = ["", "What left this site"]
        if not self._left:
            return [*lines, *(self._label_lines() or ["nothing"])]
        lines += [_columns(_LEFT_WIDTHS, "time (UTC)", "round", "study", "code", "tensors", "size", "weights")]
        for row in self._left:
            round_, *texts, weights = _texts(row, "round", "study", "code", "tensors", "weights")
            round_ += "*" if row["event"] == "update sent again" else ""
            cells = (_minute(row["time"]), round_, *texts, _size(_number(row, "bytes")), weights)
            lines.append(_columns(_LEFT_WIDTHS, *cells))
        again = sum(row["event"] == "update sent again" for row in self._left)
        size = _size(sum(_number(row, "bytes") for row in self._left))
        lines += [f"in all: {size} in {len(self._left)} messages, {again} of them an update sent again (*)"]
        for name in ("study", "code"):
            lines += [part for text in _distinct(self._left, name) for part in _wrapped(f"{name}: {text}")]
        return [*lines, *self._label_lines()]

    def _label_lines(self) -> list[str]:
        """Statistics of labels in one line a kind: a probe takes dozens of gradients."""
        lines = []
        for step, count in Counter(_texts(row, "step")[0] for row in self._of_labels).items():
            size = _size(sum(_number(row, "bytes") for row in self._of_labels if row.get("step") == step))
            lines += _wrapped(f"statistics of labels, {step}: {count} messages, {size}")
        return lines

    def _server_lines(self) -> list[str]:
        lines = ["", "What sites sent"]
        if not self._sites:
            return [*lines, "nothing"]
        lines += [_columns(_SITE_WIDTHS, "site", "updates", "size", "refused", "left out", "last round")]
        for name, site in sorted(self._sites.items()):
            counts = (site["update refused"], site["site left out"], site["round"] or "none")
            cells = (one_line(name), site["update received"], _size(site["bytes"]), *counts)
            lines.append(_columns(_SITE_WIDTHS, *map(str, cells)))
        return lines

    def _head_lines(self) -> list[str]:
        lines = []
        for party, (head, time) in sorted(self._audit_heads.items()):
            said = f"row {head.count}, {head.hash[:12]}" if head != NOTHING else "none since its restart was accepted"
            lines += _wrapped(f"{one_line(party)}: {said}, {_minute(time)}")
        return lines


def _decision(row: Row) -> list[str]:
    fields = [_field(name, value) for name, value in row.items() if name not in OWN_FIELDS]
    said = f"{row['event']}{': ' if fields else ''}{', '.join(fields)}"
    return _wrapped(f"{_minute(row['time'])}  {one_line(said)}", 18 * " ")


def _field(name: str, value: object) -> str:
    text = str(value)
    return f"{name} {text[:12] if len(text) == 64 and text.isalnum() else text}"


def _texts(row: Row, *names: str) -> list[str]:
    return [one_line(str(row.get(name, "?"))) for name in names]


def _number(row: Row, name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) else 0


def _distinct(rows: Iterable[Row], name: str) -> list[str]:
    return [text for text in dict.fromkeys(_texts(row, name)[0] for row in rows) if text != "?"]


def _columns(widths: tuple[int, ...], *cells: str) -> str:
    """The cells in columns, to the left where the width is negative; a text is cut to it, a longer number moves on."""
    line = [
        cell[:-width].ljust(-width) if width < 0 else cell.rjust(width)
        for width, cell in zip(widths, cells, strict=True)
    ]
    return "  ".join(line).rstrip()[:WIDTH]


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def _minute(time: str) -> str:
    return one_line(time[:16].replace("T", " "))


def _size(count: float) -> str:
    units = ["TiB", "GiB", "MiB", "KiB"]
    if count < 1000:
        return f"{count:.0f} B"
    count /= 1024
    while count >= 999.95 and len(units) > 1:
        count /= 1024
        units.pop()
    return f"{count:.1f} {units[-1]}"
