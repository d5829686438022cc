"""Every format gives its own intensities, upright; what cannot be read is one line with the file's name."""

import struct
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.data import get_testdata_file

from foundation.errors import DataError
from imaging.config import ImageConfig
from imaging.reading.formats import Scale
from imaging.reading.readers import decode, fitted_box, prepare, resize, to_unit

nib: Any = import_module("nibabel")  # its functions carry no types
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)


def pixels_of(path: Path, channels: int, frame: int | None = None) -> npt.NDArray[np.float32]:
    """What a file holds, in its own intensities."""
    return decode(path, channels, frame).pixels


def dicom_file(name: str) -> Path:
    return Path(str(get_testdata_file(name)))


def saved(path: Path, array: npt.NDArray[np.generic]) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return path


def volume(path: Path, data: npt.NDArray[np.generic], affine: npt.NDArray[np.float64]) -> Path:
    nib.Nifti1Image(data, affine).to_filename(path)
    return path


# PNG, JPEG, TIFF


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_8_bit_images_keep_their_values(tmp_path: Path, suffix: str) -> None:
    grey = decode(saved(tmp_path / f"grey{suffix}", GREY), 1)
    assert grey.scale == "8-bit" and grey.pixels.dtype == np.float32
    np.testing.assert_array_equal(grey.pixels, GREY[None])
    colour = decode(saved(tmp_path / f"colour{suffix}", COLOUR), 3)
    np.testing.assert_array_equal(colour.pixels, COLOUR.transpose(2, 0, 1))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    image = decode(saved(tmp_path / f"deep{suffix}", DEEP), 1)
    assert image.scale == "stored"
    np.testing.assert_array_equal(image.pixels, DEEP[None])


def test_float_tiff(tmp_path: Path) -> None:
    values = RNG.normal(size=(5, 7)).astype(np.float32)
    np.testing.assert_array_equal(pixels_of(saved(tmp_path / "f.tif", values), 1), values[None])


def deep_colour_png(path: Path) -> Path:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + RNG.integers(0, 65536, (7, 3)).astype(">u2").tobytes() for _ in range(5))
    header = struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def deep_colour_tiff(path: Path) -> Path:
    tags = [(256, 3, 1, 7), (257, 3, 1, 5), (258, 3, 3, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 0)]
    tags += [(277, 3, 1, 3), (278, 3, 1, 5), (279, 4, 1, 210)]
    end = 8 + 2 + 12 * len(tags) + 4
    values = {258: end, 273: end + 6}
    entries = b"".join(struct.pack("<HHII", tag, kind, n, values.get(tag, v)) for tag, kind, n, v in tags)
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(head + struct.pack("<HHH", 16, 16, 16) + DEEP.repeat(3).astype("<u2").tobytes())
    return path


def test_16_bit_colour_is_refused_not_cut_to_8_bits(tmp_path: Path) -> None:
    for path in (deep_colour_png(tmp_path / "d.png"), deep_colour_tiff(tmp_path / "d.tif")):
        with Image.open(path) as image:
            assert np.asarray(image).dtype == np.uint8  # what Pillow would silently do
        with pytest.raises(DataError, match=r"16-bit colour (PNG|TIFF) would be cut to 8 bits"):
            pixels_of(path, 3)


def test_alpha_is_dropped_and_palettes_become_colours(tmp_path: Path) -> None:
    alpha = RNG.integers(0, 256, (5, 7, 1), dtype=np.uint8)
    rgba = saved(tmp_path / "rgba.png", np.concatenate([COLOUR, alpha], axis=2))
    np.testing.assert_array_equal(pixels_of(rgba, 3), COLOUR.transpose(2, 0, 1))
    la = saved(tmp_path / "la.png", np.stack([GREY, alpha[..., 0]], axis=2))
    np.testing.assert_array_equal(pixels_of(la, 1), GREY[None])
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "p.png", 3), np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    )
    Image.fromarray(GREY > 127).save(tmp_path / "bit.png")
    np.testing.assert_array_equal(pixels_of(tmp_path / "bit.png", 1)[0], (GREY > 127) * 255)


def test_a_turned_jpeg_comes_upright(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 15, (8, 1))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to see it upright"
    Image.fromarray(ramp).save(tmp_path / "t.jpg", exif=exif, quality=100)
    pixels = pixels_of(tmp_path / "t.jpg", 1)[0]
    assert pixels.shape == (16, 8)
    np.testing.assert_allclose(pixels, np.rot90(ramp, -1), atol=4)


