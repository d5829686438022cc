"""A site check to read: on the screen, and as one HTML page that opens from disk and loads nothing."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from client.checks.site_check import SiteCheck
from foundation.files import write_text
from imaging.inspection.finding import Finding, Subject, Table

PAGE = "check.html"
STAYS = "This report names files of this site. It stays at the site: nothing of it is sent anywhere."
TITLES: dict[Subject, str] = {
    "images": "The images",
    "persons": "Persons in the images",
    "study": "The study here",
    "machine": "The machine",
    "server": "The way to the server",
}
_CLEAN: dict[Subject, str] = {
    "images": "Nothing odd was found.",
    "persons": "No identifier and no text was found in headers, names or images.",
    "study": "Its method and this site's policy have nothing against the images that can be used.",
    "machine": "It is enough.",
    "server": "It is the server of the kit, and answers.",
}


def sections(check: SiteCheck) -> list[tuple[Subject, str, list[Finding], list[Table], str]]:
    """Per subject that was looked at: its name, title, findings, facts, and what to say where nothing was found."""
    found = []
    for subject in get_args(Subject):
        findings = [finding for finding in check.findings if finding.subject == subject]
        tables = [table for table in check.facts if table.subject == subject]
        looked = bool(findings or tables or (subject == "persons" and check.looked))
        if looked:
            found.append((subject, TITLES[subject], findings, tables, _CLEAN[subject]))
    return found


def lines(check: SiteCheck, width: int) -> list[str]:
    """The report as text, no line longer than ``width``; the verdict first and last."""
    text = [
        *_wrapped(f"Site check of {check.data}", width),
        *_wrapped(STAYS, width),
        "",
        *_wrapped(check.verdict, width),
    ]
    for _, title, findings, tables, clean in sections(check):
        text += ["", title.upper()]
        for finding in findings:
            text += _finding_lines(finding, width)
        if not findings:
            text += _wrapped(clean, width, "  ")
        for table in tables:
            text += ["", *_table_lines(table, width)]
    return [*text, "", *_wrapped(check.verdict, width)]


def _finding_lines(finding: Finding, width: int) -> Iterator[str]:
    yield from _wrapped(finding.text, width, f"  {finding.level.upper():<8}", " " * 10)
    if finding.remedy:
        yield from _wrapped(finding.remedy, width, "          > ", " " * 12)
    for example in finding.examples:
        yield from _wrapped(example, width, "            - ", " " * 14)
    if finding.more:
        yield f"            and {finding.more:,} more"


def _table_lines(table: Table, width: int) -> Iterator[str]:
    """Columns side by side; the last one is wrapped."""
    if any(table.columns):
        yield from _wrapped(table.title, width, "  ")
    rows = [table.columns, *table.rows] if any(table.columns) else list(table.rows)
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(table.columns) - 1)]
    for row in rows:
        head = "  " + "".join(cell.ljust(size) for cell, size in zip(row, widths, strict=False))
        yield from _wrapped(row[-1], width, head, " " * len(head))


def _wrapped(text: str, width: int, first: str = "", later: str = "") -> list[str]:
    later = later or " " * len(first)
    kept = text.replace(" %", "\u00a0%")  # textwrap breaks no line there
    wrapped = textwrap.wrap(kept, width, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
    return [line.replace("\u00a0", " ") for line in wrapped] or [first]


def write_check(check: SiteCheck, path: Path) -> Path:
    """Write the report as one HTML file, and return its path."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(PAGE).render(check=check, sections=sections(check), stays=STAYS)
    write_text(path, page.replace(" %", "\u00a0%"))  # no line break between a number and its per cent sign
    return path
