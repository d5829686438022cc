"""The layout of the sources: nothing is kept from the formatter, and no file is too long to be read in one go."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST, MOST_FILES = 350, 20
_KEPT_FROM_FORMATTER = re.compile(r"#\s*(fmt|yapf):\s*(skip|off|disable)")


def sources() -> list[Path]:
    """Every module outside tests: top-level ones, the packages, benchmarks and examples."""
    found = sorted(ROOT.glob("*.py"))
    for folder in sorted(path for path in ROOT.iterdir() if path.is_dir()):
        if (folder / "__init__.py").exists() or folder.name in ("benchmarks", "examples"):
            found += sorted(folder.rglob("*.py"))
    return [path for path in found if path.relative_to(ROOT).parts[0] != "tests"]


def test_there_is_something_to_look_at() -> None:
    assert len(sources()) > 300


def test_nothing_is_kept_from_the_formatter() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if _KEPT_FROM_FORMATTER.search(line)
    ]
    assert not found, "shorten the signature (a context object) or restructure the literal"


def test_no_source_file_is_long() -> None:
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in sources()}
    too_long = {name: length for name, length in lengths.items() if length > LONGEST}
    assert not too_long, f"files have at most {LONGEST} lines: divide them by subject"


@pytest.mark.parametrize(
    ("line", "kept"),
    [(") -> None:  # fmt: skip", True), ("# fmt: off", True), ("x = 1  # fmt", False), ("# skip this format", False)],
)
def test_which_marks_count(line: str, kept: bool) -> None:
    assert bool(_KEPT_FROM_FORMATTER.search(line)) == kept


def test_no_folder_holds_many_files() -> None:
    """More than 20 files beside each other are several subjects."""
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, cwd=ROOT, check=True).stdout.split()
    counts = Counter(str(Path(name).parent) for name in listed if not name.startswith("tests/"))
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}
