"""Planted faults are found by their kind and file; clean images have none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.data import get_testdata_file
from scipy.ndimage import gaussian_filter

from imaging.config import ImageConfig
from imaging.inspection.examine import InspectedFile, look_at
from imaging.inspection.finding import Finding
from imaging.inspection.inspect_site import image_findings, image_tables
from imaging.listing.manifest import Manifest
from simulation.datasets.phantoms import PhantomOptions, list_phantoms

GREY = ImageConfig(modality="mri", size=32, channels=1)


def blobs(seed: int, side: int = 48) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 4)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


class Folder:
    """A hospital's folder of six patients with four images each, to plant faults in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for number in range(24):
            path = root / f"p{number // 4}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(blobs(number)).save(path)

    def inspected_files(self, image: ImageConfig | None = None) -> list[InspectedFile]:
        manifest = Manifest.from_folder(self.root)
        return list(look_at(manifest, range(len(manifest)), image, "test"))

    def found(self, image: ImageConfig | None = None) -> dict[str, Finding]:
        """The findings by kind, each once."""
        findings = image_findings(self.inspected_files(image), image)
        assert len({finding.kind for finding in findings}) == len(findings)
        for finding in findings:
            assert "\n" not in finding.line and str(self.root) not in finding.line
        return {finding.kind: finding for finding in findings}


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "site")


