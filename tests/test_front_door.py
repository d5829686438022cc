"""``import fedpretext as fp``: exactly these names, instantly, with types; paths as text; messages one can silence."""

import ast
import importlib.metadata
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

import advisor.commands
import fedpretext as fp
from evaluation.export.export import export
from evaluation.export.source import find_encoder
from foundation.errors import DataError, RunError, StudyError

ROOT = Path(__file__).resolve().parents[1]
NAMES = [
    "ALGORITHMS", "ENCODERS", "METHODS", "__version__", "advise", "evaluate", "load_encoder", "load_study", "pretrain",
    "simulate",
]  # fmt: skip


def in_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_exactly_these_names() -> None:
    assert fp.__all__ == dir(fp) == NAMES
    for name in NAMES:
        assert getattr(fp, name) is not None
    for name in ("simulate", "pretrain", "evaluate", "load_study", "load_encoder", "advise"):
        assert inspect.getdoc(getattr(fp, name)), name
    assert "mae" in fp.METHODS
    assert "fedavg" in fp.ALGORITHMS
    assert "resnet18" in fp.ENCODERS
    assert fp.__version__ == importlib.metadata.version("fedpretext")
    with pytest.raises(AttributeError, match="has no attribute 'simulat'; it has: ALGORITHMS, ENCODERS"):
        fp.simulat  # noqa: B018


def test_what_type_checkers_see_is_what_is_imported() -> None:
    tree = ast.parse(Path(inspect.getfile(fp)).read_text())
    (seen,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {alias.name: node.module for node in seen.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == fp._ROOMS
    assert sorted([*typed, "__version__"]) == NAMES
    assert Path(inspect.getfile(fp)).with_name("py.typed").is_file()


def test_it_is_instant_and_messages_are_the_users(tmp_path: Path) -> None:
    """The import leaves everything out that takes time; by default warnings alone are printed, as in any library."""
    code = """
import sys
import fedpretext as fp
heavy = {"torch", "timm", "flwr", "pandas", "numpy", "pydantic", "typer", "rich"} & set(sys.modules)
assert not heavy, heavy
fp.__version__
import logging
from foundation.messages import logger
assert logger.name == "fedpretext" and not logger.handlers and logger.propagate
logger.info("information")
logger.warning("a warning")
logging.getLogger("fedpretext").setLevel("ERROR")
logger.warning("silenced")
logging.getLogger("fedpretext").setLevel("INFO")
logging.basicConfig(level="INFO", format="%(message)s")
logger.info("asked for")
"""
    assert in_python(code, tmp_path).stderr == "a warning\nasked for\n"


def test_the_packages_of_a_wheel_are_all_rooms() -> None:
    from setuptools import find_packages

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = find_packages(str(ROOT), include=settings["packages"]["find"]["include"])
    rooms = [path.parent for path in ROOT.glob("[!.]*/**/__init__.py")]
    wanted = {room.relative_to(ROOT).as_posix().replace("/", ".") for room in rooms}
    assert set(found) == {name for name in wanted if name.split(".")[0] not in ("tests", "benchmarks", "build")}
    assert settings["package-data"]["fedpretext"] == ["py.typed"]


def test_paths_are_text_or_paths(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fp.load_study(str(finished.study), ["rounds.count=1"]).rounds.count == 1
    assert fp.load_study(finished.study) == fp.load_study(str(finished.study))
    folder = finished.copy(tmp_path / "run")
    assert fp.pretrain(str(finished.study), resume=str(folder), device="cpu") == folder
    run = fp.evaluate(str(folder))
    assert run.folder == folder
    assert run.report == folder / "report.html"
    assert set(run.results["protocol"]) >= {"knn"}
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match=r"^nothing\.yaml: there is no such study file"):
        fp.load_study("nothing.yaml")
    with pytest.raises(RunError, match="nowhere: there is no such run folder"):
        fp.evaluate("nowhere")
    with pytest.raises(StudyError, match="several encoders, and a folder to write, need a task"):
        fp.evaluate([str(folder), finished.folder])


def test_an_encoder_from_every_place_it_lies_in(finished: Any, tmp_path: Path) -> None:
    run, images = finished.folder, torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = fp.load_encoder(str(run))
    found = encoder(images)
    assert found.shape == (5, encoder.dim) == (5, 24)
    assert not encoder.training
    assert not any(value.requires_grad for value in encoder.parameters())
    standardised = (images - images.mean((1, 2, 3), keepdim=True)) / images.std((1, 2, 3), correction=0, keepdim=True)
    torch.testing.assert_close(found, find_encoder(run).build()(standardised).detach())
    arm = run / "arms" / "federated"
    trained = arm / "fold-0" / "seed-0"
    exported = export(run, "timm", out=tmp_path / "exported")
    for place in (arm, trained, trained / "encoder.json", trained / "encoder.safetensors", exported):
        assert torch.equal(fp.load_encoder(place)(images), found), place
    assert not torch.equal(fp.load_encoder(run, arm="random")(images), found)


def test_an_encoder_that_is_not_there(finished: Any, tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "weights.pt").touch()
    for place in (tmp_path / "holiday", tmp_path / "weights.pt", tmp_path / "nowhere", finished.study):
        with pytest.raises(RunError, match="is no run folder, no arm of one, no encoder"):
            fp.load_encoder(place)
    with pytest.raises(RunError, match=r"has no arm 'federate'; there are: .*; did you mean 'federated'"):
        fp.load_encoder(finished.folder, arm="federate")
    shutil.copytree(finished.folder / "arms" / "random" / "fold-0" / "seed-0", tmp_path / "half")
    (tmp_path / "half" / "encoder.safetensors").unlink()
    with pytest.raises(RunError, match=r"encoder\.safetensors: is missing beside its encoder\.json"):
        fp.load_encoder(tmp_path / "half")
    with pytest.raises(DataError, match=r"have shape \[1, 3, 32, 32\]"):
        fp.load_encoder(finished.folder)(torch.rand(1, 3, 32, 32))


def test_advice_as_data() -> None:
    ranked = fp.advise(modality="ultrasound", task="segmentation", labels=40, sites=5, patients_per_site=200)
    assert ranked
    for each in ranked:
        assert each.candidate.section["name"] in fp.METHODS
    with pytest.raises(StudyError, match=r"modality 'ultrasond' is not known; there are: .*did you mean 'ultrasound'"):
        fp.advise(modality="ultrasond", task="segmentation", labels=40, sites=5, patients_per_site=200)  # type: ignore[arg-type]
    asked = inspect.signature(advisor.commands.advise).parameters
    assert set(inspect.signature(fp.advise).parameters) <= set(asked)
