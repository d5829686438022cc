"""Two pretrained encoders a dataset on downstream tasks, against random ones, supervised training and baselines.

    python -m benchmarks.comparisons.downstream --root FOLDER [--only retina] [--work FOLDER]

A cell is a dataset: two federations are simulated on it (MAE and SimCLR, one encoder, one split, one seed, equal
numbers of images), then both encoders are judged on the dataset's tasks by ``fedpretext evaluate RUN RUN --task
FILE``. All settings were fixed before any test image was scored. Budgets are a demonstration's: minutes on two cores,
a small fraction of what these methods are published with, so that "not shown" is not "does not work".
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.measure import RESULTS, machine_line, table
from evaluation.gather import gather
from evaluation.report.page import write_report
from evaluation.stage import evaluate
from evaluation.statistics import results_schema
from evaluation.statistics.results_schema import COMPARISONS, Role, Statistic
from federation.study import Study, study_from
from foundation.files import read_json, write_text
from simulation.simulate import pretrain

PLACE = RESULTS / "downstream"
METHODS = ("mae", "simclr")
VIT = {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 4, "width": 96, "heads": 3}
SMALL_DECODER = {"decoder_width": 64, "decoder_depth": 1, "decoder_heads": 2}
SPLIT = {"folds": 1, "test_share": 0.35, "validation_share": 0.15}
TRAINED = {
    "segmentation": {"epochs": 12, "width": 8, "batch": 8},
    "detection": {"epochs": 20},
    "finetune": {"epochs": 8},
}


@dataclass(frozen=True)
class Cell:
    """A dataset with two pretrained encoders and the tasks they are judged on.

    images: that each encoder is shown in pretraining, all sites together; train: about how many train; simulation:
    dataset, options, partition and splits; tasks: by name, keys of a task file.
    """

    name: str
    folder: str
    image: dict[str, Any]
    encoder: dict[str, Any]
    images: int
    train: int
    batch: int
    simulation: dict[str, Any]
    tasks: dict[str, dict[str, Any]]

    def study(self, method: str, root: Path) -> Study:
        """The study that pretrains one of the two encoders."""
        raw = {
            "name": f"{self.name}-{method}",
            "title": f"{method.upper() if method == 'mae' else 'SimCLR'} on {self.name}",
            "demonstration": True,
            "image": self.image,
            "encoder": self.encoder,
            "method": {"name": method} | (SMALL_DECODER if method == "mae" and "depth" not in self.image else {}),
            "training": {"batch": self.batch, "learning_rate": 0.002, "threads": 1},
            "algorithm": {"name": "fedavg"},
            "rounds": {"count": max(2, round(self.images / self.train))},
            "evaluation": next(iter(self.tasks.values())),
            "simulation": {"arms": [], "root": str(root / self.folder), **self.simulation},
        }
        return study_from(raw, self.name)


CELLS: tuple[Cell, ...] = (
    Cell(
        "retina",
        "chase_db1",
        {"modality": "fundus", "size": 128, "channels": 3},
        VIT,
        1200,
        16,
        8,
        {
            "dataset": "chase_db1",
            "partition": {"kind": "iid", "sites": 2},
            "splits": {"folds": 3, "validation_share": 0.15},
        },
        {
            "vessels": {
                "task": "retinal vessels",
                "kind": "segmentation",
                "classes": ["vessel"],
                "protocols": ["linear_segmentation"],
                **TRAINED,
            }
        },
    ),
    Cell(
        "brain-mri",
        "lgg_mri_128",
        {"modality": "mri", "size": 64, "channels": 3},
        VIT,
        9000,
        500,
        32,
        {
            "dataset": "lgg_mri_128",
            "partition": {"kind": "site"},
            # EZ has one patient, so nothing to contrast with.
            "splits": {**SPLIT, "left_out": ["CS", "EZ"]},
        },
        {
            "tumour": {"task": "tumour in slice", "protocols": ["knn", "logistic"], **TRAINED},
            "abnormality": {
                "task": "FLAIR abnormality",
                "kind": "segmentation",
                "classes": ["abnormality"],
                "empty_mask": "background",
                "protocols": ["linear_segmentation"],
                **TRAINED,
            },
        },
    ),
    Cell(
        "breast-ultrasound",
        "busi_224",
        {"modality": "ultrasound", "size": 64, "channels": 1},
        VIT,
        8000,
        390,
        32,
        {"dataset": "busi_224", "partition": {"kind": "dirichlet", "sites": 4, "alpha": 0.5}, "splits": SPLIT},
        {
            "classes": {
                "task": "benign, malignant or normal",
                "protocols": ["knn", "logistic"],
                "label_fractions": [0.1, 0.3, 1.0],
                "shots": [10],
                **TRAINED,
            }
        },
    ),
    Cell(
        "blood-smears",
        "bccd",
        {"modality": "microscopy", "size": 128, "channels": 3},
        VIT,
        2500,
        180,
        16,
        {"dataset": "bccd", "partition": {"kind": "iid", "sites": 3}, "splits": SPLIT},
        {"cells": {"task": "cells", "kind": "detection", "protocols": ["frozen_detection"], **TRAINED}},
    ),
    Cell(
        "nuclei",
        "dsb2018_nuclei_256",
        {"modality": "microscopy", "size": 128, "channels": 1},
        VIT,
        2500,
        270,
        32,
        {
            "dataset": "dsb2018",
            "partition": {"kind": "site"},
            "splits": {
                **SPLIT,
                "left_out": ["1024x1024-brightfield", "1388x1040-fluorescence"],
                "min_test_patients": 12,
            },
        },
        {
            "nuclei": {
                "task": "nuclei",
                "kind": "segmentation",
                "protocols": ["linear_segmentation"],
                **TRAINED,
            }
        },
    ),
    Cell(
        "adrenal-3d",
        "adrenalmnist3d",
        {"modality": "ct", "size": 28, "depth": 28, "channels": 1},
        {"name": "monai_vit", "patch_size": 7, "depth": 4, "width": 96, "heads": 3},
        8000,
        790,
        32,
        {
            "dataset": "medmnist",
            "options": {"set": "adrenalmnist3d", "size": 28},
            "partition": {"kind": "dirichlet", "sites": 3, "alpha": 0.5},
            "splits": SPLIT,
        },
        {"hyperplasia": {"task": "hyperplasia of the adrenal gland", "protocols": ["knn", "logistic"], **TRAINED}},
    ),
)


def run(cell: Cell, root: Path, work: Path) -> None:
    """Pretrain both encoders of a cell, judge them on its tasks, and record the figures."""
    runs = [pretrained(cell.study(method, root), work / cell.name / method) for method in METHODS]
    trained = sum(arm["seconds"] or 0.0 for each in runs for arm in read_json(each / "arms.json"))
    for name, task in cell.tasks.items():
        begun = time.monotonic()
        path = work / cell.name / f"{name}.yaml"
        write_text(path, yaml.safe_dump(task, sort_keys=False))
        command = f"fedpretext evaluate {' '.join(METHODS)} --task {name}.yaml"
        folder = gather([str(each) for each in runs], path, work / cell.name / name, command)
        evaluate(folder)
        print(write_report(folder))
        facts = {"pretraining_seconds": round(trained), "evaluation_seconds": round(time.monotonic() - begun)}
        record(cell, name, folder, facts)


def pretrained(study: Study, place: Path) -> Path:
    """The run of a study: a finished one in ``place`` where there is one, else a new one."""
    for run in sorted(place.glob("*/arms.json")):
        if read_json(run.with_name("run.json"))["training_hash"] == study.training_hash():
            return run.parent
    return pretrain(study, runs=place)


def record(cell: Cell, name: str, folder: Path, facts: Mapping[str, Any]) -> None:
    """Keep the tables of one task, arms by their method instead of the time at which they ran."""
    for which, form in (("results.csv", results_schema.RESULTS), ("comparisons.csv", COMPARISONS)):
        found = form.read(folder / which)
        for column in set(found.columns) & {"encoder", "encoder_a", "encoder_b"}:
            found[column] = found[column].map(lambda arm: _short(str(arm), cell))
        form.write(PLACE / "tables" / f"{cell.name}-{name}-{which}", found)
    lines = [*facts_lines(cell, name, facts), "", *figures_of(cell, name)]
    write_text(PLACE / f"{cell.name}-{name}.md", "\n".join([*lines, "", machine_line()]) + "\n")
    write_text(RESULTS / "downstream.md", page())


def _short(arm: str, cell: Cell) -> str:
    return next((method for method in METHODS if arm.startswith(f"{cell.name}-{method}")), arm)


def facts_lines(cell: Cell, name: str, facts: Mapping[str, Any]) -> list[str]:
    """What was run, and how long it took."""
    return [
        f"## {cell.name}: {cell.tasks[name]['task']}",
        "",
        f"`make downstream DATA=FOLDER ONLY={cell.name}`; pretraining of both encoders {facts['pretraining_seconds']} "
        f"s, {cell.images:,} images each; this task's evaluation {facts['evaluation_seconds']} s.",
    ]


def figures_of(cell: Cell, name: str) -> list[str]:
    """The main figures of a recorded task and the differences, as Markdown."""
    results = results_schema.RESULTS.read(PLACE / "tables" / f"{cell.name}-{name}-results.csv")
    differences = COMPARISONS.read(PLACE / "tables" / f"{cell.name}-{name}-comparisons.csv")
    metric = str(differences["metric"].iloc[0])
    own = results[(results["metric"] == metric) & (results["statistic"] == Statistic.ESTIMATE)]
    own = own[(own["role"] != Role.MAJORITY) | (own["site"] == "all")]
    rows = [
        [str(row[key]) for key in ("encoder", "protocol", "label_fraction", "site")] + [_value(row), str(row["n"])]
        for row in _records(own)
    ]
    apart = [
        [
            str(row["encoder_a"]),
            str(row["encoder_b"]),
            str(row["protocol"]),
            str(row["site"]),
            _value(row, "+"),
            _verdict(row),
        ]
        for row in _records(differences[differences["site"].isin(["all", "left-out"])])
    ]
    return [
        f"{metric} (95 % interval):",
        "",
        *table(["encoder", "protocol", "labels", "site", metric, "units"], rows),
        "",
        "Differences, the same patients (or image clusters):",
        "",
        *table(["encoder", "minus", "protocol", "site", "difference (95 %)", "verdict"], apart),
    ]


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def _value(row: Mapping[str, Any], sign: str = "") -> str:
    if pd.isna(row["value"]):
        return "–"
    value = f"{float(row['value']):{sign}.3f}"
    if pd.isna(row["ci_low"]):
        return f"{value} (no interval)"
    return f"{value} ({float(row['ci_low']):{sign}.3f} to {float(row['ci_high']):{sign}.3f})"


def _verdict(row: Mapping[str, Any]) -> str:
    if pd.isna(row["ci_low"]):
        return "no interval"
    low, high = float(row["ci_low"]), float(row["ci_high"])
    return "better" if low > 0 else "worse" if high < 0 else "cannot say"


def page() -> str:
    """All recorded tasks as one page."""
    title, command, *prose = (__doc__ or "").strip().split("\n\n")
    parts = ["# Pretrained encoders on downstream tasks", title, f"`{command.strip()}`"]
    parts += [" ".join(paragraph.split()) for paragraph in prose]
    known = [PLACE / f"{cell.name}-{name}.md" for cell in CELLS for name in cell.tasks]
    known.append(RESULTS / "downstream-learned.md")
    return "\n\n".join([*parts, *(path.read_text().strip() for path in known if path.exists())]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="the folder that holds the datasets' folders")
    parser.add_argument("--only", nargs="+", choices=[cell.name for cell in CELLS], help="these cells only")
    parser.add_argument("--work", type=Path, help="where run folders are made and kept; default: removed afterwards")
    asked = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        for cell in CELLS:
            if asked.only is None or cell.name in asked.only:
                run(cell, asked.root, asked.work or Path(place))


if __name__ == "__main__":
    main()
