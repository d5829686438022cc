"""Planted leaks are found, told in one line, and left out or refused; real images of different patients are none."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from evaluation.tasks import leaks
from evaluation.tasks.leaks import (
    Screen,
    Shown,
    check_leaks,
    find_leaks,
    leak_caution,
    leak_sentence,
    patient_leak,
    write_seen,
)
from foundation.errors import DataError
from foundation.files import read_json, write_json
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore

IMAGE = ImageConfig(modality="mri", size=64, channels=1)
PATIENTS = 20


def image(seed: int) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(64, 64)), 3)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def saved_again(pixels: np.ndarray, path: Path) -> None:
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "JPEG", quality=60)
    path.write_bytes(buffer.getvalue())


class Run:
    """20 patients of two images each; the last five are tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "run"
        self.images = folder / "images"
        self.images.mkdir(parents=True)
        self.rows: list[tuple[str, str]] = []
        for number in range(2 * PATIENTS):
            self.add(f"{number:02d}.png", f"p{number // 2:02d}", image(number))
        self.roles = {0: {f"p{i:02d}": "test" if i >= 15 else "validation" if i == 14 else "train" for i in range(20)}}
        write_json(self.folder / "evaluation" / "image.json", IMAGE.model_dump(mode="json"))

    def add(self, name: str, patient: str, pixels: np.ndarray) -> None:
        if name.endswith(".jpg"):
            saved_again(pixels, self.images / name)
        else:
            Image.fromarray(pixels).save(self.images / name)
        self.rows.append((name, patient))

    def store(self) -> TensorStore:
        table = pd.DataFrame(self.rows, columns=["image", "patient"])
        return TensorStore.build(Manifest(table, self.images), IMAGE, self.folder / "store", progress=False)

    def check(self, scored: list[int] | None = None) -> Screen:
        rows = np.array(range(len(self.rows)) if scored is None else scored, dtype=np.int64)
        return check_leaks(self.folder, self.store(), self.roles, rows, progress=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_nothing_is_found_where_nothing_is_planted(run: Run) -> None:
    screen = run.check()
    assert screen.lines == () and leak_caution(screen.record) is None
    assert {fold: rows.tolist() for fold, rows in screen.left_out.items()} == {0: []}
    assert leak_sentence(screen.record).endswith("none the same or nearly the same.")


@pytest.mark.parametrize("original", [0, 28])
def test_an_exact_copy_is_refused_with_both_names(run: Run, original: int) -> None:
    """Of a training (0) and of a validation image (28), saved in another format."""
    run.add("copy.bmp", "p17", image(original))
    with pytest.raises(DataError) as caught:
        run.check()
    assert str(caught.value) == (
        f"fold 0: copy.bmp is tested and {original:02d}.png trained on, but they are the same image (1 such test "
        "image); remove one of them, or give both to one patient"
    )


def test_a_near_copy_is_left_out_said_and_kept(run: Run) -> None:
    run.add("again.jpg", "p17", image(3))
    screen = run.check()
    assert screen.left_out[0].tolist() == [40]
    assert screen.lines == (
        "1 of 11 test images (9%) left out: nearly the same as images trained on (again.jpg and 03.png, for one)",
    )
    kept = read_json(run.folder / "evaluation" / "leaks.json")
    assert kept["folds"] == [
        {"fold": 0, "tested": 11, "left_out": [{"tested": "again.jpg", "trained": "03.png", "row": 40}]}
    ]
    heading, text = leak_caution(kept) or ("", "")
    assert heading == "Near-copies were left out of the test." and text.startswith(
        "1 of 11 test images (9%) was nearly"
    )
    assert leak_sentence(kept).endswith("1 of 11 test images (9%) nearly the same, left out.")
    assert not any(".png" in said or ".jpg" in said for said in (text, leak_sentence(kept)))


def test_too_many_near_copies_are_no_test(run: Run) -> None:
    for number in range(3):
        run.add(f"again{number}.jpg", "p17", image(number))
    with pytest.raises(DataError, match=r"^fold 0: 3 of 13 test images \(23%\) are nearly the same .* the 20% that"):
        run.check()
    run.add("new.png", "p17", image(100))
    run.add("newer.png", "p17", image(101))
    assert run.check().left_out[0].tolist() == [40, 41, 42]  # 3 of 15 are 20 %: left out


def test_unlabelled_images_are_trained_on_but_not_tested(run: Run) -> None:
    run.add("again.jpg", "p17", image(3))
    everything = list(range(41))
    assert run.check([row for row in everything if row != 3]).left_out[0].tolist() == [40]
    assert run.check(everything[:-1]).left_out[0].tolist() == []


def test_copies_among_training_or_among_test_images_are_none(run: Run) -> None:
    run.add("train.bmp", "p01", image(20))
    run.add("test.bmp", "p17", image(38))
    run.add("role.bmp", "nobody", image(38))
    assert run.check().left_out[0].tolist() == []


def test_left_out_sites_are_tested_too(run: Run) -> None:
    run.roles[0]["p19"] = "left-out"
    run.add("copy.png", "p00", image(39))
    with pytest.raises(DataError, match=r"39\.png is tested and copy\.png trained on"):
        run.check()


def test_each_fold_has_its_own(run: Run) -> None:
    run.add("again.jpg", "p17", image(3))
    run.roles[1] = {f"p{i:02d}": "train" for i in range(5, 20)} | {f"p{i:02d}": "test" for i in range(5)}
    screen = run.check()
    assert {fold: rows.tolist() for fold, rows in screen.left_out.items()} == {0: [40], 1: [3]}
    assert [line.split(" left out")[0] for line in screen.lines] == [
        "1 of 11 test images (9%) of fold 0",
        "1 of 10 test images (10%) of fold 1",
    ]


def test_blank_images_are_no_copies(run: Run) -> None:
    for patient in ("p00", "p17"):
        run.add(f"blank-{patient}.png", patient, np.full((40, 64), 90, dtype=np.uint8))
    assert run.check().left_out[0].tolist() == []


def test_what_was_found_is_kept_until_roles_or_images_change(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.check()

    def refuse(*_: object) -> None:
        raise AssertionError("compared again")

    with monkeypatch.context() as patch:
        patch.setattr(leaks, "find_leaks", refuse)
        again = run.check()
        assert again.record == first.record
        run.roles[0]["p03"] = "test"
        with pytest.raises(AssertionError, match="compared again"):
            run.check()
        run.roles[0]["p03"] = "train"
        run.add("another.png", "p17", image(99))
        with pytest.raises(AssertionError, match="compared again"):
            run.check()


def test_images_that_another_run_trained_on(run: Run, tmp_path: Path) -> None:
    """The same image under another patient's name in the data of a run whose encoder is evaluated."""
    other = tmp_path / "other"
    other.mkdir()
    Image.fromarray(image(35)).save(other / "x.png")
    Image.fromarray(image(200)).save(other / "y.png")
    table = pd.DataFrame({"image": ["x.png", "y.png"], "patient": ["a", "b"]})
    write_seen(run.folder, {"runs/old": Manifest(table, other), "runs/older": Manifest(table, other)})
    with pytest.raises(
        DataError, match=r"35\.png is tested and \S*x\.png of runs/old trained on, but they are the same"
    ):
        run.check()
    (other / "x.png").unlink()
    assert run.check().left_out[0].tolist() == []
    saved_again(image(35), other / "y.png")
    assert run.check().left_out[0].tolist() == [35]


def test_a_patient_whom_a_run_trained_on() -> None:
    patient_leak({"a", "b"}, {"runs/1": {"c"}, "runs/2": set()})
    with pytest.raises(DataError) as caught:
        patient_leak(list("abcdef"), {"runs/1": {"x"}, "runs/2": set("bcdef")})
    assert str(caught.value) == (
        "runs/2 trained on 5 patients of the test set ('b', 'c', 'd' and 2 more); give them the role train, or leave "
        "its encoders out"
    )


def volume_store(folder: Path, volumes: dict[str, np.ndarray]) -> TensorStore:
    for name, volume in volumes.items():
        np.save(folder / name, volume)
    table = pd.DataFrame({"image": list(volumes), "patient": list(volumes)})
    image = ImageConfig(modality="mri", size=24, depth=16, channels=1)
    return TensorStore.build(Manifest(table, folder), image, folder / "store", progress=False)


def blob(seed: int) -> np.ndarray:
    smooth = gaussian_filter(np.random.default_rng(seed).normal(size=(16, 24, 24)), 2)
    return ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def test_volumes_are_compared_whole(tmp_path: Path) -> None:
    """Equal middle slices make no copy; one other voxel makes a near-copy of a copy."""
    same_middle = blob(2)
    same_middle[7:9] = blob(1)[7:9]
    touched = blob(1)
    touched[0, 0, 0] ^= 255
    store = volume_store(tmp_path, {"a.npy": blob(1), "b.npy": same_middle, "c.npy": touched, "d.npy": blob(1)})
    shown = Shown.of(store, progress=False)
    found = find_leaks(shown, np.array([1, 2, 3]), np.array([0]))
    assert [(pair.tested, pair.trained) for pair in found.exact] == [(3, 0)]
    assert [(pair.tested, pair.trained) for pair in found.near] == [(2, 0)]


def test_slices_of_a_stack_are_named(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.stack([image(1), image(2)]))
    table = pd.DataFrame({"image": ["v.npy"] * 2, "patient": ["v"] * 2, "slice": [0, 1]})
    store = TensorStore.build(Manifest(table, tmp_path), IMAGE, tmp_path / "store", progress=False)
    assert Shown.of(store, progress=False).images.tolist() == ["v.npy#0", "v.npy#1"]


def split_in_two(shown: Shown, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every second group against the others."""
    odd = np.unique(groups, return_inverse=True)[1] % 2 == 1
    return np.flatnonzero(odd), np.flatnonzero(~odd)


Listed = Callable[[str], tuple[pd.DataFrame, Path]]


@pytest.fixture
def listed(shared: Path) -> Listed:
    def read(name: str) -> tuple[pd.DataFrame, Path]:
        folder = shared / "data" / name
        return pd.read_csv(folder / "index.csv", dtype=str, keep_default_na=False), folder

    return read


@pytest.mark.slow
def test_brain_slices_of_different_patients_are_never_alike(listed: Listed, tmp_path: Path) -> None:
    table, folder = listed("lgg_mri_128")
    image = ImageConfig(modality="mri", size=128, channels=3)
    store = TensorStore.build(Manifest(table[["image", "patient"]], folder), image, tmp_path, progress=False)
    found = find_leaks(Shown.of(store, progress=False), *split_in_two(Shown.of(store), store.patients))
    assert found.exact == found.near == ()


@pytest.mark.slow
def test_known_duplicates_of_breast_ultrasound_are_found(listed: Listed, tmp_path: Path) -> None:
    """busi names no patients and is known to hold images twice, even benign ones as malignant."""
    table, folder = listed("busi_224")
    image = ImageConfig(modality="ultrasound", size=96, channels=1)
    table = table.assign(patient=table["image"])
    store = TensorStore.build(Manifest(table[["image", "patient"]], folder), image, tmp_path, progress=False)
    shown = Shown.of(store, progress=False)
    benign = np.char.startswith(shown.images, "benign")
    found = find_leaks(shown, np.flatnonzero(~benign), np.flatnonzero(benign))
    assert 1 <= len(found.exact) + len(found.near) < 20
    assert "benign/benign_433.png" in {shown.images[pair.trained] for pair in (*found.exact, *found.near)}


def test_shapes_of_adrenal_glands_are_not_alike(shared: Path, tmp_path: Path) -> None:
    """Binary shapes in the middle of a black box: the hash alone takes one pair in four for copies."""
    with np.load(shared / "data" / "adrenalmnist3d" / "adrenalmnist3d.npz") as kept:
        volumes = kept["val_images"]
    names = [f"{number:03d}.npy" for number in range(len(volumes))]
    for name, volume in zip(names, volumes, strict=True):
        np.save(tmp_path / name, volume)
    image = ImageConfig(modality="ct", size=32, depth=32, channels=1)
    table = pd.DataFrame({"image": names, "patient": names})
    store = TensorStore.build(Manifest(table, tmp_path), image, tmp_path / "store", progress=False)
    shown = Shown.of(store, progress=False)
    assert (shown.prints.digest != "").all()
    found = find_leaks(shown, *split_in_two(shown, store.patients))
    assert found.exact == found.near == ()
