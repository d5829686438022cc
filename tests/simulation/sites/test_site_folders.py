"""A simulated hospital's folder: its own images, nothing else."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from simulation.sites.site_folders import folder_names, write_site_folders


def dataset(root: Path, sites: dict[str, int]) -> Manifest:
    rows = []
    for site, count in sites.items():
        for index in range(count):
            name = f"{abs(hash_of(site))}_{index}.png"
            Image.fromarray(np.full((4, 4), index, np.uint8)).save(root / name)
            rows.append({"image": name, "patient": f"{site}-{index // 2}", "site": site, "label": index % 2})
    table = pd.DataFrame(rows)
    table["mask"] = [name if row % 2 else None for row, name in enumerate(table["image"])]
    return Manifest(table, root)


def hash_of(site: str) -> int:
    return int.from_bytes(site.encode(), "big")


def test_each_site_gets_its_own_images_by_absolute_path_and_nothing_is_copied(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    manifest = dataset(data, {"A": 4, "B": 3})
    folders = write_site_folders(manifest, tmp_path / "sites")
    assert folders == {"A": tmp_path / "sites" / "A", "B": tmp_path / "sites" / "B"}
    for site, count in (("A", 4), ("B", 3)):
        assert {path.name for path in folders[site].iterdir()} == {"manifest.csv"}
        read = Manifest.read(folders[site] / "manifest.csv")
        assert len(read) == count and set(read.table["site"]) == {site}
        assert all(path.is_absolute() and path.parent == data and path.is_file() for path in read.paths())
        masks = read.table["mask"]
        assert (
            all(Path(mask).is_file() for mask in masks.dropna())
            and masks.isna().sum() == manifest.table[manifest.table["site"] == site]["mask"].isna().sum()
        )


def test_only_the_images_given_are_listed(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, {"A": 6, "B": 4})
    training = manifest.where((manifest.table["patient"] != "A-1").to_numpy())
    text = (write_site_folders(training, tmp_path / "sites")["A"] / "manifest.csv").read_text()
    assert "A-0" in text and "A-2" in text and "A-1" not in text


@pytest.mark.parametrize(
    ("site", "folder"),
    [
        ("A", "A"),
        ("St. Mary's", "St.-Mary-s"),
        ("../../etc", "etc"),
        (".hidden", "hidden"),
        ("a/b\\c", "a-b-c"),
        ("??", "site"),
    ],
)
def test_site_names_are_safe_as_folders(site: str, folder: str) -> None:
    assert folder_names([site]) == {site: folder}


def test_folders_never_leave_the_place_they_are_written_to(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, {"../outside": 1, "..": 1})
    folders = write_site_folders(manifest, tmp_path / "sites")
    assert all(folder.resolve().parent == tmp_path / "sites" for folder in folders.values())


def test_two_sites_of_one_folder_name_are_refused() -> None:
    for first, second in itertools.permutations(["North 1", "north-1"]):
        with pytest.raises(DataError, match=r"would share the folder .*; rename one"):
            folder_names([first, second])


def test_no_images_and_no_sites_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    manifest = dataset(tmp_path, {"A": 4, "B": 2})
    nobody = manifest.where(np.zeros(6, dtype=bool))
    with pytest.raises(DataError, match="there are no images"):
        write_site_folders(nobody, tmp_path / "sites")
    with pytest.raises(DataError, match="needs a site"):
        write_site_folders(Manifest(manifest.table.drop(columns="site"), tmp_path), tmp_path / "sites")
    assert not (tmp_path / "sites").exists()
