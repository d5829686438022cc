"""What a check of a site tells: findings with a remedy each, and tables of plain facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning", "note"]
Subject = Literal["images", "persons", "study", "machine", "server"]
EXAMPLES: dict[Level, int] = {"error": 10, "warning": 10, "note": 3}


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    error: the study would not run here, or would not take the images. warning: it runs, but something is likely
    wrong, or against a rule of the site. note: good to know. ``kind`` is a short fixed name.
    """

    level: Level
    subject: Subject
    kind: str
    text: str
    """One line: what, and how many."""
    remedy: str
    """One line: what to do about it."""
    examples: tuple[str, ...] = ()
    more: int = 0
    """How many further examples there are."""

    @property
    def line(self) -> str:
        """What was found and what to do, in one line."""
        return f"{self.text}; {self.remedy}" if self.remedy else self.text


def with_examples(about: tuple[Level, Subject, str], text: str, remedy: str, examples: Sequence[str]) -> Finding:
    """A finding with the first of its examples; about: its level, subject and kind."""
    level, subject, kind = about
    shown = tuple(examples[: EXAMPLES[level]])
    return Finding(level, subject, kind, text, remedy, shown, len(examples) - len(shown))


@dataclass(frozen=True)
class Table:
    """Facts in rows; the first cell of a row names it."""

    title: str
    subject: Subject
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
