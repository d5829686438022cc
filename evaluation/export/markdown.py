"""Markdown of cards: text that cannot become markup, lists and tables."""

import re
from collections.abc import Iterable, Sequence

from foundation.wording import one_line


def plain(text: str) -> str:
    """A text, perhaps another party's, on one line, in which nothing is a link, an image, a tag or a table's edge."""
    return re.sub(r"([\\`\[\]<>|])", r"\\\1", one_line(text))


def bullets(pairs: Iterable[tuple[str, str]]) -> str:
    """``- **name:** value`` a pair; pairs without a value are left out."""
    return "\n".join(f"- **{name}:** {value}" for name, value in pairs if value)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells as they are, so escape before."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
