"""Blood smears with a box around every cell, without patient ids: near-duplicate clusters stand for patients."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd

from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from simulation.datasets.busi import with_clusters
from simulation.datasets.dataset import Dataset, NoOptions, needed_root

CLASSES = ("Platelets", "RBC", "WBC")


def list_bccd(root: Path | None, workspace: Path, seed: int, options: NoOptions) -> Manifest:
    """``root``/JPEGImages with ``root``/Annotations (Pascal VOC); boxes of platelets, red and white cells.

    VOC counts pixels from 1 and names the last one of a box, the manifest names edges. Two of the 4,155 red cells are
    published as clicks without extent, and are left out. The published division into train, val and test is of
    images, and not used. Unit "image cluster", no site column.
    """
    folder = needed_root(root, "bccd", "JPEGImages and Annotations")
    files = sorted((folder / "Annotations").glob("*.xml"))
    if not files:
        raise DataError(f"{folder / 'Annotations'}: holds no .xml file; point simulation.root to the folder of 'bccd'")
    table = pd.DataFrame([_row(file) for file in files])
    return with_clusters(Manifest(table.assign(patient=table["image"]), folder, "image cluster"))


def _row(file: Path) -> dict[str, Any]:
    """An image and its boxes; the image is the one of the annotation's own name."""
    try:
        cells = [
            (_edges(cell), str(cell.findtext("name"))) for cell in ElementTree.parse(file).getroot().iter("object")
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise DataError(f"{file}: is no Pascal VOC annotation ({error}); restore the published file") from error
    if strange := sorted({name for _, name in cells} - set(CLASSES)):
        raise DataError(f"{file}: cell {strange[0]!r} is none of {', '.join(CLASSES)}; not an annotation of 'bccd'")
    boxes = [[*edges, name] for edges, name in cells if edges[2] - edges[0] > 1 and edges[3] - edges[1] > 1]
    return {"image": f"JPEGImages/{file.stem}.jpg", "boxes": json.dumps(boxes)}


def _edges(cell: ElementTree.Element) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the box's edges; ValueError where one is missing or no number."""
    left, top, right, bottom = (int(str(cell.findtext(f"bndbox/{key}"))) for key in ("xmin", "ymin", "xmax", "ymax"))
    return left - 1, top - 1, right, bottom


BCCD = Dataset(
    name="bccd",
    summary="Blood smears, 364 images; boxes of red cells, white cells and platelets; no patient ids.",
    source="BCCD, github.com/Shenggan/BCCD_Dataset; MIT",
    options=NoOptions,
    listing=list_bccd,
)
