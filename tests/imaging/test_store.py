"""Decode once: exact values, a key by content, interruptions, broken files, two builders, pickling."""

import pickle
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import imaging.store
from foundation.errors import DataError, RunError
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.reading.formats import FloatArray
from imaging.reading.readers import prepare
from imaging.store import TensorStore

IMAGE = ImageConfig(modality="x-ray", size=16, channels=1)


def site(folder: Path, count: int, **columns: list[object]) -> Manifest:
    rng = np.random.default_rng(count)
    folder.mkdir(exist_ok=True)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (16, 16), dtype=np.uint8)).save(folder / f"{index}.png")
    names = [f"{index}.png" for index in range(count)]
    patients = [f"p{index // 2}" for index in range(count)]
    return Manifest(pd.DataFrame({"image": names, "patient": patients, **columns}), folder)


def build(manifest: Manifest, folder: Path, image: ImageConfig = IMAGE) -> TensorStore:
    return TensorStore.build(manifest, image, folder, progress=False)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are decoded while the test runs."""
    names: list[str] = []

    def counted(path: Path, image: ImageConfig, frame: int | None) -> FloatArray:
        names.append(path.name)
        return prepare(path, image, frame)

    monkeypatch.setattr(imaging.store, "prepare", counted)
    return names


def test_8_bit_values_come_back_exactly(tmp_path: Path) -> None:
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / "ramp.png")
    manifest = Manifest(pd.DataFrame({"image": ["ramp.png"], "patient": ["a"]}), tmp_path)
    batch = build(manifest, tmp_path / "store").batch([0])
    assert batch.dtype == torch.float32 and batch.shape == (1, 1, 16, 16)
    torch.testing.assert_close(batch.ravel(), torch.arange(256, dtype=torch.float32) / 255, rtol=0, atol=0)


def test_all_65536_levels_are_kept(tmp_path: Path) -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.save(tmp_path / "a.npy", levels)
    manifest = Manifest(pd.DataFrame({"image": ["a.npy"], "patient": ["a"]}), tmp_path)
    image = ImageConfig(modality="x-ray", size=256, channels=1)
    batch = build(manifest, tmp_path / "store", image).batch([0])
    want = np.clip((levels - 327.675) / (65207.325 - 327.675), 0, 1)  # percentiles .5 and 99.5 of 0 to 65535
    assert np.abs(batch.numpy()[0, 0] - want).max() < 1e-5


def test_rows_keep_the_manifest_order_and_columns(tmp_path: Path) -> None:
    manifest = site(tmp_path / "a", 6, label=[0, 1, 0, 1, 0, 1], series=["s", "s", "s", "s", "s", "t"])
    manifest = manifest.where(np.array([True, True, False, True, True, True]))
    store = build(manifest, tmp_path / "store")
    assert len(store) == 5 and store.table["image"].tolist() == ["0.png", "1.png", "3.png", "4.png", "5.png"]
    assert store.labels is not None and store.labels.tolist() == [0, 1, 1, 0, 1]
    assert store.patients.dtype == np.int64 and store.patients.tolist() == [0, 0, 1, 2, 2]
    assert store.series.tolist() == [0, 0, 1, 2, 3]  # series "s" of three patients are three series
    for row, path in enumerate(manifest.paths()):
        want = torch.from_numpy(prepare(path, ImageConfig(modality="x-ray", size=16, channels=1)))
        torch.testing.assert_close(store.batch([row])[0], want, rtol=0, atol=1e-5)
    torch.testing.assert_close(store.batch(torch.tensor([4, 0, 4])), store.batch(np.array([4, 0, 4])))
    torch.testing.assert_close(store.batch([4, 0])[1], store.batch([0])[0])


def test_without_series_and_labels(tmp_path: Path) -> None:
    store = build(site(tmp_path / "a", 4), tmp_path / "store")
    assert store.series.tolist() == [0, 1, 2, 3] and store.labels is None and store.skipped == []


def test_a_found_entry_decodes_nothing_and_takes_new_labels(tmp_path: Path, decoded: list[str]) -> None:
    first = build(site(tmp_path / "a", 5, label=[0] * 5), tmp_path / "store")
    relabelled = Manifest(first.table.assign(label=1), tmp_path / "a")
    again = build(relabelled, tmp_path / "store")
    assert len(decoded) == 5 and again.folder == first.folder
    assert again.labels is not None and again.labels.tolist() == [1] * 5
    assert sorted(p.name for p in first.folder.iterdir()) == ["images.npy", "rows.json", "skipped.csv"]


def test_a_changed_file_or_setting_decodes_again(tmp_path: Path, decoded: list[str]) -> None:
    manifest = site(tmp_path / "a", 3)
    first = build(manifest, tmp_path / "store")
    Image.fromarray(np.full((16, 16), 255, dtype=np.uint8)).save(tmp_path / "a" / "1.png")
    changed = build(manifest, tmp_path / "store")
    assert changed.folder != first.folder and float(changed.batch([1]).min()) == 1.0
    build(manifest, tmp_path / "store", ImageConfig(modality="ultrasound", size=16, channels=1))  # the same pixels
    assert len(decoded) == 6
    build(manifest, tmp_path / "store", ImageConfig(modality="ct", size=16, channels=1))
    build(manifest, tmp_path / "store", ImageConfig(modality="x-ray", size=24, channels=1))
    assert len(decoded) == 12


def test_slices_of_one_volume_are_rows(tmp_path: Path) -> None:
    stack = np.stack([np.full((16, 16), value, dtype=np.uint8) for value in (0, 51, 255)])
    np.save(tmp_path / "v.npy", stack)
    table = pd.DataFrame({"image": ["v.npy"] * 2, "patient": ["a"] * 2, "slice": [2, 1]})
    store = build(Manifest(table, tmp_path), tmp_path / "store")
    assert store.batch([0, 1]).mean(dim=(1, 2, 3)).tolist() == pytest.approx([1.0, 0.2])


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = site(tmp_path / "a", 100)
    counted = vars(imaging.store)["prepare"]

    def stops(path: Path, image: ImageConfig, frame: int | None) -> Any:
        if len(decoded) == 70:
            raise KeyboardInterrupt
        return counted(path, image, frame)

    monkeypatch.setattr(imaging.store, "prepare", stops)
    with pytest.raises(KeyboardInterrupt):
        build(manifest, tmp_path / "store")
    monkeypatch.setattr(imaging.store, "prepare", counted)
    store = build(manifest, tmp_path / "store")
    assert len(decoded) == 100 and len(set(decoded)) == 100  # none twice
    whole = build(manifest, tmp_path / "other")
    torch.testing.assert_close(store.batch(range(100)), whole.batch(range(100)), rtol=0, atol=0)


KILLED = """
import os, signal, sys
from pathlib import Path
import imaging.store as store
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
real, done = store.prepare, []
def deadly(*arguments):
    done.append(1)
    if len(done) == 151:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments)
