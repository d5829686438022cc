"""``fedpretext status``: what a server's ``status.json`` says, as a table that keeps itself up to date."""

import io
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from foundation.wording import mebibytes, one_line, span
from server.monitoring.status_writer import FINISHED, PAUSED, TRAINING, SiteStatus, Status, last_sign, read_status

_SILENT_S = 30.0
_REFRESH_S = 1.0
_HEADINGS = ("site", "last seen", "state", "loss", "MiB out", "MiB in")
_ONLINE = "online"
_GAP = 2
_ADVICE = {
    "study-not-approved": "the site has to approve the study (fedpretext site approve), or its policy forbids it",
    "data-not-usable": "the site should look at its images (fedpretext site check)",
    "loss-not-finite": "training diverged there; if it happens again, lower training.learning_rate",
    "out-of-memory": "the site's device is too small for training.batch, or something else uses it",
    "disk-full": "the site has to free disk space",
    "state-damaged": "a file at the site is damaged; its state/site.log names it",
    "app-not-approved": "the site has another version of the program, or another study",
    "not-the-server": "it got a message that this server did not sign; if the server has a new key, restart it",
    "log-not-continued": "its audit log was rewritten, cut or restored; ask the site why, then: "
    "fedpretext accept-restart",
    "budget-spent": "its privacy budget permits no further round; its study, or its hospital, has to decide",
    "ledger-not-continued": "its privacy ledger was lost or restored; ask the site why, then: "
    "fedpretext accept-restart --ledger",
    "secure-sum-refused": "the site was asked for what the protocol or its policy.min_secure_sites does not permit; "
    "its audit log says at which stage, its log why",
    "labels-not-permitted": "the site takes no part in the evaluation; its policy.allow_label_statistics decides",
    "labels-too-few": "the site has too few labelled patients of a class to tell anything of them",
    "internal-error": "a fault of the program; the site's state/site.log has it",
    "unreadable reply": "the site has another version of the program",
    "reply under another site's name": "the site has to put the name of its kit into its site file",
}
"""What the study lead can do about a site's failure."""


def show(path: Path, once: bool) -> None:
    """Print the status in ``path``: once (always so where it is no terminal), or anew each second until it is finished.

    Ctrl-C ends it. RunError when the status cannot be read.
    """
    console = Console(highlight=False)
    if not console.is_terminal:
        print(*status_lines(_seen(path), time.time(), console.width), sep="\n")
        return
    if once:
        console.print(_view(_seen(path), time.time(), console.width))
        return
    with Live(console=console, auto_refresh=False) as live, suppress(KeyboardInterrupt):
        while True:
            status = _seen(path)
            live.update(_view(status, time.time(), console.width), refresh=True)
            if status.stage == FINISHED:
                return
            time.sleep(_REFRESH_S)


