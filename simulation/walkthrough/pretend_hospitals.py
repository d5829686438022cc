"""Three small pretend hospitals and an evaluator, to walk through a federation with: each as a real one has its files.

North has DICOM series with (invented) names, birth dates and addresses in their headers, south PNG files with a
manifest, west NIfTI volumes with a manifest of their slices. The evaluator has labelled PNG files of other patients.
What is shown are the phantoms of the demonstration.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from foundation.errors import DataError
from foundation.files import replace_folder
from foundation.progress import track
from foundation.randomness import numpy_generator
from imaging.listing.manifest import FILES, Manifest
from simulation.datasets.phantom_anatomy import draw_anatomy, draw_slices
from simulation.datasets.phantom_scanner import Scanner
from simulation.datasets.phantoms import IMAGES_PER_PATIENT, SITES
from simulation.walkthrough.pretend_dicom import SPACING_MM, write_series

SIZE = 64
FEWEST = 5 * IMAGES_PER_PATIENT  # a site's policy asks for five patients unless told otherwise
EVALUATOR_PATIENTS, EVALUATOR_EACH = 50, 4  # a fifth is tested, and fewer than ten patients get no interval
IMAGES = "images"


@dataclass(frozen=True)
class Slice:
    """One image ``[row, column]`` as a scanner stores it (8 or 16 bits, full scale), and its class."""

    pixels: NDArray[np.uint8] | NDArray[np.uint16]
    label: int


def make_hospitals(out: Path, images: int = 48) -> list[str]:
    """Draw ``out``/north, south, west and evaluator; each keeps its files in the folder ``images``. Lines to print.

    images: of each hospital, 8 a patient. The same files each time. DataError: fewer than 40, or ``out`` is there.
    """
    if images < FEWEST:
        raise DataError(f"{images} images a hospital are fewer than {FEWEST}, 8 of each of 5 patients; give more")
    if out.exists():
        raise DataError(f"{out}: is there already; remove it, or give another folder")
    out = out.absolute()
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    lines = [
        _north(part / "north" / IMAGES, images),
        _south(part / "south" / IMAGES, images),
        _west(part / "west" / IMAGES, images),
        _evaluator(part / "evaluator" / IMAGES),
    ]
    replace_folder(part, out)
    return [*lines, f"in {out}; all of it is drawn, and every name invented"]


def _north(folder: Path, images: int) -> str:
    for patient, slices in _drawn("N", images, SITES["C"].scanner):
        write_series(folder, patient, [slice_.pixels.astype(np.uint16) for slice_ in slices])
    return f"north: {images} DICOM files of {_patients(images)}; names and birth dates in their headers"


def _south(folder: Path, images: int) -> str:
    _write_png(folder, _drawn("S", images, SITES["A"].scanner), labelled=False)
    return f"south: {images} PNG files of {_patients(images)}, listed in manifest.csv"


def _west(folder: Path, images: int) -> str:
    rows: list[dict[str, Any]] = []
    folder.mkdir(parents=True)
    for patient, slices in _drawn("W", images, SITES["F"].scanner):
        name = f"{patient}.nii.gz"
        _write_volume(folder / name, [slice_.pixels for slice_ in slices])
        rows += [{"image": name, "patient": patient, "slice": index} for index in range(len(slices))]
    _list(folder, rows)
    return f"west: NIfTI volumes of {_patients(images)}, their {images} slices listed in manifest.csv"


def _evaluator(folder: Path) -> str:
    images = EVALUATOR_PATIENTS * EVALUATOR_EACH
    _write_png(folder, _drawn("E", images, SITES["B"].scanner, EVALUATOR_EACH), labelled=True)
    return f"evaluator: {images} labelled PNG files of {EVALUATOR_PATIENTS} other patients"


def _patients(images: int) -> str:
    return f"{-(-images // IMAGES_PER_PATIENT)} patients"


def _drawn(
    letter: str, images: int, scanner: Scanner, each: int = IMAGES_PER_PATIENT
) -> Iterator[tuple[str, list[Slice]]]:
    """Every patient's id and slices, ``each`` of them (the last patient may have fewer)."""
    for start in track(range(0, images, each), f"drawing {images} images"):
        patient = f"{letter}{start // each + 1:04}"
        generator = numpy_generator(0, "pretend hospitals", patient)
        anatomy = draw_anatomy(generator)
        labels = (generator.random(each) < anatomy.leaning).astype(np.int64)
        ideal, _masks = draw_slices(anatomy, labels, SIZE, generator)
        yield patient, list(map(Slice, scanner.acquire(ideal, generator), labels.tolist()))[: images - start]


def _write_png(folder: Path, drawn: Iterator[tuple[str, list[Slice]]], *, labelled: bool) -> None:
    """A folder a patient, and the manifest."""
    rows = []
    for patient, slices in drawn:
        (folder / patient).mkdir(parents=True)
        for index, slice_ in enumerate(slices):
            name = f"{patient}/{index}.png"
            Image.fromarray(slice_.pixels).save(folder / name)
            known = {"label": slice_.label} if labelled else {}
            rows.append({"image": name, "patient": patient, **known})
    _list(folder, rows)


def _write_volume(path: Path, slices: list[NDArray[Any]]) -> None:
    """Slices [row from the front, column from the patient's right] as an upright volume [x, y, z] of 15 bits."""
    from nibabel import Nifti1Image, save  # slow to import

    volume = np.stack([pixels.T[::-1, ::-1] for pixels in slices], axis=-1)
    apart, rows, columns = SPACING_MM
    affine = np.diag([columns, rows, apart, 1.0])
    save(Nifti1Image((volume >> 1).astype(np.int16), affine), path)  # type: ignore[no-untyped-call]  # nibabel


def _list(folder: Path, rows: list[dict[str, Any]]) -> None:
    Manifest(pd.DataFrame(rows), folder).write(folder / FILES[0])
