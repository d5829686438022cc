"""Export: one encoder of a run as a folder for another program, whole or not at all."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from evaluation.export import monai_bundle, onnx_file, timm_folder
from evaluation.export.model_card import model_card
from evaluation.export.source import Source, find_encoder
from foundation.errors import RunError, look_up
from foundation.files import replace_folder


@dataclass(frozen=True)
class Target:
    """A layout. ``write(source, folder, card)`` fills a folder; ``loading(source)`` tells the card how to load it."""

    write: Callable[[Source, Path, str], None]
    loading: Callable[[Source], str]


TARGETS: dict[str, Target] = {
    "timm": Target(timm_folder.write_folder, timm_folder.loading),
    "onnx": Target(onnx_file.write_folder, onnx_file.loading),
    "monai": Target(monai_bundle.write_folder, monai_bundle.loading),
}


def export(
    run: Path, to: str, arm: str = "federated", fold: int = 0, seed: int | None = None, out: Path | None = None
) -> Path:
    """Write the encoder of an arm as ``to``, a name in TARGETS, into ``out``, which is new or empty; returns it.

    Default ``out``: ``RUN/export/ARM-fold-F-seed-S-TO``. RunError where the run has no such encoder or the place is
    taken, StudyError for an unknown target.
    """
    target = look_up(TARGETS, to, "target")
    source = find_encoder(run, arm, fold, seed)
    trained = source.weights.parent
    place = out or run / "export" / f"{arm}-{trained.parent.name}-{trained.name}-{to}"
    if place.exists() and not (place.is_dir() and not any(place.iterdir())):
        raise RunError(f"{place}: exists already; name another folder with --out, or remove this one")
    card = model_card(run, arm, fold, seed, target.loading(source))
    temporary = place.with_name(f".{place.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True)
        target.write(source, temporary, card)
        replace_folder(temporary, place)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place
