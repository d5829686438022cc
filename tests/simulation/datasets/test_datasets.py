"""The table of datasets, and what each makes of its files."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from medmnist import INFO
from PIL import Image

from foundation.errors import DataError, StudyError
from imaging.annotations.boxes import read_boxes
from imaging.annotations.masks import read_masks
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from simulation.config import SimulationConfig
from simulation.datasets import DATASETS, bccd, dataset, medmnist
from simulation.datasets.medmnist import checked_file


def load(name: str, root: Path | None, workspace: Path, **options: Any) -> Manifest:
    return dataset(name).load(root, workspace, 0, options)


def test_every_entry_says_what_it_is_in_one_line() -> None:
    for name, entry in DATASETS.items():
        assert entry.name == name
        assert entry.summary and entry.source and "\n" not in entry.summary + entry.source


def test_a_misspelt_dataset_names_the_nearest() -> None:
    with pytest.raises(StudyError, match="did you mean 'phantoms'"):
        dataset("fantoms")
    with pytest.raises(ValueError, match="did you mean 'phantoms'"):
        SimulationConfig(dataset="fantoms")


def test_a_misspelt_option_is_refused_with_the_options_there_are() -> None:
    with pytest.raises(StudyError, match=r"options.image = 12.*has the options: images, size; did you mean 'images'"):
        dataset("phantoms").check_options({"image": 12})
    with pytest.raises(StudyError, match=r"simulation.options.size = 8: .*greater than or equal to 32"):
        dataset("phantoms").check_options({"size": 8})
    with pytest.raises(ValueError, match="lgg_mri_128 has no options"):
        SimulationConfig(dataset="lgg_mri_128", options={"size": 8})


@pytest.mark.parametrize("name", ["lgg_mri_128", "busi_224", "bccd", "dsb2018", "chase_db1", "folder"])
def test_a_missing_root_is_one_line_with_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--set simulation\.root=") as error:
        load(name, None, tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="there is no such"):
        load(name, tmp_path / "absent", tmp_path)


@pytest.mark.parametrize("name", ["lgg_mri_128", "busi_224", "dsb2018"])
def test_a_folder_that_is_not_the_dataset_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"index.csv: is missing"):
        load(name, tmp_path, tmp_path)
    (tmp_path / "index.csv").write_text("file,age\na.png,7\n")
    with pytest.raises(DataError, match=rf"lacks the column .*image.*not the index of '{name}'"):
        load(name, tmp_path, tmp_path)


def test_brain_mri_has_the_published_counts(shared: Path, tmp_path: Path) -> None:
    images = load("lgg_mri_128", shared / "data" / "lgg_mri_128", tmp_path)
    table = images.table
    assert images.unit == "patient"
    assert dict(table["site"].value_counts()) == {"DU": 698, "HT": 407, "CS": 145, "EZ": 12}
    assert dict(table.groupby("site")["patient"].nunique()) == {"DU": 36, "HT": 27, "CS": 13, "EZ": 1}
    assert all(path.is_file() for path in images.paths())
    # a mask is there exactly where the label says tumour, and it is not empty
    assert (table["mask"].notna() == (table["label"] == 1)).all()
    masks = [np.asarray(Image.open(images.root / mask)) for mask in table["mask"].dropna().iloc[::40]]
    assert all(mask.shape == (128, 128) and mask.any() for mask in masks)


def test_breast_ultrasound_has_clusters_for_patients_and_no_sites(shared: Path, tmp_path: Path) -> None:
    images = load("busi_224", shared / "data" / "busi_224", tmp_path)
    assert images.unit == "image cluster"
    assert dict(images.table["label"].value_counts()) == {"benign": 437, "malignant": 210, "normal": 133}
    assert "site" not in images.table
    clusters = images.table["patient"].nunique()
    assert 500 < clusters < 780  # the set is known to hold near-duplicates, and most images are none
    assert list(tmp_path.iterdir()) == []


def test_blood_smears_have_the_published_cells(shared: Path, tmp_path: Path) -> None:
    images = load("bccd", shared / "data" / "bccd", tmp_path)
    assert images.unit == "image cluster" and len(images) == 364 and "site" not in images.table
    assert all(path.is_file() for path in images.paths())
    boxes = [box for text in images.table["boxes"] for box in json.loads(text)]
    # 4,155 red cells are published; two of them are clicks without extent
    assert Counter(box[4] for box in boxes) == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    image = ImageConfig(modality="microscopy", size=64, channels=3)
    found = read_boxes(images.table.iloc[:9], images.root, image, bccd.CLASSES)
    # the first image's white cell is published as pixels 260 to 491 and 177 to 376 of 640 x 480, counted from 1
    np.testing.assert_allclose(found[0].boxes[0], [25.9, 8 + 17.6, 49.1, 8 + 37.6], rtol=1e-6)
    assert bccd.CLASSES[found[0].kinds[0]] == "WBC"


def test_an_annotation_that_is_not_of_the_set_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Annotations: holds no .xml file; point simulation.root"):
        load("bccd", tmp_path, tmp_path)
    (tmp_path / "Annotations").mkdir()
    cell = "<object><name>{}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>{}</xmax><ymax>9</ymax></bndbox></object>"
    for text, said in {
        f"<annotation>{cell.format('RBC', 9)}": "is no Pascal VOC annotation",
        f"<annotation>{cell.format('RBC', 'far')}</annotation>": "is no Pascal VOC annotation",
        "<annotation><object><name>RBC</name></object></annotation>": "is no Pascal VOC annotation",
        f"<annotation>{cell.format('Cat', 9)}</annotation>": "cell 'Cat' is none of Platelets, RBC, WBC",
    }.items():
        (tmp_path / "Annotations" / "a.xml").write_text(text)
        with pytest.raises(DataError, match=rf"a\.xml: {said}") as error:
            load("bccd", tmp_path, tmp_path)
        assert "\n" not in str(error.value)


def test_nuclei_have_the_published_counts_and_their_microscopes_as_sites(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "dsb2018_nuclei_256"
    grey, colour = load("dsb2018", root, tmp_path), load("dsb2018", root, tmp_path, colour=True)
    assert grey.unit == colour.unit == "image cluster"
    assert dict(colour.table["site"].value_counts()) == {"320x256-stained": 107}
    counts = dict(grey.table["site"].value_counts())
    assert counts["256x256-fluorescence"] == 334 and counts["1024x1024-brightfield"] == 16
    assert len(counts) == 9 and sum(counts.values()) == 557
    for images, channels in ((grey, 1), (colour, 3)):
        image = ImageConfig(modality="microscopy", size=32, channels=channels)
        share = read_masks(images.table.iloc[::20], images.root, image).mean()
        assert 0.05 < share < 0.5
        assert images.table["mask"].notna().all()


def test_fundus_photographs_are_of_two_eyes_and_two_graders(shared: Path, tmp_path: Path) -> None:
    root = shared / "data" / "chase_db1"
    image = ImageConfig(modality="fundus", size=240, channels=3)
    drawn = {}
    for grader in (1, 2):
        images = load("chase_db1", root, tmp_path, grader=grader)
        assert images.unit == "patient" and len(images) == 28 and "site" not in images.table
        assert images.table.groupby("patient")["series"].agg(list).tolist() == [["L", "R"]] * 14
        drawn[grader] = read_masks(images.table.iloc[:4], images.root, image) > 0
    both, either = drawn[1] & drawn[2], drawn[1] | drawn[2]
    assert 0.5 < both.sum() / either.sum() < 0.95  # two people draw the same vessels, not the same pixels
    with pytest.raises(StudyError, match=r"simulation.options.grader = 3: .*chase_db1 has the options: grader"):
        load("chase_db1", root, tmp_path, grader=3)


def test_a_folder_without_the_photographs_or_a_mask_is_one_line(shared: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no Image_01L\.jpg; point simulation\.root"):
        load("chase_db1", tmp_path, tmp_path)
    shutil.copy(shared / "data" / "chase_db1" / "Image_01L.jpg", tmp_path)
    with pytest.raises(DataError, match=r"Image_01L_2ndHO\.png: is missing; restore"):
        load("chase_db1", tmp_path, tmp_path, grader=2)


def test_a_folder_of_ones_own_is_read_as_a_manifest_or_by_subfolder(tmp_path: Path) -> None:
    for name in ("p1/a.png", "p1/b.png", "p2/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name)
    assert list(load("folder", tmp_path, tmp_path).table["patient"]) == ["p1", "p1", "p2"]
    table = pd.DataFrame({"image": ["p1/a.png", "p2/a.png"], "patient": ["x", "y"], "site": ["S", "T"]})
    table.to_csv(tmp_path / "mine.csv", index=False)
    config = SimulationConfig(dataset="folder", root=tmp_path / "mine.csv")
    assert list(config.load_dataset(tmp_path / "work", 0).table["site"]) == ["S", "T"]


def test_the_published_checksum_lets_the_official_file_pass(shared: Path) -> None:
    folder = shared / "data" / "adrenalmnist3d"
    for size, name in ((28, "adrenalmnist3d.npz"), (64, "adrenalmnist3d_64.npz")):
        assert checked_file("adrenalmnist3d", size, folder, download=False) == folder / name


def test_a_file_that_is_not_the_published_one_is_refused_and_kept(shared: Path, tmp_path: Path) -> None:
    trimmed = shared / "data" / "pneumoniamnist_trimmed" / "pneumoniamnist_trimmed.npz"
    copy = Path(shutil.copy(trimmed, tmp_path / "pneumoniamnist.npz"))
    for download in (False, True):
        with pytest.raises(DataError, match=r"is not the published file.*f5b994ec7c2fe8bc81ae15cbab7c3df8") as error:
            checked_file("pneumoniamnist", 28, tmp_path, download=download)
        assert "\n" not in str(error.value)
    assert copy.stat().st_size == trimmed.stat().st_size


def test_medmnist_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"pneumoniamnist.npz: is missing; put"):
        load("medmnist", tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"'adrenalmnist3d' is not published at 224 pixels"):
        load("medmnist", tmp_path, tmp_path, set="adrenalmnist3d", size=224)
    with pytest.raises(StudyError, match="did you mean 'pneumoniamnist'"):
        load("medmnist", tmp_path, tmp_path, set="pneumonia_mnist")


def test_a_failed_download_is_one_line_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setitem(INFO["breastmnist"], "url", "http://127.0.0.1:9/breastmnist.npz")  # nobody listens there
    with pytest.raises(DataError, match=r"breastmnist\.npz could not be downloaded; check the network") as error:
        load("medmnist", None, tmp_path, set="breastmnist")
    assert "\n" not in str(error.value)


def fake_set(folder: Path, name: str, counts: dict[str, int], labels: int, *channels: int) -> str:
    """A file in MedMNIST's layout; returns its MD5."""
    import hashlib

    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in counts.items():
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 28, 28, *channels), dtype=np.uint8)
        arrays[f"{split}_labels"] = generator.integers(0, 2, (count, labels), dtype=np.uint8)
    np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes the names for allow_pickle
    return hashlib.md5((folder / f"{name}.npz").read_bytes(), usedforsecurity=False).hexdigest()


