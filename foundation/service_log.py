"""What a long-running program says: a line for a person on standard error, the same as JSON in a file for machines."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from foundation.errors import RunError
from foundation.files import append_jsonl
from foundation.messages import logger
from foundation.wording import one_line

Level = Literal["info", "warning", "error"]
LARGEST = 20 * 2**20


class ServiceLog:
    """JSON lines ``{time, level, event, ...}``; above 20 MiB the file is put aside and the one before it deleted."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, level: Level, text: str, **fields: str | int | float) -> None:
        """Say ``text``, as one line, and keep it with its fields. A full disk silences the file, never the program."""
        event, now = one_line(text), datetime.now(UTC).isoformat(timespec="milliseconds")
        logger.log(logging.getLevelNamesMapping()[level.upper()], event)
        try:
            rotate(self.path)
            append_jsonl(self.path, {"time": now, "level": level, "event": event, **fields})
        except (OSError, RunError):
            return


def rotate(path: Path) -> None:
    """Put a log aside that has grown above ``LARGEST`` bytes; nothing where it has not."""
    if path.exists() and path.stat().st_size > LARGEST:
        path.replace(path.with_name(f"{path.name}.1"))
