"""Findings that a manifest outlines (masks, boxes), placed in the square that the encoder sees."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from imaging.reading.readers import decode, fitted_box, resize


@dataclass(frozen=True, eq=False)
class Annotations:
    """mask: ``[S, S]``, true inside the finding, or None; boxes: ``(x0, y0, x1, y1)`` in pixels of the square."""

    mask: npt.NDArray[np.bool_] | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()


def are_outlined(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows of a manifest have a mask or a box."""
    filled: npt.NDArray[np.bool_] = table.reindex(columns=["mask", "boxes"]).notna().any(axis=1).to_numpy(dtype=bool)
    return filled


def findings_of(row: "pd.Series[Any]", root: Path, size: int) -> Annotations:
    """The findings of one image; DataError where a file that the manifest names cannot be read."""
    frame = None if pd.isna(row.get("slice")) else int(row["slice"])
    mask = None
    if pd.notna(row.get("mask")):
        inside: npt.NDArray[np.bool_] = decode(root / row["mask"], None, frame).pixels > 0
        mask = resize(inside[:1].astype(np.float32), size)[0] > 0.5
    boxes = []
    if pd.notna(row.get("boxes")):
        height, width = decode(root / row["image"], None, frame).pixels.shape[1:]
        top, left, new_height, new_width = fitted_box(height, width, size)
        for x0, y0, x1, y1, *_ in json.loads(row["boxes"]):
            across, down = new_width / width, new_height / height
            boxes.append((left + x0 * across, top + y0 * down, left + x1 * across, top + y1 * down))
    return Annotations(mask, tuple(boxes))
