"""Volumes: every format gives its own intensities, upright, in millimetres; what holds no volume is one line."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pydicom
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom.data import get_testdata_file

from foundation.errors import DataError
from imaging.config import AugmentConfig, ImageConfig
from imaging.listing.clusters import image_clusters
from imaging.listing.manifest import Manifest
from imaging.reading.readers import decode, decode_volume, prepare, to_unit
from imaging.reading.volumes import resize_volume
from imaging.store import TensorStore

nib: Any = import_module("nibabel")  # its functions carry no types
BODY = np.random.default_rng(0).integers(0, 1000, (5, 6, 7)).astype(np.int16)
"""[slices from the feet, rows from the front, columns from the patient's right], 2 x 0.5 x 0.7 mm apart."""
SPACING = (2.0, 0.5, 0.7)


def config(**settings: Any) -> ImageConfig:
    return ImageConfig.model_validate({"modality": "mri", "size": 16, "depth": 8, "channels": 1} | settings)


def nifti(path: Path, array: npt.NDArray[Any], affine: npt.NDArray[Any] | None = None) -> Path:
    nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_filename(path)
    return path


# NIfTI


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SAL", "IRP"])
def test_a_nifti_volume_stands_upright_however_it_is_stored(tmp_path: Path, codes: str) -> None:
    ras = BODY[:, ::-1, ::-1].transpose(2, 1, 0)  # x to the right, y to the front, z up
    plain = nib.Nifti1Image(ras, np.diag([SPACING[2], SPACING[1], SPACING[0], 1.0]))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    turned = plain.as_reoriented(turn)
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    turned.to_filename(tmp_path / "v.nii.gz")
    volume = decode_volume(tmp_path / "v.nii.gz", 1)
    np.testing.assert_array_equal(volume.pixels[0], BODY)
    assert volume.spacing == pytest.approx(SPACING) and volume.scale == "physical"


@pytest.mark.parametrize("name", ["sub-spleen2_ct.nii.gz", "sct_t2.nii.gz", "sct_t2s.nii.gz", "anatomical.nii"])
def test_slices_of_a_real_volume_are_those_that_a_2d_study_reads(shared: Path, name: str) -> None:
    path = shared / "data" / "nifti_volumes" / name
    volume = decode_volume(path, 1)
    for number in (0, volume.pixels.shape[1] // 2, volume.pixels.shape[1] - 1):
        np.testing.assert_array_equal(volume.pixels[:, number], decode(path, 1, number).pixels)


def test_a_real_ct_becomes_a_box_of_hounsfield_units(shared: Path) -> None:
    path = shared / "data" / "nifti_volumes" / "sub-spleen2_ct.nii.gz"  # 164 x 166 pixels of .79 mm, 26 slices of 5 mm
    ct = {"modality": "ct", "size": 64, "depth": 24}
    whole = prepare(path, config(**ct))
    assert whole.shape == (1, 24, 64, 64) and whole.dtype == np.float32
    soft = prepare(path, config(**ct, window=(-160, 240)))
    inside = whole[0, :, 20:44, 20:44]
    wanted = np.clip((inside * 2000 - 1000 + 160) / 400, 0, 1)
    # Windowing comes before shrinking, so the two differ where a window's end lies between neighbours.
    assert np.abs(soft[0, :, 20:44, 20:44] - wanted).mean() < 0.02
    assert soft.std() > whole.std()


def test_two_volumes_in_one_file_are_refused_with_the_remedy(shared: Path) -> None:
    for name, count in (("example4d.nii.gz", 2), ("functional.nii", 20)):
        with pytest.raises(DataError) as caught:
            prepare(shared / "data" / "nifti_volumes" / name, config())
        said = str(caught.value)
        assert f"{count}), several volumes in one file; write each to its own file (nibabel.four_to_three)" in said
        assert "\n" not in said


def test_sequences_in_a_fourth_axis_are_channels(tmp_path: Path) -> None:
    array = np.stack([BODY, 2 * BODY], axis=-1)
    volume = decode_volume(nifti(tmp_path / "two.nii", array), 2)
    assert volume.pixels.shape == (2, 7, 6, 5)
    np.testing.assert_array_equal(2 * volume.pixels[0], volume.pixels[1])


# NumPy


def test_arrays_are_slices_rows_and_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", BODY)
    np.savez(tmp_path / "v.npz", image=BODY, other=BODY)
    np.save(tmp_path / "two.npy", np.stack([BODY, BODY + 1]))
    np.save(tmp_path / "last.npy", np.stack([BODY, BODY + 1], axis=-1))
    for name in ("v.npy", "v.npz"):
        volume = decode_volume(tmp_path / name, 1)
        np.testing.assert_array_equal(volume.pixels[0], BODY)
        assert volume.spacing == (1, 1, 1)
    for name in ("two.npy", "last.npy"):
        np.testing.assert_array_equal(decode_volume(tmp_path / name, 2).pixels[1], BODY + 1)


@pytest.mark.parametrize(("dtype", "scale"), [(np.uint8, "8-bit"), (np.uint16, "stored"), (np.float32, "physical")])
def test_the_scale_follows_the_type(tmp_path: Path, dtype: type, scale: str) -> None:
    np.save(tmp_path / "v.npy", (BODY % 256).astype(dtype))
    assert decode_volume(tmp_path / "v.npy", 1).scale == scale


def test_bits_become_black_and_white(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", BODY > 500)
    unit = prepare(tmp_path / "v.npy", config(size=16))
    assert 0.9 < unit.max() <= 1 and unit.min() == 0


# DICOM


def dicom(array: npt.NDArray[Any]) -> pydicom.Dataset:
    """A dataset with the pixels ``array``, [rows, columns] or [frames, rows, columns]."""
    dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
    dataset.Rows, dataset.Columns = array.shape[-2:]
    dataset.PixelData = array.astype("<i2").tobytes()
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    return dataset


Made = list[tuple[npt.NDArray[Any], list[float]]]
DEPTH, HEIGHT, WIDTH = BODY.shape
TOP = (DEPTH - 1) * SPACING[0]
STACKS: dict[str, tuple[list[float], list[float], Made]] = {
    # Direction of columns and rows in DICOM's axes (left, back, up); pixel spacing; slices and their first pixel.
    "axial": (
        [1, 0, 0, 0, 1, 0],
        [SPACING[1], SPACING[2]],
        [(BODY[k], [0, 0, k * SPACING[0]]) for k in range(DEPTH)],
    ),
    "coronal": (
        [1, 0, 0, 0, 0, -1],
        [SPACING[0], SPACING[2]],
        [(BODY[::-1, k], [0, k * SPACING[1], TOP]) for k in range(HEIGHT)],
    ),
    "sagittal": (
        [0, 1, 0, 0, 0, -1],
        [SPACING[0], SPACING[1]],
        [(BODY[::-1, :, k], [k * SPACING[2], 0, TOP]) for k in range(WIDTH)],
    ),
}


def write_series(folder: Path, kind: str, keep: Callable[[int], bool] = lambda number: True) -> Path:
    """One file a slice, named in an order that says nothing."""
    directions, spacing, slices = STACKS[kind]
    folder.mkdir(parents=True, exist_ok=True)
    for number, (pixels, position) in enumerate(slices):
        if keep(number):
            dataset = dicom(pixels)
            dataset.ImageOrientationPatient, dataset.ImagePositionPatient = directions, position
            dataset.PixelSpacing, dataset.SliceThickness = spacing, 9.0
            dataset.InstanceNumber = 1
            dataset.save_as(folder / f"{(number * 5 + 3) % 11:02d}.dcm")
    return folder


def write_enhanced(path: Path, kind: str) -> Path:
    """All slices as frames of one file, in reversed order, with a slope for each."""
    directions, spacing, slices = STACKS[kind]
    frames = slices[::-1]
    dataset = dicom(np.stack([pixels for pixels, _ in frames]))
    for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        if tag in dataset:
            del dataset[tag]
    dataset.NumberOfFrames = len(frames)
    shared, orientation, measures = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
    orientation.ImageOrientationPatient = directions
    measures.PixelSpacing = spacing
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for _, position in frames:
        group, place, values = pydicom.Dataset(), pydicom.Dataset(), pydicom.Dataset()
        place.ImagePositionPatient = position
        values.RescaleSlope, values.RescaleIntercept = 2.0, -10.0
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        groups.append(group)
    dataset.PerFrameFunctionalGroupsSequence = groups
    dataset.save_as(path)
    return path


@pytest.mark.parametrize("kind", STACKS)
def test_a_series_stands_upright_however_it_was_acquired(tmp_path: Path, kind: str) -> None:
    volume = decode_volume(write_series(tmp_path / "series", kind), 1)
    np.testing.assert_array_equal(volume.pixels[0], BODY)
    assert volume.spacing == pytest.approx(SPACING)  # distances of positions, not SliceThickness
    assert volume.scale == "physical"


@pytest.mark.parametrize("kind", STACKS)
def test_frames_are_sorted_and_scaled_as_their_own_groups_say(tmp_path: Path, kind: str) -> None:
    volume = decode_volume(write_enhanced(tmp_path / "enhanced.dcm", kind), 1)
    np.testing.assert_array_equal(volume.pixels[0], 2.0 * BODY - 10)
    assert volume.spacing == pytest.approx(SPACING)


def test_frames_without_places_stay_in_their_order(tmp_path: Path) -> None:
    dataset = dicom(BODY)
    dataset.NumberOfFrames, dataset.PixelSpacing, dataset.SpacingBetweenSlices = len(BODY), [0.5, 0.7], 3.0
    dataset.save_as(tmp_path / "frames.dcm")
    volume = decode_volume(tmp_path / "frames.dcm", 1)
    np.testing.assert_array_equal(volume.pixels[0], BODY)
    assert volume.spacing == (3.0, 0.5, 0.7)


def test_a_real_series(shared: Path) -> None:
    volume = decode_volume(shared / "data" / "dicom_series" / "t1w_biolab_7T", 1)
    assert volume.pixels.shape == (1, 48, 384, 274)
    assert volume.spacing == pytest.approx((2 / 3, 2 / 3, 0.7), rel=1e-3)
    unit = prepare(shared / "data" / "dicom_series" / "t1w_biolab_7T", config(size=48, depth=16))
    filled = np.flatnonzero(unit[0].max(axis=(0, 1)))
    # 384 rows of .667 mm are 256 mm, 274 columns of .7 mm 191.8 mm: 36 of 48 columns, 6 empty ones on each side.
    assert unit.shape == (1, 16, 48, 48) and (filled[0], filled[-1]) == (6, 41)
    levels = np.unique(unit)
    assert len(levels) > 5000, "no 256 levels"
    assert unit[0, 0, 24:].sum() > unit[0, 0, :24].sum(), "the back of the head lies below the face"


def changed(folder: Path, name: str, **tags: Any) -> None:
    path = sorted(folder.glob("*.dcm"))[1]
    dataset = pydicom.dcmread(path)
    for tag, value in tags.items():
        setattr(dataset, tag, value)
    dataset.save_as(path.with_name(name) if name else path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: changed(f, "", SeriesInstanceUID="1.2.3"), "holds 2 DICOM series; give each its own folder"),
        (lambda f: changed(f, "copy.dcm"), "several slices at "),
        (lambda f: changed(f, "", PixelSpacing=[0.5, 0.9]), "differ in direction, pixel spacing or size"),
        (lambda f: changed(f, "", ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "differ in direction"),
        (lambda f: changed(f, "", ImagePositionPatient=None), "has no ImagePositionPatient"),
        (lambda f: [p.unlink() for p in f.iterdir()], "the folder holds no DICOM files"),
        (lambda f: [p.unlink() for p in sorted(f.iterdir())[1:]], "is one DICOM slice; let the manifest name"),
        (lambda f: sorted(f.iterdir())[0].write_bytes(b"nonsense"), "cannot be read"),
    ],
)
def test_a_folder_that_is_no_series_is_one_line(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    folder = write_series(tmp_path / "series", "axial")
    spoil(folder)
    with pytest.raises(DataError) as caught:
        decode_volume(folder, 1)
    assert message in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_slice_is_noticed(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series", "axial", keep=lambda number: number != 2)
    with pytest.raises(DataError, match=r"misses slices after 2\.0 mm \(4\.0 mm to the next, 2\.0 mm elsewhere\)"):
        decode_volume(folder, 1)


def test_what_is_no_volume_is_one_line(tmp_path: Path) -> None:
    np.save(tmp_path / "flat.npy", BODY[0])
    nifti(tmp_path / "flat.nii", BODY[:1])
    (tmp_path / "a.png").write_bytes(b"x")
    for name, message in {
        "flat.npy": "has shape (6, 7); a volume has three axes",
        "flat.nii": "a volume has 2 of each or more",
        "a.png": "'.png' holds no volume; give .nii .nii.gz .npy .npz, or a DICOM series' folder",
        "gone.nii": "there is no such volume",
    }.items():
        with pytest.raises(DataError) as caught:
            decode_volume(tmp_path / name, 1)
        assert message in str(caught.value)
    holes = BODY.astype(np.float32)
    holes[0, 0, 0] = np.nan
    np.save(tmp_path / "holes.npy", holes)
    with pytest.raises(DataError, match="not finite"):
        decode_volume(tmp_path / "holes.npy", 1)
    np.save(tmp_path / "two.npy", np.stack([BODY, BODY]))
    with pytest.raises(DataError, match=r"has 2 channels, but image\.channels is 3"):
        decode_volume(tmp_path / "two.npy", 3)


# Intensities and size


def test_each_sequence_of_a_volume_has_its_own_percentiles() -> None:
    low = np.linspace(0, 1, 4 * 5 * 6, dtype=np.float32).reshape(1, 4, 5, 6)
    unit = to_unit(np.concatenate([low, 100 * low + 7]), "mri", "physical")
    np.testing.assert_allclose(unit[0], unit[1], atol=1e-5)
    assert unit.min() == 0 and unit.max() == 1


@given(st.floats(-500, 0), st.floats(1, 500))
def test_a_window_maps_its_ends_to_black_and_white(low: float, high: float) -> None:
    values = np.array([low - 50, low, (low + high) / 2, high, high + 50], dtype=np.float32).reshape(1, 1, 1, 5)
    np.testing.assert_allclose(to_unit(values, "ct", "physical", (low, high)).ravel(), [0, 0, 0.5, 1, 1], atol=1e-5)


def triangle(count: int, made: int) -> npt.NDArray[np.float64]:
    """[made, count] weights of straight-line interpolation, spread over the pixels it leaves out where it shrinks."""
    table = np.zeros((made, count))
    step = count / made
    for row in range(made):
        for column in range(count):
            table[row, column] = max(0.0, 1 - abs(column + 0.5 - (row + 0.5) * step) / max(step, 1.0))
    return np.asarray(table / table.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("depth", [3, 5, 9])
@pytest.mark.parametrize("height", [4, 6, 11])
def test_resizing_is_the_product_of_three_triangles(depth: int, height: int) -> None:
    box = (2, 0, height, 16)
    made = resize_volume(BODY[None].astype(np.float32), box, depth, 16)
    wanted = np.einsum(
        "zd,yh,xw,dhw->zyx", triangle(5, depth), triangle(6, height), triangle(7, 16), BODY.astype(np.float64)
    )
    assert made.shape == (1, depth, 16, 16)
    np.testing.assert_allclose(made[0, :, 2 : 2 + height], wanted, rtol=1e-4, atol=1e-2)
    assert not made[0, :, :2].any() and not made[0, :, 2 + height :].any()


# Configuration and store


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 4}, "greater than or equal to 8"),
        ({"channels": 3, "augment": {"hue": 0.1}}, "augment.hue = 0.1 is a colour operation, but depth says volumes"),
        ({"window": (0, 10)}, "is in Hounsfield units, but the modality is mri"),
        ({"modality": "ct", "window": (10, 10)}, "the smaller first"),
        ({"augment": {"anisotropy": 1.2}}, "0 for never, or a factor of 1.5 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        config(**settings)
    assert message in str(caught.value)


def test_the_shape_of_a_image() -> None:
    assert (config().dimensions, config().shape) == (3, (1, 8, 16, 16))
    assert (config(depth=None).dimensions, config(depth=None).shape) == (2, (1, 16, 16))
    assert config(augment=AugmentConfig(anisotropy=0.0)).augment.anisotropy == 0
    assert config(depth=None).at_once(128) == 128
    assert config(size=224, depth=32).at_once(128) == 4 and config(size=224, depth=512).at_once(128) == 1


def series_manifest(folder: Path) -> Manifest:
    write_series(folder / "series", "coronal")
    np.save(folder / "v.npy", BODY)
    return Manifest(pd.DataFrame({"image": ["series", "v.npy"], "patient": ["a", "b"]}), folder)


def test_the_store_holds_volumes_and_knows_a_changed_slice(tmp_path: Path) -> None:
    manifest = series_manifest(tmp_path / "data")

    def build(**settings: Any) -> TensorStore:
        return TensorStore.build(manifest, config(**settings), tmp_path / "store", progress=False)

    store = build()
    batch = store.batch([0, 1])
    assert batch.shape == (2, 1, 8, 16, 16) and batch.dtype == torch.float32
    for row, path in enumerate(manifest.paths()):
        torch.testing.assert_close(batch[row], torch.from_numpy(prepare(path, config())), rtol=0, atol=1e-5)
    places = {build(**settings).folder for settings in ({}, {"depth": 9}, {"depth": 10}, {"size": 17})}
    ct = {"modality": "ct"}
    places |= {build(**ct).folder, build(**ct, window=(0, 100)).folder, build(**ct, window=(0, 200)).folder}
    assert len(places) == 7 and build().folder == store.folder
    changed(tmp_path / "data" / "series", "", PatientComments="touched")
    assert build().folder not in places


def test_near_duplicates_of_series_are_found_by_their_middle_slice(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    smooth = np.kron(draw.integers(0, 255, (5, 4, 4)), np.ones((1, 8, 8))).astype(np.int16)
    for name, pixels in (("one", smooth), ("again", smooth + 1), ("other", smooth[:, ::-1, ::-1])):
        for number, plane in enumerate(pixels):
            (tmp_path / name).mkdir(exist_ok=True)
            dicom(plane).save_as(tmp_path / name / f"{number}.dcm")
    (tmp_path / "empty").mkdir()
    names = ["one", "again", "other", "empty"]
    manifest = Manifest(pd.DataFrame({"image": names, "patient": names}), tmp_path)
    assert list(image_clusters(manifest, progress=False)) == ["again", "again", "other", "empty"]
