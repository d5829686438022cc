"""Masks of images and volumes, in the frame in which an encoder sees these.

A mask file holds a whole number for each pixel: 0 for background. It is read as images are, so that a mask is turned
upright by its own header, and has the sides of its image as both are read.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image, ImageOps

from foundation.errors import DataError
from foundation.files import digest, write_with
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest, slices
from imaging.reading.formats import FloatArray, pick
from imaging.reading.readers import decode, decode_volume, fitted_box

Mask = npt.NDArray[np.uint8]
WHITE = 255
"""What 1-bit files and many drawing programs say for 1."""
_VERSION = 1  # raise it when reading changes, so that masks kept before are read anew


def read_masks(
    table: pd.DataFrame,
    root: Path,
    image: ImageConfig,
    classes: Sequence[str] | None = None,
    folder: Path | None = None,
) -> Mask:
    """Masks of the rows of a manifest's table: uint8 [N, S, S], or [N, D, S, S] of volumes.

    An empty cell gives zeros. Values and errors as ``mask_of``. With ``folder`` they are kept there, under a key that
    covers all settings and every file's path, size and time.
    """
    rows = Manifest(table, root)
    if folder is None:
        return _read_all(rows, image, classes)
    kept = folder / f"masks-{_key(rows, image, classes)}.npy"
    if kept.is_file():
        masks: Mask = np.load(kept)
        return masks
    masks = _read_all(rows, image, classes)
    write_with(kept, lambda handle: np.save(handle, masks))
    return masks


def mask_of(
    image_file: Path, mask: Path, image: ImageConfig, frame: int | None = None, classes: Sequence[str] | None = None
) -> Mask:
    """What the file ``mask`` outlines in ``image_file``, where ``readers.prepare`` puts it: uint8 [S, S], or [D, S, S].

    Without ``classes`` every value above 0 becomes 1 (an instance map, too, is a mask of its foreground). With K
    classes the file may hold 0 to K, or, of one class, 0 and 255. ``frame`` picks a slice of both files. Pixels are
    taken from their nearest neighbour, so that no value is mixed. DataError, one line: another size than the
    image's, another value, a fraction, colours, JPEG, a missing or damaged file.
    """
    labels = _labels(_values(mask, image, frame), classes, mask)
    sides, box = _frame_of(image_file, image, frame)
    if labels.shape != sides:
        what = "rows and columns" if image.depth is None else "slices, rows and columns"
        raise DataError(
            f"{mask}: has {list(labels.shape)} {what}, but its image {image_file} has {list(sides)}; name the mask "
            "that was drawn on this image, or resample it to the image's size"
        )
    top, left, height, width = box
    inner = _nearest(labels, (height, width) if image.depth is None else (image.depth, height, width))
    placed = np.zeros(image.shape[1:], dtype=np.uint8)
    placed[..., top : top + height, left : left + width] = inner
    return placed


def _read_all(rows: Manifest, image: ImageConfig, classes: Sequence[str] | None) -> Mask:
    if classes is not None and len(classes) >= WHITE:
        raise DataError(f"classes names {len(classes)} structures; a mask tells at most {WHITE - 1} apart")
    masks = np.zeros((len(rows), *image.shape[1:]), dtype=np.uint8)
    cells, paths, frames = rows.table["mask"], rows.paths(), slices(rows)
    for row in np.flatnonzero(cells.notna()).tolist():
        masks[row] = mask_of(paths[row], rows.root / cells[row], image, frames[row], classes)
    return masks


def _values(path: Path, image: ImageConfig, frame: int | None) -> FloatArray:
    """[H, W] or [D, H, W] as the file has them; DataError where they are no whole numbers from 0."""
    if not path.exists():
        raise DataError(f"{path}: there is no such mask; correct the manifest's cell, or empty it")
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        raise DataError(f"{path}: JPEG changes the values along a mask's edges; save masks as PNG")
    planes = decode_volume(path, 1).pixels if image.depth is not None else decode(path, None, frame).pixels
    if image.depth is None and len(planes) == 3:
        planes = _palette_numbers(path, frame, planes)
    if (planes != planes[:1]).any():
        raise DataError(
            f"{path}: has {len(planes)} channels (colours?); a mask has one number a pixel, 0 for background"
        )
    values: FloatArray = planes[0]
    if values.min() < 0 or (values != np.rint(values)).any():
        raise DataError(
            f"{path}: holds values from {values.min():g} to {values.max():g}, not only whole numbers from 0; "
            "cut a probability map at the threshold you want"
        )
    return values


def _palette_numbers(path: Path, frame: int | None, colours: FloatArray) -> FloatArray:
    """The numbers [1, H, W] behind the colours of a palette file, where it is one; else ``colours``."""
    if path.suffix.lower() not in {".png", ".tif", ".tiff", ".bmp"}:
        return colours
    with Image.open(path) as drawn:
        if drawn.mode != "P":
            return colours
        if (pages := getattr(drawn, "n_frames", 1)) > 1:
            drawn.seek(pick(pages, frame))
        return np.array(ImageOps.exif_transpose(drawn), dtype=np.float32, ndmin=3)


def _labels(values: FloatArray, classes: Sequence[str] | None, path: Path) -> Mask:
    """0 and 1, or 0 to K with K classes; DataError for another value."""
    count = 1 if classes is None else len(classes)
    white = count == 1 and bool(np.isin(values, (0, WHITE)).all())
    if classes is None or white:
        return (values > 0).astype(np.uint8)
    if (top := values.max()) > count:
        named = ", ".join(f"{number} {name}" for number, name in enumerate(classes, start=1))
        raise DataError(
            f"{path}: holds the value {top:g}, but classes names {named}; name a structure for every value, in order, "
            "or leave classes out: then all values above 0 are one"
        )
    return values.astype(np.uint8)


def _frame_of(path: Path, image: ImageConfig, frame: int | None) -> tuple[tuple[int, ...], tuple[int, int, int, int]]:
    """The image's sides as it is filed, and where ``readers.prepare`` puts it in the square."""
    if image.depth is None:
        height, width = decode(path, image.channels, frame).pixels.shape[1:]
        return (height, width), fitted_box(height, width, image.size)
    volume = decode_volume(path, image.channels)
    depth, height, width = volume.pixels.shape[1:]
    _, rows, columns = volume.spacing
    return (depth, height, width), fitted_box(height * rows, width * columns, image.size)


def _nearest(labels: Mask, sides: tuple[int, ...]) -> Mask:
    """Resampled to ``sides``, each new pixel from the old one in which its middle lies."""
    places = [(2 * np.arange(new) + 1) * old // (2 * new) for old, new in zip(labels.shape, sides, strict=True)]
    return labels[np.ix_(*places)]


def _key(rows: Manifest, image: ImageConfig, classes: Sequence[str] | None) -> str:
    files = []
    for path, cell, frame in zip(rows.paths(), rows.table["mask"], slices(rows), strict=True):
        drawn = isinstance(cell, str)
        files.append([frame, *_traces(rows.root / cell), *_traces(path)] if drawn else [])
    settings = [_VERSION, image.size, image.depth, image.channels, None if classes is None else list(classes)]
    return digest(json.dumps(settings), json.dumps(files))[:32]


def _traces(path: Path) -> list[str | int]:
    """Path, size and time of a file, or of all in a folder; the path alone where it is missing."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    stats = [file.stat() for file in files]
    return [str(path.absolute()), *(each for found in stats for each in (found.st_size, found.st_mtime_ns))]
