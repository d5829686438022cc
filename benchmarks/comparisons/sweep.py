"""Every method against no pretraining, one cell (method, dataset, encoder) at a time; the table grows run by run.

    python -m benchmarks.comparisons.sweep --root FOLDER [--cells 3] [--only simclr]

A cell is one simulated federation and its random twin, judged on patients that neither saw, and takes at most four
minutes on two cores. It is skipped when sweep.csv holds its study already.

All was fixed before any cell was run: one learning rate, one batch, one seed for all methods; the same compute for all
(images x encoder passes, as benchmarks/throughput.py counts them); joint embedding and classification pretexts are
judged by a logistic probe of frozen features, masked and restoring ones by fine-tuning (against fine-tuning the random
encoder). A method passes where the paired interval of its AUROC minus random's, over test patients, lies above 0.
Otherwise it is "not shown", which is not "does not work": a cell is a small study.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from benchmarks.measure import RESULTS, machine_line, table
from benchmarks.throughput import batch_of, passes_a_image
from evaluation.statistics import results_schema
from evaluation.statistics.results_schema import COMPARISONS, Statistic
from federation.study import Study, study_from
from foundation.files import write_text
from foundation.machine import commit
from simulation.simulate import simulate
from ssl_methods import METHODS, build_method

PASSES = 24_000
"""Encoder passes of one cell's pretraining, all sites together."""
BY_FINETUNING = ("ijepa", "mae", "simmim", "spark", "autoencoder", "models_genesis")
RESNET = {"name": "resnet10t"}
VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 4}
DATASETS: dict[str, dict[str, Any]] = {
    "lgg_mri_128": {
        "image": {"modality": "mri", "size": 64, "channels": 3},
        "task": "tumour in slice",
        "partition": {"kind": "site"},
        "left_out": ["EZ"],  # one patient
        "images": 625,
    },
    "busi_224": {
        "image": {"modality": "ultrasound", "size": 64, "channels": 1},
        "task": "benign, malignant or normal",
        "partition": {"kind": "dirichlet", "sites": 4, "alpha": 0.5},
        "left_out": [],
        "images": 390,
    },
}
"""Per dataset what differs, and about how many images train (half of them)."""
ON_VIT = ("mae", "ijepa", "simmim", "moco_v3", "dino", "ibot", "combine", "simclr", "byol")
_JOINT = ("simclr", "byol", "simsiam", "moco_v2", "barlow_twins", "vicreg", "lejepa", "swav")
ON_RESNET = (*_JOINT, "rotation", "jigsaw", "relative_patch", "slice_order", "spark", "autoencoder", "models_genesis")
NEEDS_SLICES = ("slice_order",)
OPTIONS: dict[str, dict[str, Any]] = {
    "combine": {"methods": [{"weight": 1.0, "method": {"name": "mae"}}, {"weight": 1.0, "method": {"name": "ijepa"}}]},
}


@dataclass(frozen=True)
class Cell:
    """One method on one dataset with one encoder."""

    method: str
    dataset: str
    encoder: dict[str, Any]

    @property
    def protocol(self) -> str:
        """How the method is judged."""
        return "finetune" if self.method in BY_FINETUNING else "logistic"

    def study(self, root: Path) -> Study:
        """The study, its rounds set so that it costs ``PASSES``."""
        about = DATASETS[self.dataset]
        raw = {
            "name": f"sweep-{self.method}-{self.dataset}".replace("_", "-")[:40],
            "title": f"{self.method}, {self.encoder['name']}, {self.dataset}",
            "demonstration": True,
            "image": about["image"],
            "encoder": self.encoder,
            "method": {"name": self.method, **OPTIONS.get(self.method, {})},
            "training": {"batch": 32, "learning_rate": 0.004, "threads": 2},
            "algorithm": {"name": "fedavg"},
            "rounds": {"count": 1},
            "evaluation": {
                "task": about["task"],
                "protocols": ["knn", "logistic"] if self.protocol == "logistic" else ["logistic", "finetune"],
                "finetune": {"epochs": 6},
            },
            "simulation": {
                "dataset": self.dataset,
                "root": str(root / self.dataset),
                "partition": about["partition"],
                "splits": {"folds": 1, "test_share": 0.4, "validation_share": 0.1, "left_out": about["left_out"]},
                "arms": [],
            },
        }
        once = study_from(raw, "sweep")
        method = build_method(once.method, once.encoder, once.image, once.seed)
        passes = passes_a_image(method, batch_of(once.image, 8, torch.device("cpu")))
        raw["rounds"] = {"count": max(1, round(PASSES / (passes * about["images"])))}
        return study_from(raw, "sweep")