def test_tiff_pages(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((4, 4), value, dtype=np.uint8)) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "p.tif", save_all=True, append_images=pages[1:])
    assert pixels_of(tmp_path / "p.tif", 1).max() == 20  # the middle one
    assert pixels_of(tmp_path / "p.tif", 1, 2).max() == 30
    with pytest.raises(DataError, match="slice 3 was asked for, but the file's slices are 0 to 2"):
        pixels_of(tmp_path / "p.tif", 1, 3)


# channels


def test_grey_stored_as_colour_is_grey_and_other_counts_are_refused(tmp_path: Path) -> None:
    same = saved(tmp_path / "same.png", np.stack([GREY] * 3, axis=2))
    np.testing.assert_array_equal(pixels_of(same, 1), GREY[None])
    almost = np.stack([GREY] * 3, axis=2)
    almost[0, 0, 2] ^= 1
    with pytest.raises(
        DataError, match=r"almost.png: has 3 channels, but image.channels is 1; set image.channels to 3"
    ):
        pixels_of(saved(tmp_path / "almost.png", almost), 1)
    with pytest.raises(DataError, match=r"grey.png: has 1 channel, but image.channels is 3"):
        pixels_of(saved(tmp_path / "grey.png", GREY), 3)


def test_a_real_three_sequence_mri(shared: Path) -> None:
    path = shared / "data" / "lgg_mri_128" / "images" / "TCGA_CS_4941_19960909_2.png"
    with Image.open(path) as image:
        np.testing.assert_array_equal(pixels_of(path, 3), np.asarray(image).transpose(2, 0, 1))
    with pytest.raises(DataError, match="has 3 channels"):
        pixels_of(path, 1)


# damaged files


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_png_is_one_line(tmp_path: Path, shared: Path, share: float) -> None:
    whole = (shared / "data" / "busi_224" / "benign" / "benign_1.png").read_bytes()
    path = tmp_path / "cut.png"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match=r"cut.png: cannot be read \(") as caught:
        pixels_of(path, 1)
    assert "\n" not in str(caught.value)


def test_missing_unknown_and_unfit_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.png: there is no such image"):
        pixels_of(tmp_path / "gone.png", 1)
    (tmp_path / "a.svg").write_text("<svg/>")
    with pytest.raises(DataError, match=r"no reader for '.svg'"):
        pixels_of(tmp_path / "a.svg", 1)
    with pytest.raises(DataError, match="values that are not finite"):
        pixels_of(saved(tmp_path / "nan.npy", np.array([[1.0, np.nan]])), 1)
    with pytest.raises(DataError, match="Python objects"):  # a pickle could run code
        pixels_of(saved(tmp_path / "o.npy", np.array([[{}]], dtype=object)), 1)
    with pytest.raises(DataError, match="holds complex128"):
        pixels_of(saved(tmp_path / "c.npy", np.ones((2, 2), dtype=np.complex128)), 1)


# NPY, NPZ


@pytest.mark.parametrize(
    ("shape", "channels", "frame", "wanted"),
    [
        ((5, 7), 1, None, lambda a: a[None]),
        ((5, 7), 1, 9, lambda a: a[None]),  # one image: a slice number in the manifest means nothing
        ((5, 7, 3), 3, None, lambda a: a.transpose(2, 0, 1)),
        ((3, 5, 7), 3, None, lambda a: a),
        ((1, 5, 7), 1, None, lambda a: a),
        ((5, 7, 1), 1, None, lambda a: a.transpose(2, 0, 1)),
        ((9, 5, 7), 1, None, lambda a: a[4:5]),
        ((9, 5, 7), 1, 8, lambda a: a[8:9]),
        ((9, 5, 7, 3), 3, 2, lambda a: a[2].transpose(2, 0, 1)),
        ((9, 2, 5, 7), 2, 2, lambda a: a[2]),
    ],
)
def test_arrays(tmp_path: Path, shape: tuple[int, ...], channels: int, frame: int | None, wanted: object) -> None:
    array = np.arange(np.prod(shape), dtype=np.float64).reshape(shape)
    assert callable(wanted)
    np.testing.assert_array_equal(
        pixels_of(saved(tmp_path / "a.npy", array), channels, frame), wanted(array).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("dtype", "scale"), [("u1", "8-bit"), ("u2", "stored"), ("i2", "physical"), ("f4", "physical"), ("?", "8-bit")]
)
def test_the_type_of_an_array_says_what_its_values_are(tmp_path: Path, dtype: str, scale: Scale) -> None:
    image = decode(saved(tmp_path / "a.npy", np.eye(4).astype(dtype)), 1)
    assert image.scale == scale
    assert image.pixels.max() == (255 if dtype == "?" else 1)


