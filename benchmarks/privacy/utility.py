"""What privacy by patient leaves of an encoder: the same pretraining at epsilon 1, 3, 8, 30 and without privacy.

    python -m benchmarks.privacy.utility --root FOLDER [--only chest-xray]

Two sets with many units: AdrenalMNIST3D (1,584 volumes) and a reduced PneumoniaMNIST (5,030 images), their published
parts put together; 65 % train. One site holds all training images: the most that a federation of these patients
could have. Units are clusters of near-duplicates, as neither set has patient ids; a logistic probe on the frozen
features is tested on patients whom no training saw. AUROC is of those patients with 95 % intervals; "minus start" is
the difference to the starting encoder on the same patients. Every row has the same steps of the same expected images
and the same learning rate; without privacy there is neither clipping nor noise.

The chest x-rays start from an encoder that was pretrained on public images of another kind (breast ultrasound, BUSI,
by MAE without privacy), and its lowest two of four blocks stay as they are. No other public volumes are at hand, so
that the adrenal glands start from random weights, of which none is kept. All settings were fixed before a figure was
seen; delta is 1e-5 throughout. A flat column is a result: at this size the noise leaves the encoder where it started.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.measure import RESULTS, table, write_result
from evaluation.statistics import results_schema
from evaluation.statistics.results_schema import COMPARISONS, Statistic
from federation.privacy.plan import plan_of
from federation.study import Study, study_from
from foundation.files import read_json, write_json, write_text
from imaging.listing.manifest import Manifest
from simulation.datasets.busi import with_clusters
from simulation.simulate import pretrain, simulate

EPSILONS: tuple[float | None, ...] = (1, 3, 8, 30, None)
DELTA, PEAK = 1e-5, 1e-3
ROUNDS = 3
DATA = RESULTS / "privacy/utility.json"
MAE = {"name": "mae", "decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
FLAT = {"name": "vit_tiny_patch16_224", "patch_size": 4, "depth": 4, "width": 96, "heads": 3}


@dataclass(frozen=True)
class Cell:
    """A set of images; ``patients`` and ``per_step`` as the study states them, ``steps`` of each round."""

    name: str
    image: dict[str, Any]
    encoder: dict[str, Any]
    simulation: dict[str, Any]
    task: str
    patients: int
    per_step: int
    steps: int
    public_start: bool


CELLS = (
    Cell(
        "chest-xray",
        {"modality": "x-ray", "size": 32, "channels": 1},
        {**FLAT, "frozen_blocks": 2},
        {"dataset": "folder"},
        "pneumonia",
        3000,
        1000,
        20,
        True,
    ),
    Cell(
        "adrenal-3d",
        {"modality": "ct", "size": 28, "depth": 28, "channels": 1},
        {"name": "monai_vit", "patch_size": 7, "depth": 4, "width": 96, "heads": 3},
        {"dataset": "medmnist", "options": {"set": "adrenalmnist3d", "size": 28}},
        "hyperplasia of the adrenal gland",
        1000,
        400,
        20,
        False,
    ),
)


def study(cell: Cell, epsilon: float | None, root: Path, weights: Path | None) -> Study:
    """The study of one row."""
    privacy = {
        "unit": "patient",
        "epsilon": epsilon,
        "delta": DELTA,
        "patients": cell.patients,
        "patients_per_step": cell.per_step,
        "clip": 0.1,
    }
    raw = {
        "name": f"utility-{cell.name}",
        "title": f"{cell.name}, {'no privacy' if epsilon is None else f'epsilon {epsilon:g}'}",
        "demonstration": True,
        "image": cell.image,
        "encoder": cell.encoder,
        "method": MAE | ({"decoder_width": 72} if "depth" in cell.image else {}),
        "training": {
            "batch": cell.per_step if epsilon is None else 250,
            "epochs": None,
            "steps": cell.steps,
            "threads": 1,
            "learning_rate": PEAK * 256 / cell.per_step,
        },
        "privacy": None if epsilon is None else privacy,
        "algorithm": {"name": "fedavg"},
        "rounds": {"count": ROUNDS},
        "evaluation": {"task": cell.task, "protocols": ["logistic"], "finetune": {"epochs": 1}},
        "simulation": {
            **cell.simulation,
            "root": str(root),
            "arms": [],
            "partition": {"kind": "iid", "sites": 1},
            "splits": {"folds": 1, "test_share": 0.25, "validation_share": 0.1},
            "weights": None if weights is None else str(weights),
        },
    }
    return study_from(raw, cell.name)


def chest_xrays(root: Path, place: Path) -> Path:
    """The reduced PneumoniaMNIST as a folder with a manifest; clusters of near-duplicates are the patients."""
    tables = []
    with np.load(root / "pneumoniamnist_trimmed" / "pneumoniamnist_trimmed.npz") as arrays:
        for split in ("train", "val", "test"):
            (place / split).mkdir(parents=True)
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"].ravel()
            names = [f"{split}/{number:05d}.npy" for number in range(len(images))]
            for name, image in zip(names, images, strict=True):
                np.save(place / name, image)
            tables.append(pd.DataFrame({"image": names, "patient": names, "label": labels}))
    listing = with_clusters(Manifest(pd.concat(tables, ignore_index=True), place, "image cluster"))
    listing.write(place / "manifest.csv")
    return place / "manifest.csv"


def public_start(cell: Cell, root: Path, work: Path) -> Path:
    """An encoder pretrained on breast ultrasound without privacy; every weight of it is trained."""
    raw = study(cell, None, root / "busi_224", None).model_dump(mode="json")
    raw |= {
        "name": "utility-start",
        "title": "Public start: MAE on breast ultrasound",
        "encoder": {**cell.encoder, "frozen_blocks": 0},
        "rounds": {"count": 1},
        "training": {**raw["training"], "batch": 128, "steps": 600, "learning_rate": 0.004},
        "simulation": {**raw["simulation"], "dataset": "busi_224"},
    }
    run = pretrain(study_from(raw, "start"), runs=work / "start")
    (found,) = run.glob("**/federated*/**/encoder.safetensors")
    return found


def row_of(cell: Cell, epsilon: float | None, chosen: Study, work: Path) -> dict[str, Any]:
    """Pretrain, judge, and return the row."""
    started = time.monotonic()
    folder = simulate(chosen, runs=work / "runs").folder
    results = results_schema.RESULTS.read(folder / "results.csv")
    comparisons = COMPARISONS.read(folder / "comparisons.csv")
    shutil.rmtree(folder)
    start = "pretrained-init" if cell.public_start else "random"
    main = {"protocol": "logistic", "metric": "AUROC", "site": "all"}
    own = _one(results, **main, encoder="federated", statistic=Statistic.ESTIMATE)
    base = _one(results, **main, encoder=start, statistic=Statistic.ESTIMATE)
    apart = _one(comparisons, **main, encoder_b=start)
    plan = plan_of(chosen)
    return {
        "set": cell.name,
        "epsilon": epsilon,
        "delta": None if plan is None else plan.delta,
        "noise": None if plan is None else plan.noise,
        "rate": None if plan is None else plan.rate,
        "steps": cell.steps * ROUNDS,
        "patients_per_step": cell.per_step,
        "units": int(own["n"]),
        "auroc": [own[key] for key in ("value", "ci_low", "ci_high")],
        "start": [base[key] for key in ("value", "ci_low", "ci_high")],
        "minus_start": [apart[key] for key in ("value", "ci_low", "ci_high")],
        "seconds": round(time.monotonic() - started),
    }


def _one(rows: pd.DataFrame, **wanted: str) -> Mapping[str, Any]:
    found = [row for row in rows.to_dict("records") if all(row[column] == value for column, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of {wanted}, not one")
    return {str(column): value for column, value in found[0].items()}


def page(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows as Markdown; the start's own figure is the first of each set."""
    cells = []
    for name in dict.fromkeys(row["set"] for row in rows):
        own = [row for row in rows if row["set"] == name]
        cells.append([name, "the start itself", "–", _interval(own[0]["start"]), "–", str(own[0]["units"]), "–"])
        for row in own:
            epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:g}"
            noise = "–" if row["noise"] is None else f"{row['noise']:.2f}"
            figures = [_interval(row["auroc"]), _interval(row["minus_start"], "+")]
            cells.append([name, epsilon, noise, *figures, str(row["units"]), str(row["seconds"])])
    header = ["set", "epsilon", "noise", "AUROC (95 %)", "minus start (95 %)", "units tested", "seconds"]
    return table(header, cells)


