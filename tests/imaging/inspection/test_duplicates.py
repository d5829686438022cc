"""Copies within and across patients: the same bytes, the same pixels in another format, or saved again."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from imaging.inspection.duplicates import duplicate_findings
from imaging.inspection.examine import look_at
from imaging.inspection.finding import Finding
from imaging.listing.manifest import Manifest


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Five patients, three images each."""
    for number in range(15):
        smooth = gaussian_filter(np.random.default_rng(number).normal(size=(64, 64)), 3)
        path = tmp_path / f"p{number % 5}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)).save(path)
    return tmp_path


def found(site: Path, known: bool = True) -> dict[str, Finding]:
    manifest = Manifest.from_folder(site)
    inspected_files = list(look_at(manifest, range(len(manifest)), None, "test"))
    return {finding.kind: finding for finding in duplicate_findings(inspected_files, known)}


def test_different_images_are_no_copies(site: Path) -> None:
    assert found(site) == {}


def test_a_copy_of_the_same_patient(site: Path) -> None:
    shutil.copy(site / "p0" / "0.png", site / "p0" / "copy.png")
    finding = found(site)["copies"]
    assert finding.text.startswith("1 image is an exact copy")
    assert finding.examples == ("p0/0.png = p0/copy.png",)


def test_the_same_pixels_in_another_format_of_another_patient(site: Path) -> None:
    Image.open(site / "p0" / "0.png").save(site / "p1" / "other.bmp")
    only = found(site)
    assert only.keys() == {"copies across patients"}
    assert only["copies across patients"].examples == ("p0/0.png = p1/other.bmp",)
    assert "different patients" in only["copies across patients"].text


@pytest.mark.parametrize("how", ["jpeg", "smaller", "paler"])
def test_a_image_saved_again_for_another_patient(site: Path, how: str) -> None:
    with Image.open(site / "p0" / "0.png") as image:
        if how == "jpeg":
            image.save(buffer := io.BytesIO(), "JPEG", quality=60)
            (site / "p1" / "again.jpg").write_bytes(buffer.getvalue())
        elif how == "smaller":
            image.resize((40, 40)).save(site / "p1" / "again.png")
        else:
            Image.fromarray((np.asarray(image) * 0.8 + 20).astype(np.uint8)).save(site / "p1" / "again.png")
    assert found(site).keys() == {"near-copies across patients"}


def test_near_copies_of_one_patient_are_neighbouring_slices(site: Path) -> None:
    with Image.open(site / "p0" / "0.png") as image:
        image.resize((60, 60)).save(site / "p0" / "next.png")
    assert found(site) == {}


def test_blank_images_are_no_copies_of_each_other(site: Path) -> None:
    for patient in ("p0", "p1"):
        Image.new("L", (64, 64), 9).save(site / patient / "blank.png")
    assert found(site) == {}


def test_without_patients_the_remedy_says_so(site: Path) -> None:
    shutil.copy(site / "p0" / "0.png", site / "p1" / "copy.png")
    finding = found(site, known=False)["copies across patients"]
    assert "no patient ids are known" in finding.text and "manifest" in finding.remedy
