"""The table of methods in docs/methods.md: complete, true, and every line of it runs."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from federation.study import load_study
from simulation.simulate import simulate
from simulation.validate import validate
from ssl_methods import METHODS

from .tiers import soak

ROOT = Path(__file__).resolve().parents[1]
SIDE = {2: 32, 3: 16}


class Line(NamedTuple):
    """A row of the table."""

    family: str
    coupling: str
    dimensions: str
    arguments: list[str]
    """What stands after ``fedpretext simulate``."""


def lines() -> dict[str, Line]:
    """The table's rows by the method's name."""
    found = re.findall(
        r"^\| `(\w+)` \| ([\w-]+) \| ([\w-]+) \| ([^|]+) \| `([^`]+)` \|$",
        (ROOT / "docs" / "methods.md").read_text(),
        re.M,
    )
    return {name: Line(family, coupling, sizes, shlex.split(study)) for name, family, coupling, sizes, study in found}


def test_the_table_lists_every_method_as_it_is() -> None:
    table = lines()
    assert table.keys() == METHODS.keys()
    for name, line in table.items():
        method = METHODS[name]
        assert line.family == method.family, name
        assert line.coupling == ("per-sample" if method.per_sample else "coupled"), name
        assert line.dimensions == ", ".join(f"{size}-D" for size in method.dimensions), name


def write_hospitals(root: Path, shape: tuple[int, ...]) -> None:
    """Three hospitals of six patients, two images or volumes each, one series a patient."""
    draw = np.random.default_rng(3)
    root.mkdir()
    rows = ["image,patient,series,position,site,label"]
    for site in ("DU", "HT", "CS"):
        for patient in range(6):
            for number in range(2):
                values = draw.integers(0, 128, shape).astype(np.uint8)
                label = (patient + number) % 2
                name = f"{site}-{patient}-{number}" + (".png" if shape[-1] == 3 else ".npy")
                if shape[-1] == 3:
                    values[8:20, 8:20] += np.uint8(100 * label)
                    Image.fromarray(values).save(root / name)
                else:
                    np.save(root / name, values)
                rows.append(f"{name},{site}{patient},{site}{patient},{number},{site},{label}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")


def made_small(name: str, tmp_path: Path) -> tuple[Path, list[str]]:
    """The line's study file, and its overrides and those that make it small: small images, one round."""
    config, *options = lines()[name].arguments
    overrides = [word for word in options if word != "--set"]
    assert options == [word for override in overrides for word in ("--set", override)]
    study = load_study(ROOT / config, overrides)
    assert study.method.name == name
    side = SIDE[study.image.dimensions]
    shape = (side, side, 3) if study.image.dimensions == 2 else (side, side, side)
    write_hospitals(tmp_path / "images", shape)
    assert study.simulation is not None
    small = [
        f"image.size={side}", "rounds.count=1", "training.batch=8", "training.threads=1", "evaluation.protocols=[knn]",
        "evaluation.finetune.epochs=1", "simulation.dataset=folder", f"simulation.root={tmp_path / 'images'}",
        "simulation.options={}", "simulation.arms=[]", "simulation.partition={kind: site}",
        "simulation.splits={folds: 1, left_out: []}",
    ]  # fmt: skip
    if study.image.dimensions == 3:
        small.append(f"image.depth={side}")
    return ROOT / config, [*overrides, *small]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_line_is_a_study_that_runs(name: str, tmp_path: Path) -> None:
    """By all that is checked before anything is trained; its model is built, too."""
    config, overrides = made_small(name, tmp_path)
    assert "is valid" in validate(config, overrides)[-1]


FIRST = {METHODS[name].family: name for name in sorted(METHODS, reverse=True)}
"""A method of each family; swin_unetr, of volumes, besides."""
TRAINED = {*FIRST.values(), "swin_unetr"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name if name in TRAINED else soak(name) for name in sorted(METHODS)])
def test_the_line_runs(name: str, tmp_path: Path) -> None:
    """The study of the page to its report; all else as the line says."""
    config, overrides = made_small(name, tmp_path)
    run = simulate(config, overrides, runs=tmp_path / "runs", device="cpu")
    assert run.report.is_file()
    assert (run.folder / "arms" / "federated" / "fold-0" / "seed-0" / "encoder.safetensors").is_file()
