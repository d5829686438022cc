"""One progress display a process: bars with rate and time left on a terminal, a plain line a finished bar in a log."""

import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar, cast

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from foundation.messages import console, logger

T = TypeVar("T")
_LOGGED_AFTER_S = 10.0  # a bar shorter than this leaves no line in a log: hundreds of them would hide the rest


class Bar:
    """One line of the display. Advance it; close it (or use it as a context manager through ``bar``)."""

    def __init__(self, display: "_Display", description: str, total: float | None, unit: str) -> None:
        self._display, self._description, self._unit = display, description, unit
        self._started, self._done = time.monotonic(), 0.0
        self._task: TaskID = display.add(description, total)

    def advance(self, amount: float = 1.0, worked: float | None = None) -> None:
        """Move on by ``amount``; ``worked`` units (images, say) are what the printed rate counts."""
        self._done += amount if worked is None else worked
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = f"{self._done / seconds:,.0f} {self._unit}/s" if self._unit else ""
        self._display.progress.update(self._task, advance=amount, rate=rate)

    def describe(self, description: str) -> None:
        """Change the text."""
        self._description = description
        self._display.progress.update(self._task, description=description)

    def close(self) -> None:
        """Take the bar off the display."""
        self._display.remove(self._task)
        seconds = time.monotonic() - self._started
        if not console.is_terminal and seconds >= _LOGGED_AFTER_S:
            rate = f", {self._done / seconds:,.0f} {self._unit}/s" if self._unit else ""
            logger.info(f"{self._description}: {seconds:.0f} s{rate}")


class _Display:
    """The shared rich display; live only while it has bars, because rich allows one at a time."""

    def __init__(self) -> None:
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            transient=True,
        )
        self._open = 0

    def add(self, description: str, total: float | None) -> TaskID:
        if self._open == 0 and console.is_terminal:
            self.progress.start()
        self._open += 1
        return self.progress.add_task(description, total=total, rate="")

    def remove(self, task: TaskID) -> None:
        self.progress.remove_task(task)
        self._open -= 1
        if self._open == 0 and console.is_terminal:
            self.progress.stop()


_display: _Display | None = None


@contextmanager
def bar(description: str, total: float | None, unit: str = "") -> Iterator[Bar]:
    """A bar for the length of a ``with`` block."""
    global _display
    if _display is None:
        _display = _Display()
    line = Bar(_display, description, total, unit)
    try:
        yield line
    finally:
        line.close()


def track(iterable: Iterable[T], description: str, total: int | None = None, show: bool = True) -> Iterator[T]:
    """Iterate with a bar; ``show=False`` iterates without one."""
    if not show:
        yield from iterable
        return
    if total is None and hasattr(iterable, "__len__"):
        total = len(cast(Sized, iterable))
    with bar(description, total) as line:
        for item in iterable:
            yield item
            line.advance()
