"""The field's standard terms, in names: identifiers, configuration keys, command-line options and values in csv files.

Looked at by syntax tree and not in every string: attention heads, pooled features and cross-validation folds keep their
names, and prose may say that something was told.
"""

import ast
import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

ROOT = Path(__file__).resolve().parents[1]
ROOMS = sorted({path.parent.name for path in ROOT.glob("*/*.py") if path.parent.name != ".venv"})
RETIRED = {
    "floor": "baseline", "floors": "baselines", "told": "answer",
    "Question": "EvaluationRequest", "Merit": "Metric", "cut_loose": "detach_to_cpu", "uncounted": "hides_counts",
    "couples": "is_batch_coupled", "attends": "has_attention_teacher", "never_shared": "private_parts",
    "spool": "reply store", "Spool": "ReplyStore", "Spooled": "StoredReply", "Board": "StatusWriter",
    "Contact": "SiteChannel", "SiteHeads": "AuditExchange",
}  # fmt: skip
"""Names that are not used any more in their old meaning, and the standard term for each."""
ONLY_IN = {
    "fold": ("federation/algorithms/", "server/reply_store.py", "server/rounds.py"),
    "follow": ("ssl_methods/",),
    "exact": ("ssl_methods/", "imaging/views/"),
    "watch": ("ssl_methods/", "client/"),
    "look": ("client/", "imaging/", "simulation/"),
    "heads": ("server/", "federation/audit/"),
}
"""Words with another, standard meaning elsewhere: where they are retired."""
ARMS = {"alone", "pooled", "natural"}
MEANT = {("floor", "math"), ("floor", "np"), ("floor", "torch")}


def sources() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a module defines or uses, with its line; attributes of other libraries' modules left out."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Name):
            yield node.id, line
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg):
            yield node.arg, line
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, line
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (node.attr, owner) not in MEANT and not (node.attr == "floor" and owner != "self"):
                yield node.attr, line


def test_identifiers_are_the_fields_words() -> None:
    found: list[str] = []
    for path in sources():
        place = path.relative_to(ROOT).as_posix()
        for name, line in identifiers(ast.parse(path.read_text())):
            plain = name.lstrip("_")
            if "picture" in name.lower() and not name.startswith("test_"):
                found.append(f"{place}:{line}: {name}: image")
            elif plain in RETIRED:
                found.append(f"{place}:{line}: {name}: {RETIRED[plain]}")
            elif plain in ONLY_IN and place.startswith(ONLY_IN[plain]):
                found.append(f"{place}:{line}: {name}")
    assert found == []


def test_arms_go_by_the_fields_words() -> None:
    """No string of the program is an old arm's name: they are kinds, folders, keys and values in csv files."""
    found = []
    for path in sources():
        if path.name == Path(__file__).name:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and (node.value in ARMS or str(node.value).startswith("alone-")):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.value}")
    assert found == []


def keys(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from keys(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from keys(inner)


@pytest.mark.parametrize("file", sorted((ROOT / "configs").rglob("*.yaml")), ids=lambda path: path.name)
def test_configuration_keys(file: Path) -> None:
    read = yaml.safe_load(file.read_text())
    assert not [key for key in keys(read) if "picture" in key or key in RETIRED | dict.fromkeys(ARMS)]
    arms = (read.get("simulation") or {}).get("arms", []) if isinstance(read, dict) else []
    assert not set(arms) & ARMS


def test_command_line_options() -> None:
    from fedpretext.cli import app

    command = typer.main.get_command(app)
    found = [option for each in command.commands.values() for p in each.params for option in p.opts]  # type: ignore[attr-defined]
    assert found
    assert not [option for option in found if "picture" in option]


def test_values_in_csv_files() -> None:
    found = []
    for file in sorted((ROOT / "benchmarks" / "results").rglob("*.csv")):
        with file.open(newline="") as handle:
            for row in csv.reader(handle):
                found += [f"{file.name}: {cell}" for cell in row if cell in ARMS or re.match(r"alone-|pictures$", cell)]
    assert found == []
