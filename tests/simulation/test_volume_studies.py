"""Studies of volumes from end to end: files of the user's own, and the ready study of adrenal glands."""

import json
import shutil
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from federation.study import load_study
from foundation.files import read_json
from foundation.tensor_files import load_tensors
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from simulation.simulate import simulate, simulation_config
from simulation.validate import validate
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

nib: Any = import_module("nibabel")
CONFIGS = Path(__file__).resolve().parents[2] / "configs"
STUDY: dict[str, Any] = {
    "name": "tiny-volumes",
    "image": {"modality": "ct", "size": 16, "depth": 8, "channels": 1, "window": [-200, 200]},
    "encoder": {"name": "monai_vit", "patch_size": [4, 8, 8], "depth": 1, "width": 24, "heads": 2},
    "method": {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2},
    "training": {"batch": 4, "learning_rate": 0.01},
    "algorithm": {"name": "fedavg"},
    "rounds": {"count": 1, "attempts": 1},
    "evaluation": {"protocols": ["knn", "finetune"], "finetune": {"epochs": 1}},
    "simulation": {"dataset": "folder", "splits": {"left_out": ["away"]}},
}


def write_volumes(root: Path, sites: dict[str, int]) -> Path:
    """NIfTI volumes of 10 x 12 voxels and 6 slices, a bright box in half of them; two of each patient."""
    draw = np.random.default_rng(7)
    root.mkdir(parents=True)
    rows = ["image,patient,site,label"]
    for site, patients in sites.items():
        for patient in range(patients):
            for number in range(2):
                label = (patient + number) % 2
                array = draw.integers(-300, 100, (10, 12, 6)).astype(np.int16)
                array[2:6, 3:8, 2:5] += np.int16(200 * label)
                name = f"{site}-{patient}-{number}.nii.gz"
                nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])).to_filename(root / name)
                rows.append(f"{name},{site}-{patient},{site},{label}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def volume_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("volumes")
    root = write_volumes(place / "data", {"north": 5, "south": 5, "away": 3})
    raw = json.loads(json.dumps(STUDY))
    raw["simulation"]["root"] = str(root)
    (place / "study.yaml").write_text(yaml.safe_dump(raw))
    return place / "study.yaml"


@pytest.fixture(scope="module")
def run(volume_study: Path) -> Path:
    return simulate(volume_study, runs=volume_study.parent / "runs", device="cpu").folder


def test_a_study_of_nifti_volumes_runs_to_its_report(run: Path) -> None:
    results = pd.read_csv(run / "results.csv")
    assert set(results["encoder"]) >= {"federated", "centralised", "random", "supervised", "pixels", "majority"}
    for encoder, protocol in (("federated", "knn"), ("federated", "finetune"), ("supervised", "finetune")):
        rows = results[(results["encoder"] == encoder) & (results["protocol"] == protocol)]
        assert rows["value"].notna().any(), (encoder, protocol)
    assert "<html" in (run / "report.html").read_text()
    features = np.load(next((run / "evaluation" / "features").glob("federated-*.npy")))
    assert features.shape == (26, 24) and np.isfinite(features).all() and features.std(axis=0).max() > 0


def test_the_exported_encoder_loads_in_plain_monai(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run / "arms" / "federated" / "fold-0" / "seed-0"
    described = read_json(folder / "encoder.json")
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(described["load"], names)
    image = ImageConfig.model_validate(described["image"])
    own = build_encoder(EncoderConfig.model_validate(described["encoder"]), image).eval()
    own.load_state_dict(load_tensors(folder / "encoder.safetensors")[0])
    volumes = torch.rand(2, *image.shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(names["encoder"].eval()(volumes)[0], own(volumes)[0])


def test_validate_says_what_a_volume_is_and_needs(volume_study: Path) -> None:
    lines = validate(volume_study)
    assert "encoder monai_vit, 8 x 16 x 16 px" in lines[0]
    more = validate(volume_study, ["training.batch=4096", "image.depth=16"])
    memory = [int(next(line for line in found if "memory at a site" in line).split()[5]) for found in (lines, more)]
    assert memory[1] - memory[0] == pytest.approx(4096 * 16 * 16 * 16 * 4 / 2**20, abs=2)


@pytest.fixture(scope="module")
def glands(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """What the ready study has for images."""
    study = load_study(CONFIGS / "adrenal-3d.yaml", [f"simulation.root={shared / 'data' / 'adrenalmnist3d'}"])
    return simulation_config(study).load_dataset(tmp_path_factory.mktemp("glands"), 0)


def test_the_adrenal_study_has_the_published_volumes(shared: Path, glands: Manifest) -> None:
    manifest, root = glands, shared / "data" / "adrenalmnist3d"
    assert len(manifest) == 1188 + 98 + 298 and sum(manifest.table["label"]) == 259 + 22 + 69
    with np.load(root / "adrenalmnist3d.npz") as arrays:
        np.testing.assert_array_equal(np.load(manifest.paths()[5]), arrays["train_images"][5])
    assert manifest.table["patient"].nunique() == len(manifest), "no two of the shapes are near-duplicates"


@pytest.mark.slow
def test_a_real_set_of_volumes_is_pretrained_on_and_probed(glands: Manifest, tmp_path: Path) -> None:
    """The ready study with the first 40 glands of each class, one short round."""
    table = glands.table.groupby("label").head(40).assign(site=["A", "B"] * 40)
    table["image"] = [str(glands.root / image) for image in table["image"]]
    (tmp_path / "data").mkdir()
    Manifest(table, tmp_path / "data").write(tmp_path / "data" / "manifest.csv")
    raw = yaml.safe_load((CONFIGS / "adrenal-3d.yaml").read_text())
    raw["simulation"] = {"dataset": "folder", "root": str(tmp_path / "data"), "partition": {"kind": "site"}}
    raw["simulation"]["arms"] = []
    raw["rounds"]["count"], raw["evaluation"] = 1, {"protocols": ["knn"], "finetune": {"epochs": 1}}
    raw["encoder"] |= {"depth": 1, "width": 48}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    folder = simulate(tmp_path / "study.yaml", runs=tmp_path / "runs", device="cpu").folder
    results = pd.read_csv(folder / "results.csv")
    assert {"federated", "random"} <= set(results["encoder"])
    shutil.rmtree(folder)
