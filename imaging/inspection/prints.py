"""What images are compared by, to find those that are there twice: all pixels, a hash, a thumbnail."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import interpolate

from foundation.files import digest, write_with
from foundation.progress import track
from imaging.inspection.examine import BLANK
from imaging.listing.clusters import DISTANCE, difference_hash, thumbnail, unit_vector
from imaging.reading.formats import FloatArray
from imaging.store import TensorStore

CORRELATION = 0.99
"""Of thumbnails, beside ``clusters.DISTANCE`` of hashes; from SURE on the hash is not asked.

Of images saved again (JPEG 60, 60 % of the size, paler, another gamma) these find all brain slices, breast
ultrasounds, fundus photographs and blood smears, 92 % of nuclei after JPEG and 78 % of endoscopies made paler. No two
of 1,262 brain slices of 77 patients, 28 fundus photographs of 14 children or 1,584 adrenal glands are taken for one
image; in breast ultrasound, blood smears and chest X-rays every pair looked at was one indeed.
"""
SURE = 0.998
LIT = 0.97
"""Correlation where either image is brighter than _DARK of its range: two endoscopies in the same black mask, or two
images with the same black borders, are not alike for that. Of 21 such pairs of two videos it leaves 1."""
_DARK = 0.05
_ROWS = 256  # images compared with all others at once
_PAIRS = 4096  # pairs of thumbnails looked at again at once
_AT_ONCE = 64  # images read at once
_SLABS, _SIDE = 8, 16  # a volume's thumbnail


@dataclass(frozen=True, eq=False)
class Prints:
    """What images are compared by.

    digest: ``[N]`` of all pixels, "" where the image shows nothing or cannot be read: it is no copy of another.
    hash: uint64 ``[N]``, see ``clusters.difference_hash``. thumbnail: float ``[N, D]`` of mean 0 and length 1.
    """

    digest: npt.NDArray[np.str_]
    hash: npt.NDArray[np.uint64]
    thumbnail: npt.NDArray[np.floating]


def near_copies(prints: Prints, rows: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """``[P, 2]``: images of ``rows`` with those of ``columns`` that are nearly, but not exactly, the same."""
    found = [np.empty((0, 2), dtype=np.int64)]
    rows, columns = (places[prints.digest[places] != ""] for places in (rows, columns))
    against = prints.thumbnail[columns].astype(np.float32).T
    for start in range(0, len(rows), _ROWS):
        block = rows[start : start + _ROWS]
        alike = prints.thumbnail[block].astype(np.float32) @ against
        close = np.bitwise_count(prints.hash[block, None] ^ prints.hash[None, columns]) <= DISTANCE
        close = (close & (alike >= CORRELATION)) | (alike >= SURE)
        left, right = np.nonzero(close)
        found.append(np.stack([block[left], columns[right]], axis=1))
    pairs = np.concatenate(found)
    pairs = pairs[prints.digest[pairs[:, 0]] != prints.digest[pairs[:, 1]]]
    parts = [pairs[start : start + _PAIRS] for start in range(0, len(pairs), _PAIRS)]
    kept = [part[_lit_correlation(prints.thumbnail, part) >= LIT] for part in parts]
    return np.concatenate([found[0], *kept])


def _lit_correlation(thumbnails: npt.NDArray[np.floating], pairs: npt.NDArray[np.int64]) -> FloatArray:
    """``[P]``, over the cells in which either of the two is brighter than _DARK of its own range."""
    one, other = (_stretched(thumbnails[pairs[:, side]].astype(np.float32)) for side in (0, 1))
    lit = np.maximum(one, other) > _DARK
    one, other = (side - (side * lit).sum(1, keepdims=True) / lit.sum(1, keepdims=True) for side in (one, other))
    one, other = one * lit, other * lit
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    correlation: FloatArray = (one * other).sum(1) / np.maximum(lengths, 1e-12)
    return correlation


def _stretched(thumbnails: FloatArray) -> FloatArray:
    low, high = thumbnails.min(1, keepdims=True), thumbnails.max(1, keepdims=True)
    stretched: FloatArray = (thumbnails - low) / np.maximum(high - low, 1e-12)
    return stretched


def store_prints(store: TensorStore, *, progress: bool = True) -> Prints:
    """Of the images of a store, as an encoder gets them (of a volume all slices); kept in the store."""
    path = store.folder / "prints.npz"
    if not path.is_file():
        parts = [
            _print(image)
            for start in track(range(0, len(store), _AT_ONCE), "looking for copies", show=progress)
            for image in store.batch(np.arange(start, min(start + _AT_ONCE, len(store))))
        ]
        digests, hashes, thumbnails = zip(*parts, strict=True)
        arrays: dict[str, npt.NDArray[Any]] = {
            "digest": np.array(digests, dtype=np.str_),
            "hash": np.array(hashes, dtype=np.uint64),
            "thumbnail": np.stack(thumbnails),
        }
        write_with(path, lambda handle: np.savez(handle, allow_pickle=False, **arrays))
    with np.load(path) as kept:
        return Prints(kept["digest"], kept["hash"], kept["thumbnail"])


def _print(image: torch.Tensor) -> tuple[str, int, npt.NDArray[np.float16]]:
    """Digest, hash and thumbnail of an image ``[C, H, W]`` or volume ``[C, D, H, W]``."""
    pixels = image.numpy()
    code = "" if shows_nothing(pixels) else digest(str(pixels.shape), pixels.tobytes())
    if pixels.ndim == 3:
        return code, difference_hash(pixels), thumbnail(pixels).astype(np.float16)
    return code, difference_hash(pixels.mean(axis=1)), _volume_thumbnail(pixels).astype(np.float16)


def _volume_thumbnail(pixels: FloatArray) -> FloatArray:
    """``[slabs * side * side]``: the volume in slabs along its depth, as a vector of mean 0 and length 1."""
    grey = torch.from_numpy(np.ascontiguousarray(pixels.mean(axis=0, dtype=np.float64)))[None]
    small = interpolate(grey, (_SIDE, _SIDE), mode="bilinear", antialias=True)[0].numpy()
    return unit_vector(np.stack([part.mean(axis=0) for part in np.array_split(small, _SLABS)]).ravel())


def shows_nothing(pixels: FloatArray) -> bool:
    """Whether all of an image ``[C, ...]`` within its black borders has the value of one corner."""
    lit: npt.NDArray[np.bool_] = (pixels != 0).any(axis=0)
    for axis in range(lit.ndim):
        places = np.flatnonzero(lit.any(axis=tuple(other for other in range(lit.ndim) if other != axis)))
        if not len(places):
            return True
        pixels = pixels.take(np.arange(places[0], places[-1] + 1), axis=axis + 1)
    corner = pixels[(slice(None), *[slice(1)] * lit.ndim)]
    return bool((pixels == corner).mean() >= BLANK)
