"""What evaluation reads of a run folder: settings, labelled pictures with their roles, trained encoders."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from evaluation.config import EvaluationConfig, RunEvaluation
from evaluation.intervals import IntArray
from foundation.errors import DataError, RunError, nearest
from foundation.files import digest, load_tensors, read_json, write_json, write_text
from imaging.config import ImageConfig
from imaging.manifest import Manifest
from imaging.splits import check_splits
from imaging.store import TensorStore
from ssl_methods.encoders import EncoderConfig, build_encoder, drops_paths

MOST_CLASSES = 100
HELD = ("test", "left-out")


@dataclass(frozen=True)
class Encoder:
    """One trained encoder of the run: an arm, a fold of the split, a training seed."""

    arm: str
    title: str
    kind: str
    fold: int
    seed: int
    config: EncoderConfig
    weights: Path
    key: str
    """Digest of weights and description: what is computed from them is kept under it."""
    described: Mapping[str, Any]

    def build(self, image: ImageConfig, drop_path: float = 0.0) -> nn.Module:
        """A fresh copy with its weights, on the CPU, in evaluation mode; ``drop_path`` where it can drop paths."""
        tensors, _ = load_tensors(self.weights)
        depth = {"drop_path": drop_path if drops_paths(self.config.name) else 0.0}
        encoder = build_encoder(self.config.model_copy(update=depth), image)
        try:
            encoder.load_state_dict(tensors)
        except RuntimeError as error:
            raise RunError(f"{self.weights}: does not fit {self.config.name} as encoder.json describes it") from error
        return encoder.eval()


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures in the store's order.

    rows: ``[N]`` places in the store; image, patient, site, label: ``[N]`` text; y: ``[N]`` class codes.
    roles: for each fold ``[N]`` train, validation, test, left-out or "".
    """

    store: TensorStore
    rows: IntArray
    image: NDArray[np.str_]
    patient: NDArray[np.str_]
    site: NDArray[np.str_]
    y: IntArray
    classes: tuple[str, ...]
    roles: Mapping[int, NDArray[np.str_]]

    @property
    def label(self) -> NDArray[np.str_]:
        return np.array(self.classes, dtype=np.str_)[self.y]

    def where(self, fold: int, *roles: str) -> IntArray:
        """Places (in this object) of the pictures with one of these roles in the fold."""
        return np.flatnonzero(np.isin(self.roles[fold], roles)).astype(np.int64)

    def key(self) -> str:
        """Digest of which pictures there are, their labels and roles."""
        roles = [",".join(self.roles[fold]) for fold in sorted(self.roles)]
        return digest(self.store.folder.name, *map(str, self.rows), *self.label, *self.patient, *self.site, *roles)


@dataclass(frozen=True)
class Inputs:
    """Everything a run folder gives to evaluation."""

    run: Path
    config: RunEvaluation
    image: ImageConfig
    pictures: Pictures
    encoders: tuple[Encoder, ...]


def write_settings(place: Path, config: RunEvaluation, image: ImageConfig, splits: pd.DataFrame) -> None:
    """Put what ``read_inputs`` reads beside the manifest in ``place``, the split last: with it all is there."""
    write_json(place / "config.json", config.model_dump(mode="json"))
    write_json(place / "image.json", image.model_dump(mode="json"))
    write_text(place / "splits.csv", splits.to_csv(index=False))


def read_inputs(run: Path, show: bool = True) -> Inputs:
    """RunError where a part is missing or damaged, DataError where labels or split cannot be used."""
    if not run.is_dir():
        raise RunError(f"{run}: there is no such run folder; give the folder that simulate or server printed")
    encoders = _encoders(run)
    folder = run / "evaluation"
    manifest_path, splits_path = folder / "manifest.csv", folder / "splits.csv"
    for path in (manifest_path, splits_path):
        if not path.is_file():
            raise RunError(
                f"{path}: is missing, as no split was drawn for this run: simulate it again, or, where hospitals made "
                "the run, give labelled pictures of your own with --data"
            )
    config = _section(folder / "config.json", RunEvaluation)
    image = _section(folder / "image.json", ImageConfig)
    store = TensorStore.build(Manifest.read(manifest_path, config.unit), image, run / "store", progress=show)
    splits = pd.read_csv(splits_path, dtype=str, keep_default_na=False)
    return Inputs(run, config, image, label_pictures(store, splits, config), encoders)


def _section(path: Path, kind: type[Any]) -> Any:
    value = read_json(path)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunError(f"{path}: {key}: {first['msg']}; put right what was edited, or simulate again") from error


def _encoders(run: Path) -> tuple[Encoder, ...]:
    found = []
    for described in sorted((run / "arms").glob("*/fold-*/seed-*/encoder.json")):
        weights = described.with_name("encoder.safetensors")
        if not weights.is_file():
            raise RunError(f"{weights}: is missing beside its encoder.json; resume the run to make it again")
        value = read_json(described)
        try:
            found.append(
                Encoder(
                    arm=str(value["arm"]),
                    title=str(value["title"]),
                    kind=str(value["kind"]),
                    fold=int(value["fold"]),
                    seed=int(value["seed"]),
                    config=EncoderConfig.model_validate(value["encoder"]),
                    weights=weights,
                    key=digest(weights.read_bytes(), str(sorted(value["encoder"].items()))),
                    described=value,
                )
            )
        except (KeyError, TypeError, ValueError) as error:
            what = str(error).splitlines()[0]
            raise RunError(f"{described}: does not describe an encoder ({what}); resume the run") from error
    if not found:
        raise RunError(
            f"{run}: holds no trained encoder under arms/; finish it first (simulate --resume {run}, or its server)"
        )
    return tuple(sorted(found, key=lambda e: (e.arm, e.fold, e.seed)))


