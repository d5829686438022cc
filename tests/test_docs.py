"""The pages in docs/ name files and commands that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = set(
        re.findall(r"`((?:tests|client|server|federation|foundation|imaging|simulation|configs|docs)/[\w./-]+)`", text)
    )
    linked = set(re.findall(r"\]\(([^)#:]+)\)", text))
    missing = [name for name in sorted(named) if not (ROOT / name).exists()]
    missing += [target for target in sorted(linked) if not (page.parent / target).exists()]
    assert missing == []


def is_soak(marks: list[ast.expr]) -> bool:
    return any("pytest.mark.soak" in ast.unparse(mark) for mark in marks if not isinstance(mark, ast.Call))


def run_by_ci(path: Path) -> list[str]:
    """The tests of a file that CI runs: all but those of the tier ``soak``."""
    tree = ast.parse(path.read_text())
    marks = [each.value for each in tree.body if isinstance(each, ast.Assign) and "pytestmark" in ast.unparse(each)]
    tests = [each for each in tree.body if isinstance(each, ast.FunctionDef) and each.name.startswith("test_")]
    return [] if is_soak(marks) else [test.name for test in tests if not is_soak(test.decorator_list)]


def test_the_threat_model_names_tests_that_ci_runs_for_every_mechanism() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    table = text[text.index("| threat | mechanism | tests |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 10
    for row in table:
        named = re.findall(r"`(tests/[\w./]+)`", row.rstrip("| ").rsplit("|", 1)[1])
        assert named, row
        for name in named:
            assert (ROOT / name).is_file(), f"{name} is not there; named for: {row}"
            assert run_by_ci(ROOT / name), f"{name} has no test that CI runs; named for: {row}"


def test_a_test_of_the_tier_soak_is_not_taken_for_one_that_ci_runs(tmp_path: Path) -> None:
    path = tmp_path / "test_it.py"
    marked = "@pytest.mark.soak\ndef test_one(): ...\n"
    marked += "@pytest.mark.parametrize('x', [soak(1), 2])\ndef test_two(x): ...\n"
    path.write_text(marked)
    assert run_by_ci(path) == ["test_two"]
    path.write_text(f"pytestmark = [pytest.mark.slow, pytest.mark.soak]\n{marked}")
    assert run_by_ci(path) == []
