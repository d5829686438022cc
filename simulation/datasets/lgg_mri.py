"""TCGA lower-grade glioma MR slices of four hospitals, with masks of the FLAIR abnormality."""

from pathlib import Path

import pandas as pd

from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from simulation.datasets.dataset import Dataset, NoOptions, needed_root

COLUMNS = {"image", "mask", "patient", "site", "slice", "tumor"}


def list_lgg_mri(root: Path | None, workspace: Path, seed: int, options: NoOptions) -> Manifest:
    """``root``/index.csv: 3 channels (pre-contrast, FLAIR, post-contrast); label 1: tumour in it."""
    table, folder = read_index(root, COLUMNS, "lgg_mri_128")
    table["label"] = table["tumor"].astype(int)
    table["series"] = table["patient"]  # one examination a patient
    table["position"] = table["slice"]
    return Manifest(table[["image", "patient", "series", "position", "site", "label", "mask"]], folder)


def read_index(root: Path | None, columns: set[str], name: str) -> tuple[pd.DataFrame, Path]:
    """``root``/index.csv as text (an empty cell is missing), and its folder; DataError when it lacks ``columns``."""
    folder = needed_root(root, name, "its index.csv")
    path = folder / "index.csv"
    if not path.is_file():
        raise DataError(
            f"{path}: is missing; dataset {name!r} needs it, point simulation.root to the folder that has it"
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]})") from error
    if missing := sorted(columns - set(table.columns)):
        raise DataError(f"{path}: lacks the column {', '.join(missing)}; it is not the index of {name!r}")
    return table, folder


LGG_MRI = Dataset(
    name="lgg_mri_128",
    summary="Brain MR slices, 4 hospitals, 77 patients; tumour in slice, masks; real site shift, a site of 1 patient.",
    source="TCGA-LGG, masks of Buda et al. 2019; CC BY-NC-SA 4.0 (non-commercial, share-alike)",
    options=NoOptions,
    listing=list_lgg_mri,
)
