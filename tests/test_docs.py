"""The README, CONTRIBUTING and the pages in docs/ name files and functions that exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOMS = sorted(
    path.parent.name for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("tests", "benchmarks")
)


def to_fill_in(name: str) -> bool:
    """Whether it holds a word that the reader replaces."""
    return any(word in name for word in ("NAME", "MODULE", "FAMILY"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    named = set(re.findall(rf"`((?:tests|configs|docs|examples|benchmarks|{'|'.join(ROOMS)})/[\w./-]*)`", text))
    linked = set(re.findall(r"\]\(([^)#:]+)\)", text))
    missing = [name for name in sorted(named) if not to_fill_in(name) and not (ROOT / name).exists()]
    missing += [target for target in sorted(linked) if not (page.parent / target).exists()]
    assert missing == []


def defines(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether a module's or class's body defines ``names[0]``, that its ``names[1]``, and so on."""
    if not names:
        return True
    for each in body:
        if isinstance(each, ast.ClassDef | ast.FunctionDef) and each.name == names[0]:
            return defines(each.body, names[1:])
        if isinstance(each, ast.ImportFrom) and names in [[alias.name] for alias in each.names]:
            return True
        targets = (
            each.targets if isinstance(each, ast.Assign) else [each.target] if isinstance(each, ast.AnnAssign) else []
        )
        if any(isinstance(target, ast.Name) and target.id == names[0] for target in targets):
            return len(names) == 1
    return False


def is_there(dotted: str) -> bool:
    """Whether ``room.module.Class.method`` is a module, or a name that one defines; read, not imported."""
    parts = dotted.split(".")
    for cut in range(len(parts), 0, -1):
        place = ROOT.joinpath(*parts[:cut])
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return defines(ast.parse(path.read_text()).body, parts[cut:])
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_functions_that_a_page_names_are_there(page: Path) -> None:
    named = set(re.findall(rf"`((?:{'|'.join(ROOMS)})(?:\.\w+)+)`", page.read_text()))
    names = {
        name for name in named if not to_fill_in(name) and not name.endswith((".md", ".yaml", ".csv", ".json", ".py"))
    }
    if page.name == "architecture.md":
        assert len(names) > 50
    assert [name for name in sorted(names) if not is_there(name)] == []


def test_a_function_that_is_not_there_is_found() -> None:
    assert is_there("server.rounds.RoundLoop.run") and is_there("client.app") and is_there("ssl_methods.build_method")
    assert not is_there("server.rounds.RoundLoop.walk") and not is_there("server.nowhere.run")


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
