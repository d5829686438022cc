"""Masks: every format's own numbers, in the frame of their image; what cannot be an image's mask is one line."""

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
from hypothesis.extra.numpy import arrays
from PIL import Image
from pydicom.data import get_testdata_file

import imaging.annotations.masks
from foundation.errors import DataError
from imaging.annotations.masks import mask_of, read_masks
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.reading.readers import decode_volume, prepare

nib: Any = import_module("nibabel")  # its functions carry no types
SQUARE = ImageConfig(modality="x-ray", size=16, channels=1)
VOLUME = ImageConfig(modality="mri", size=16, depth=8, channels=1)
DRAWN = (np.arange(256).reshape(16, 16) // 7 % 3).astype(np.uint8)
"""0, 1 and 2 in stripes."""
ORGANS = ("liver", "spleen")


def image(folder: Path, height: int = 16, width: int = 16, name: str = "image.png") -> Path:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).save(folder / name)
    return folder / name


def volume(folder: Path, array: npt.NDArray[Any], spacing: tuple[float, ...] = (1, 1, 1), name: str = "v.nii") -> Path:
    nib.Nifti1Image(array, np.diag([*spacing, 1.0])).to_filename(folder / name)
    return folder / name


def refused(*arguments: Any) -> str:
    """The one line with which ``mask_of`` refuses."""
    with pytest.raises(DataError) as caught:
        mask_of(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Formats


def save(kind: str, folder: Path) -> Path:
    """``DRAWN`` in a file of the kind."""
    path = folder / {"npy": "m.npy", "npz": "m.npz", "nifti": "m.nii.gz", "dicom": "m.dcm"}.get(kind, "m.png")
    if kind == "npy":
        np.save(path, DRAWN.astype(np.int32))
    elif kind == "npz":
        np.savez(path, image=DRAWN, other=DRAWN + 1)
    elif kind == "nifti":
        nib.Nifti1Image(DRAWN[::-1, ::-1].T[..., None], np.eye(4)).to_filename(path)  # [x, y, z] of the same image
    elif kind == "dicom":
        dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm")))
        dataset.Rows, dataset.Columns, dataset.PixelData = 16, 16, DRAWN.astype("<i2").tobytes()
        dataset.save_as(path)
    elif kind == "palette":
        image = Image.fromarray(DRAWN)
        image.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
        image.save(path)
    elif kind == "16-bit":
        Image.fromarray(DRAWN.astype(np.uint16)).save(path)
    elif kind == "grey in colour":
        Image.fromarray(np.stack([DRAWN] * 3, axis=-1)).save(path)
    elif kind == "8-bit":
        Image.fromarray(DRAWN).save(path)
    return path


KINDS = ("8-bit", "16-bit", "palette", "grey in colour", "npy", "npz", "nifti", "dicom")


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_its_own_numbers(tmp_path: Path, kind: str) -> None:
    path = save(kind, tmp_path)
    found = mask_of(image(tmp_path), path, SQUARE, classes=ORGANS)
    assert found.dtype == np.uint8 and found.shape == (16, 16)
    np.testing.assert_array_equal(found, DRAWN)
    np.testing.assert_array_equal(mask_of(image(tmp_path), path, SQUARE), DRAWN > 0)


@pytest.mark.parametrize("kind", ["1-bit", "black and white", "booleans"])
def test_white_is_the_one_class(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("m.npy" if kind == "booleans" else "m.png")
    if kind == "booleans":
        np.save(path, DRAWN > 1)
    else:
        bits = Image.fromarray(DRAWN > 1)
        (bits if kind == "1-bit" else bits.convert("L")).save(path)
    for classes in (None, ("vessel",)):
        np.testing.assert_array_equal(mask_of(image(tmp_path), path, SQUARE, classes=classes), DRAWN > 1)
    said = refused(image(tmp_path), path, SQUARE, None, ORGANS)
    assert "m.np" in said or "m.png" in said
    assert "holds the value 255, but classes names 1 liver, 2 spleen" in said  # white is which of the two?


def test_an_instance_map_is_a_mask_of_its_foreground(tmp_path: Path) -> None:
    nuclei = (np.arange(256).reshape(16, 16) * 3).astype(np.uint16)  # 256 instances, to number 765
    Image.fromarray(nuclei).save(tmp_path / "m.png")
    np.testing.assert_array_equal(mask_of(image(tmp_path), tmp_path / "m.png", SQUARE), nuclei > 0)


def test_a_slice_is_picked_of_both_files(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((5, 16, 16), np.uint8))
    np.save(tmp_path / "m.npy", np.stack([np.full((16, 16), number, np.uint8) for number in range(5)]))
    pages = [Image.fromarray(np.full((16, 16), number, np.uint8)) for number in range(5)]
    pages[0].save(tmp_path / "m.tif", save_all=True, append_images=pages[1:])
    for name in ("m.npy", "m.tif"):
        found = mask_of(tmp_path / "v.npy", tmp_path / name, SQUARE, 3, ("a", "b", "c", "d"))
        assert (found == 3).all()


# The frame


@given(
    labels=arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)), elements=st.integers(0, 5)),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_resampling_is_that_of_torchs_nearest_exact(labels: npt.NDArray[np.uint8], sides: tuple[int, int]) -> None:
    mine = vars(imaging.annotations.masks)["_nearest"](labels, sides)
    middles = [(np.arange(new) + 0.5) * old / new for old, new in zip(labels.shape, sides, strict=True)]
    # torch multiplies in float32, which decides by chance where a middle falls on an edge, and near it
    clear = [np.abs(place - np.rint(place)) > 1e-3 for place in middles]
    theirs = torch.nn.functional.interpolate(torch.from_numpy(labels)[None, None].float(), sides, mode="nearest-exact")
    np.testing.assert_array_equal(mine[np.ix_(*clear)], theirs[0, 0].numpy()[np.ix_(*clear)])


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (64, 32), (24, 60), (8, 8)])
def test_a_mask_lies_where_its_image_lies(tmp_path: Path, height: int, width: int) -> None:
    """A white rectangle, as image and as mask: they differ at most where the image is grey at its rim."""
    inside = np.zeros((height, width), dtype=np.uint8)
    inside[height // 4 : 3 * height // 4, width // 4 : 7 * width // 8] = 255
    Image.fromarray(inside).save(tmp_path / "image.png")
    image = SQUARE.model_copy(update={"size": 64})
    shown = prepare(tmp_path / "image.png", image)[0]
    found = mask_of(tmp_path / "image.png", tmp_path / "image.png", image)
    clear = (shown < 0.02) | (shown > 0.98)
    assert clear.mean() > 0.7 and found.any()
    np.testing.assert_array_equal(found[clear], shown[clear] > 0.5)


def test_shrinking_by_hand(tmp_path: Path) -> None:
    """6 x 4 pixels into 16 x 16: 16 x 11 (10.67 rounded), 2 columns free on the left."""
    drawn = np.arange(24, dtype=np.uint8).reshape(6, 4)
    np.save(tmp_path / "m.npy", drawn)
    image(tmp_path, 6, 4)
    names = [str(number) for number in range(1, 24)]
    found = mask_of(tmp_path / "image.png", tmp_path / "m.npy", SQUARE, None, names)
    assert not found[:, :2].any() and not found[:, 13:].any()
    # middles of new columns, in old ones: .18 .55 .91 1.27 1.64 2.0 2.36 2.73 3.09 3.45 3.82
    assert found[0, 2:13].tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    # and of new rows: .19 .56 .94 1.31 1.69 2.06 2.44 2.81 3.19 3.56 3.94 4.31 4.69 5.06 5.44 5.81
    assert (found[:, 2] // 4).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 5, 5, 5]


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "IRP"])
def test_a_mask_of_a_volume_stands_upright_as_its_volume(tmp_path: Path, codes: str) -> None:
    """The volume in one orientation, its mask in another, 16 x 16 pixels of .5 x 1 mm and 8 slices."""
    body = np.random.default_rng(1).integers(0, 3, (16, 16, 8)).astype(np.uint8)
    plain = nib.Nifti1Image(body, np.diag([1.0, 0.5, 3.0, 1.0]))
    plain.to_filename(tmp_path / "v.nii")
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    plain.as_reoriented(turn).to_filename(tmp_path / "m.nii.gz")
    found = mask_of(tmp_path / "v.nii", tmp_path / "m.nii.gz", VOLUME, None, ORGANS)
    assert found.shape == (8, 16, 16) and found.dtype == np.uint8
    assert not found[:, :4].any() and not found[:, 12:].any()  # rows are half as far apart as columns: 8 of 16
    upright = decode_volume(tmp_path / "v.nii", 1).pixels[0]
    np.testing.assert_array_equal(found[:, 4:12], upright[:, 1::2])  # the middle of two rows is the second one's edge