def check_labels(manifest: Manifest, splits: pd.DataFrame, config: EvaluationConfig) -> None:
    """DataError when labels or split cannot be evaluated; looks at no picture, so that it can come before training."""
    numbers = np.arange(len(manifest), dtype=np.int64)
    label_pictures(TensorStore(Path(), manifest.table, numbers, numbers, numbers, numbers), splits, config)


def label_pictures(store: TensorStore, splits: pd.DataFrame, config: EvaluationConfig) -> Pictures:
    """Labelled pictures with their roles: the role is the patient's, from the split; unlabelled pictures stay out."""
    check_splits(splits)
    table = store.table
    if config.label not in table:
        known = [str(name) for name in table]
        raise DataError(
            f"label {config.label!r} is no column of the manifest; it has: {', '.join(known)}"
            + nearest(config.label, known)
        )
    raw = table[config.label]
    labelled = has_label(raw)
    if not labelled.any():
        raise DataError(f"no picture has a {config.label!r}; evaluation needs labelled pictures")
    text = _as_names(raw[labelled])
    classes = ordered_classes(text, config)
    code = {name: k for k, name in enumerate(classes)}
    rows = np.flatnonzero(labelled).astype(np.int64)
    kept = table.iloc[rows]
    patients = kept["patient"].astype(str).to_numpy(dtype=np.str_)
    roles = {
        int(fold): np.array([role.get(p, "") for p in patients], dtype=np.str_) for fold, role in _roles(splits).items()
    }
    image = kept["image"].astype(str)
    if "slice" in kept:
        image = image + kept["slice"].map(lambda s: "" if pd.isna(s) else f"#{s}")
    site = kept["site"].fillna("").astype(str) if "site" in kept else pd.Series([""] * len(kept))
    pictures = Pictures(
        store=store,
        rows=rows,
        image=image.to_numpy(dtype=np.str_),
        patient=patients,
        site=site.to_numpy(dtype=np.str_),
        y=np.array([code[name] for name in text], dtype=np.int64),
        classes=classes,
        roles=roles,
    )
    _check_roles(pictures, config)
    return pictures


def has_label(labels: pd.Series) -> NDArray[np.bool_]:
    """``[N]``, False where the cell is empty or blank."""
    return (labels.notna() & (labels.astype(str).str.strip() != "")).to_numpy(dtype=np.bool_)


def _roles(splits: pd.DataFrame) -> dict[str, dict[str, str]]:
    return {str(fold): dict(zip(part["patient"], part["role"], strict=True)) for fold, part in splits.groupby("fold")}


def _as_names(labels: pd.Series) -> list[str]:
    """Labels as text; numbers without a needless fraction (1.0 is "1")."""
    numbers = pd.to_numeric(labels.astype(str), errors="coerce")
    if numbers.notna().all():
        return [f"{number:g}" for number in numbers]
    return [str(label).strip() for label in labels]


def ordered_classes(labels: list[str], config: EvaluationConfig) -> tuple[str, ...]:
    """The classes in order (numbers by size, else by letter), the positive one of two last."""
    names = sorted(set(labels), key=lambda name: (0, float(name), "") if _is_number(name) else (1, 0.0, name))
    if len(names) < 2:
        raise DataError(f"all {len(labels)} labelled pictures have {config.label} {names[0]!r}; two classes are needed")
    if len(names) > MOST_CLASSES:
        raise DataError(
            f"{config.label!r} has {len(names)} different values; evaluation knows classes, at most {MOST_CLASSES}"
        )
    if config.positive is not None:
        if len(names) > 2:
            raise DataError(f"positive {config.positive!r} does nothing with {len(names)} classes; leave it out")
        if config.positive not in names:
            raise DataError(f"positive class {config.positive!r} is no label; there are: {', '.join(names)}")
        names = [name for name in names if name != config.positive] + [config.positive]
    return tuple(names)


def _is_number(name: str) -> bool:
    try:
        return bool(np.isfinite(float(name)))
    except ValueError:
        return False


def _check_roles(pictures: Pictures, config: EvaluationConfig) -> None:
    for fold in pictures.roles:
        for role in ("train", "validation"):
            places = pictures.where(fold, role)
            if not len(places):
                raise DataError(f"fold {fold} has no labelled {role} picture; give {role} patients labels")
            if role == "train" and len(np.unique(pictures.y[places])) < 2:
                raise DataError(f"fold {fold}: training pictures have one {config.label} only; two classes are needed")
        if not len(pictures.where(fold, *HELD)):
            raise DataError(f"fold {fold} has no labelled test picture; give test patients labels")


def read_batch(pictures: Pictures, places: IntArray) -> torch.Tensor:
    """float32 ``[B, *image.shape]`` in [0, 1] of the pictures at ``places``."""
    return pictures.store.batch(pictures.rows[places])
