"""Folders of a simulated federation: each hospital's has a manifest of its own images, and nothing else."""

import re
from dataclasses import dataclass
from pathlib import Path

from foundation.errors import DataError
from imaging.listing.manifest import Manifest


@dataclass(frozen=True)
class Federation:
    """One prepared federation: its folder holds ``study.yaml`` and ``sites/<name>/site.yaml``."""

    folder: Path
    sites: tuple[str, ...]

    def run_config(self) -> dict[str, str | int]:
        """What both apps read from Flower's run configuration."""
        return {
            "study": str(self.folder / "study.yaml"),
            "folder": str(self.folder),
            "site-files": str(self.folder / "sites"),
            "sites": len(self.sites),
        }


def write_site_folders(manifest: Manifest, out: Path) -> dict[str, Path]:
    """Write ``out/<site>/manifest.csv`` for every site of the manifest; each site's folder by site name.

    A folder lists exactly the images given, so the caller passes those that may be trained on. Image and mask
    paths are absolute ones to the dataset's files: nothing is copied. Folder names are ``folder_names``'.
    DataError, before anything is written: no images, an image without site, two sites with one folder name.
    """
    if "site" not in manifest.table or manifest.table["site"].isna().any():
        raise DataError("every image needs a site before site folders are written; assign the sites first")
    if len(manifest) == 0:
        raise DataError(f"{out}: there are no images to write for any site; check the split and the dataset")
    names = sorted(set(manifest.table["site"]))
    folders = folder_names(names)
    parts = {name: manifest.where((manifest.table["site"] == name).to_numpy(dtype=bool)) for name in names}
    return {name: part.write_located(out / folders[name]) for name, part in parts.items()}


def folder_names(sites: list[str]) -> dict[str, str]:
    """A safe folder name for each site: letters and digits of any script, dot, dash, underscore, no leading dot.

    DataError when two sites would share a folder, also on file systems that ignore case.
    """
    taken: dict[str, str] = {}
    names: dict[str, str] = {}
    for site in sites:
        name = re.sub(r"[^\w.-]+", "-", site).strip(".-")[:80] or "site"
        if (other := taken.get(name.casefold())) is not None:
            raise DataError(f"sites {other!r} and {site!r} would share the folder {name!r}; rename one of them")
        taken[name.casefold()] = site
        names[site] = name
    return names