store.prepare = deadly
root = Path(sys.argv[1])
image = ImageConfig(modality="x-ray", size=16, channels=1)
store.TensorStore.build(Manifest.read(root / "a" / "m.csv"), image, root / "store", progress=False)
"""


def test_a_killed_build_goes_on_from_the_last_block(tmp_path: Path, decoded: list[str]) -> None:
    manifest = site(tmp_path / "a", 200)
    manifest.write(tmp_path / "a" / "m.csv")
    here = Path(__file__).resolve().parents[2]
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=here, check=False)
    assert ended.returncode == -9
    store = build(manifest, tmp_path / "store")
    assert len(decoded) == 200 - 128  # two blocks of 64 were safe
    whole = build(manifest, tmp_path / "other")
    torch.testing.assert_close(store.batch(range(200)), whole.batch(range(200)), rtol=0, atol=0)


def test_a_journal_of_a_lost_image_file_is_not_believed(tmp_path: Path, decoded: list[str]) -> None:
    manifest = site(tmp_path / "a", 10)
    store = build(manifest, tmp_path / "store")
    work = tmp_path / "store" / f".{store.folder.name}.building"
    store.folder.rename(work)
    (work / "rows.json").unlink()
    (work / "decoded.jsonl").write_text('{"done": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]}\n')
    (work / "images.npy").write_bytes(b"")
    assert float(build(manifest, tmp_path / "store").batch([3]).max()) > 0
    assert len(decoded) == 20


def test_two_builders_at_once_decode_once(tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = site(tmp_path / "a", 60)
    counted = vars(imaging.store)["prepare"]

    def slow(path: Path, image: ImageConfig, frame: int | None) -> Any:
        time.sleep(0.002)
        return counted(path, image, frame)

    stores: list[TensorStore] = []
    monkeypatch.setattr(imaging.store, "prepare", slow)
    threads = [threading.Thread(target=lambda: stores.append(build(manifest, tmp_path / "store"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores) == 3 and len(decoded) == 60
    torch.testing.assert_close(stores[0].batch([59]), stores[2].batch([59]))


def test_a_few_broken_files_are_left_out_and_listed(tmp_path: Path) -> None:
    manifest = site(tmp_path / "a", 40)
    (tmp_path / "a" / "7.png").write_bytes((tmp_path / "a" / "7.png").read_bytes()[:60])
    (tmp_path / "a" / "30.png").unlink()
    store = build(manifest, tmp_path / "store")
    assert len(store) == 38 and "7.png" not in set(store.table["image"])
    assert [row["image"] for row in store.skipped] == ["7.png", "30.png"]
    assert "cannot be read" in store.skipped[0]["reason"] and "there is no such" in store.skipped[1]["reason"]
    want = torch.from_numpy(prepare(tmp_path / "a" / "39.png", ImageConfig(modality="x-ray", size=16, channels=1)))
    torch.testing.assert_close(store.batch([37])[0], want, rtol=0, atol=1e-5)  # rows after the gaps are right
    assert [row["image"] for row in build(manifest, tmp_path / "store").skipped] == ["7.png", "30.png"]


def test_more_than_5_percent_broken_stops(tmp_path: Path, decoded: list[str]) -> None:
    manifest = site(tmp_path / "a", 40)
    for index in (20, 8, 11):
        (tmp_path / "a" / f"{index}.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"3 of 40 images \(7.5%\).*more than 5%; first: .*8.png") as caught:
        build(manifest, tmp_path / "store")
    assert "\n" not in str(caught.value)
    listed = Path(str(caught.value).split("all are listed in ")[1])
    assert pd.read_csv(listed)["image"].tolist() == ["8.png", "11.png", "20.png"]
    decoded.clear()
    with pytest.raises(DataError, match="3 of 40"):  # asked again, only the broken ones are tried
        build(manifest, tmp_path / "store")
    assert sorted(decoded) == ["11.png", "20.png", "8.png"]


def test_images_of_another_channel_count_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"10 of 10 .*0.png: has 1 channel, but image.channels is 3"):
        build(site(tmp_path / "a", 10), tmp_path / "store", ImageConfig(modality="x-ray", size=16, channels=3))


def test_an_empty_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images"):
        build(site(tmp_path / "a", 2).where(np.zeros(2, dtype=bool)), tmp_path / "store")


def test_a_pickled_store_is_a_path_not_images(tmp_path: Path) -> None:
    store = build(site(tmp_path / "a", 50), tmp_path / "store")
    want = store.batch(range(50))
    data = pickle.dumps(store)
    assert len(data) < 50 * 16 * 16  # half of the images' own bytes
    torch.testing.assert_close(pickle.loads(data).batch(range(50)), want, rtol=0, atol=0)


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = site(tmp_path / "a", 80)
    with monkeypatch.context() as patch:
        usage = type("Usage", (), {"free": 100})
        patch.setattr("imaging.store.shutil.disk_usage", lambda path: usage)
        with pytest.raises(RunError, match=r"needs 0.0 GB, but 0.0 GB are free"):
            build(manifest, tmp_path / "store")
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 1:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("imaging.store.os.fsync", full)
        with pytest.raises(RunError, match=r"cannot be written \(No space left on device\)"):
            build(manifest, tmp_path / "store")
    decoded.clear()
    assert len(build(manifest, tmp_path / "store")) == 80
    assert len(decoded) == 80 - 64  # the first block was safe


def test_indices_out_of_range_are_errors(tmp_path: Path) -> None:
    store = build(site(tmp_path / "a", 3), tmp_path / "store")
    with pytest.raises(IndexError):
        store.batch([3])


def test_a_real_site(shared: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(shared / "data" / "lgg_mri_128" / "index.csv")
    manifest = manifest.where(manifest.table["site"] == "EZ")
    store = build(manifest, tmp_path, ImageConfig(modality="mri", size=64, channels=3))
    assert len(store) == 12 and set(store.patients.tolist()) == {0}
    with Image.open(manifest.paths()[5]) as image:
        small = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)) / 255
    torch.testing.assert_close(
        store.batch([5])[0].numpy(), small.transpose(2, 0, 1).astype(np.float32), rtol=0, atol=0.01
    )
    assert (store.folder / "images.npy").stat().st_size < 12 * 3 * 64 * 64 * 2 + 200