def test_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", anything=GREY)
    np.savez(tmp_path / "named.npz", image=GREY, label=np.array(3))
    np.savez(tmp_path / "two.npz", a=GREY, b=GREY)
    np.testing.assert_array_equal(pixels_of(tmp_path / "one.npz", 1), GREY[None])
    np.testing.assert_array_equal(pixels_of(tmp_path / "named.npz", 1), GREY[None])
    with pytest.raises(DataError, match="has arrays a, b"):
        pixels_of(tmp_path / "two.npz", 1)


def test_a_slice_of_a_medmnist_stack(shared: Path, tmp_path: Path) -> None:
    with np.load(shared / "data" / "adrenalmnist3d" / "adrenalmnist3d.npz") as arrays:
        cube = arrays["test_images"][0]
    image = decode(saved(tmp_path / "cube.npy", cube), 1, 10)
    assert image.scale == "8-bit"
    np.testing.assert_array_equal(image.pixels[0], cube[10])


# NIfTI


def test_nifti_is_shown_as_radiologists_look(tmp_path: Path) -> None:
    data = np.zeros((6, 8, 5), dtype=np.int16)
    data[5, 7, 2] = 100  # right-anterior corner of slice 2 in a right-anterior-superior volume
    path = volume(tmp_path / "v.nii.gz", data, np.eye(4))
    image = decode(path, 1)  # slice 5 // 2 = 2
    assert image.pixels.shape == (1, 8, 6) and image.scale == "physical"
    assert np.argwhere(image.pixels).tolist() == [[0, 0, 0]]  # anterior on top, the patient's right on the left
    assert pixels_of(path, 1, 3).max() == 0


@pytest.mark.parametrize("code", ["LPS", "PSR", "RAS", "IAL"])
def test_nifti_images_do_not_depend_on_how_the_axes_are_stored(tmp_path: Path, code: str) -> None:
    data = RNG.integers(-500, 500, (6, 8, 5), dtype=np.int16)
    image = nib.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))
    want = pixels_of(volume(tmp_path / "ras.nii", data, image.affine), 1, 1)
    start, end = nib.orientations.io_orientation(image.affine), nib.orientations.axcodes2ornt(code)
    turned = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    assert "".join(nib.aff2axcodes(turned.affine)) == code
    turned.to_filename(tmp_path / "turned.nii")
    np.testing.assert_array_equal(pixels_of(tmp_path / "turned.nii", 1, 1), want)


def test_nifti_scaling_channels_and_single_slices(tmp_path: Path) -> None:
    data = RNG.integers(0, 100, (6, 8, 5, 2), dtype=np.int16)
    path = volume(tmp_path / "four.nii", data, np.eye(4))
    np.testing.assert_array_equal(pixels_of(path, 2, 0), data[::-1, ::-1, 0].transpose(2, 1, 0))
    with pytest.raises(DataError, match=r"has 2 channels, but image.channels is 1"):
        pixels_of(path, 1)
    scaled = nib.Nifti1Image(data[..., 0], np.eye(4))
    scaled.header.set_slope_inter(2.0, -1024.0)
    raw = tmp_path / "scaled.nii"
    scaled.to_filename(raw)
    stored = np.asarray(nib.load(raw).dataobj)
    np.testing.assert_allclose(pixels_of(raw, 1, 0)[0], stored[::-1, ::-1, 0].T)
    sagittal = volume(tmp_path / "sagittal.nii", data[:1, :, :, 0], np.eye(4))
    assert pixels_of(sagittal, 1, 17).shape == (1, 5, 8)
    assert decode(volume(tmp_path / "byte.nii", GREY[..., None], np.eye(4)), 1).scale == "8-bit"


def test_a_real_ct_in_hounsfield_units(shared: Path) -> None:
    path = shared / "data" / "nifti_volumes" / "sub-spleen2_ct.nii.gz"
    pixels = pixels_of(path, 1, 13)
    np.testing.assert_allclose(pixels[0], nib.load(path).get_fdata()[::-1, ::-1, 13].T, rtol=1e-6)
    unit = to_unit(pixels, "ct", "physical")
    np.testing.assert_allclose(unit, (np.clip(pixels, -1000, 1000) + 1000) / 2000, atol=1e-6)
    assert pixels.min() < -900 and 0 < float(np.median(pixels)) < 100  # air, and soft tissue for the most part


