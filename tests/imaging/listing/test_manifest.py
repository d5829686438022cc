"""The list of images: what it keeps, how it is built from a folder, what it refuses."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom.data import get_testdata_file

from foundation.errors import DataError
from imaging.listing.manifest import Manifest, slices


def csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4)).save(path)


def test_ids_stay_text_and_extra_columns_stay(tmp_path: Path) -> None:
    path = csv(
        tmp_path / "m.csv",
        "image,patient,series,site,label,slice,boxes,scanner\n"
        'a.png,007,1,NA,1,3,"[[0,0,2,2,""polyp""]]",GE\n'
        "b.png,12,1,NA,0,,,Philips\n",
    )
    manifest = Manifest.read(path)
    assert manifest.table["patient"].tolist() == ["007", "12"]
    assert manifest.table["site"].tolist() == ["NA", "NA"]  # a name, not a missing value
    assert manifest.table["label"].tolist() == [1, 0]
    assert manifest.table["boxes"].iloc[0] == '[[0,0,2,2,"polyp"]]' and manifest.table["boxes"].isna().iloc[1]
    assert manifest.table["scanner"].tolist() == ["GE", "Philips"]
    assert slices(manifest) == [3, None]
    assert manifest.paths() == [tmp_path / "a.png", tmp_path / "b.png"]
    assert manifest.unit == "patient" and len(manifest) == 2


def test_absolute_paths_stay_and_numeric_patients_become_text(tmp_path: Path) -> None:
    manifest = Manifest(pd.DataFrame({"image": ["/x/a.png"], "patient": [7]}), tmp_path)
    assert manifest.paths() == [Path("/x/a.png")]
    assert manifest.table["patient"].tolist() == ["7"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_what_is_written_is_read_back(tmp_path: Path, suffix: str) -> None:
    table = pd.DataFrame(
        {
            "image": ["a.png", "b.png"],
            "patient": ["01", "02"],
            "site": ["None", None],
            "slice": [4, None],
            "label": [0.5, np.nan],
        }
    )
    before = Manifest(table, tmp_path)
    before.write(tmp_path / f"m{suffix}")
    after = Manifest.read(tmp_path / f"m{suffix}")
    pd.testing.assert_frame_equal(before.table, after.table)
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"m{suffix}"]  # no temporary file is left


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("image,patient\n", "lists no images"),
        ("image,patent\na.png,1\n", "no column 'patient'.*did you mean 'patent'"),
        ("image,patient\na.png,1\nb.png,\n", r"row 2 \(b.png\) has an empty 'patient'"),
        ("image,patient\na.png,  \n", "empty 'patient'"),
        ("image,patient\n,1\n", "row 1 has an empty 'image'"),
        ("image,patient\na.png,1\na.png,1\n", "'a.png' is listed twice"),
        (
            "image,patient,site\na.png,p9,DU\nb.png,p9,HT\nc.png,p1,HT\n",
            "patient 'p9' is listed in 2 sites, 'DU' and 'HT'",
        ),
        ("image,patient,slice\na.nii,1,first\n", "'slice' must hold whole numbers"),
        ("image,patient,slice\na.nii,1,1.5\n", "'slice' must hold whole numbers"),
    ],
)
def test_a_bad_manifest_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        Manifest.read(csv(tmp_path / "m.csv", text))
    assert "\n" not in str(caught.value) and "m.csv" in str(caught.value)


def test_files_that_are_no_manifests(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.csv: there is no such manifest"):
        Manifest.read(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"not '.txt'"):
        Manifest.read(csv(tmp_path / "m.txt", "image,patient\na,1\n"))
    with pytest.raises(DataError, match="cannot be read as a manifest"):
        Manifest.read(csv(tmp_path / "m.parquet", "not parquet"))
    with pytest.raises(DataError, match=r"not '.txt'"):
        Manifest(pd.DataFrame({"image": ["a"], "patient": ["1"]}), tmp_path).write(tmp_path / "m.txt")


def test_slices_of_one_volume_are_different_images(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": ["v.nii", "v.nii"], "patient": ["1", "1"], "slice": [0, 1]})
    assert len(Manifest(table, tmp_path)) == 2
    with pytest.raises(DataError, match="listed twice"):
        Manifest(table.assign(slice=1), tmp_path)


def test_a_located_manifest_finds_its_images_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a relative root too; a missing mask stays missing, an absolute path stays what it is."""
    names = ["a.png", "b/c.png", str(tmp_path / "elsewhere.png")]
    for name in names:
        image(tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    table = pd.DataFrame(
        {"image": names, "patient": ["1", "2", "3"], "mask": [None, "a.png", None], "label": [0, 1, 0]}
    )
    folder = Manifest(table, Path("data")).write_located(tmp_path / "new" / "place")
    monkeypatch.chdir("/")
    assert {path.name for path in folder.iterdir()} == {"manifest.csv"}
    read = Manifest.read(folder / "manifest.csv")
    assert read.paths() == [tmp_path / "data" / "a.png", tmp_path / "data" / "b" / "c.png", tmp_path / "elsewhere.png"]
    assert read.table["mask"].isna().tolist() == [True, False, True]
    assert read.table["mask"][1] == str(tmp_path / "data" / "a.png")
    assert read.table[["patient", "label"]].to_numpy().tolist() == [["1", 0], ["2", 1], ["3", 0]]


def test_where_keeps_order_and_may_be_empty(tmp_path: Path) -> None:
    manifest = Manifest(pd.DataFrame({"image": list("abc"), "patient": list("xyz")}), tmp_path, "image cluster")
    some = manifest.where(manifest.table["patient"] != "y")
    assert some.table["image"].tolist() == ["a", "c"] and some.unit == "image cluster"
    assert some.table.index.tolist() == [0, 1]
    assert len(manifest.where(np.zeros(3, dtype=bool))) == 0
    with pytest.raises(DataError, match="must be 3 booleans"):
        manifest.where(np.arange(3))


def test_codes(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "image": list("abcd"),
            "patient": ["p", "q", "p", "q"],
            "series": ["1", "1", "1", None],
            "label": [5, 3, 3, 5],
        }
    )
    manifest = Manifest(table, tmp_path)
    patient, series, label = (manifest.codes(name) for name in ("patient", "series", "label"))
    assert patient.dtype == np.int64 and patient[0] == patient[2] != patient[1] == patient[3]
    assert series[0] == series[2] and len(set(series.tolist())) == 3  # "1" of p is not "1" of q; unknown is its own
    assert label[0] == label[3] != label[1] == label[2]
    assert patient.min() == 0 and series.min() == 0
    with pytest.raises(DataError, match=r"no column 'serie'.*did you mean 'series'"):
        manifest.codes("serie")


