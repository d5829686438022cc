"""What is said to a person: records of the logger "fedpretext". Its programs print them; elsewhere the user decides.

Without configuration Python prints warnings alone; ``logging.basicConfig(level="INFO", format="%(message)s")`` prints
all, ``logging.getLogger("fedpretext").setLevel("ERROR")`` none.
"""

import logging
from contextlib import suppress

from rich.console import Console

logger = logging.getLogger("fedpretext")
console = Console(stderr=True)
"""Standard error, which messages and progress bars share so that lines come out above the bars."""


class _OnConsole(logging.Handler):
    """One line a message. Where standard error is a file on a full disk the line is lost, not the program."""

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            console.print(record.getMessage(), highlight=False, markup=False, soft_wrap=True)


def print_messages() -> None:
    """Have this process print every message: for programs, not for a library's functions."""
    logger.handlers, logger.propagate = [_OnConsole()], False
    logger.setLevel(logging.INFO)