def status_lines(status: Status, now: float, width: int) -> list[str]:
    """The status in plain lines of at most ``width`` columns, as of ``now`` (seconds since 1970)."""
    written = io.StringIO()
    console = Console(file=written, width=width, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(_view(status, now, width))
    return [line.rstrip() for line in written.getvalue().splitlines()]


def _seen(path: Path) -> Status:
    """The status, and as ``updated`` the server's last sign of life."""
    status = read_status(path)
    return replace(status, updated=last_sign(path, status))


def _view(status: Status, now: float, width: int) -> RenderableType:
    finished = status.stage == FINISHED
    alive = finished or now - status.updated <= _SILENT_S
    # What is shown of a server that does not run, or has finished, is as of its last word.
    moment = now if alive and not finished else status.updated
    late = status.late(moment) if status.stage == TRAINING else set()
    parts: list[RenderableType] = [*_heading(status, now, alive), _progress(status, moment, alive)]
    if status.sites:
        parts += [_counts(status, late), Text(), _sites(status, moment, late, width)]
        parts += [Text(), *notes] if (notes := [*_notes(status)]) else []
    if status.metrics_port and alive and not finished:
        parts += [Text(), Text(f"metrics: http://127.0.0.1:{status.metrics_port}/metrics", "dim")]
    return Group(*parts)


def _heading(status: Status, now: float, alive: bool) -> Iterator[Text]:
    """What is trained and what the server does; where it does nothing: why, and what to do."""
    yield Text.assemble((one_line(f"study {status.study}"), "bold"), f" ({status.study_hash[:12]})")
    again = f"from round {max(1, status.round)}"
    if not alive:
        silent = span(now - status.updated)
        remedy = f"start it again (fedpretext server), it goes on {again}"
        yield Text(f"the server is not running: last written {silent} ago; {remedy}", "bold red")
    if status.stage != TRAINING:
        detail = f": {status.detail}" if status.detail else ""
        yield Text(one_line(status.phase + detail), _STYLES.get(status.stage, ""))
    if status.stage == PAUSED and alive:
        yield Text(f"nothing has to be started again: the server goes on by itself, {again}")


_STYLES = {PAUSED: "bold yellow", FINISHED: "bold green"}


def _progress(status: Status, now: float, alive: bool) -> Text:
    """Round n of N, how long it lasts, what a round takes, how much time is left."""
    if not status.round:
        return Text(f"{status.rounds} rounds, none begun yet")
    mean, lasted = status.mean_round, max(0.0, now - status.round_started)
    parts = [f"round {min(status.round, status.rounds)} of {status.rounds}"]
    if status.stage == TRAINING and alive:
        parts[0] += f", for {span(lasted)}"
        to_come = "known after a round"
        if mean is not None:
            to_come = f"about {span(mean * (status.rounds - status.round) + max(0.0, mean - lasted))}"
        parts.append(f"time left: {to_come}")
    if mean is not None:
        parts.append(f"a round takes {span(mean)}")
    return Text("; ".join(parts))


def _counts(status: Status, late: set[str]) -> Text:
    """How many sites are there, and what they do."""
    states = Counter(site.state for site in status.sites.values())
    online = sum(site.online for site in status.sites.values())
    said = [f"{len(status.sites)} sites: {online} online" + (f" ({status.quorum} needed)" if status.quorum else "")]
    said += [f"{states[state]} {state}" for state in ("answered", "in work", "failed") if states[state]]
    return Text(", ".join(said) + (f", {len(late)} late" if late else ""))


def _sites(status: Status, now: float, late: set[str], width: int) -> RenderableType:
    """A row a site, or three lines a site where a row would be too wide."""
    rows = [_cells(name, site, name in late, now) for name, site in sorted(status.sites.items())]
    columns = zip(_HEADINGS, *[[cell.plain for cell in row] for row in rows], strict=True)
    widths = [max(map(cell_len, column)) for column in columns]
    # The state alone may be written in two lines.
    widths[2] = max(cell_len(word) for row in rows for word in row[2].plain.split())
    if sum(widths) + _GAP * (len(widths) - 1) > width:
        return Group(*(part for row in rows for part in _block(row)))
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="dim")
    for number, heading in enumerate(_HEADINGS):
        table.add_column(heading, justify="right" if number > 2 else "left", no_wrap=number != 2)
    for row in rows:
        table.add_row(*row)
    return table


def _cells(name: str, site: SiteStatus, late: bool, now: float) -> list[Text]:
    loss = "-" if site.loss is None else f"{site.loss:#.4g}"
    numbers = (loss, mebibytes(site.bytes_sent), mebibytes(site.bytes_received))
    return [Text(one_line(name)), _seen_last(site, now), _state(site, late, now), *map(Text, numbers)]


def _block(row: list[Text]) -> Iterator[RenderableType]:
    name, seen, state, loss, sent, received = row
    yield Text.assemble(name, ": ", "" if seen.plain == _ONLINE else "last seen: ", seen)
    yield Padding(state, (0, 0, 0, _GAP))
    yield Padding(Text(f"loss {loss}; MiB out {sent}, in {received}"), (0, 0, 0, _GAP))


def _seen_last(site: SiteStatus, now: float) -> Text:
    if site.online:
        return Text(_ONLINE, "green")
    return Text(f"{span(now - site.seen)} ago" if site.seen else "never", "yellow")


def _state(site: SiteStatus, late: bool, now: float) -> Text:
    if site.state == "in work":
        return Text(f"in work {span(site.waiting(now))}{', late' if late else ''}", "yellow" if late else "")
    if site.state == "answered":
        return Text(f"answered in {span(site.answered - site.asked)}", "green")
    if site.state == "failed":
        return Text(one_line(f"failed: {site.reason}"), "red")
    return Text("not asked yet", "dim")


def _notes(status: Status) -> Iterator[Text]:
    """What can be done about each kind of failure, with the sites that have it."""
    failed: dict[str, list[str]] = {}
    for name, site in sorted(status.sites.items()):
        if site.state == "failed":
            failed.setdefault(site.reason, []).append(one_line(name))
    for reason, names in sorted(failed.items()):
        advice = _ADVICE.get(reason, "ask the site for its state/site.log")
        yield Text(f"{', '.join(names)}: {one_line(reason)}: {advice}")
