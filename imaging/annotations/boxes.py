"""Boxes of images, in the frame in which an encoder sees these."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from foundation.errors import DataError, nearest
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest, slices
from imaging.reading.formats import FloatArray
from imaging.reading.readers import decode, fitted_box

Floats = npt.NDArray[np.float64]
FORM = "a list of [x0, y0, x1, y1, label]"
LARGEST = 1e9
"""No image has so many pixels along a side; what is no number is not below it either."""


@dataclass(frozen=True, eq=False)
class Boxes:
    """boxes: float32 ``[M, 4]``, x0, y0, x1, y1 in pixels of the encoder's image, edges and not middles of pixels;
    kinds: int64 ``[M]``, places in the task's classes."""

    boxes: FloatArray
    kinds: npt.NDArray[np.int64]


def read_boxes(table: pd.DataFrame, root: Path, image: ImageConfig, classes: Sequence[str]) -> list[Boxes]:
    """Boxes of the rows of a manifest's table, none of them dropped; an empty cell has none, as ``[]``.

    DataError, one line: as ``listed_boxes`` and ``placed_boxes``, a label that is none of ``classes``, volumes.
    """
    if image.depth is not None:
        raise DataError(f"boxes outline images, but image.depth is {image.depth}; leave it out, with a slice a row")
    rows = Manifest(table, root)
    names, cells, paths, frames = rows.table["image"], rows.table["boxes"], rows.paths(), slices(rows)
    found = []
    for row in range(len(rows)):
        listed, labels = listed_boxes(cells[row] if isinstance(cells[row], str) else "[]", names[row])
        kinds = np.array([_kind(label, classes, names[row]) for label in labels], dtype=np.int64)
        height, width = decode(paths[row], image.channels, frames[row]).pixels.shape[1:] if labels else (1, 1)
        found.append(Boxes(placed_boxes(listed, names[row], (height, width), image), kinds))
    return found


def placed_boxes(listed: Floats, name: str, size: tuple[int, int], image: ImageConfig) -> FloatArray:
    """Boxes ``[M, 4]`` of the image ``name`` where ``readers.prepare`` puts it, float32.

    size: height and width of the file's image. DataError, one line, for a box that reaches out of it.
    """
    height, width = size
    outside = ((listed < 0) | (listed > np.array([width, height, width, height]))).any(axis=1)
    if outside.any():
        raise DataError(
            f"{name}: box {_shown(listed[outside][0])} reaches out of the image, which is {width} pixels wide and "
            f"{height} high; give boxes in pixels of the file, cut at its edge"
        )
    top, left, new_height, new_width = fitted_box(height, width, image.size)
    corner, across, down = np.array([left, top, left, top]), new_width / width, new_height / height
    moved: Floats = corner + listed * np.array([across, down, across, down])
    return moved.clip(corner, np.array([left + new_width, top + new_height] * 2)).astype(np.float32)


def listed_boxes(text: str, name: str) -> tuple[Floats, list[str]]:
    """The boxes ``[M, 4]`` of a manifest's cell in pixels of the file ``name``, and their labels.

    DataError, one line: no JSON of the form, a number that is not finite, a label that is neither text nor a whole
    number, an edge that does not lie behind its opposite.
    """
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: boxes {text[:80]!r} are no JSON ({error}); give {FORM}, or [] for none") from error
    if not isinstance(listed, list):
        raise DataError(f"{name}: boxes {text[:80]!r} are no list; give {FORM}, or [] for none")
    for box in listed:
        if not _is_box(box):
            raise DataError(f"{name}: box {json.dumps(box)[:80]} is not [x0, y0, x1, y1, label]; correct it")
        if box[2] <= box[0] or box[3] <= box[1]:
            raise DataError(
                f"{name}: box {_shown(box)} has no extent; x1 has to be above x0, and y1 above y0: correct or remove it"
            )
    places = np.array([box[:4] for box in listed], dtype=np.float64).reshape(-1, 4)
    return places, [str(box[4]).strip() for box in listed]


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 5:
        return False
    *numbers, label = box
    named = bool(label.strip()) if isinstance(label, str) else type(label) is int
    return named and all(type(value) in (int, float) and abs(value) < LARGEST for value in numbers)


def _kind(label: str, classes: Sequence[str], name: str) -> int:
    if label not in classes:
        raise DataError(
            f"{name}: has a box with the label {label!r}, but the classes are {', '.join(classes)}"
            f"{nearest(label, classes)}; correct it, or name it in classes"
        )
    return list(classes).index(label)


def _shown(box: Sequence[float] | Floats) -> str:
    return "[" + ", ".join(f"{value:g}" for value in box[:4]) + "]"
