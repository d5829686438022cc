"""Pretend hospitals: each has its images as a real one has, with identifiers in the headers and nobody twice."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image

from federation.study import load_study
from foundation.errors import DataError
from imaging.inspection.identifiers import header_of
from imaging.listing.manifest import Manifest
from imaging.reading.readers import decode
from imaging.store import TensorStore
from simulation.walkthrough import pretend_hospitals
from simulation.walkthrough.pretend_dicom import person
from simulation.walkthrough.pretend_hospitals import make_hospitals

ROOT = Path(__file__).resolve().parents[3]
HOSPITALS = ("north", "south", "west")
IMAGES = 43  # the sixth patient has three


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pretend") / "hospitals"
    make_hospitals(out, IMAGES)
    return out


def listed(place: Path, who: str) -> Manifest:
    return Manifest.open(place / who / "images")


def tensors(place: Path, who: str, cache: Path) -> NDArray[np.float32]:
    """[N, 64, 64] as the walk-through's study has them."""
    image = load_study(ROOT / "configs" / "walkthrough.yaml").image
    manifest = listed(place, who)
    store = TensorStore.build(manifest, image, cache, progress=False)
    assert len(store) == len(manifest)
    return np.asarray(store.batch(np.arange(len(store)))[:, 0])


@pytest.mark.parametrize("who", HOSPITALS)
def test_a_2d_study_takes_every_hospital(place: Path, who: str, tmp_path: Path) -> None:
    """Every image can be read, is of its own, and shows a head upright: bright inside, dark in the corners."""
    manifest = listed(place, who)
    assert len(manifest) == IMAGES
    assert manifest.unit == "patient"
    assert manifest.table["patient"].value_counts().tolist() == [8, 8, 8, 8, 8, 3]
    assert "label" not in manifest.table
    pixels = tensors(place, who, tmp_path)
    assert len({image.tobytes() for image in pixels}) == IMAGES
    assert (pixels[:, 28:36, 28:36].mean(axis=(1, 2)) > 2 * pixels[:, :4, :4].mean(axis=(1, 2))).all()


def test_each_has_its_own_kind_of_files(place: Path) -> None:
    kinds = {who: {"".join(path.suffixes) for path in listed(place, who).paths()} for who in (*HOSPITALS, "evaluator")}
    assert kinds == {"north": {".dcm"}, "south": {".png"}, "west": {".nii.gz"}, "evaluator": {".png"}}
    assert not (place / "north" / "images" / "manifest.csv").exists()
    table = listed(place, "west").table
    assert list(table) == ["image", "patient", "slice"]
    assert table["image"].nunique() == 6
    assert table["slice"].tolist() == [*range(8)] * 5 + [0, 1, 2]


def test_a_volumes_slice_is_the_image_that_was_drawn(tmp_path: Path) -> None:
    """Written and read again, nothing is turned over."""
    drawn = [np.random.default_rng(index).integers(0, 65536, (5, 7), dtype=np.uint16) for index in range(3)]
    pretend_hospitals._write_volume(tmp_path / "a.nii.gz", [*drawn])
    for index, pixels in enumerate(drawn):
        image = decode(tmp_path / "a.nii.gz", 1, index)
        assert image.scale == "physical"
        np.testing.assert_array_equal(image.pixels[0], pixels >> 1)


def headers(place: Path) -> list[pydicom.Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # pydicom warns of values that the standard does not allow
        read = [pydicom.dcmread(path) for path in listed(place, "north").paths()]
        assert all(header.pixel_array.shape == (64, 64) for header in read)
        return read


def test_headers_hold_what_may_not_leave(place: Path) -> None:
    for header in headers(place):
        answer = header_of(header)
        assert {"PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "InstitutionName"} <= set(
            answer.identifiers
        )
        assert answer.name
        assert answer.birth
        assert "Nobody" in str(header.PatientName)
        assert person(str(header.PatientID)).PatientBirthDate == header.PatientBirthDate
    names = {str(header.PatientName) for header in headers(place)}
    assert len(names) == 6


def test_files_are_dicom_as_archives_take_it(place: Path) -> None:
    """One study a patient, series of four in places of their own along the body, no number twice."""
    read = headers(place)
    assert len({header.SOPInstanceUID for header in read}) == IMAGES
    assert len({header.StudyInstanceUID for header in read}) == 6
    by_series: dict[str, list[Any]] = {}
    for header in read:
        assert header.file_meta.MediaStorageSOPInstanceUID == header.SOPInstanceUID
        by_series.setdefault(str(header.SeriesInstanceUID), []).append(header)
    assert sorted(map(len, by_series.values())) == [3, *[4] * 10]
    for series in by_series.values():
        heights = [float(header.ImagePositionPatient[2]) for header in series]
        assert np.diff(heights).tolist() == [5.0] * (len(series) - 1)
        assert [header.InstanceNumber for header in series] == [*range(1, len(series) + 1)]
        assert len({header.PatientID for header in series}) == 1


def test_the_evaluators_patients_are_others_and_labelled(place: Path) -> None:
    """Of both classes, and nobody's image is anywhere else."""
    table = listed(place, "evaluator").table
    assert len(table) == 200
    assert table["patient"].nunique() == 50
    assert set(table["label"]) == {0, 1}
    patients = [set(listed(place, who).table["patient"]) for who in (*HOSPITALS, "evaluator")]
    assert len(set.union(*patients)) == sum(map(len, patients))
    seen = {
        np.asarray(Image.open(path)).tobytes() for who in ("south", "evaluator") for path in listed(place, who).paths()
    }
    assert len(seen) == IMAGES + 200


def test_the_same_files_each_time_and_more_images_keep_those_there_were(place: Path, tmp_path: Path) -> None:
    make_hospitals(tmp_path / "again", IMAGES)
    make_hospitals(tmp_path / "more", 48)
    assert contents(tmp_path / "again") == contents(place)
    more = contents(tmp_path / "more")
    fewer = {name: data for name, data in contents(place).items() if name.endswith((".dcm", ".png"))}
    assert fewer.items() <= more.items()


def contents(place: Path) -> dict[str, bytes]:
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def test_too_few_and_a_folder_that_is_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^39 images a hospital are fewer than 40, .*; give more$"):
        make_hospitals(tmp_path / "hospitals", 39)
    (tmp_path / "mine").write_text("dear")
    with pytest.raises(DataError, match=r"mine: is there already; remove it, or give another folder$"):
        make_hospitals(tmp_path / "mine", 40)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_text() == "dear"


def test_stopped_in_the_middle_it_leaves_nothing_that_looks_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pretend_hospitals, "_west", interrupted)
        with pytest.raises(KeyboardInterrupt):
            make_hospitals(tmp_path / "hospitals", 40)
    assert not (tmp_path / "hospitals").exists()
    make_hospitals(tmp_path / "hospitals", 40)
    assert [path.name for path in tmp_path.iterdir()] == ["hospitals"]


def test_the_command_says_what_is_where(fedpretext: Any, tmp_path: Path) -> None:
    said = fedpretext("pretend-hospitals", "hospitals", "--images", "40")
    assert said.code == 0
    lines = said.out.splitlines()
    assert [line.split(":")[0] for line in lines[:4]] == ["north", "south", "west", "evaluator"]
    assert lines[0] == "north: 40 DICOM files of 5 patients; names and birth dates in their headers"
    assert lines[4] == f"in {tmp_path / 'hospitals'}; all of it is drawn, and every name invented"
    assert max(map(len, lines[:4])) <= 80
    assert "give more" in fedpretext("pretend-hospitals", "others", "--images", "8").error
