"""What a bar says of its rate, on a terminal and in a log."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from foundation import progress
from foundation.progress import bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """``clock.now``: the seconds that bars see."""
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: made.now))
    monkeypatch.setattr(progress, "_display", None)
    return made


def test_a_bar_on_a_terminal_shows_units_a_second(clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=100))
    with bar("training", 10, "images") as line:
        clock.now += 4
        line.advance(1, worked=80)
        clock.now += 1
        line.advance(1, worked=20)
        with bar("evaluation", 1):  # a new bar draws all of them
            pass
    assert "training" in screen.getvalue()
    assert "20 images/s" in screen.getvalue()  # 100 images in 5 seconds


def test_a_long_bar_leaves_a_line_in_a_log(clock: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    for seconds in (9, 20):
        with bar("training", 10, "images") as line:
            clock.now += seconds
            line.advance(1, worked=100)
    assert capsys.readouterr().err == "training: 20 s, 5 images/s\n"
