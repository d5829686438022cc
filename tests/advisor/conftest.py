"""The advisor's command by itself, and settings to ask it about."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from advisor.commands import mount
from advisor.setting import Setting
from evaluation.config import TaskKind
from imaging.config import Modality

PAIRS = [(modality, task) for modality in get_args(Modality) for task in get_args(TaskKind)]


def setting(modality: Any = "x-ray", task: Any = "classification", **answer: Any) -> Setting:
    """40 labels, 5 sites of 200 patients, unless told otherwise."""
    return Setting(modality, task, **({"labels": 40, "sites": 5, "patients": 200} | answer))


@pytest.fixture
def advise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., list[str]]:
    """``advise("--modality", ...)``: the lines that the command prints, in a folder of its own."""

    def call(*arguments: str | Path) -> list[str]:
        monkeypatch.chdir(tmp_path)
        app = typer.Typer(rich_markup_mode=None)
        mount(app)
        capsys.readouterr()
        app([*map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out.splitlines()

    return call
