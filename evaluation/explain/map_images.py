"""Small PNGs of images and of maps over them: 8 bits, the same bytes each time, nothing said beside pixels."""

import io
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from evaluation.statistics.intervals import FloatArray

SIDE = 160
"""Pixels of a tile, or the next multiple of its grid: cells stay squares, and a full palette stays below 30 kB."""
THIRD = 128  # pixels of an image among three
GAP = 6
COLUMNS = 4
LEVELS = 253
DARK, LIGHT, CLEAR = 253, 254, 255
"""Places in a map's palette after its levels: the two lines of a mark, and what lies between tiles."""
BRIGHTEST = 99.8  # percentile of a grey image that is shown white
HIDDEN = "#93a0b4"  # as on the sheet of ``fedpretext preview``
RING = 0.035  # radius of the mark on an image, as a share of its side

ByteArray = NDArray[np.uint8]
Cell = tuple[int, int]


def maps_png(
    maps: Sequence[FloatArray], ranges: Sequence[tuple[float, float]], colours: str, cell: Cell | None
) -> bytes:
    """Maps ``[h, w]`` side by side, four a row, in a matplotlib colour scale from each one's low to its high.

    cell: row and column of a cell that is outlined in all of them.
    """
    tiles = []
    for values, (low, high) in zip(maps, ranges, strict=True):
        level = (np.asarray(values) - low) / max(high - low, 1e-12) * (LEVELS - 1)
        tile = enlarged(np.rint(level.clip(0, LEVELS - 1)).astype(np.uint8))
        if cell is not None:
            _outline(tile, cell, len(tile) // len(values))
        tiles.append(tile)
    sheet = Image.fromarray(_side_by_side(tiles))
    scale = mpl.colormaps[colours](np.linspace(0, 1, LEVELS))[:, :3]
    palette = np.concatenate([np.rint(scale * 255), [[0] * 3, [255] * 3, [255] * 3]]).astype(np.uint8)
    sheet.putpalette(palette.tobytes())
    return _png(sheet, transparency=CLEAR)


def colours_png(colours: FloatArray) -> bytes:
    """Of ``[h, w, 3]`` in [0, 1]."""
    return _png(Image.fromarray(enlarged(np.rint(colours * 255).astype(np.uint8))))


def plane_png(plane: NDArray[np.float32], point: tuple[float, float] | None) -> bytes:
    """A grey ``[H, W]`` or coloured ``[H, W, 3]`` image; ``point``: x and y in 0..1 of a ring on it.

    A grey one is stretched from 0 to its 99.8th percentile, a coloured one has 128 colours at the most.
    """
    white = 1.0 if plane.ndim == 3 else float(np.percentile(plane, BRIGHTEST)) or 1.0
    pixels = np.rint((plane / white).clip(0, 1) * 255).astype(np.uint8)
    small = np.array(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    if point is not None:
        rows, columns = np.ogrid[:SIDE, :SIDE]
        away = np.hypot(columns + 0.5 - point[0] * SIDE, rows + 0.5 - point[1] * SIDE) / (RING * SIDE)
        small[(away > 0.6) & (away < 1.6)] = 0
        small[(away > 0.85) & (away < 1.35)] = 255
    drawn = Image.fromarray(small)
    if plane.ndim == 3:
        drawn = drawn.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    return _png(drawn)


def triptych_png(planes: Sequence[NDArray[np.float32]]) -> bytes:
    """Planes ``[H, W]`` or ``[H, W, 3]`` of one size side by side, the first one's white; NaN: hidden, in blue-grey."""
    first = planes[0]
    white = 1.0 if first.ndim == 3 else float(np.percentile(first, BRIGHTEST)) or 1.0
    tiles = []
    for plane in planes:
        colours = np.repeat(plane[..., None] / white, 3, axis=2) if plane.ndim == 2 else plane
        hidden = np.isnan(colours[..., :1])
        colours = np.where(hidden, mpl.colors.to_rgb(HIDDEN), np.nan_to_num(colours).clip(0, 1))
        tile = Image.fromarray(np.rint(colours * 255).astype(np.uint8))
        tiles += [np.array(tile.resize((THIRD, THIRD), Image.Resampling.BICUBIC)), np.full((THIRD, GAP, 3), 255)]
    sheet = Image.fromarray(np.concatenate(tiles[:-1], axis=1).astype(np.uint8))
    return _png(sheet.quantize(128, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE))


def enlarged(grid: ByteArray) -> ByteArray:
    """Every cell of ``[h, w, ...]`` as a square of pixels, so that the longer side has 160 or a little more."""
    times = -(-SIDE // max(grid.shape[:2]))
    return np.asarray(grid.repeat(times, axis=0).repeat(times, axis=1))


def _outline(tile: ByteArray, cell: Cell, times: int) -> None:
    """A light line inside a dark one around a cell, in place; as thick as small cells bear."""
    top, left = (place * times for place in cell)
    for inset, colour in ((0, DARK), (1, DARK), (2, LIGHT), (3, LIGHT)):
        if times > 2 * inset:
            inner = tile[top + inset : top + times - inset, left + inset : left + times - inset]
            inner[[0, -1]], inner[:, [0, -1]] = colour, colour


def _side_by_side(tiles: Sequence[ByteArray]) -> ByteArray:
    height, width = tiles[0].shape
    columns = min(COLUMNS, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), CLEAR, dtype=np.uint8)
    for number, tile in enumerate(tiles):
        top, left = number // columns * (height + GAP), number % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def _png(drawn: Image.Image, **options: int) -> bytes:
    buffer = io.BytesIO()
    drawn.save(buffer, "PNG", optimize=True, **options)
    return buffer.getvalue()
