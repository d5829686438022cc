"""A simulated federation with one site whose images are inverted: what the run records of it, and what is said."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from evaluation.explain.model_similarity import round_similarity
from evaluation.inputs import read_inputs
from evaluation.report.explain_lag import Evidence, intensity_histograms, read_divergence, reasons
from evaluation.report.run_folder import RunFolder
from foundation.events import DIVERGENCE_NAME, SNAPSHOTS
from foundation.files import read_jsonl
from foundation.tensor_files import load_tensors
from simulation.simulate import pretrain
from tests.conftest import SIMULATED

ROUNDS = 4
SITES = ("north", "south", "west")
ODD = "west"


def draw_image(draw: np.random.Generator, label: int) -> np.ndarray:
    """A bright disc on black, with a brighter square in it where there is something to find."""
    y, x = np.mgrid[:32, :32]
    row, column = draw.uniform(12, 20, 2)
    image = 120.0 * ((y - row) ** 2 + (x - column) ** 2 < draw.uniform(8, 12) ** 2) + draw.uniform(0, 20, (32, 32))
    if label:
        image[int(row) - 3 : int(row) + 3, int(column) - 3 : int(column) + 3] += 80
    return image


def write_images(root: Path) -> None:
    draw, rows = np.random.default_rng(7), ["image,patient,site,label"]
    root.mkdir(parents=True)
    for site in SITES:
        for number in range(24):
            patient, label = f"{site}-{number // 3}", number % 2
            image = draw_image(draw, label)
            image = 255 - image if site == ODD else image
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / f"{site}-{number}.png")
            rows.append(f"{site}-{number}.png,{patient},{site},{label}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")


@dataclass(frozen=True)
class Trained:
    """The run, pretrained and not evaluated."""

    folder: Path

    def arm(self, name: str) -> Path:
        return self.folder / "arms" / name / "fold-0" / "seed-0"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    place = tmp_path_factory.mktemp("odd")
    write_images(place / "images")
    raw: dict[str, Any] = copy.deepcopy(SIMULATED)
    raw["simulation"] = {"dataset": "folder", "root": str(place / "images"), "arms": ["centralised"]}
    raw["rounds"] = {"count": ROUNDS, "attempts": 1}
    raw["training"] = {"batch": 8, "learning_rate": 0.005}
    (place / "study.yaml").write_text(yaml.safe_dump(raw))
    return Trained(pretrain(place / "study.yaml", runs=place / "runs", device="cpu"))


def test_the_federated_arm_alone_has_divergence_and_snapshots(trained: Trained) -> None:
    rows = read_jsonl(trained.arm("federated") / DIVERGENCE_NAME)
    assert [(row["round"], row["site"]) for row in rows] == [(n + 1, site) for n in range(ROUNDS) for site in SITES]
    assert {tuple(layer["name"] for layer in row["layers"]) for row in rows} == {("stem", "block 1", "head")}
    kept = sorted(path.name for path in (trained.arm("federated") / SNAPSHOTS).iterdir())
    assert kept == [f"round-{n + 1:05d}.safetensors" for n in range(ROUNDS)]
    for name in (DIVERGENCE_NAME, SNAPSHOTS):
        assert not (trained.arm("centralised") / name).exists()
        assert not (trained.arm("random") / name).exists()


def test_the_last_snapshot_is_the_encoder(trained: Trained) -> None:
    last, _ = load_tensors(trained.arm("federated") / SNAPSHOTS / f"round-{ROUNDS:05d}.safetensors")
    encoder, _ = load_tensors(trained.arm("federated") / "encoder.safetensors")
    assert last.keys() == encoder.keys()
    assert all(torch.equal(last[name], encoder[name]) for name in encoder)
    found = round_similarity(trained.folder)
    assert found[found["site"] == "all"]["round"].tolist() == [n + 1 for n in range(ROUNDS)]
    assert found[found["round"] == ROUNDS]["cka"].tolist() == pytest.approx([1.0] * (len(SITES) + 1))


def test_the_odd_site_is_named(trained: Trained) -> None:
    empty = pd.DataFrame()
    layers = read_divergence(RunFolder(trained.folder, empty, empty), "federated")
    for name in ("stem", "block 1", "head"):
        assert min(SITES, key=lambda site: layers[site][name].cosine) == ODD
    (line,) = reasons(Evidence(layers, intensity_histograms(read_inputs(trained.folder, show=False))))
    assert line.startswith(f"Site {ODD}: its updates agree less with the rest than any other site's in ")
    assert "; its grey values differ (distance 0." in line