@pytest.mark.parametrize(
    ("name", "labels", "channels"), [("breastmnist", 1, ()), ("pathmnist", 1, (3,)), ("chestmnist", 14, ())]
)
def test_medmnist_images_are_unpacked_once_and_whole(
    name: str, labels: int, channels: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, work = tmp_path / "root", tmp_path / "work"
    root.mkdir()
    counts = {"train": 5, "val": 2, "test": 3}
    monkeypatch.setitem(INFO[name], "MD5", fake_set(root, name, counts, labels, *channels))
    images = load("medmnist", root, work, set=name)
    assert images.unit == "image cluster" and len(images) == 10
    assert dict(images.table["published_split"].value_counts()) == counts
    source = np.load(root / f"{name}.npz")
    for index, path in enumerate(images.paths()[:5]):
        np.testing.assert_array_equal(np.load(path), source["train_images"][index])
    expected = [_label(row) for row in source["test_labels"]] if labels > 1 else source["test_labels"][:, 0].tolist()
    assert list(images.table["label"].iloc[7:]) == expected
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.npy")}
    assert load("medmnist", root, work, set=name).table.equals(images.table)
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*.npy")} == before


def _label(row: np.ndarray[Any, Any]) -> str:
    return "+".join(str(number) for number, present in enumerate(row) if present) or "none"


def test_an_interrupted_unpacking_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, work = tmp_path / "root", tmp_path / "work"
    root.mkdir()
    md5 = fake_set(root, "breastmnist", {"train": 3, "val": 1, "test": 1}, 1)
    monkeypatch.setitem(INFO["breastmnist"], "MD5", md5)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(medmnist, "replace_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            load("medmnist", root, work, set="breastmnist")
    assert not (work / "breastmnist-images").exists()
    assert len(load("medmnist", root, work, set="breastmnist")) == 5