def _interval(figures: Sequence[float], sign: str = "") -> str:
    value, low, high = figures
    return f"{value:{sign}.3f} ({low:{sign}.3f} to {high:{sign}.3f})"


def record(rows: Sequence[Mapping[str, Any]], root: Path) -> None:
    """Keep the rows, as JSON and as a page that names no folder of this machine."""
    write_json(DATA, rows)
    text = write_result("privacy/utility", "Utility under privacy by patient", __doc__, page(rows))
    write_text(RESULTS / "privacy/utility.md", text.replace(str(root), "FOLDER"))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the sets asked for; rows of the others stay as they were recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds the datasets' folders")
    parser.add_argument("--only", nargs="+", choices=[cell.name for cell in CELLS], help="these sets only")
    asked = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = read_json(DATA) if DATA.exists() else []
    for cell in CELLS:
        if asked.only is not None and cell.name not in asked.only:
            continue
        rows = [row for row in rows if row["set"] != cell.name]
        with tempfile.TemporaryDirectory() as place:
            work = Path(place)
            weights = public_start(cell, asked.root, work) if cell.public_start else None
            data = chest_xrays(asked.root, work / "data") if cell.public_start else asked.root / "adrenalmnist3d"
            for epsilon in EPSILONS:
                rows.append(row_of(cell, epsilon, study(cell, epsilon, data, weights), work))
                print(rows[-1], flush=True)
                record(rows, asked.root)


if __name__ == "__main__":
    main()
