"""The examples run, as they stand but for their sizes, and do what they say."""

import ast
import re
import runpy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import fedpretext as fp
from client.approval import approve
from client.policy import Policy
from client.site_file import load_site_file
from evaluation.export.export import export
from federation.study import study_from
from foundation.errors import StudyError
from ssl_methods import INSTALLED, METHODS

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SMALL = ("simulation.arms=[]", "rounds.count=1", "evaluation.finetune.epochs=1")


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"))


@pytest.fixture
def quadrants() -> Iterator[dict[str, Any]]:
    """The example of a method of one's own, registered for the length of a test."""
    yield example("own_method")
    METHODS.pop("quadrants")


def test_these_are_all() -> None:
    assert [path.stem for path in EXAMPLES] == ["own_images", "own_method", "plain_timm", "simulated_study"]
    assert max(len(path.read_text().splitlines()) for path in EXAMPLES) < 70


def test_a_simulated_study(study_file: Path, tmp_path: Path) -> None:
    table = example("simulated_study")["main"](study_file, *SMALL, runs=tmp_path / "runs")
    assert {"federated", "random"} <= set(table["encoder"])
    assert table["value"].between(0, 1).all()
    assert example("simulated_study")["DEMO"].is_file()


def test_own_images_and_an_own_question(tmp_path: Path) -> None:
    table = example("own_images")["main"](tmp_path / "own")
    assert "R2" in set(table["metric"])
    assert set(table["task"]) == {"brightness"}
    assert (tmp_path / "own" / "brightness" / "report.html").exists()


def test_a_method_of_ones_own_trains(quadrants: dict[str, Any], study_file: Path, tmp_path: Path) -> None:
    own = ["method={name: quadrants, cells: 4}", *SMALL]
    folder = fp.pretrain(study_file, own, runs=str(tmp_path / "runs"), device="cpu")
    study = fp.load_study(folder / "study.yaml")
    assert study.method == quadrants["QuadrantsConfig"](cells=4)
    assert fp.pretrain(study, resume=folder) == folder
    shared = fp.METHODS["quadrants"].parts
    assert list(shared) == ["encoder", "head"]
    with pytest.raises(StudyError, match=r"key '[\w.]*cell' is not known; did you mean '[\w.]*cells'\?$"):
        fp.load_study(study_file, ["method={name: quadrants, cell: 4}"])
    with pytest.raises(StudyError, match="'quadrants' is registered in this process"):
        fp.pretrain(study_file, [*own, "simulation.runtime=ray"], runs=tmp_path / "ray")
    assert not list((tmp_path / "ray").glob("*"))


def test_a_site_refuses_what_it_has_not_installed(
    quadrants: dict[str, Any], raw_study: dict[str, Any], hospital: Any, tmp_path: Path
) -> None:
    """Registration lasts as long as its process, and nothing that is sent or written carries it to another."""
    study = study_from(raw_study | {"method": {"name": "quadrants"}}, "test")
    path = tmp_path / "study.yaml"
    path.write_text(study.to_yaml())
    site = load_site_file(hospital())
    own = METHODS.pop("quadrants")  # the site's process
    try:
        with pytest.raises(StudyError, match=r"method\.name 'quadrants' is not known; there are: autoencoder"):
            approve(path, site, "a test", lambda _: True)
        with pytest.raises(ValueError, match="method 'quadrants' is not known"):
            Policy(methods=("quadrants",))
    finally:
        METHODS["quadrants"] = own
    assert set(METHODS) == INSTALLED | {"quadrants"}


def test_nothing_of_the_package_registers_methods() -> None:
    """So a study cannot make a site do it: only code that somebody writes at the site can."""
    used = re.compile(r"(?<!def )register_method\(|@register_method")
    files = [path.relative_to(ROOT) for path in ROOT.glob("[a-z]*/**/*.py") if used.search(path.read_text())]
    assert {path.parts[0] for path in files} - {"tests"} == {"examples"}


def test_an_encoder_in_plain_timm(study_file: Path, tmp_path: Path) -> None:
    tree = ast.parse((ROOT / "examples" / "plain_timm.py").read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"json", "sys", "numpy", "timm", "torch"}
    run = fp.pretrain(study_file, SMALL, runs=tmp_path / "runs", device="cpu")
    folder = export(run, "timm", out=tmp_path / "exported")
    pixels = torch.randint(0, 256, (3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image.numpy()).save(file)
    torch.testing.assert_close(
        example("plain_timm")["main"](folder, *files), fp.load_encoder(folder)(pixels[:, None] / 255)
    )
