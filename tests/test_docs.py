"""The pages in docs/ name files and commands that exist."""

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


def test_the_threat_model_names_a_test_for_every_mechanism() -> None:
    text = (ROOT / "docs" / "threat-model.md").read_text()
    table = text[text.index("| threat | mechanism | tests |") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) > 10
    for row in table:
        assert row.rstrip("| ").rsplit("|", 1)[1].count("tests/") >= 1, row
