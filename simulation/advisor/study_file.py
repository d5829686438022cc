"""A ready study file for a candidate, with the reason beside each choice."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluation.config import TaskKind
from federation.study import Study, study_from
from foundation.errors import StudyError
from foundation.files import write_text
from simulation.advisor.candidates import Candidate
from simulation.advisor.evidence import FINDINGS
from simulation.advisor.ranking import Ranked
from simulation.advisor.setting import FEW_LABELS, Setting

WIDTH = 110
COLOUR = ("histopathology", "fundus", "dermoscopy", "endoscopy", "microscopy")
PROTOCOLS: dict[TaskKind, tuple[str, ...]] = {
    "classification": ("knn", "logistic", "finetune"),
    "multilabel": ("knn", "logistic", "finetune"),
    "regression": ("knn", "ridge", "finetune"),
    "segmentation": ("linear_segmentation", "decoder_segmentation"),
    "detection": ("frozen_detection", "finetune_detection"),
}
"""Frozen features first, then fine-tuning."""
COLUMNS: dict[TaskKind, str] = {
    "classification": "label",
    "multilabel": "label (findings joined by |, or none)",
    "regression": "label (a number)",
    "segmentation": "mask (a file)",
    "detection": "boxes (a JSON list of [x0, y0, x1, y1, label])",
}
LARGE = 50_000
"""Pictures from which a base-sized encoder is written, where a GPU trains. Ours: no source gives a number."""

Noted = tuple[Any, str]
"""A value, and why it is what it is ("" where nothing is to be said)."""


def write_study(path: Path, setting: Setting, ranked: Ranked, command: str) -> Study:
    """Write the study file; StudyError where ``path`` is there already."""
    refuse_overwriting(path)
    text = study_text(setting, ranked, command)
    study = study_from(yaml.safe_load(text), str(path))
    write_text(path, text)
    return study


def refuse_overwriting(path: Path) -> None:
    """StudyError where there is such a file."""
    if path.exists():
        raise StudyError(f"{path}: exists already and is not overwritten; give another name with --out, or remove it")


def study_text(setting: Setting, ranked: Ranked, command: str) -> str:
    """The study as commented YAML. ``command``: what was asked, for the first line."""
    candidate = ranked.candidate
    kind = "volumes" if setting.volumes else "pictures"
    parts = [
        _comment(f"Written by: {command}"),
        _comment(f"For: {setting.line()}"),
        _comment("Values without a source in brackets are this program's usual ones; no finding speaks for them."),
        f"name: advise-{setting.modality}-{setting.task}",
        f'title: "{candidate.name} for {setting.task} on {setting.modality} {kind}"',
        "seed: 0",
        _section("image", _image(setting)),
        _section("encoder", _encoder(setting, candidate)),
        *_method(setting, ranked),
        _section("training", _training(setting, candidate)),
        _section("algorithm", _algorithm(setting)),
        _section("rounds", _rounds(setting)),
        _section("evaluation", _evaluation(setting)),
        *_simulation(setting),
    ]
    return "\n".join(parts) + "\n"


def _image(setting: Setting) -> Iterator[tuple[str, Noted]]:
    yield "modality", (setting.modality, "chooses augmentation and intensity normalisation")
    side = _side(setting)
    yield (
        "size",
        (side, "" if setting.accelerator else "small, for a machine without a GPU; 224 (volumes: 96) with one"),
    )
    if setting.volumes:
        yield "depth", (side, "slices of a volume")
    colour = setting.modality in COLOUR
    also = "; 1 for fluorescence" if setting.modality == "microscopy" else ""
    yield "channels", (3 if colour else 1, f"must be that of your pictures{also}")


def _side(setting: Setting) -> int:
    if setting.volumes:
        return 96 if setting.accelerator else 32
    return 224 if setting.accelerator else 128 if setting.dense or setting.natural_weights else 64


def _encoder(setting: Setting, candidate: Candidate) -> Iterator[tuple[str, Noted]]:
    """Of the kind that the method takes, of a size for the machine and the number of pictures."""
    large = setting.accelerator and setting.total >= LARGE
    if setting.volumes:
        yield from _volume_encoder(setting, candidate)
        return
    if takes_vit(setting, candidate):
        yield from _vit(setting, candidate, large)
        return
    small = "resnet18" if setting.accelerator else "resnet10t"
    yield "name", ("resnet50" if large else small, "takes any encoder; a ResNet learns from fewer pictures and steps")


def _vit(setting: Setting, candidate: Candidate, large: bool) -> Iterator[tuple[str, Noted]]:
    only = candidate.declared.encoders == ("vit",)
    why = "the only kind that the method takes" if only else "what its paper ran it on"
    if setting.privacy and not only:
        why = "a ViT has no batch normalisation"
    if setting.accelerator:
        yield "name", (f"vit_{'base' if large else 'small'}_patch16_224", why)
        return
    yield "name", ("vit_tiny_patch16_224", f"{why}; the smallest, for a machine without a GPU")
    if not setting.natural_weights:  # which are those of the whole model
        yield "patch_size", (8, "")
        yield "depth", (6, "half of its blocks")


def takes_vit(setting: Setting, candidate: Candidate) -> bool:
    """Whether a 2-D study of the candidate is written with a ViT: it takes no other, or batch norm must not be."""
    return (
        setting.privacy or candidate.method in ("dino", "moco_v3", "simmim") or candidate.declared.encoders == ("vit",)
    )


def _volume_encoder(setting: Setting, candidate: Candidate) -> Iterator[tuple[str, Noted]]:
    if candidate.method == "swin_unetr" and setting.accelerator:
        yield "name", ("monai_swin_unetr", "the paper's encoder (Tang et al. 2022)")
        return
    yield "name", ("monai_vit", "the 3-D encoder that runs everywhere; sizes for this machine")
    yield "patch_size", (16 if setting.accelerator else 8, "")
    yield "depth", (8 if setting.accelerator else 4, "")
    yield "width", (384 if setting.accelerator else 96, "")
    yield "heads", (6 if setting.accelerator else 3, "")


def _method(setting: Setting, ranked: Ranked) -> Iterator[str]:
    """The section with its reasons; every other setting of the method keeps its default."""
    yield "method:"
    marks = {1: "for", -1: "against", 0: "open"}
    for reason in ranked.reasons:
        yield _comment(f"{marks[reason.sign]}: {reason.text} {reason.source()}", "  ")
    nested = None if ranked.candidate.options else False
    body = yaml.safe_dump(ranked.candidate.section, sort_keys=False, default_flow_style=nested)
    yield textwrap.indent(body.rstrip(), "  ")
    if setting.pictures > 1 and "positives" in type(ranked.candidate.config).model_fields:
        found = FINDINGS["positives"]
        yield _comment(f"positives: patient   # {found.says} [{found.citation}]", "  ")


def _training(setting: Setting, candidate: Candidate) -> Iterator[tuple[str, Noted]]:
    batch, why = batch_of(setting, candidate)
    yield "batch", (batch, why)
    yield "epochs", (1, _source("averaging", "one local epoch a round"))
    yield "learning_rate", (0.0005 if setting.accelerator else 0.004, "for 256 pictures a step; scaled by the batch")
    yield "threads", (2, "")


def batch_of(setting: Setting, candidate: Candidate) -> tuple[int, str]:
    """Pictures a step and why: a power of 2 of which the smallest site has enough patients, or pictures."""
    most = (4 if setting.accelerator else 8) if setting.volumes else (64 if setting.accelerator else 32)
    contrastive = candidate.declared.fewest_patients > 1
    there = setting.patients if contrastive else setting.at_a_site
    batch = min(most, 1 << (there.bit_length() - 1))
    if batch == most:
        return batch, "for this machine's memory"
    rule = "patients, and pictures of one patient are no negatives" if contrastive else "pictures"
    return batch, f"the smallest site has {there} {rule}"


def _algorithm(setting: Setting) -> Iterator[tuple[str, Noted]]:
    also = "; no finding speaks for another algorithm where sites differ" if setting.different_sites else ""
    yield "name", ("fedavg", _source("averaging", f"plain averaging by size{also}"))


def _rounds(setting: Setting) -> Iterator[tuple[str, Noted]]:
    yield "count", (100 if setting.accelerator else 30, "more is better as long as the curves still fall")


def _evaluation(setting: Setting) -> Iterator[tuple[str, Noted]]:
    yield "task", (f"{setting.task} on {setting.modality}", "the name in tables and report")
    yield "kind", (setting.task, f"reads the manifest's column {COLUMNS[setting.task]}")
    few = f"{setting.labels} labels: frozen features, and fine-tuning"
    why = _source("few labels", f"{few}, better in 8 of 11") if setting.labels < FEW_LABELS else few
    yield "protocols", (list(PROTOCOLS[setting.task]), why)


def _simulation(setting: Setting) -> Iterator[str]:
    """Marked out: a hospital's server needs none, and the place of the pictures is not known here."""
    yield _comment(
        "To try it on one machine first, take the marks off what follows and give your manifest, with columns image, "
        f"patient, site and {COLUMNS[setting.task]}. A federation of hospitals needs none of it."
    )
    for line in ("", "  dataset: folder", "  root: MANIFEST.csv", "  partition: {kind: site}", "  splits: {folds: 1}"):
        yield f"# {line or 'simulation:'}"
    if setting.natural_weights:
        yield "#   weights: FILE.safetensors"
        found = FINDINGS["natural weights"]
        yield _comment(f"weights: {found.says} [{found.citation}]. With hospitals: fedpretext server --weights FILE.")


def _source(finding: str, text: str) -> str:
    return f"{text} [{FINDINGS[finding].citation}]"


def _section(name: str, entries: Iterator[tuple[str, Noted]] | Mapping[str, Noted]) -> str:
    lines = [f"{name}:"]
    for key, (value, why) in dict(entries).items():
        if why:
            lines.append(_comment(why, "  "))
        written = yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]  # a scalar ends in "..."
        lines.append(f"  {key}: {written}")
    return "\n".join(lines)


def _comment(text: str, indent: str = "") -> str:
    start = f"{indent}# "
    return "\n".join(textwrap.wrap(text, WIDTH, initial_indent=start, subsequent_indent=start, break_on_hyphens=False))
