"""The advisor's texts: templates of which each marked line is a paragraph of its own."""

import re
import textwrap
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

CONSOLE, COMMENT = r" *([-+?] |\d+\. )?", r" *# "
"""How a paragraph begins: on the console every line is one, in a YAML file each comment."""
_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).with_name("templates")),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.filters["yaml"] = lambda values: yaml.safe_dump(values, sort_keys=False, width=1000).rstrip()


def filled(template: str, **values: Any) -> str:
    """A template with its places filled; a value that goes into a comment must be one line."""
    return _TEMPLATES.get_template(template).render(values)


def wrapped(text: str, marks: str = CONSOLE, width: int = 80) -> list[str]:
    """The text in lines of at most ``width`` columns, those of a paragraph below each other after its mark."""
    lines = []
    for line in text.splitlines():
        mark = re.match(marks, line)
        under = "" if mark is None else re.sub("[^#]", " ", mark[0])
        fitting = [] if mark is None else textwrap.wrap(line, width, subsequent_indent=under, break_on_hyphens=False)
        lines += fitting or [line]
    return lines
