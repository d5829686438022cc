"""Near-duplicate images as the unit of splitting, for sets that know no patients."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch.nn.functional import interpolate

from foundation.errors import DataError
from foundation.progress import track
from imaging.listing.manifest import Manifest, slices
from imaging.reading.dicom_series import series_files
from imaging.reading.formats import FloatArray
from imaging.reading.readers import decode

DISTANCE = 6
CORRELATION = 0.97
_THUMB = 32
_ROWS = 512  # hashes compared with all others at once: 512 x N bytes of distances


def difference_hash(pixels: FloatArray) -> int:
    """64 bits: is each of 8 x 8 cells brighter than its left neighbour (dHash, Krawetz 2013).

    ``pixels`` [C, H, W] are averaged over channels and shrunk to 8 x 9 with antialiasing, the aspect ignored.
    """
    small = _shrunk(pixels, 8, 9)
    bits = (small[:, 1:] > small[:, :-1]).ravel()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def thumbnail(pixels: FloatArray) -> FloatArray:
    """[32 * 32]: the image as a vector of mean 0 and length 1, so that a dot product is a correlation."""
    return unit_vector(_shrunk(pixels, _THUMB, _THUMB).ravel())


def _shrunk(pixels: FloatArray, height: int, width: int) -> npt.NDArray[np.float64]:
    grey = torch.from_numpy(np.ascontiguousarray(pixels.mean(axis=0, dtype=np.float64)))[None, None]
    small: npt.NDArray[np.float64] = interpolate(grey, (height, width), mode="bilinear", antialias=True)[0, 0].numpy()
    return small


def unit_vector(values: npt.NDArray[np.float64]) -> FloatArray:
    """``[D]`` moved to mean 0 and scaled to length 1, as float32."""
    centred = values - values.mean()
    unit: FloatArray = (centred / max(float(np.linalg.norm(centred)), 1e-12)).astype(np.float32)
    return unit


def near_pairs(hashes: npt.NDArray[np.uint64], distance: int) -> npt.NDArray[np.int64]:
    """All pairs (i < j), [P, 2], of hashes that differ in at most ``distance`` bits."""
    found = [np.empty((0, 2), dtype=np.int64)]
    for start in range(0, len(hashes), _ROWS):
        block = hashes[start : start + _ROWS, None] ^ hashes[None, start:]
        rows, columns = np.nonzero(np.bitwise_count(block) <= distance)
        later = columns > rows
        found.append(np.stack([rows[later], columns[later]], axis=1) + start)
    return np.concatenate(found)


def join(count: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Per item the smallest item that a chain of ``pairs`` joins it with."""
    from scipy.sparse import coo_array  # not at the top: what only lists images does without scipy's second
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    parts: npt.NDArray[np.int64] = connected_components(graph, directed=False)[1]
    return np.unique(parts, return_index=True)[1].astype(np.int64)[parts]


def _file(path: Path) -> Path:
    """The file to look at: of a DICOM series' folder the middle one, as of other volumes the middle slice."""
    if not path.is_dir():
        return path
    try:
        files = series_files(path)
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    return files[len(files) // 2]


def image_clusters(manifest: Manifest, *, progress: bool = True) -> pd.Series:
    """A patient column of near-duplicate clusters, aligned with the manifest's rows.

    Two images of one site are near-duplicates where their difference hashes are at most DISTANCE of 64
    bits apart and their thumbnails correlate by CORRELATION; chains of such pairs form a cluster, named after
    its first image. The hash alone chains images of one layout: of 1,500 PolypGen frames it joins 589,
    and 37 % of its pairs come from one video; with the correlation 45 and 94 %. Sites are never joined, since
    a unit belongs to one site. An image that cannot be read is a cluster of its own; the tensor store will
    count it. Volumes are compared by their middle slice. Nothing is known of two different images of one
    person: intervals over clusters are optimistic.
    """
    frames, paths = slices(manifest), manifest.paths()
    hashes = np.zeros(len(manifest), dtype=np.uint64)
    thumbs = np.zeros((len(manifest), _THUMB * _THUMB), dtype=np.float32)
    readable = np.ones(len(manifest), dtype=np.bool_)
    for index in track(range(len(manifest)), "looking for near-duplicates", show=progress):
        try:
            pixels = decode(_file(paths[index]), None, frames[index]).pixels
            hashes[index], thumbs[index] = difference_hash(pixels), thumbnail(pixels)
        except DataError:
            readable[index] = False
    sites = manifest.codes("site") if "site" in manifest.table else np.zeros(len(manifest), dtype=np.int64)
    names = manifest.table["image"].astype(object)
    if "slice" in manifest.table:
        names = names + manifest.table["slice"].map(lambda value: f"#{value}", na_action="ignore").fillna("")
    clusters = names.copy()
    for site in np.unique(sites):
        rows = np.flatnonzero((sites == site) & readable)
        rows = rows[np.argsort(names.iloc[rows].to_numpy(), kind="stable")]  # the order of rows must not matter
        pairs = near_pairs(hashes[rows], DISTANCE)
        alike = np.einsum("pd,pd->p", thumbs[rows[pairs[:, 0]]], thumbs[rows[pairs[:, 1]]]) >= CORRELATION
        clusters.iloc[rows] = names.iloc[rows[join(len(rows), pairs[alike])]].to_numpy()
    return clusters.astype("str").rename("patient")
