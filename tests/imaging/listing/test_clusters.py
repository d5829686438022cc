"""Near-duplicates become one unit; images that merely look alike do not."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imaging.listing.clusters import difference_hash, image_clusters, join, near_pairs
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig, draw_splits


def test_the_hash_by_hand() -> None:
    rising = np.tile(np.arange(9, dtype=np.float32), (8, 1))[None]
    assert difference_hash(rising) == 2**64 - 1
    assert difference_hash(-rising) == 0
    one = np.zeros((1, 8, 9), dtype=np.float32)
    one[0, 0, 1:] = 1.0  # brighter than its left neighbour only at row 0, column 1: the first bit
    assert difference_hash(one) == 2**63


def test_the_hash_ignores_size_gain_and_channels() -> None:
    rng = np.random.default_rng(0)
    noise = rng.random((1, 40, 50)).astype(np.float32)
    assert difference_hash(noise) == difference_hash(np.repeat(noise * 4, 3, axis=0))
    smooth = Image.fromarray(blob(1))
    large, small = (np.asarray(smooth.resize(size), dtype=np.float32)[None] for size in ((200, 180), (60, 90)))
    assert (difference_hash(large) ^ difference_hash(small)).bit_count() <= 3


@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.integers(0, 40))
def test_pairs_are_those_of_a_double_loop(hashes: list[int], distance: int) -> None:
    want = [
        [i, j]
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= distance
    ]
    assert near_pairs(np.asarray(hashes, dtype=np.uint64), distance).tolist() == want


def test_pairs_across_blocks_are_found() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 1200, dtype=np.uint64)
    hashes[1100], hashes[700] = hashes[3] ^ np.uint64(5), hashes[600]
    assert near_pairs(hashes, 2).tolist() == [[3, 1100], [600, 700]]


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.tuples(*[st.integers(0, n - 1)] * 2)))))
def test_join_gives_connected_components(case: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = case
    reach = np.eye(count, dtype=bool)
    for left, right in pairs:
        reach[left, right] = reach[right, left] = True
    for _ in range(count):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    want = reach.argmax(axis=1)  # the smallest item that can be reached
    assert join(count, np.asarray(pairs, dtype=np.int64).reshape(-1, 2)).tolist() == want.tolist()


def scenes(folder: Path, names: dict[str, npt.NDArray[np.uint8]], **columns: list[str]) -> Manifest:
    for name, array in names.items():
        Image.fromarray(array).save(folder / name, quality=85)
    table = pd.DataFrame({"image": list(names), "patient": list(names), **columns})
    return Manifest(table, folder, "image cluster")


def blob(seed: int, brightness: float = 1.0) -> npt.NDArray[np.uint8]:
    small = Image.fromarray(np.random.default_rng(seed).integers(0, 200, (6, 6), dtype=np.uint8))
    return (np.asarray(small.resize((64, 64), Image.Resampling.BICUBIC)) * brightness).astype(np.uint8)


def test_copies_are_one_cluster_whatever_the_order(tmp_path: Path) -> None:
    names = {"b.png": blob(1), "a.jpg": blob(1, 0.8), "c.png": blob(2), "d.png": blob(1)[1:, 2:]}
    manifest = scenes(tmp_path, names)
    assert image_clusters(manifest, progress=False).tolist() == ["a.jpg", "a.jpg", "c.png", "a.jpg"]
    turned = Manifest(manifest.table.iloc[::-1], tmp_path, "image cluster")
    assert image_clusters(turned, progress=False).tolist() == ["a.jpg", "c.png", "a.jpg", "a.jpg"]


def test_sites_are_never_joined_and_unreadable_images_stand_alone(tmp_path: Path) -> None:
    names = {"a.png": blob(1), "b.png": blob(1), "c.png": blob(1), "d.png": blob(1)}
    manifest = scenes(tmp_path, names, site=["X", "X", "Y", "Y"])
    (tmp_path / "d.png").write_bytes(b"broken")
    clusters = image_clusters(manifest, progress=False)
    assert clusters.name == "patient" and clusters.tolist() == ["a.png", "a.png", "c.png", "d.png"]
    assert len(Manifest(manifest.table.assign(patient=clusters), tmp_path, manifest.unit)) == 4  # a valid manifest


def test_slices_are_images_of_their_own(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.stack([blob(1), blob(2), blob(1)]))
    table = pd.DataFrame({"image": ["v.npy"] * 3, "patient": ["v"] * 3, "slice": [0, 1, 2]})
    manifest = Manifest(table, tmp_path, "image cluster")
    assert image_clusters(manifest, progress=False).tolist() == ["v.npy#0", "v.npy#1", "v.npy#0"]


@pytest.fixture(scope="module")
def frames(shared: Path) -> tuple[Manifest, pd.Series]:
    table = pd.read_csv(shared / "data" / "polypgen_c1c3_224" / "index.csv")
    table = table[table["label"] == "negative"].assign(patient="all", site="video")
    manifest = Manifest(table, shared / "data" / "polypgen_c1c3_224", "image cluster")
    return manifest, image_clusters(manifest, progress=False)


def test_frames_of_different_videos_rarely_meet(frames: tuple[Manifest, pd.Series]) -> None:
    manifest, clusters = frames
    of_cluster = manifest.table.groupby(clusters.to_numpy())["sequence"].nunique()
    assert (of_cluster > 1).mean() < 0.02
    assert clusters.nunique() < 0.75 * len(manifest)  # and frames of one video often do
    assert clusters.value_counts().max() < 60


def test_clusters_are_split_whole(frames: tuple[Manifest, pd.Series]) -> None:
    manifest, clusters = frames
    grouped = Manifest(manifest.table.assign(patient=clusters), manifest.root, manifest.unit)
    table = draw_splits(grouped, SplitConfig(), 0)
    assert (table.groupby("patient")["role"].nunique() == 1).all()
    units = table.drop_duplicates("patient")["role"]
    assert (units == "test").sum() == round(0.2 * clusters.nunique())
