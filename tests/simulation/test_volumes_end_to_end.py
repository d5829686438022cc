"""Methods that take volumes, from real files to a probe: adrenal glands, and NIfTI of several kinds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from evaluation.judge import Run
from foundation.files import read_jsonl
from simulation.simulate import simulate

from ..tiers import slow

VIT = {"name": "monai_vit", "depth": 1, "width": 24, "heads": 2}
SWIN = {"name": "monai_swin_unetr", "depth": 1, "width": 6, "heads": 1}
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "mae": (VIT, {"decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}),
    "simclr": (VIT, {"projection": 16}),
    "models_genesis": (VIT, {"decoder_width": 16}),
    "rotation": (VIT, {"copies": "one"}),
    "swin_unetr": (SWIN, {"decoder_width": 16, "projection": 16}),
}
"""Each with a small encoder that suits it, and its own small parts."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def adrenals(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight real adrenal glands at each of three hospitals, half of them with hyperplasia."""
    root = tmp_path_factory.mktemp("adrenals")
    with np.load(shared / "data" / "adrenalmnist3d" / "adrenalmnist3d.npz") as arrays:
        volumes, labels = arrays["val_images"], arrays["val_labels"][:, 0]
    rows = ["image,patient,site,label"]
    for label in (0, 1):
        for number, place in enumerate(np.flatnonzero(labels == label)[:12]):
            np.save(root / f"{place}.npy", volumes[place])
            rows.append(f"{place}.npy,{place},{'ABC'[number % 3]},{label}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="module")
def scans(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three real MR volumes of other grids and voxels, each cut into eight blocks and called a hospital.

    A block stands for a patient; the label says on which side it lies.
    """
    root = tmp_path_factory.mktemp("scans")
    rows = ["image,patient,site,label"]
    for site, name in {"A": "anatomical.nii", "B": "sct_t2.nii.gz", "C": "sct_t2s.nii.gz"}.items():
        whole: Any = nibabel.load(shared / "data" / "nifti_volumes" / name)
        width, height = whole.shape[0] // 2, whole.shape[1] // 4
        for number in range(8):
            right, front = number % 2, number // 2
            columns = slice(right * width, (right + 1) * width)
            block = whole.slicer[columns, slice(front * height, (front + 1) * height)]
            nibabel.save(block.__class__(np.asanyarray(block.dataobj), block.affine), root / f"{site}{number}.nii.gz")
            rows.append(f"{site}{number}.nii.gz,{site}{number},{site},{right}")
    (root / "manifest.csv").write_text("\n".join(rows) + "\n")
    return root


def run(place: Path, root: Path, method: str, image: dict[str, Any], patch: Any, task: str) -> Run:
    """One round over the hospitals A and B, with C left out, and a logistic probe."""
    encoder, options = METHODS[method]
    raw = {
        "name": "volumes",
        "image": {"channels": 1, **image},
        "encoder": {**encoder, **({"patch_size": patch} if encoder is VIT else {})},
        "method": {"name": method, **options},
        "training": {"batch": 4, "learning_rate": 0.02, "threads": 1},
        "algorithm": {"name": "fedavg"},
        "rounds": {"count": 1, "attempts": 1},
        "evaluation": {"task": task, "protocols": ["logistic"], "finetune": {"epochs": 1}},
        "simulation": {"dataset": "folder", "root": str(root), "arms": [], "splits": {"left_out": ["C"]}},
    }
    study = place / "study.yaml"
    study.write_text(yaml.safe_dump(raw))
    return simulate(study, runs=place / "runs", device="cpu")


def check(done: Run, shape: tuple[int, ...]) -> None:
    """The probe scored both encoders, training moved the federated one, and plain MONAI loads and runs it."""
    scores = pd.read_csv(done.folder / "results.csv").query("protocol == 'logistic' and metric == 'AUROC'")
    assert {"random", "federated"} <= set(scores["encoder"])
    assert scores["value"].between(0, 1).all()
    arm = done.folder / "arms" / "federated" / "fold-0" / "seed-0"
    rows = read_jsonl(arm / "metrics.jsonl")
    assert {row["site"] for row in rows} == {"A", "B"}
    assert all(np.isfinite(row["loss"]) and row["images_seen"] > 0 for row in rows)
    line = json.loads((arm / "encoder.json").read_text())["load"]
    found: dict[str, Any] = {}
    exec(line.replace("encoder.safetensors", str(arm / "encoder.safetensors")), found)
    outputs = found["encoder"](torch.zeros(1, *shape))
    last = outputs[0] if isinstance(outputs, tuple) else outputs[-1]
    assert torch.isfinite(last).all()
    random = (done.folder / "arms" / "random" / "fold-0" / "seed-0" / "encoder.safetensors").read_bytes()
    assert random != (arm / "encoder.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_adrenal_glands(method: str, adrenals: Path, tmp_path: Path) -> None:
    """Real 28 x 28 x 28 volumes: pretrained, probed on the published labels."""
    image = {"modality": "ct", "size": 28, "depth": 28}
    check(run(tmp_path, adrenals, method, image, 14, "hyperplasia"), (1, 28, 28, 28))


@pytest.mark.parametrize("method", ["mae", *(slow(name) for name in METHODS if name not in ("mae", "rotation"))])
def test_nifti(method: str, scans: Path, tmp_path: Path) -> None:
    """Volumes from NIfTI files, patches thinner than they are wide."""
    image = {"modality": "mri", "size": 24, "depth": 12}
    check(run(tmp_path, scans, method, image, [4, 8, 8], "side"), (1, 12, 24, 24))
