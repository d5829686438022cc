"""A small run folder as simulation writes it, with images whose class an untrained encoder can see."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.config import FinetuneConfig, RunEvaluation
from evaluation.stage import evaluate
from foundation.files import write_json
from foundation.randomness import numpy_generator, seeded_torch
from foundation.tensor_files import save_tensors
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig, draw_splits
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

IMAGE = ImageConfig(modality="mri", size=16, channels=1)
ENCODER = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=16, heads=2)
SITES = {"north": 14, "south": 14, "away": 11}
MakeRun = Callable[..., Path]


def write_images(folder: Path, per_patient: int = 3) -> Manifest:
    """Noise images of three sites; those of class 1 have a bright square. Label per image."""
    rows, rng = [], numpy_generator(3, "images")
    folder.mkdir(parents=True)
    for site, patients in SITES.items():
        for patient in range(patients):
            for index in range(per_patient):
                label = int((patient + index) % 3 == 0)
                image = rng.uniform(0.0, 0.5, (16, 16))
                image[4:12, 4:12] += 0.35 * label
                name = f"{site}-{patient}-{index}.npy"
                np.save(folder / name, image.astype(np.float32))
                row = {"image": str(folder / name), "patient": f"{site}-{patient}", "site": site, "label": label}
                rows.append(row)
    return Manifest(pd.DataFrame(rows), folder)


def write_encoder(
    run: Path, arm: str, kind: str, fold: int = 0, seed: int = 0, encoder: EncoderConfig = ENCODER
) -> None:
    """An untrained encoder, another for each arm, fold and seed."""
    folder = run / "arms" / arm / f"fold-{fold}" / f"seed-{seed}"
    with seeded_torch(seed, arm, fold):
        model = build_encoder(encoder, IMAGE)
    save_tensors(folder / "encoder.safetensors", model.state_dict())
    described = {"arm": arm, "title": arm.title(), "fold": fold, "seed": seed, "kind": kind}
    described |= {
        "encoder": encoder.model_dump(),
        "image": IMAGE.model_dump(mode="json"),
        "images": 10,
        "optimiser_steps": 2,
        "sequential_steps": 1,
    }
    write_json(folder / "encoder.json", described)


def run_maker(place: Path) -> MakeRun:
    """A function that writes a run folder; each call another one."""
    made: list[Path] = []

    def make(
        config: RunEvaluation | None = None,
        folds: int = 1,
        arms: Sequence[tuple[str, str]] = (("random", "random"), ("federated", "federated")),
        seeds: int = 1,
    ) -> Path:
        # One pass of fine-tuning is enough to see that the supervised arm is there.
        settings = (config or RunEvaluation()).model_copy(update={"finetune": FinetuneConfig(epochs=1)})
        base = place / str(len(made))
        run = base / "run"
        made.append(run)
        manifest = write_images(base / "images")
        split = SplitConfig(folds=folds, left_out=("away",))
        if folds == 1:
            split = SplitConfig(left_out=("away",), test_share=0.4, validation_share=0.2)
        splits = draw_splits(manifest, split, 0)
        (run / "evaluation").mkdir(parents=True)
        manifest.write(run / "evaluation" / "manifest.csv")
        splits.to_csv(run / "evaluation" / "splits.csv", index=False)
        write_json(run / "evaluation" / "config.json", settings.model_dump())
        write_json(run / "evaluation" / "image.json", IMAGE.model_dump())
        for arm, kind in arms:
            for fold in range(folds):
                for seed in range(seeds):
                    write_encoder(run, arm, kind, fold, seed)
        return run

    return make


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """``make_run(folds=3)``: a run folder; each call another one."""
    return run_maker(tmp_path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], tuple[Path, pd.DataFrame]]:
    """``evaluated(3)``: a run of so many folds and its results, made once for a module's tests, which only read."""
    make = run_maker(tmp_path_factory.mktemp("evaluated"))

    @cache
    def once(folds: int) -> tuple[Path, pd.DataFrame]:
        run = make(folds=folds)
        return run, evaluate(run, show=False)

    return once


def role_in(arm: str) -> str:
    """The role that an arm's name begins with: ``local-only-DU`` is local-only."""
    return next((role for role in ("local-only", "pretrained-init") if arm.startswith(role)), arm.partition("-")[0])