def test_slices_of_a_volume_are_stretched(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 4), dtype=np.uint8)
    labels[..., 1], labels[..., 3] = 1, 2
    path = volume(tmp_path, labels)
    found = mask_of(path, path, VOLUME, None, ORGANS)
    assert [np.unique(plane).tolist() for plane in found] == [[0], [0], [1], [1], [0], [0], [2], [2]]


def test_a_real_spleen_lies_where_the_ct_shows_it(shared: Path) -> None:
    folder = shared / "data" / "nifti_volumes"
    scan, drawn = folder / "sub-spleen2_ct.nii.gz", folder / "sub-spleen2_ct_seg-manual.nii.gz"
    image = ImageConfig(modality="ct", size=96, depth=26, channels=1)
    found = mask_of(scan, drawn, image)
    whole = decode_volume(drawn, 1).pixels[0]
    assert found.shape == (26, 96, 96)
    assert found.mean() == pytest.approx((whole > 0).mean() * 164 / 166, rel=0.05)  # 164 of 166 pixels are filled
    units = prepare(scan, image)[0][found > 0] * 2000 - 1000
    assert 20 < np.median(units) < 180  # a spleen, with or without contrast, in Hounsfield units


# Rows of a manifest


def study(folder: Path) -> pd.DataFrame:
    """Three images, the second one without a mask."""
    for number in range(3):
        image(folder, name=f"{number}.png")
        Image.fromarray(DRAWN * np.uint8(number > 0)).save(folder / f"{number}_mask.png")
    masks = ["0_mask.png", None, "2_mask.png"]
    return pd.DataFrame({"image": ["0.png", "1.png", "2.png"], "patient": ["a", "b", "c"], "mask": masks})