def dicom(path: Path, change: Callable[[pydicom.Dataset], None] = lambda _: None) -> Path:
    """A copy of pydicom's CT slice, changed."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    change(dataset)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path)
    return path


def test_clean_images_have_no_finding(folder: Folder) -> None:
    assert folder.found() == {} and folder.found(GREY) == {}


@pytest.mark.slow
def test_phantoms_and_a_dicom_series_have_no_error(tmp_path: Path, shared: Path) -> None:
    phantoms = list_phantoms(None, tmp_path, 0, PhantomOptions(images=16))
    series = Manifest.from_folder(shared / "data" / "dicom_series")
    for manifest in (phantoms, series):
        found = image_findings(list(look_at(manifest, range(len(manifest)), GREY, "test")), GREY)
        assert {finding.kind for finding in found} <= {"header identifiers", "burnt-in text"}
        assert not any(finding.level == "error" for finding in found)


def test_broken_files_with_the_decoders_reason(folder: Folder) -> None:
    (folder.root / "p0" / "empty.png").write_bytes(b"")
    whole = (folder.root / "p0" / "0.png").read_bytes()
    (folder.root / "p0" / "short.png").write_bytes(whole[: len(whole) // 2])
    np.save(folder.root / "p1" / "nan.npy", np.full((48, 48), np.nan, dtype=np.float32))
    cut = dicom(folder.root / "p2" / "cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-9000])
    broken = folder.found()["broken"]
    assert broken.text.startswith("4 of 28 images cannot be read") and broken.level == "error"
    reasons = dict(example.split(": ", 1) for example in broken.examples)
    assert reasons.keys() == {"p0/empty.png", "p0/short.png", "p1/nan.npy", "p2/cut.dcm"}
    assert reasons["p0/empty.png"] == "is empty (0 bytes)"
    assert "truncated" in reasons["p0/short.png"]
    assert "not finite" in reasons["p1/nan.npy"]
    assert "less than expected" in reasons["p2/cut.dcm"]


def test_few_broken_files_are_a_warning(folder: Folder) -> None:
    (folder.root / "p0" / "empty.png").write_bytes(b"")
    assert folder.found()["broken"].level == "warning"  # 1 of 25: a study leaves it out


def test_a_file_that_the_manifest_lists_and_is_not_there(folder: Folder) -> None:
    manifest = Manifest.from_folder(folder.root)
    (folder.root / "p3" / "12.png").unlink()
    inspected_files = list(look_at(manifest, range(len(manifest)), None, "test"))
    assert [finding.examples for finding in image_findings(inspected_files)] == [("p3/12.png: there is no such file",)]


def test_images_of_other_channels_are_not_for_the_study(folder: Folder) -> None:
    Image.fromarray(np.stack([blobs(90), blobs(91), blobs(92)], axis=2)).save(folder.root / "p0" / "colour.png")
    refused = folder.found(GREY)["not for this study"]
    assert refused.examples == (
        "p0/colour.png: has 3 channels, but image.channels is 1; set image.channels to 3 or convert the image",
    )
    mixed = folder.found()["mixed channels"]
    assert mixed.examples == ("p0/colour.png: 3 channels",) and "1 channel 24, 3 channels 1" in mixed.text


def test_a_volume_among_images(folder: Folder) -> None:
    np.save(folder.root / "p0" / "volume.npy", np.stack([blobs(100 + number) for number in range(9)]))
    for image in (None, GREY):
        finding = folder.found(image)["mixed dimensions"]
        assert finding.text == "1 volume among 24 single images"
        assert finding.examples == ("p0/volume.npy: 9 slices of 48 x 48",)


def test_a_multi_frame_dicom_among_images(folder: Folder) -> None:
    def doubled(dataset: pydicom.Dataset) -> None:
        dataset.NumberOfFrames, dataset.PixelData = 2, 2 * dataset.PixelData

    dicom(folder.root / "p0" / "frames.dcm", doubled)
    assert folder.found()["mixed dimensions"].examples == ("p0/frames.dcm: 2 slices of 128 x 128",)


def test_a_image_among_volumes(tmp_path: Path) -> None:
    for number in range(3):
        np.save(tmp_path / f"v{number}.npy", np.stack([blobs(10 * number + k) for k in range(9)]))
    Image.fromarray(blobs(99)).save(tmp_path / "flat.png")
    manifest = Manifest.from_folder(tmp_path)
    found = image_findings(list(look_at(manifest, range(4), None, "test")), None, patients_known=False)
    assert [finding.text for finding in found if finding.kind == "mixed dimensions"] == [
        "1 single image among 3 volumes"
    ]
    volumes = ImageConfig(modality="mri", size=32, depth=8, channels=1)
    found = image_findings(list(look_at(manifest, range(4), volumes, "test")), volumes, patients_known=False)
    assert [finding.examples[0].split(":")[0] for finding in found] == ["flat.png"]
    assert found[0].kind == "broken"


def test_slices_that_a_manifest_names_are_no_volumes(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.stack([blobs(k) for k in range(4)]))
    (tmp_path / "manifest.csv").write_text("image,patient,slice\nv.npy,1,0\nv.npy,1,1\n")
    manifest = Manifest.open(tmp_path)
    assert image_findings(list(look_at(manifest, range(2), GREY, "test")), GREY) == []


def test_blank_and_odd_sizes(folder: Folder) -> None:
    Image.fromarray(np.full((48, 48), 7, dtype=np.uint8)).save(folder.root / "p0" / "blank.png")
    Image.fromarray(blobs(200, side=240)).save(folder.root / "p1" / "large.png")
    Image.fromarray(blobs(201, side=11)).save(folder.root / "p2" / "tiny.png")
    found = folder.found(GREY)
    assert found["blank"].examples == ("p0/blank.png",)
    assert found["odd sizes"].examples == ("p1/large.png: 240 x 240", "p2/tiny.png: 11 x 11")
    assert found["small"].examples == ("p2/tiny.png: 11 x 11",)


def test_modalities(folder: Folder) -> None:
    for name, modality in {"a": "CT", "b": "CT", "c": "US"}.items():
        dicom(folder.root / "dicom" / f"{name}.dcm", lambda dataset, said=modality: setattr(dataset, "Modality", said))
    found = folder.found(GREY)
    assert "CT 2, US 1" in found["mixed modalities"].text
    assert len(found["other modality"].examples) == 3


def shaded(dataset: pydicom.Dataset, factor: float) -> None:
    dataset.PixelData = (dataset.pixel_array * factor).astype(np.int16).tobytes()


def test_persons_in_dicom_headers(folder: Folder) -> None:
    def jane(dataset: pydicom.Dataset) -> None:
        shaded(dataset, 0.5)
        dataset.PatientName, dataset.BurnedInAnnotation = "Roe^Jane", "YES"

    def elsewhere(dataset: pydicom.Dataset) -> None:
        shaded(dataset, 0.25)
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Poe^Edgar", "77", "18090119"

    def again(dataset: pydicom.Dataset) -> None:
        elsewhere(dataset)
        dataset.PatientID = "78"

    for number, change in enumerate((lambda _: None, jane, elsewhere, again)):
        dicom(folder.root / "dicom" / f"{number}.dcm", change)
    found = folder.found()
    assert found["shared id"].examples == ("dicom/0.dcm / dicom/1.dcm",)
    assert found["split person"].examples == ("dicom/2.dcm / dicom/3.dcm",)
    assert found["BurnedInAnnotation"].examples == ("dicom/1.dcm",)
    assert "headers never leave the site" in found["header identifiers"].remedy
    answer = repr(found) + repr(image_tables(folder.inspected_files(), Manifest.from_folder(folder.root)))
    for value in ("Roe", "Poe", "CompressedSamples", "18090119"):
        assert value not in answer


def test_burnt_in_text_says_how_good_the_detector_is(folder: Folder) -> None:
    image = Image.fromarray(blobs(50, side=128) // 2)
    ImageDraw.Draw(image).text((5, 30), "SMITH 4711", fill=255, font=ImageFont.load_default(16))
    image.save(folder.root / "p0" / "label.png")
    finding = folder.found()["burnt-in text"]
    assert finding.examples[0].startswith("p0/label.png: ") and " % false alarms" in finding.text


def test_facts(folder: Folder) -> None:
    dicom(folder.root / "dicom" / "0.dcm")
    manifest = Manifest.from_folder(folder.root)
    images, tags = image_tables(folder.inspected_files(), manifest)
    rows = {row[0]: row[1] for row in images.rows}
    assert rows["images looked at"] == "25" and rows["patients"] == "7"
    assert rows["formats"] == "PNG 24, DICOM 1" and rows["modality"] == "unknown 24, CT 1"
    assert rows["height"] == "48 to 128, median 48" and rows["stored values"] == "8-bit 24, 16-bit 1"
    assert ("PatientName", "person", "1") in tags.rows and ("private tags", "unknown", "1") in tags.rows
