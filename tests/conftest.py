"""Fixtures that every room's tests share."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from federation.study import study_from
from server.rounds import write_study
from simulation.runtimes import Federation

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real pictures and recorded reference values that lies beside the checkout."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder 'shared' beside the checkout (real pictures and reference values)")
    return folder


SIDE = 32


def write_site(folder: Path, site: str, pictures: int, patients: int, seed: int) -> Path:
    """A hospital's folder with small random pictures, its manifest and its site file; returns the site file."""
    draw = np.random.default_rng(seed)
    place = folder / site
    place.mkdir(parents=True)
    rows = ["image,patient"]
    for number in range(pictures):
        smooth = np.kron(draw.integers(0, 256, (8, 8)), np.ones((4, 4)))
        Image.fromarray(smooth.astype(np.uint8)).save(place / f"{number:03d}.png")
        rows.append(f"{number:03d}.png,{site}-{number % patients}")
    (place / "manifest.csv").write_text("\n".join(rows) + "\n")
    (place / "site.yaml").write_text(
        f"site: {site}\ndata: manifest.csv\nstate: state\ncache: ../../store\ndevice: cpu\n"
    )
    return place / "site.yaml"


@pytest.fixture
def hospital(tmp_path: Path) -> Callable[..., Path]:
    """``hospital("A", pictures=9, patients=3)``: a hospital's folder; its site file."""

    def make(site: str = "A", pictures: int = 9, patients: int = 3, folder: Path = tmp_path / "sites") -> Path:
        return write_site(folder, site, pictures, patients, seed=pictures)

    return make


STUDY: dict[str, Any] = {
    "name": "tiny",
    "image": {"modality": "mri", "size": SIDE, "channels": 1},
    "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
    "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "training": {"batch": 4, "learning_rate": 0.01},
    "algorithm": {"name": "fedavg"},
    "rounds": {"count": 3, "deadline_minutes": 0.2},
}


@pytest.fixture
def raw_study() -> dict[str, Any]:
    """A study small enough to train in a second, as a plain mapping to change."""
    return copy.deepcopy(STUDY)


@pytest.fixture
def federation(tmp_path: Path) -> Callable[[dict[str, Any]], Federation]:
    """Makes a prepared federation of three small sites (A 9 pictures, B 6, C 4) for a raw study."""

    def make(raw: dict[str, Any], name: str = "federation") -> Federation:
        folder = tmp_path / name
        write_study(folder, study_from(raw, "test"))
        for seed, (site, pictures) in enumerate({"A": 9, "B": 6, "C": 4}.items()):
            write_site(folder / "sites", site, pictures, patients=2, seed=seed)
        return Federation(folder, ("A", "B", "C"))

    return make