def test_rows_keep_their_order_and_an_empty_cell_is_background(tmp_path: Path) -> None:
    table = study(tmp_path)
    found = read_masks(table.iloc[[2, 1]], tmp_path, SQUARE, ORGANS)
    assert found.shape == (2, 16, 16)
    np.testing.assert_array_equal(found[0], DRAWN)
    assert not found[1].any()
    assert not read_masks(table.assign(mask=None), tmp_path, SQUARE).any()


def test_masks_of_slices(tmp_path: Path) -> None:
    labels = np.zeros((16, 16, 3), dtype=np.uint8)
    labels[..., 2] = 1
    volume(tmp_path, labels)
    table = pd.DataFrame({"image": ["v.nii"] * 2, "patient": ["a"] * 2, "slice": [1, 2], "mask": ["v.nii"] * 2})
    assert read_masks(table, tmp_path, SQUARE).mean(axis=(1, 2)).tolist() == [0, 1]


def test_kept_masks_are_not_read_again_until_something_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, folder, names = study(tmp_path), tmp_path / "store", []

    def counted(path: Path, mask: Path, *rest: Any) -> Any:
        names.append(mask.name)
        return mask_of(path, mask, *rest)

    monkeypatch.setattr(imaging.annotations.masks, "mask_of", counted)
    first = read_masks(table, tmp_path, SQUARE, ORGANS, folder)
    again = read_masks(table, tmp_path, SQUARE, ORGANS, folder)
    np.testing.assert_array_equal(first, again)
    assert names == ["0_mask.png", "2_mask.png"]
    assert len(list(folder.iterdir())) == 1
    assert again.flags.writeable  # torch shares memory with it
    Image.fromarray(np.ones((16, 16), np.uint8)).save(tmp_path / "2_mask.png")  # another file under the same name
    assert (read_masks(table, tmp_path, SQUARE, ORGANS, folder)[2] == 1).all()
    read_masks(table, tmp_path, SQUARE, None, folder)
    read_masks(table, tmp_path, SQUARE.model_copy(update={"size": 24}), ORGANS, folder)
    image(tmp_path, 8, 16, "0.png")  # another image, and the mask no longer fits
    with pytest.raises(DataError, match=r"0_mask.png: has \[16, 16\] rows and columns.*0.png has \[8, 16\]"):
        read_masks(table, tmp_path, SQUARE, ORGANS, folder)
    assert len(names) == 9


