"""The page about intervals shows the tables that the benchmark wrote, and they hold what the page says of them."""

import re
from pathlib import Path

from benchmarks.statistics.interval_coverage import CASES, MARKS, NUMBERS, OF_NUMBERS, OURS, on_page, tables

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "intervals.md").read_text()
RESULT = (ROOT / "benchmarks" / "results" / "statistics" / "interval_coverage.md").read_text()


def on_the_page() -> str:
    start, end = MARKS
    return PAGE[PAGE.index(start) + len(start) : PAGE.index(end)].strip()


def test_page_and_result_agree() -> None:
    assert on_the_page() and on_the_page() in RESULT


def test_every_case_of_the_evaluation_issue_is_in_the_table() -> None:
    rows = [row for row in on_the_page().splitlines() if re.match(r"\| (slice|patient|\d)", row)]
    assert len(rows) == len(CASES) + len(NUMBERS)
    asked = {(n, rho) for n in (10, 20, 40, 80) for rho in (0.1, 0.4)}
    for kind in ("slice", "patient"):
        assert asked <= {(case.patients, case.correlation) for case in CASES if case.labels == kind}
    assert asked <= {(case.patients, case.correlation) for case in NUMBERS}


def test_writing_the_page_again_changes_nothing() -> None:
    assert on_page(PAGE, on_the_page().splitlines()) == PAGE


def test_tables_have_a_column_for_every_figure() -> None:
    found = {case: dict.fromkeys(OURS, 0.95) for case in CASES[:1]} | {NUMBERS[0]: dict.fromkeys(OF_NUMBERS, 0.9)}
    text = "\n".join(tables(found, 10))
    assert "Ours: 0.900 to 0.950; 4 of 9 within .93 to .97." in text
    assert "| slice | 1 | 1 | 10 | 0.1 | 0.950 | 0.950 | 0.950 | 0.950 |  |  |  |" in text
    assert "| 1 | 1 | 10 | 0.1 | 0.900 | 0.900 | 0.900 | 0.900 | 0.900 |" in text
