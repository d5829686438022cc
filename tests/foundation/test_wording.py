"""Times, sizes and foreign words, as they are shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.wording import counted, mebibytes, one_line, span, words


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5.0, "0 s"),
        (0.9, "0 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (3599, "59 min"),
        (3600, "1 h"),
        (2 * 3600 + 10 * 60 + 59, "2 h 10 min"),
        (86399, "23 h 59 min"),
        (86400, "1 d"),
        (3 * 86400 + 4 * 3600 + 1800, "3 d 4 h"),
        (400 * 86400, "400 d"),
    ],
)
def test_span(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_counted() -> None:
    assert [counted(number, "image") for number in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]
    assert counted(2, "study", "studies") == "2 studies"


def test_mebibytes() -> None:
    assert mebibytes(0) == "0.0"
    assert mebibytes(2**19) == "0.5"
    assert mebibytes(12345 * 2**20) == "12,345.0"


def test_what_would_move_the_cursor_is_not_printed() -> None:
    assert one_line("  a\n\tb \x1b[2Jc\u202egpj.d\ud800  ") == "a b ?[2Jc?gpj.d?"
    assert one_line("Spital Zürich, 病院") == "Spital Zürich, 病院"


@given(st.text(st.characters()))
def test_one_line_is_one_printable_line(text: str) -> None:
    said = one_line(text)
    assert said.isprintable()
    assert said == said.strip()
    assert one_line(said) == said


def test_words() -> None:
    assert words("\n    PatientName PatientID\n    StudyDate\n") == ("PatientName", "PatientID", "StudyDate")