@pytest.mark.parametrize("name", ["anatomical.nii", "sct_t2.nii.gz", "sct_t2s.nii.gz"])
def test_real_mri_volumes(shared: Path, name: str) -> None:
    pixels = prepare(shared / "data" / "nifti_volumes" / name, ImageConfig(modality="mri", size=32, channels=1))
    assert pixels.shape == (1, 32, 32) and pixels.min() == 0.0 and 0.9 < pixels.max() <= 1.0 and pixels.std() > 0.1


# DICOM


def test_transfer_syntaxes_give_one_image() -> None:
    want = decode(dicom_file("MR_small.dcm"), 1)
    raw = np.frombuffer(pydicom.dcmread(dicom_file("MR_small.dcm")).PixelData, dtype="<i2").reshape(64, 64)
    np.testing.assert_array_equal(want.pixels[0], raw)
    assert want.scale == "physical"
    for name in ("RLE", "bigendian", "expb", "implicit", "jp2klossless", "padded"):
        np.testing.assert_array_equal(pixels_of(dicom_file(f"MR_small_{name}.dcm"), 1), want.pixels, err_msg=name)


def test_ct_is_rescaled_to_hounsfield_units() -> None:
    dataset = pydicom.dcmread(dicom_file("CT_small.dcm"))
    assert dataset.RescaleIntercept == -1024
    want = dataset.pixel_array * float(dataset.RescaleSlope) - 1024.0
    np.testing.assert_array_equal(pixels_of(dicom_file("CT_small.dcm"), 1)[0], want)


@pytest.mark.parametrize("bits", [12, 8])
def test_monochrome1_is_inverted_over_the_stored_range(tmp_path: Path, bits: int) -> None:
    dataset = pydicom.dcmread(dicom_file("MR_small.dcm"))
    stored = RNG.integers(0, 2**bits, (64, 64)).astype("<u2" if bits > 8 else "u1")
    dataset.PixelData, dataset.PixelRepresentation = stored.tobytes(), 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = stored.itemsize * 8, bits, bits - 1
    dataset["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
        if name in dataset:
            del dataset[name]
    dataset.PhotometricInterpretation = "MONOCHROME1"
    dataset.save_as(tmp_path / "m1.dcm")
    image = decode(tmp_path / "m1.dcm", 1)
    np.testing.assert_array_equal(image.pixels[0], 2**bits - 1 - stored.astype(np.int64))
    assert image.scale == ("8-bit" if bits == 8 else "physical")


def test_dicom_colours_palettes_and_frames() -> None:
    rgb = decode(dicom_file("examples_rgb_color.dcm"), 3)
    assert rgb.pixels.shape == (3, 240, 320) and rgb.scale == "8-bit"
    palette = pixels_of(dicom_file("examples_palette.dcm"), 3)
    assert palette.shape == (3, 350, 800) and len(np.unique(palette.reshape(3, -1), axis=1).T) > 2
    first, last, middle = (pixels_of(dicom_file("examples_ybr_color.dcm"), 3, k) for k in (0, 29, None))
    np.testing.assert_array_equal(middle, pixels_of(dicom_file("examples_ybr_color.dcm"), 3, 15))
    assert not np.array_equal(first, last)
    deep = decode(dicom_file("SC_rgb_rle_16bit.dcm"), 3)
    eight = decode(dicom_file("SC_rgb_rle.dcm"), 3)
    np.testing.assert_array_equal(deep.pixels, eight.pixels * 257)
    with pytest.raises(DataError, match=r"has 1 channel, but image.channels is 3"):
        pixels_of(dicom_file("MR_small.dcm"), 3)


@pytest.mark.parametrize("name", ["MR_truncated.dcm", "badVR.dcm", "no_meta.dcm", "meta_missing_tsyntax.dcm"])
def test_a_damaged_dicom_file_is_one_line(name: str) -> None:
    with pytest.raises(DataError, match=f"{name}: cannot be read") as caught:
        pixels_of(dicom_file(name), 1)
    assert "\n" not in str(caught.value)


def test_a_real_series(shared: Path) -> None:
    path = sorted((shared / "data" / "dicom_series" / "t1w_biolab_7T").glob("*.dcm"))[20]
    pixels = pixels_of(path, 1)
    np.testing.assert_array_equal(pixels[0], pydicom.dcmread(path).pixel_array)
    assert decode(path, 1).scale == "physical" and pixels.max() == 154.0


# to [0, 1]


def test_8_bit_is_divided_by_255_even_in_ct() -> None:
    pixels = np.array([[[0.0, 51.0, 255.0]]], dtype=np.float32)
    for modality in ("ct", "mri", "x-ray"):
        np.testing.assert_array_equal(to_unit(pixels, modality, "8-bit"), [[[0, np.float32(51) / np.float32(255), 1]]])


def test_percentiles_by_hand() -> None:
    pixels = np.arange(1001, dtype=np.float32).reshape(1, 7, 143)  # percentile q is 10 q
    unit = to_unit(pixels, "x-ray").ravel()
    np.testing.assert_allclose(unit[[0, 5, 500, 995, 1000]], [0, 0, 0.5, 1, 1], atol=1e-6)
    np.testing.assert_allclose(unit[6], 1 / 990, rtol=1e-3)


def test_sequences_are_stretched_alone_and_colours_together() -> None:
    ramp = np.linspace(0, 1, 2000, dtype=np.float32).reshape(1, 40, 50)
    both = np.concatenate([ramp, ramp * 10])
    sequences = to_unit(both, "mri", "physical")
    np.testing.assert_allclose(sequences[0], sequences[1], atol=1e-5)
    colours = to_unit(both, "fundus")
    assert colours[0].max() < 0.11 and colours[1].max() == 1.0


@given(st.floats(-1e4, 1e4, width=32), st.sampled_from(["mri", "x-ray", "histopathology"]))
def test_a_constant_image_becomes_zero(value: float, modality: str) -> None:
    constant = np.full((2, 3, 4), value, dtype=np.float32)
    assert not to_unit(constant, modality).any()  # type: ignore[arg-type]  # hypothesis widens the literal


def test_unsigned_16_bit_ct_without_units_is_not_windowed() -> None:
    ramp = np.linspace(0, 65535, 1001, dtype=np.float32).reshape(1, 1, 1001)
    assert 0.45 < np.median(to_unit(ramp, "ct", "stored")) < 0.55


# to a square


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(16, 512))
def test_the_fitted_box_keeps_the_aspect_and_is_centred(height: int, width: int, size: int) -> None:
    top, left, new_height, new_width = fitted_box(height, width, size)
    assert max(new_height, new_width) == size and min(new_height, new_width) >= 1
    assert abs(new_height - max(1.0, height * size / max(height, width))) <= 0.5 + 1e-9
    assert abs(new_width - max(1.0, width * size / max(height, width))) <= 0.5 + 1e-9
    assert 0 <= (size - new_height) - 2 * top <= 1 and 0 <= (size - new_width) - 2 * left <= 1