def test_an_interruption_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, folder = study(tmp_path), tmp_path / "store"

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(imaging.annotations.masks.np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            read_masks(table, tmp_path, SQUARE, ORGANS, folder)
    assert list(folder.iterdir()) == []


# What is refused


def test_a_mask_of_another_size_is_one_line_with_both_sizes(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((12, 20), np.uint8)).save(tmp_path / "m.png")
    said = refused(image(tmp_path, 16, 20), tmp_path / "m.png", SQUARE)
    assert said.startswith(f"{tmp_path / 'm.png'}: has [12, 20] rows and columns, but its image ")
    assert "image.png has [16, 20]; name the mask that was drawn on this image, or resample it" in said
    scan = volume(tmp_path, np.ones((6, 6, 4), np.uint8))
    other = volume(tmp_path, np.ones((6, 6, 5), np.uint8), name="m.nii")
    assert "m.nii: has [5, 6, 6] slices, rows and columns, but" in refused(scan, other, VOLUME)


def test_a_value_without_a_class_names_file_value_and_classes(tmp_path: Path) -> None:
    Image.fromarray(DRAWN + np.uint8(5)).save(tmp_path / "m.png")
    said = refused(image(tmp_path), tmp_path / "m.png", SQUARE, None, ORGANS)
    assert "m.png: holds the value 7, but classes names 1 liver, 2 spleen; name a structure for every value" in said
    assert "holds the value 7, but classes names 1 vessel" in refused(
        image(tmp_path), tmp_path / "m.png", SQUARE, None, ("vessel",)
    )


BAD: dict[str, tuple[npt.NDArray[Any], str]] = {
    "fractions": (np.linspace(0, 1, 256).reshape(16, 16), "values from 0 to 1, not only whole numbers.*threshold"),
    "negative": (np.full((16, 16), -1), "values from -1 to -1, not only whole numbers"),
    "not a number": (np.full((16, 16), np.nan), "not finite"),
    "text": (np.full((16, 16), "1"), "holds <U1, not numbers"),
    "colours": (np.random.default_rng(0).integers(0, 2, (16, 16, 3)), r"has 3 channels \(colours\?\); a mask has one"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_mask_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    array, message = BAD[name]
    np.save(tmp_path / "m.npy", array)
    with pytest.raises(DataError, match=rf"m.npy: .*{message}") as caught:
        mask_of(image(tmp_path), tmp_path / "m.npy", SQUARE)
    assert "\n" not in str(caught.value)


def test_a_missing_damaged_or_lossy_file_is_one_line(tmp_path: Path) -> None:
    shown = image(tmp_path)
    assert "none.png: there is no such mask; correct the manifest's cell" in refused(
        shown, tmp_path / "none.png", SQUARE
    )
    (tmp_path / "m.png").write_bytes(shown.read_bytes()[:60])
    assert "m.png: cannot be read" in refused(shown, tmp_path / "m.png", SQUARE)
    Image.fromarray(DRAWN).save(tmp_path / "m.jpg")
    assert "m.jpg: JPEG changes the values along a mask's edges; save" in refused(shown, tmp_path / "m.jpg", SQUARE)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "c.png")
    assert "c.png: has 3 channels" in refused(shown, tmp_path / "c.png", SQUARE)
    assert "gone.png: there is no such image" in refused(tmp_path / "gone.png", shown, SQUARE)


def test_more_classes_than_a_mask_can_tell_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="classes names 255 structures; a mask tells at most 254 apart"):
        read_masks(study(tmp_path), tmp_path, SQUARE, [str(number) for number in range(255)])


def test_real_masks_keep_their_area(shared: Path) -> None:
    root = shared / "data" / "lgg_mri_128"
    table = pd.read_csv(root / "index.csv", dtype=str).dropna(subset="mask").iloc[::60]
    image = ImageConfig(modality="mri", size=64, channels=3)
    found = read_masks(table[["image", "patient", "mask"]], root, image, ["abnormality"])
    whole = [np.asarray(Image.open(root / name)).mean() for name in table["mask"]]
    np.testing.assert_allclose(found.mean(axis=(1, 2)), whole, atol=0.01)
    assert Manifest(table, root).paths() and set(np.unique(found)) == {0, 1}
