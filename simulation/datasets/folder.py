"""Images of the user's own: a manifest file, a folder with one, or a folder of images."""

from pathlib import Path

from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from simulation.datasets.dataset import Dataset, NoOptions


def list_folder(root: Path | None, workspace: Path, seed: int, options: NoOptions) -> Manifest:
    """What ``Manifest.open`` makes of ``root``; the manifest's column site, if any, are the real sites."""
    if root is None:
        raise DataError(
            "dataset 'folder' needs simulation.root, a manifest file or a folder of images; --set simulation.root=PATH"
        )
    return Manifest.open(root)


FOLDER = Dataset(
    name="folder",
    summary="Images of your own: a manifest (CSV or Parquet) or a folder, one subfolder a patient.",
    source="yours",
    options=NoOptions,
    listing=list_folder,
)