def test_a_wide_image_gets_bars_of_zeros() -> None:
    square = resize(np.ones((2, 10, 40), dtype=np.float32), 20)
    want = np.zeros((2, 20, 20), dtype=np.float32)
    want[:, 7:12] = 1.0
    np.testing.assert_allclose(square, want, atol=1e-6)


def test_shrinking_is_antialiased_and_the_same_size_is_untouched() -> None:
    board = (np.indices((64, 64)).sum(axis=0) % 2).astype(np.float32)[None]
    small = resize(board, 16)[:, 2:-2, 2:-2]
    np.testing.assert_allclose(small, 0.5, atol=0.02)  # without antialiasing it would be 0, 1 or a moire
    assert resize(board, 64) is board


def test_growing_keeps_corners_and_range() -> None:
    corners = np.array([[[0.0, 1.0], [1.0, 0.0]]], dtype=np.float32)
    large = resize(corners, 16)
    assert large.shape == (1, 16, 16) and large[0, 0, 0] == 0.0 and large[0, 0, -1] == 1.0
    assert large.min() >= 0.0 and large.max() <= 1.0


def test_a_real_endoscopy_image_becomes_a_square(shared: Path) -> None:
    path = sorted((shared / "data" / "polypgen_c1c3_224" / "positive" / "C1").glob("*.jpg"))[0]
    with Image.open(path) as image:
        width, height = image.size
        mean = float(np.asarray(image).mean()) / 255
    square = prepare(path, ImageConfig(modality="endoscopy", size=96, channels=3))
    assert square.shape == (3, 96, 96) and width != height
    top, left, new_height, new_width = fitted_box(height, width, 96)
    inner = square[:, top : top + new_height, left : left + new_width]
    assert abs(float(inner.mean()) - mean) < 0.01
    assert square.sum() == pytest.approx(float(inner.sum()))
