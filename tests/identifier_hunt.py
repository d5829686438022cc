"""Pretend hospitals full of identifiers, and the search for any of them in bytes that were found elsewhere."""

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import yaml
from pydicom.data import get_testdata_file

Pixels = npt.NDArray[np.uint16]
SIDE = 32
IDENTIFIERS = {
    "PatientName": "DOE^SECRET", "PatientID": "MRN-0048151623", "PatientBirthDate": "19570311",
    "InstitutionName": "St. Elsewhere", "AccessionNumber": "ACC-4815162342", "StudyDate": "20231107",
    "StudyInstanceUID": "1.2.826.0.1.3680043.8.498.4815", "SeriesInstanceUID": "1.2.826.0.1.3680043.8.498.1623",
    "OperatorsName": "HOUSE^GREGORY", "StudyDescription": "Kopf nativ, V.a. Hirntumor",
}  # fmt: skip


@dataclass(frozen=True)
class Hospital:
    """A hospital's site file, all that must not be found elsewhere, and its pixels."""

    site_file: Path
    words: list[str]
    pixels: list[Pixels]


def write_hospital(place: Path, name: str, patients: int = 5, each: int = 2) -> Hospital:
    """A folder with a DICOM series a patient, named after the patient, as an export leaves it."""
    draw = np.random.default_rng(len(name))
    words, pixels = [str(place), place.name, *IDENTIFIERS.values()], []
    for patient in range(patients):
        folder = place / f"DOE_SECRET_{name}_{patient}"
        folder.mkdir(parents=True)
        for number in range(each):
            dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
            for tag, value in IDENTIFIERS.items():
                own = f"{value}.{patient}" if tag.endswith("UID") else value
                setattr(dataset, tag, f"{own}-{patient}" if tag == "PatientID" else own)
            dataset.SOPInstanceUID = f"1.2.826.0.1.3680043.8.498.99.{patient}.{number}"
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.Rows = dataset.Columns = SIDE
            array = draw.integers(0, 4096, (SIDE, SIDE)).astype(np.uint16)
            dataset.PixelData = array.tobytes()
            dataset.InstanceNumber = number + 1
            dataset.save_as(folder / f"IMG-{name}-{patient}-{number}.dcm")
            words.append(f"IMG-{name}-{patient}-{number}")
            pixels.append(array)
        words.append(folder.name)
    site = {"site": name, "data": str(place), "state": "state", "cache": "cache", "device": "cpu"}
    (place.parent / f"{place.name}.yaml").write_text(yaml.safe_dump(site))
    return Hospital(place.parent / f"{place.name}.yaml", words, pixels)


def forms(word: str) -> list[bytes]:
    """How a text may be written."""
    plain = word.encode()
    return [
        plain,
        word.encode("utf-16-le"),
        plain.hex().encode(),
        base64.b64encode(plain).rstrip(b"=")[:-1],
        plain[::-1],
    ]


def words_in(blobs: list[bytes], words: list[str]) -> set[str]:
    return {word for word in words for blob in blobs if any(form in blob for form in forms(word))}


def patterns(pixels: Pixels, stored: npt.NDArray[Any]) -> set[bytes]:
    """All 4 x 4 patches of an image, as the file, the cache and the trainer have them, and scaled to 8 bits."""
    unit = stored.astype(np.float32) / np.float32(65535)
    kinds = [pixels, pixels.astype(np.float32), (pixels >> 4).astype(np.uint8), stored, unit]
    kinds += [(stored >> 8).astype(np.uint8), unit.astype(np.float16), unit.astype(np.float64)]
    found: set[bytes] = set()
    for kind in kinds:
        windows = np.lib.stride_tricks.sliding_window_view(kind, (4, 4)).reshape(-1, 16)
        found |= {row.tobytes() for row in windows}
    return found


def patches_in(blobs: list[bytes], wanted: set[bytes]) -> int:
    """How many of the patches are somewhere in the blobs, at any offset."""
    starts = np.unique(np.array([int.from_bytes(each[:8], "little") for each in wanted], dtype=np.uint64))
    hits = 0
    for blob in blobs:
        data = np.frombuffer(blob, np.uint8)
        if len(data) < 16:
            continue
        at = np.lib.stride_tricks.sliding_window_view(data, 8)
        heads = np.ascontiguousarray(at).view("<u8")[:, 0]
        for offset in np.flatnonzero(np.isin(heads, starts)).tolist():
            hits += sum(blob[offset : offset + length] in wanted for length in (16, 32, 64, 128))
    return hits