def test_from_folder_takes_the_first_subfolder_as_patient(tmp_path: Path) -> None:
    for name in ("p1/a.png", "p1/week2/b.JPG", "p2/c.tif", ".cache/d.png"):
        image(tmp_path / name)
    (tmp_path / "p2" / "notes.txt").write_text("not an image")
    manifest = Manifest.from_folder(tmp_path)
    assert manifest.table["image"].tolist() == ["p1/a.png", "p1/week2/b.JPG", "p2/c.tif"]
    assert manifest.table["patient"].tolist() == ["p1", "p1", "p2"]
    assert manifest.unit == "patient"


def test_a_flat_folder_knows_no_patients(tmp_path: Path) -> None:
    image(tmp_path / "b.png")
    image(tmp_path / "a.png")
    manifest = Manifest.from_folder(tmp_path)
    assert manifest.table["patient"].tolist() == ["a", "b"] and manifest.unit == "image cluster"
    assert list(manifest.table) == ["image", "patient"]


def test_from_folder_reads_dicom_headers(tmp_path: Path) -> None:
    shutil.copy(str(get_testdata_file("CT_small.dcm")), tmp_path / "one.dcm")
    (tmp_path / "disc").mkdir()
    shutil.copy(str(get_testdata_file("MR_small.dcm")), tmp_path / "disc" / "IM000001")  # no suffix, as on discs
    (tmp_path / "disc" / "README").write_text("not an image")
    manifest = Manifest.from_folder(tmp_path)
    assert manifest.table["image"].tolist() == ["disc/IM000001", "one.dcm"]
    assert manifest.table["patient"].tolist() == ["4MR1", "1CT1"]
    assert manifest.table["series"].str.startswith("1.3.6.1.4.1.5962").all()
    assert manifest.unit == "patient"


def test_an_unreadable_dicom_file_is_listed_for_the_store_to_count(tmp_path: Path) -> None:
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "bad.dcm").write_bytes(b"\0" * 200)
    assert Manifest.from_folder(tmp_path).table["patient"].tolist() == ["p1"]


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no images"):
        Manifest.from_folder(tmp_path)
    with pytest.raises(DataError, match="there is no such folder"):
        Manifest.from_folder(tmp_path / "gone")


def test_open_prefers_a_manifest_in_the_folder(tmp_path: Path) -> None:
    image(tmp_path / "p" / "a.png")
    assert Manifest.open(tmp_path).table["patient"].tolist() == ["p"]
    path = csv(tmp_path / "manifest.csv", "image,patient\np/a.png,real\n")
    assert Manifest.open(tmp_path).table["patient"].tolist() == ["real"]
    assert Manifest.open(path).table["patient"].tolist() == ["real"]


def test_the_real_index(shared: Path) -> None:
    manifest = Manifest.read(shared / "data" / "lgg_mri_128" / "index.csv")
    assert manifest.table.groupby("site")["patient"].nunique().to_dict() == {
        "CS": 13,
        "DU": 36,
        "EZ": 1,
        "HT": 27,
    }
    assert all(path.is_file() for path in manifest.paths())
    assert manifest.table["mask"].notna().sum() == (manifest.table["tumor"] == 1).sum()
