"""Made on the spot: head phantoms of six sites whose scanners differ, with a class, a mask and a box each.

The default of the demonstration, so that every stage of the product can be tried offline. What is drawn is in
simulation/datasets/phantom_anatomy.py, what the scanners do to it in simulation/datasets/phantom_scanner.py.
"""

import json
import shutil
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from foundation.configuration.section import Section
from foundation.files import digest, replace_folder
from foundation.randomness import numpy_generator
from imaging.listing.manifest import Manifest
from simulation.datasets.dataset import Dataset
from simulation.datasets.phantom_anatomy import DRAWING_VERSION, Anatomy, draw_anatomy, draw_slices
from simulation.datasets.phantom_scanner import Scanner

LISTING = "manifest.csv"
IMAGES_PER_PATIENT = 8


@dataclass(frozen=True)
class Site:
    """A hospital: its scanner, and its share of the largest one's images (or its few patients)."""

    scanner: Scanner
    share: float = 0.0
    few_patients: int = 0


SITES = {
    "A": Site(Scanner(gain=0.9, noise=0.012, shading=(0.0, 0.05)), share=1.0),
    "B": Site(Scanner(gain=0.8, gamma=0.85, noise=0.02, shading=(-0.1, 0.1)), share=0.85),
    "C": Site(Scanner(gain=0.95, gamma=1.15, noise=0.016, blur=0.012, shading=(-0.05, 0.1), bits=16), share=0.75),
    # the really shifted one: flat contrast, strong shading, ringing, more noise, half the signal
    "D": Site(Scanner(gain=0.55, gamma=0.5, noise=0.05, blur=0.018, ringing=0.3, shading=(0.05, 0.25)), share=0.85),
    # the very small one
    "E": Site(Scanner(gain=0.85, noise=0.02), few_patients=2),
    # meant to be left out of the federation
    "F": Site(Scanner(gain=0.75, gamma=1.25, noise=0.022, blur=0.015, shading=(-0.15, 0.05), bits=16), share=0.85),
}


class PhantomOptions(Section):
    """How many phantoms, and how large."""

    images: int = Field(
        default=240,
        ge=16,
        le=100_000,
        description="Images of the largest site; others have shares of it, the smallest always 2 patients.",
    )
    size: int = Field(default=64, ge=32, le=512, description="Side of the images, in pixels.")


def list_phantoms(root: Path | None, workspace: Path, seed: int, options: PhantomOptions) -> Manifest:
    """The phantoms of this seed and these options, drawn unless they lie whole below ``workspace``.

    Label 0: granular lesion, 1: striated. Masks are 1-bit PNG; boxes hold one ``[x0, y0, x1, y1, label]`` around
    the lesion, x1 and y1 exclusive. Sites A to F; D is shifted, E has two patients, F is meant to be left out.
    ``root`` is not used.
    """
    recipe = json.dumps([DRAWING_VERSION, seed, options.model_dump(), repr(SITES)])
    folder = workspace / f"phantoms-{digest(recipe)[:12]}"
    if not _whole(folder):
        _draw_all(folder, seed, options)
    return Manifest.read(folder / LISTING)


def patients_of(site: Site, images: int) -> int:
    """How many patients a site has when the largest one has ``images`` images."""
    return site.few_patients or max(2, round(site.share * images / IMAGES_PER_PATIENT))


def foresee_phantoms(seed: int, options: PhantomOptions) -> Manifest:
    """What ``list_phantoms`` lists, without drawing anything: neither files nor boxes are there."""
    rows = [row for site, number in _patients(options) for row in _patient(site, number, seed).rows()]
    return Manifest(pd.DataFrame(rows), Path())


def _patients(options: PhantomOptions) -> list[tuple[str, int]]:
    """Site and number of every patient."""
    return [(name, number) for name, site in SITES.items() for number in range(patients_of(site, options.images))]


@dataclass(frozen=True)
class _Patient:
    """What is known of a patient before the slices are drawn, and where the patient's draws go on."""

    name: str
    site: str
    anatomy: Anatomy
    labels: NDArray[np.int64]
    generator: np.random.Generator

    def rows(self) -> list[dict[str, Any]]:
        """The patient's part of the manifest, but for the boxes."""
        rows: list[dict[str, Any]] = []
        for index, label in enumerate(self.labels.tolist()):
            file = f"{self.name}_{index}.png"
            known = {"patient": self.name, "position": index, "site": self.site, "label": label}
            rows.append({"image": f"images/{file}", "mask": f"masks/{file}", **known})
        return rows


def _patient(site: str, number: int, seed: int) -> _Patient:
    name = f"{site}{number:04d}"
    generator = numpy_generator(seed, "phantoms", name)
    anatomy = draw_anatomy(generator)
    labels = (generator.random(IMAGES_PER_PATIENT) < anatomy.leaning).astype(np.int64)
    return _Patient(name, site, anatomy, labels, generator)


def _whole(folder: Path) -> bool:
    if not (folder / LISTING).is_file():
        return False
    table = Manifest.read(folder / LISTING).table
    return all((folder / name).is_file() for column in ("image", "mask") for name in table[column])


def _draw_all(folder: Path, seed: int, options: PhantomOptions) -> None:
    """Draw into a folder beside, then rename it: ``folder`` is whole or absent."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    (part / "images").mkdir(parents=True)
    (part / "masks").mkdir()
    rows = [row for site, number in _patients(options) for row in _draw_patient(part, site, number, seed, options.size)]
    Manifest(pd.DataFrame(rows), part).write(part / LISTING)
    replace_folder(part, folder)


def _draw_patient(folder: Path, site: str, number: int, seed: int, size: int) -> list[dict[str, Any]]:
    patient = _patient(site, number, seed)
    generator, anatomy, labels = patient.generator, patient.anatomy, patient.labels
    ideal, masks = draw_slices(anatomy, labels, size, generator)
    stored = SITES[site].scanner.acquire(ideal, generator)
    rows = patient.rows()
    for index, row in enumerate(rows):
        for place, drawn in (("images", stored[index]), ("masks", masks[index])):
            png = BytesIO()  # Pillow writes in many small pieces, which cost more than the drawing does
            Image.fromarray(drawn).save(png, "png", compress_level=1)
            (folder / place / Path(row["image"]).name).write_bytes(png.getvalue())
        row["boxes"] = json.dumps([[*box_around(masks[index]), row["label"]]])
    return rows


def box_around(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the mask's pixels, x1 and y1 exclusive."""
    ys, xs = np.nonzero(mask)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


PHANTOMS = Dataset(
    name="phantoms",
    summary="Head phantoms made on the spot; 6 sites (D shifted, E tiny, F to leave out); granular or striated lesion.",
    source="made by this program; free of rights",
    options=PhantomOptions,
    listing=list_phantoms,
    foresee=foresee_phantoms,
)
