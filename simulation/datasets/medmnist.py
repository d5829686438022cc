"""Any set of MedMNIST v2, 2-D or 3-D, through the medmnist package's own download and its published checksums."""

import hashlib
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from foundation.configuration.section import Section
from foundation.errors import DataError, look_up
from foundation.files import replace_folder
from imaging.listing.manifest import Manifest
from simulation.datasets.busi import with_clusters
from simulation.datasets.dataset import Dataset

SPLITS = ("train", "val", "test")
LISTING = "manifest.csv"


class MedMnistOptions(Section):
    """Which of the package's sets, and in which size."""

    set: str = Field(
        default="pneumoniamnist",
        description="A set as medmnist names it: pneumoniamnist, or adrenalmnist3d with image.depth.",
    )
    size: Literal[28, 64, 128, 224] = Field(
        default=28, description="Side of the images, in pixels; of volumes 28 or 64."
    )


def list_medmnist(root: Path | None, workspace: Path, seed: int, options: MedMnistOptions) -> Manifest:
    """All images of the set; label = the published class (several at once: their numbers, "1+4").

    The .npz file is taken from ``root``, or downloaded to ``workspace``; there its images are unpacked once.
    MedMNIST publishes no patient ids, so the unit is the image cluster; its own split is in the column
    published_split and not used.
    """
    info = look_up(_published(), options.set, "MedMNIST set")
    folder = root if root is not None else workspace / "medmnist"
    file = checked_file(options.set, options.size, folder, download=root is None)
    return with_clusters(_unpack(file, workspace / f"{file.stem}-images", info))


def _published() -> dict[str, Any]:
    """What the package knows of each set."""
    from medmnist import INFO  # with scikit-learn, over a second

    return dict(INFO)


def checked_file(name: str, size: int, folder: Path, *, download: bool) -> Path:
    """The set's .npz in ``folder``, with the MD5 the package publishes; downloaded first if missing and allowed.

    DataError when it is missing, cannot be downloaded, or has another MD5 (a wrong file is neither replaced nor
    used).
    """
    flag = "" if size == 28 else f"_{size}"
    info = _published()[name]
    path = folder / f"{name}{flag}.npz"
    if f"MD5{flag}" not in info:
        raise DataError(f"MedMNIST set {name!r} is not published at {size} pixels")
    if not path.is_file() and download:
        _download(name, size, folder, path)
    if not path.is_file():
        raise DataError(f"{path}: is missing; put MedMNIST's file there, or leave simulation.root out to download it")
    with path.open("rb") as handle:
        found = hashlib.file_digest(handle, "md5").hexdigest()
    if found != info[f"MD5{flag}"]:
        raise DataError(
            f"{path}: is not the published file (MD5 {found}, not {info[f'MD5{flag}']});"
            " remove it and download it again"
        )
    return path


def _download(name: str, size: int, folder: Path, path: Path) -> None:
    import medmnist

    folder.mkdir(parents=True, exist_ok=True)
    try:
        getattr(medmnist, _published()[name]["python_class"])(split="train", download=True, root=str(folder), size=size)
    except (RuntimeError, OSError, AssertionError) as error:
        raise DataError(
            f"{path.name} could not be downloaded; check the network, or put the file into a folder yourself"
            " and name it in simulation.root"
        ) from error


def _unpack(file: Path, folder: Path, info: dict[str, Any]) -> Manifest:
    """One NPY file an image ``[H, W(, C)]`` or volume ``[D, H, W]`` below ``folder``, and the manifest of them.

    The folder is there whole or not at all.
    """
    if (folder / LISTING).is_file():
        return Manifest.read(folder / LISTING, "image cluster")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    tables = []
    with np.load(file, allow_pickle=False) as arrays:
        for split in SPLITS:
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            names = [f"{split}/{number:06d}.npy" for number in range(len(images))]
            (part / split).mkdir(parents=True)
            for name, image in zip(names, images, strict=True):
                np.save(part / name, image)
            columns = {"image": names, "patient": names, "label": _labels(labels, info["task"])}
            tables.append(pd.DataFrame({**columns, "published_split": split}))
    Manifest(pd.concat(tables, ignore_index=True), part, "image cluster").write(part / LISTING)
    replace_folder(part, folder)
    return Manifest.read(folder / LISTING, "image cluster")


def _labels(labels: np.ndarray[Any, Any], task: str) -> list[int] | list[str]:
    if task.startswith("multi-label"):
        return ["+".join(map(str, np.flatnonzero(row))) or "none" for row in labels]
    return [int(value) for value in labels[:, 0]]


MEDMNIST = Dataset(
    name="medmnist",
    summary="Any MedMNIST set, 2-D or 3-D (options: set, size), downloaded by the medmnist package; no patient ids.",
    source="MedMNIST v2, Yang et al. 2023; CC BY 4.0 (dermamnist CC BY-NC 4.0)",
    options=MedMnistOptions,
    listing=list_medmnist,
)
