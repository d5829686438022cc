"""A ready study file for a candidate, with the reasons beside the choices."""

from pathlib import Path
from typing import Any

import yaml

from advisor.candidates import Candidate
from advisor.evidence import FINDINGS
from advisor.ranking import Ranked
from advisor.setting import Setting
from advisor.text import COMMENT, filled, wrapped
from evaluation.config import TaskKind
from federation.study import study_from
from foundation.errors import StudyError
from foundation.files import write_text
from foundation.wording import one_line

COLOUR = ("histopathology", "fundus", "dermoscopy", "endoscopy", "microscopy")
PROTOCOLS: dict[TaskKind, tuple[str, ...]] = {
    "classification": ("knn", "logistic", "finetune"),
    "multilabel": ("knn", "logistic", "finetune"),
    "regression": ("knn", "ridge", "finetune"),
    "segmentation": ("linear_segmentation", "decoder_segmentation"),
    "detection": ("frozen_detection", "finetune_detection"),
}
"""Frozen features first, fine-tuning last."""
COLUMNS: dict[TaskKind, str] = {
    "classification": "label",
    "multilabel": "label (findings joined by |, or none)",
    "regression": "label (a number)",
    "segmentation": "mask (a file)",
    "detection": "boxes (a JSON list of [x0, y0, x1, y1, label])",
}
LARGE = 50_000
"""Images from which a large encoder is written, where a GPU trains. Ours: no source gives a number."""


def write_study(path: Path, setting: Setting, ranked: Ranked, command: str) -> None:
    """Write the study file; StudyError where ``path`` is there already."""
    refuse_overwriting(path)
    text = study_text(setting, ranked, command)
    study_from(yaml.safe_load(text), str(path))
    write_text(path, text)


def refuse_overwriting(path: Path) -> None:
    """StudyError where there is such a file."""
    if path.exists():
        raise StudyError(f"{path}: exists already and is not overwritten; give another name with --out, or remove it")


def study_text(setting: Setting, ranked: Ranked, command: str) -> str:
    """The study as commented YAML. ``command``: what was asked, for the first line."""
    candidate = ranked.candidate
    batch, bound = batch_of(setting, candidate)
    encoder, why = _encoder(setting, candidate)
    text = filled(
        "study.yaml",
        command=one_line(command),
        setting=setting,
        candidate=candidate,
        reasons=ranked.reasons,
        side=_side(setting),
        channels=3 if setting.modality in COLOUR else 1,
        encoder=encoder,
        why=why,
        positives=setting.several_images and "positives" in type(candidate.config).model_fields,
        batch=batch,
        bound=bound,
        protocols=PROTOCOLS[setting.task],
        column=COLUMNS[setting.task],
        cited=lambda name: f"{FINDINGS[name].says} [{FINDINGS[name].citation}]",
    )
    return "".join(f"{line}\n" for line in wrapped(text, COMMENT, 110))


def _side(setting: Setting) -> int:
    """Voxels or pixels along each side of an image."""
    if setting.volumes:
        return 96 if setting.accelerator else 32
    if setting.accelerator:
        return 224
    return 128 if setting.dense or setting.pretrained_weights else 64


def _encoder(setting: Setting, candidate: Candidate) -> tuple[dict[str, Any], str]:
    """Of the kind that the method takes, of a size for the machine and the number of images; and why."""
    gpu = setting.accelerator
    large = gpu and setting.total >= LARGE
    if candidate.method == "swin_unetr" and gpu:
        return {"name": "monai_swin_unetr"}, "The paper's encoder (Tang et al. 2022)."
    if setting.volumes:
        sizes = {"patch_size": 16, "depth": 8, "width": 384, "heads": 6}
        small = {"patch_size": 8, "depth": 4, "width": 96, "heads": 3}
        return {"name": "monai_vit", **(sizes if gpu else small)}, "The 3-D encoder that runs everywhere."
    name = "resnet50" if large else "resnet18" if gpu else "resnet10t"
    if candidate.declared.encoders == ("convolutional",):
        norm = {"norm": "group"} if setting.privacy else {}
        return {"name": name, **norm}, "A convolutional encoder: the only kind that the method takes."
    only = candidate.declared.encoders == ("vit",)
    if not (only or setting.privacy or candidate.method in ("dino", "moco_v3", "simmim")):
        return {"name": name}, "The method takes any encoder; a ResNet learns from fewer images and steps."
    why = "the only kind that the method takes" if only else "what its paper ran it on, without batch normalisation"
    if gpu:
        return {"name": f"vit_{'base' if large else 'small'}_patch16_224"}, f"A ViT: {why}."
    # Starting weights are those of the whole model.
    cut = {} if setting.pretrained_weights else {"patch_size": 8, "depth": 6}
    return {"name": "vit_tiny_patch16_224", **cut}, f"A ViT: {why}; the smallest, for a machine without a GPU."


def batch_of(setting: Setting, candidate: Candidate) -> tuple[int, str]:
    """Images a step and why: a power of 2 of which the smallest site has enough patients, or images."""
    most = (4 if setting.accelerator else 8) if setting.volumes else (64 if setting.accelerator else 32)
    contrastive = candidate.declared.fewest_patients > 1
    there = setting.patients if contrastive else setting.at_a_site
    batch = min(most, 1 << (there.bit_length() - 1))
    if batch == most:
        return batch, "for this machine's memory"
    rule = "patients, and images of one patient are no negatives" if contrastive else "images"
    return batch, f"the smallest site has {there} {rule}"