def cells() -> Iterator[Cell]:
    """All cells: every method on the brain slices first, then on the ultrasound images."""
    for dataset in DATASETS:
        for names, encoder in ((ON_RESNET, RESNET), (ON_VIT, VIT)):
            for name in names:
                if name in METHODS and (dataset == "lgg_mri_128" or name not in NEEDS_SLICES):
                    yield Cell(name, dataset, encoder)


def run(cell: Cell, study: Study) -> dict[str, Any]:
    """Run a cell and return its row."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = simulate(study, runs=Path(place)).folder
        results = results_schema.RESULTS.read(folder / "results.csv")
        comparisons = COMPARISONS.read(folder / "comparisons.csv")
        shutil.rmtree(folder)
    rival = "supervised" if cell.protocol == "finetune" else "random"
    main = {"protocol": cell.protocol, "metric": "AUROC", "site": "all"}
    compared = _one(comparisons, **main, encoder_b=rival)
    own = _one(results, **main, encoder="federated", statistic=Statistic.ESTIMATE)
    return {
        "method": cell.method,
        "family": METHODS[cell.method].family,
        "dataset": cell.dataset,
        "encoder": cell.encoder["name"],
        "protocol": cell.protocol,
        "rounds": study.rounds.count,
        "federated": own["value"],
        "random": own["value"] - compared["value"],
        "difference": compared["value"],
        "low": compared["ci_low"],
        "high": compared["ci_high"],
        "units": compared["n"],
        "seconds": round(time.monotonic() - started),
        "study": study.whole_hash()[:16],
        "commit": commit()[:12],
    }


def _one(rows: pd.DataFrame, **wanted: str) -> dict[str, Any]:
    found = [row for row in rows.to_dict("records") if all(row[column] == value for column, value in wanted.items())]
    if len(found) != 1:
        raise ValueError(f"{len(found)} rows of {wanted}, not one")
    return {str(column): value for column, value in found[0].items()}


def page(rows: Sequence[Mapping[str, Any]]) -> str:
    """The recorded cells as Markdown, the largest gains first."""
    title, command, *prose = (__doc__ or "").strip().split("\n\n")
    parts = ["# Every method against no pretraining", title, f"`{command.strip()}`"]
    parts += [" ".join(paragraph.split()) for paragraph in prose]
    header = ["method", "family", "encoder", "judged by", "AUROC", "random", "difference (95 %)", "units", "verdict"]
    for dataset in DATASETS:
        own = sorted((row for row in rows if row["dataset"] == dataset), key=lambda row: -float(row["difference"]))
        if own:
            parts.append("\n".join([f"## {dataset}", "", *table(header, [_line(row) for row in own])]))
    learned = RESULTS / "sweep-learned.md"
    if learned.exists():
        parts.append(learned.read_text().strip())
    slowest = max(rows, key=lambda row: float(row["seconds"]))
    minutes = sum(float(row["seconds"]) for row in rows) / 60
    parts.append(
        f"{len(rows)} cells, {minutes:.0f} minutes in all, the longest {slowest['seconds']} s ({slowest['method']}). "
        "Study and commit of every cell: [sweep.csv](sweep.csv)."
    )
    return "\n\n".join([*parts, machine_line()]) + "\n"


def _line(row: Mapping[str, Any]) -> list[str]:
    low, high = float(row["low"]), float(row["high"])
    return [
        *(str(row[column]) for column in ("method", "family", "encoder", "protocol")),
        *(f"{float(row[column]):.3f}" for column in ("federated", "random")),
        f"{float(row['difference']):+.3f} ({low:+.3f} to {high:+.3f})",
        str(row["units"]),
        "passes" if low > 0 else "not shown",
    ]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The cells recorded in ``path``; none where there is no such file."""
    if not path.exists():
        return []
    return [{str(key): value for key, value in row.items()} for row in pd.read_csv(path).to_dict("records")]


def main() -> None:
    """Run the cells that are not recorded yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds lgg_mri_128 and busi_224")
    parser.add_argument("--cells", type=int, default=10_000, help="run at most so many")
    parser.add_argument("--only", nargs="+", default=list(METHODS), help="these methods only")
    asked = parser.parse_args()
    path, left = RESULTS / "sweep.csv", asked.cells
    rows = read_rows(path)
    for cell in cells():
        if left == 0:
            break
        if cell.method not in asked.only:
            continue
        study = cell.study(asked.root)
        if study.whole_hash()[:16] in {row["study"] for row in rows}:
            continue
        rows.append(run(cell, study))
        write_text(path, pd.DataFrame(rows).to_csv(index=False))
        write_text(RESULTS / "sweep.md", page(rows))
        print(rows[-1])
        left -= 1


if __name__ == "__main__":
    main()
