"""What evaluation reads of a run folder: settings, labelled images with their roles, trained encoders."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError
from torch import nn

from evaluation.config import EvaluationConfig, RunEvaluation
from evaluation.statistics.intervals import IntArray
from evaluation.statistics.results_schema import Role
from evaluation.tasks.targets import Images, label_images, patient_roles
from foundation.errors import RunError
from foundation.files import digest, read_json, write_json, write_text
from foundation.tensor_files import load_tensors
from imaging.annotations.boxes import read_boxes
from imaging.annotations.masks import read_masks
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder, drops_paths


@dataclass(frozen=True)
class Encoder:
    """One trained encoder of the run: an arm, a fold of the split, a training seed.

    image: how it sees an image. base: the arm that its training started from, "" where the run does not say.
    """

    arm: str
    title: str
    kind: Role
    fold: int
    seed: int
    config: EncoderConfig
    image: ImageConfig
    base: str
    weights: Path
    key: str
    """Digest of weights and description: what is computed from them is kept under it."""
    described: Mapping[str, Any]

    def build(self, drop_path: float = 0.0) -> nn.Module:
        """A fresh copy with its weights, on the CPU, in evaluation mode; ``drop_path`` where it can drop paths."""
        tensors, _ = load_tensors(self.weights)
        depth = {"drop_path": drop_path if drops_paths(self.config.name) else 0.0}
        encoder = build_encoder(self.config.model_copy(update=depth), self.image)
        try:
            encoder.load_state_dict(tensors)
        except RuntimeError as error:
            raise RunError(f"{self.weights}: does not fit {self.config.name} as encoder.json describes it") from error
        return encoder.eval()


@dataclass(frozen=True)
class View:
    """The labelled images in the frame in which an encoder sees them.

    places: ``[N]`` where each image of ``Inputs.images`` lies in the store.
    """

    image: ImageConfig
    store: TensorStore
    places: IntArray

    def read(self, chosen: IntArray) -> torch.Tensor:
        """float32 ``[B, *image.shape]`` in [0, 1] of the images at ``chosen``."""
        return self.store.batch(self.places[chosen])

    @property
    def key(self) -> str:
        """Digest of which images these are, and of what becomes of them before an encoder sees them."""
        return digest(self.store.folder.name, *map(str, self.places), self.image.model_dump_json())


@dataclass(frozen=True)
class Inputs:
    """Everything a run folder gives to evaluation.

    image: how baselines without an encoder see an image. roles: of every patient of each fold, labelled or not.
    """

    run: Path
    config: RunEvaluation
    image: ImageConfig
    manifest: Manifest
    images: Images
    roles: Mapping[int, Mapping[str, str]]
    encoders: tuple[Encoder, ...]
    views: Mapping[str, View]
    _read: dict[str, Any] = field(default_factory=dict, repr=False)

    def view(self, image: ImageConfig | None = None) -> View:
        """The images as an encoder with this image section sees them; default: as the baselines do."""
        return self.views[_name(image or self.image)]

    def target(self, image: ImageConfig) -> Any:
        """What is asked of every image, in this frame: codes, numbers, masks uint8 ``[N, ...]``, or boxes."""
        if self.config.kind not in ("segmentation", "detection"):
            return self.images.codes if self.images.numbers is None else self.images.numbers
        name = _name(image)
        if name not in self._read:
            table = self.manifest.table.iloc[self.images.rows]
            self._read[name] = read_outlines(table, self.manifest.root, image, self.config, self.images, self.run)
        return self._read[name]

    def key(self) -> str:
        """Digest of which images there are, what is asked of them, their patients, sites and roles."""
        own = self.images
        roles = [",".join(own.roles[fold]) for fold in sorted(own.roles)]
        return digest(self.view().key, *own.label, *self._files(), *own.patient, *own.site, *roles)

    def _files(self) -> list[str]:
        """Masks by path, size and time, boxes by their text: what an image's label is, for these kinds."""
        table = self.manifest.table.iloc[self.images.rows]
        if self.config.kind == "detection":
            return [str(text) for text in table["boxes"]]
        if self.config.kind != "segmentation" or "mask" not in table:
            return []
        paths = [self.manifest.root / name for name in table["mask"].dropna()]
        return [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" if path.exists() else "" for path in paths]


def read_outlines(
    table: pd.DataFrame, root: Path, image: ImageConfig, config: EvaluationConfig, images: Images, run: Path
) -> Any:
    """Masks or boxes of the rows of a manifest's table; masks are kept in the run's store. DataError in one line."""
    if config.kind == "segmentation":
        return read_masks(table, root, image, config.classes, run / "store")
    return read_boxes(table, root, image, images.classes)


def check_outlines(
    manifest: Manifest, splits: pd.DataFrame, image: ImageConfig, config: EvaluationConfig, run: Path
) -> None:
    """Read masks or boxes before anything is trained, so that a wrong one costs no training. DataError in one line."""
    if config.kind in ("segmentation", "detection"):
        images = label_images(manifest.table, splits, config)
        read_outlines(manifest.table.iloc[images.rows], manifest.root, image, config, images, run)


def _name(image: ImageConfig) -> str:
    return image.model_dump_json()


def write_settings(place: Path, config: RunEvaluation, image: ImageConfig, splits: pd.DataFrame) -> None:
    """Put what ``read_inputs`` reads beside the manifest in ``place``, the split last: with it all is there."""
    write_json(place / "config.json", config.model_dump(mode="json"))
    write_json(place / "image.json", image.model_dump(mode="json"))
    write_text(place / "splits.csv", splits.to_csv(index=False))


def read_inputs(run: Path, show: bool = True) -> Inputs:
    """RunError where a part is missing or damaged, DataError where labels or split cannot be used."""
    if not run.is_dir():
        raise RunError(f"{run}: there is no such run folder; give the folder that simulate or server printed")
    described = sorted((run / "arms").glob("*/fold-*/seed-*/encoder.json"))
    if not described:
        raise RunError(
            f"{run}: holds no trained encoder under arms/; finish it first (simulate --resume {run}, or its server)"
        )
    folder = run / "evaluation"
    manifest_path, splits_path = folder / "manifest.csv", folder / "splits.csv"
    for path in (manifest_path, splits_path):
        if not path.is_file():
            raise RunError(
                f"{path}: is missing, as no split was drawn for this run: simulate it again, or, where hospitals made "
                "the run, give labelled images of your own with --data"
            )
    config = _section(folder / "config.json", RunEvaluation)
    image = _section(folder / "image.json", ImageConfig)
    encoders = tuple(sorted((_encoder(path) for path in described), key=lambda each: (each.arm, each.fold, each.seed)))
    manifest = Manifest.read(manifest_path, config.unit)
    splits = pd.read_csv(splits_path, dtype=str, keep_default_na=False)
    labelled = label_images(manifest.table, splits, config)
    images = {_name(each): each for each in (image, *(encoder.image for encoder in encoders))}
    stores = {name: TensorStore.build(manifest, each, run / "store", progress=show) for name, each in images.items()}
    readable = np.ones(len(labelled.rows), dtype=np.bool_)
    for store in stores.values():
        readable &= np.isin(labelled.rows, store.slots)
    labelled = labelled.subset(readable)
    views = {
        name: View(images[name], store, np.searchsorted(store.slots, labelled.rows).astype(np.int64))
        for name, store in stores.items()
    }
    return Inputs(run, config, image, manifest, labelled, patient_roles(splits), encoders, views)


def _section(path: Path, kind: type[Any]) -> Any:
    value = read_json(path)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RunError(f"{path}: {key}: {first['msg']}; put right what was edited, or simulate again") from error


def _encoder(described: Path) -> Encoder:
    """The encoder of an encoder.json."""
    weights = described.with_name("encoder.safetensors")
    if not weights.is_file():
        raise RunError(f"{weights}: is missing beside its encoder.json; resume the run to make it again")
    value = read_json(described)
    try:
        own = ImageConfig.model_validate(value["image"])
        return Encoder(
            arm=str(value["arm"]),
            title=str(value["title"]),
            kind=Role(str(value["kind"])),
            fold=int(value["fold"]),
            seed=int(value["seed"]),
            config=EncoderConfig.model_validate(value["encoder"]),
            image=own,
            base=str(value.get("base", "")),
            weights=weights,
            key=digest(weights.read_bytes(), str(sorted(value["encoder"].items())), own.model_dump_json()),
            described=value,
        )
    except (KeyError, TypeError, ValueError) as error:
        what = str(error).splitlines()[0]
        raise RunError(f"{described}: does not describe an encoder ({what}); resume the run") from error
