"""Breast ultrasound of one hospital, without patient ids: near-duplicate clusters stand for patients."""

import sys
from pathlib import Path

from foundation.errors import DataError
from imaging.listing.clusters import image_clusters
from imaging.listing.manifest import Manifest
from simulation.datasets.dataset import Dataset, NoOptions
from simulation.datasets.lgg_mri import read_index

CLASSES = ("benign", "malignant", "normal")


def list_busi(root: Path | None, workspace: Path, seed: int, options: NoOptions) -> Manifest:
    """``root``/index.csv; label = benign, malignant or normal; unit "image cluster", no site column."""
    table, folder = read_index(root, {"image", "label"}, "busi_224")
    if strange := sorted(set(table["label"].fillna("")) - set(CLASSES)):
        raise DataError(
            f"{folder / 'index.csv'}: label {strange[0]!r} is none of {', '.join(CLASSES)}; not the index of 'busi_224'"
        )
    table = table[["image", "label"]].assign(patient=table["image"])
    return with_clusters(Manifest(table, folder, "image cluster"))


def with_clusters(manifest: Manifest) -> Manifest:
    """The manifest with the id of its near-duplicate cluster as every image's patient."""
    clusters = image_clusters(manifest, progress=sys.stderr.isatty())
    return Manifest(manifest.table.assign(patient=clusters), manifest.root, "image cluster")


BUSI = Dataset(
    name="busi_224",
    summary="Breast ultrasound, one hospital, 780 images; benign, malignant or normal; no patient ids.",
    source="BUSI, Al-Dhabyani et al. 2020; CC BY 4.0 according to MedMNIST's list",
    options=NoOptions,
    listing=list_busi,
)
