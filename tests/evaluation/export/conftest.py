"""Runs that hold one encoder each, of any architecture, and a reader who has no fedpretext."""

import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluation.export.source import Source, find_encoder
from foundation.files import write_json
from foundation.randomness import seeded_torch, torch_generator
from foundation.tensor_files import save_tensors
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

VOLUME = ImageConfig(modality="ct", size=16, depth=8, channels=1)
ENCODERS: dict[str, tuple[EncoderConfig, ImageConfig]] = {
    "vit": (
        EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2, width=24, heads=2),
        ImageConfig(modality="mri", size=32, channels=2),
    ),
    "resnet": (EncoderConfig(name="resnet10t"), ImageConfig(modality="x-ray", size=32, channels=1)),
    "resnet_group": (
        EncoderConfig(name="resnet10t", norm="group"),
        ImageConfig(modality="x-ray", size=32, channels=1),
    ),
    "swin": (
        EncoderConfig(name="swin_tiny_patch4_window7_224", depth=1, width=8, heads=1),
        ImageConfig(modality="endoscopy", size=64, channels=3),
    ),
    "monai_vit": (EncoderConfig(name="monai_vit", patch_size=4, depth=2, width=24, heads=2), VOLUME),
    "monai_swin": (
        EncoderConfig(name="monai_swin_unetr", depth=1, width=12, heads=1),
        VOLUME.model_copy(update={"size": 32, "depth": 32}),
    ),
}
MakeRun = Callable[..., Path]


def write_run(
    run: Path, name: str = "vit", arm: str = "federated", kind: str = "", fold: int = 0, seed: int = 0
) -> Path:
    """Put an encoder into a run folder; its weights and statistics are such as no fresh network has."""
    config, image = ENCODERS[name]
    place = run / "arms" / arm / f"fold-{fold}" / f"seed-{seed}"
    with seeded_torch(seed, name, arm, fold):
        model = build_encoder(config, image)
    noise = torch_generator(seed, "noise")
    state = {
        key: value + 0.05 * torch.rand(value.shape, generator=noise) if value.is_floating_point() else value
        for key, value in model.state_dict().items()
    }
    save_tensors(place / "encoder.safetensors", state)
    facts: dict[str, Any] = {
        "arm": arm, "title": f"{arm.title()}: as it is", "kind": kind or arm, "fold": fold, "seed": seed,
        "encoder": config.model_dump(mode="json"), "image": image.model_dump(mode="json"), "method": "mae",
        "training_hash": "c0ffee", "images": 1200, "optimiser_steps": 40, "sequential_steps": 20, "seconds": 61.0,
    }  # fmt: skip
    write_json(place / "encoder.json", facts)
    return run


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run("vit", arm="federated", kind="federated", fold=0, seed=0)``: a run folder; again adds to it."""
    return partial(write_run, tmp_path / "run")


@pytest.fixture(scope="module")
def source_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Source]:
    """``source_of("vit")``: the encoder of a run that a module's tests share."""
    return lambda name: find_encoder(write_run(tmp_path_factory.mktemp("run"), name))


@pytest.fixture
def make_source(make_run: MakeRun) -> Callable[[str], Source]:
    """``make_source("vit")``: the encoder of a run made for it."""
    return lambda name: find_encoder(make_run(name))


@pytest.fixture
def pixels_of() -> Callable[[Source], np.ndarray[Any, Any]]:
    """``pixels_of(source)``: a random image of another size than the encoder takes, 0 to 255."""

    def make(source: Source) -> np.ndarray[Any, Any]:
        sides = [side + 5 for side in source.image.shape[1:]]
        draw = np.random.default_rng(1)
        return draw.uniform(0, 255, (source.image.channels, *sides)).astype(np.float32)

    return make


# Where torchvision's compiled part does not fit torch (foundation/vision_import.py), its operators are declared first,
# as any user of timm would have to there.
_STRANGER = """
import sys
import numpy, torch
class Wall:
    def find_spec(self, name, path=None, target=None):
        assert name.split(".")[0] not in {"foundation", "imaging", "ssl_methods", "evaluation", "fedpretext"}, name
sys.meta_path.insert(0, Wall())
try:
    import torchvision
except RuntimeError:
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
pixels = numpy.load(sys.argv[1])
"""


@pytest.fixture
def read_by_a_stranger(tmp_path: Path) -> Callable[..., torch.Tensor]:
    """``read_by_a_stranger(card, folder, pixels)``: the features that the card's own code gives.

    It runs in ``folder``, in a process that refuses to import this project.
    """

    def read(card: Path, folder: Path, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
        load, prepare = re.findall(r"```python\n(.*?)```", card.read_text(), flags=re.S)
        np.save(tmp_path / "pixels.npy", pixels)
        load = load.replace("FOLDER", str(folder)) + "numpy.save(sys.argv[2], numpy.asarray(features))\n"
        guarded = "with torch.no_grad():\n" + "".join(f"    {line}\n" for line in load.splitlines())
        files = [str(tmp_path / "pixels.npy"), str(tmp_path / "features.npy")]
        done = subprocess.run(
            [sys.executable, "-c", f"{_STRANGER}\n{prepare}\n{guarded}", *files],
            cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return torch.from_numpy(np.load(files[1]))

    return read
