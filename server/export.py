"""What a finished arm leaves: its encoder, a description of it, and its row in the run's table of arms."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from evaluation.arm_table import DESCRIPTION_NAME
from federation.records import encoder_of
from federation.study import Study
from foundation.files import read_jsonl, write_json
from foundation.tensor_files import load_tensors, save_tensors
from ssl_methods.encoders.timm_encoders import timm_line

GLOBAL_NAME = "global.safetensors"
TITLES = {
    "federated": "Federated: all sites together, images stay home",
    "random": "Random initialisation: no pretraining",
    "pretrained-init": "Starting weights as they are: no pretraining",
}


@dataclass(frozen=True)
class TrainingCost:
    """What an arm costs: images seen and optimiser steps by all sites together, and steps one after another.

    passes: how often an image was seen on average. None where a site keeps its counts to itself.
    """

    images: int | None = 0
    optimiser_steps: int | None = 0
    sequential_steps: int | None = 0
    passes: float | None = 0.0


def write_encoder(
    folder: Path,
    study: Study,
    kind: str,
    title: str,
    *,
    weights: dict[str, Tensor] | None = None,
    budget: TrainingCost | None = None,
    seconds: float | None = None,
) -> None:
    """Write ``encoder.safetensors`` and then ``encoder.json`` into an arm's folder, ``arms/<arm>/fold-<n>/seed-<n>``.

    weights: the shared weights; default: the folder's ``global.safetensors``. budget: what the arm cost; default: what
    its ``metrics.jsonl`` says. seconds: how long it took, where that was measured. RunError without weights.
    """
    shared = load_tensors(folder / GLOBAL_NAME)[0] if weights is None else weights
    save_tensors(folder / "encoder.safetensors", encoder_of(shared))
    cost = spent(folder) if budget is None else budget
    described = {
        "arm": folder.parent.parent.name,
        "title": title,
        "kind": kind,
        "fold": int(folder.parent.name.removeprefix("fold-")),
        "seed": study.seed,
        "encoder": study.encoder.model_dump(mode="json"),
        "image": study.image.model_dump(mode="json"),
        "method": study.method.name,
        "training_hash": study.training_hash(),
        "images": cost.images,
        "optimiser_steps": cost.optimiser_steps,
        "sequential_steps": cost.sequential_steps,
        "passes": None if cost.passes is None else round(cost.passes, 2),
        "seconds": None if seconds is None else round(seconds, 1),
        "load": timm_line(study.encoder, study.image),
    }
    write_json(folder / DESCRIPTION_NAME, described)


def spent(folder: Path) -> TrainingCost:
    """What a federation cost, by the updates that it used. A count that some site did not tell is None.

    Sites of a round work side by side, so that the round's steps one after another are the busiest site's.
    """
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "event" not in row]
    steps: dict[int, list[float | None]] = {}
    for row in rows:
        steps.setdefault(row["round"], []).append(row.get("steps"))
    seen = _total(sum, [row.get("images_seen") for row in rows])
    there = _total(sum, list({row["site"]: row.get("images") for row in rows}.values()))
    return TrainingCost(
        seen,
        _total(sum, [row.get("steps") for row in rows]),
        _total(sum, [_total(max, each) for each in steps.values()]),
        None if seen is None or not there else seen / there,
    )


def _total(figure: Callable[[Iterable[float]], float], counts: Sequence[float | None]) -> int | None:
    """The figure of the counts as a whole number; None where one is not told, or there is none."""
    known = [count for count in counts if count is not None]
    return int(figure(known)) if known and len(known) == len(counts) else None
