"""Prints: which images are nearly the same, against a double loop, and which show nothing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imaging.config import ImageConfig
from imaging.inspection.prints import CORRELATION, LIT, SURE, Prints, near_copies, shows_nothing, store_prints
from imaging.listing.clusters import difference_hash, thumbnail
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore

from ...tiers import examples


def unit(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    return np.asarray(centred / np.linalg.norm(centred, axis=-1, keepdims=True), dtype=np.float32)


def prints_of(thumbnails: np.ndarray, hashes: list[int], digests: list[str] | None = None) -> Prints:
    names = digests or [f"d{number}" for number in range(len(hashes))]
    return Prints(np.array(names, dtype=np.str_), np.array(hashes, dtype=np.uint64), unit(thumbnails))


def lit(one: np.ndarray, other: np.ndarray) -> float:
    stretched = [(side - side.min()) / np.ptp(side) for side in (one, other)]
    bright = np.maximum(*stretched) > 0.05
    return float(np.corrcoef(one[bright], other[bright])[0, 1])


@examples(30)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 24))
def test_pairs_are_those_of_a_double_loop(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    families = rng.random((3, 40))
    noise = rng.choice([0.0, 0.01, 0.03, 0.06], count)[:, None] * rng.normal(size=(count, 40))
    hashes = [
        int(rng.integers(2)) * (2**64 - 1) ^ int(rng.integers(2 ** int(rng.integers(1, 9)))) for _ in range(count)
    ]
    digests = [f"d{rng.integers(count)}" if rng.random() < 0.9 else "" for _ in range(count)]
    prints = prints_of(families[rng.integers(3, size=count)] + noise, hashes, digests)
    rows, columns = np.flatnonzero(rng.random(count) < 0.6), np.flatnonzero(rng.random(count) < 0.6)
    want = []
    for i in rows:
        for j in columns:
            alike = float(prints.thumbnail[i] @ prints.thumbnail[j])
            close = (hashes[i] ^ hashes[j]).bit_count() <= 6 and alike >= CORRELATION
            if "" not in (digests[i], digests[j]) and digests[i] != digests[j] and (close or alike >= SURE):
                want += [(i, j)] * (lit(prints.thumbnail[i], prints.thumbnail[j]) >= LIT)
    assert sorted(map(tuple, near_copies(prints, rows, columns).tolist())) == sorted(want)


def test_what_two_images_share_in_the_dark_does_not_count() -> None:
    """Two halves without likeness under one black mask: the thumbnails correlate by .99, the lit halves do not."""
    rng = np.random.default_rng(0)
    bright = 20 + rng.random((2, 50))
    masked = np.concatenate([np.zeros((2, 50)), bright], axis=1)
    prints = prints_of(masked, [0, 0])
    assert float(prints.thumbnail[0] @ prints.thumbnail[1]) > SURE
    assert len(near_copies(prints, np.array([0]), np.array([1]))) == 0
    again = prints_of(np.stack([masked[0], masked[0] * 1.1 + 3]), [0, 0])
    assert near_copies(again, np.array([0]), np.array([1])).tolist() == [[0, 1]]


def test_pairs_across_blocks_are_found() -> None:
    thumbnails = np.random.default_rng(0).random((700, 64))
    thumbnails[650], thumbnails[3] = thumbnails[10], thumbnails[699]
    found = near_copies(prints_of(thumbnails, list(range(700))), np.arange(350), np.arange(350, 700))
    assert found.tolist() == [[3, 699], [10, 650]]


@pytest.mark.parametrize("shape", [(2, 20, 30), (1, 10, 20, 30)])
def test_what_shows_nothing(shape: tuple[int, ...]) -> None:
    flat = np.zeros(shape, dtype=np.float32)
    assert shows_nothing(flat)
    flat[..., 4:15, 6:20] = 0.5  # grey with black borders, as an image that is not square gets them
    assert shows_nothing(flat)
    shape_ = flat.copy()
    shape_[..., 6:9, 8:14] = 0.0
    assert not shows_nothing(shape_)
    noise = np.random.default_rng(0).random(shape).astype(np.float32)
    assert not shows_nothing(noise)


def test_prints_of_a_store_are_kept_in_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(70):  # more than are read at once
        np.save(tmp_path / f"{number}.npy", rng.random((20, 20)).astype(np.float32))
    names = [f"{number}.npy" for number in range(70)]
    image = ImageConfig(modality="mri", size=20, channels=1)
    manifest = Manifest(pd.DataFrame({"image": names, "patient": names}), tmp_path)
    store = TensorStore.build(manifest, image, tmp_path / "store", progress=False)
    prints = store_prints(store, progress=False)
    last = store.batch([69])[0].numpy()
    assert prints.hash[69] == difference_hash(last)
    np.testing.assert_allclose(prints.thumbnail[69], thumbnail(last), atol=1e-3)
    assert len(set(prints.digest)) == 70
    (store.folder / "images.npy").unlink()
    again = store_prints(store, progress=False)  # from the file, not from images
    assert all((getattr(again, name) == getattr(prints, name)).all() for name in ("digest", "hash", "thumbnail"))
