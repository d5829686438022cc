"""What each file format needs so that its own intensities and orientation come out.

MONAI's NibabelReader reads NIfTI. The other formats go to their libraries directly, because MONAI's readers lose
something on the way: PILReader passes over the orientation tag, palettes and the low byte of 16-bit colour;
PydicomReader over MONOCHROME1, palettes and modality tables; NumpyReader before MONAI 1.6 unpickles.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

if TYPE_CHECKING:
    import pydicom

Scale = Literal["8-bit", "stored", "physical"]
FloatArray = npt.NDArray[np.float32]
AnyArray = npt.NDArray[Any]

_ENDINGS = {
    "Pillow": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
    "NumPy": (".npy", ".npz"),
    "NIfTI": (".nii", ".nii.gz"),
}
_DICOM = (".dcm", ".dicom", ".ima")
_PLAIN_MODES = {"L", "RGB", "I", "F", "I;16", "I;16B", "I;16L"}


@dataclass(frozen=True)
class DecodedImage:
    """``pixels`` float32 [C, H, W] in the file's own intensities, and what these are.

    "8-bit": 0 to 255, whatever the image shows; "stored": a detector's counts, their top unknown;
    "physical": values with a meaning (HU in CT), from DICOM, NIfTI and signed or float arrays.
    """

    pixels: FloatArray
    scale: Scale


def is_dicom(path: Path) -> bool:
    """A .dcm, .dicom or .ima file, or one without suffix (or a numeric one) that bears the DICOM mark."""
    suffix = path.suffix.lower()
    if suffix in _DICOM:
        return True
    if suffix.lstrip(".") and not suffix.lstrip(".").isdigit():
        return False
    with path.open("rb") as handle:
        return handle.read(132)[128:] == b"DICM"


def kind_of(path: Path) -> str:
    """Pillow, NumPy, NIfTI, DICOM or "", by the file's name (or the DICOM mark where it has no suffix)."""
    name = path.name.lower()
    found = [kind for kind, endings in _ENDINGS.items() if name.endswith(endings)]
    return found[0] if found else "DICOM" if is_dicom(path) else ""


def is_image(path: Path) -> bool:
    """Whether some reader takes the file."""
    return kind_of(path) != ""


def reader_for(path: Path) -> Callable[[Path, int | None, int | None], DecodedImage]:
    """The function ``(path, channels, frame) -> DecodedImage`` for the file; ValueError when there is none."""
    kind = kind_of(path)
    if not kind:
        raise ValueError(f"no reader for {path.suffix!r}; there are .png .jpg .tif .bmp .npy .npz .nii .nii.gz .dcm")
    return {"Pillow": read_pil, "NumPy": read_numpy, "NIfTI": read_nifti, "DICOM": read_dicom}[kind]


def pick(count: int, frame: int | None) -> int:
    """The index of the wanted slice among ``count``: ``frame`` (from 0), or the middle one."""
    if frame is None:
        return count // 2
    if not 0 <= frame < count:
        raise ValueError(f"slice {frame} was asked for, but the file's slices are 0 to {count - 1}")
    return frame


def scale_of(dtype: np.dtype[Any]) -> Scale:
    """What the values of an array are, going by its type alone."""
    return "8-bit" if dtype in (np.uint8, np.bool_) else "stored" if dtype.kind == "u" else "physical"


def _channels_first(array: AnyArray, scale: Scale | None = None) -> DecodedImage:
    """[H, W] or [H, W, C] to a DecodedImage; the scale follows the type unless given."""
    scale = scale or scale_of(array.dtype)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    pixels = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
    return DecodedImage(np.ascontiguousarray(pixels, dtype=np.float32), scale)


def read_pil(path: Path, channels: int | None, frame: int | None) -> DecodedImage:
    """PNG, JPEG, TIFF, BMP: upright, palettes and CMYK as RGB, no alpha, 16 bits kept.

    Of a TIFF of several pages ``frame`` picks one.
    """
    with Image.open(path) as image:
        if (pages := getattr(image, "n_frames", 1)) > 1:
            image.seek(pick(pages, frame))
        _refuse_deep_colour(image, path)
        image.load()
        upright = ImageOps.exif_transpose(image)
    array = np.asarray(upright if upright.mode in _PLAIN_MODES else _plain(upright))
    return _channels_first(array, "8-bit" if array.dtype == np.uint8 else "stored")


def _plain(image: Image.Image) -> Image.Image:
    """A mode with one or three channels and no alpha."""
    if image.mode in {"1", "LA", "La"}:
        return image.convert("L")
    return image.convert("RGB")  # a palette, RGBA, CMYK, YCbCr, LAB, HSV


def _refuse_deep_colour(image: Image.Image, path: Path) -> None:
    """ValueError for 16-bit colour, of which Pillow silently drops the low byte."""
    if image.mode in {"I", "F", "I;16", "I;16B", "I;16L"}:
        return
    depth = 8
    if image.format == "PNG":
        with path.open("rb") as handle:
            depth = handle.read(25)[24]  # the header chunk: width, height, then the bit depth
    elif image.format == "TIFF":
        depth = max(image.tag_v2.get(258, (8,)))  # type: ignore[attr-defined]  # only TIFF images have tag_v2
    if depth > 8:
        raise ValueError(f"{depth}-bit colour {image.format} would be cut to 8 bits; save it as .npy")


def read_numpy(path: Path, channels: int | None, frame: int | None) -> DecodedImage:
    """.npy, or .npz with one array or one named "image": [H, W], [H, W, C], [C, H, W], or a stack of these.

    Three axes hold channels where the last or first has as many as the study, else a stack that ``frame``
    picks from.
    """
    array = load_numpy(path)
    if array.ndim == 4 or (array.ndim == 3 and _channel_axis(array, channels, frame) is None):
        array = array[pick(len(array), frame)]
    if array.ndim not in {2, 3}:
        raise ValueError(f"has shape {tuple(array.shape)}; an image has two axes, or three with channels")
    if array.ndim == 3 and _channel_axis(array, channels, frame) == 0:
        array = np.moveaxis(array, 0, -1)
    return _channels_first(array)


def load_numpy(path: Path) -> AnyArray:
    """The array of a .npy, or the one (or the one named "image") of a .npz; ValueError where it holds no numbers."""
    loaded = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        with loaded:
            if len(loaded.files) != 1 and "image" not in loaded.files:
                raise ValueError(f"has arrays {', '.join(loaded.files)}; it needs one, or one named 'image'")
            array: AnyArray = loaded["image" if "image" in loaded.files else loaded.files[0]]
    else:
        array = loaded
    if array.dtype.kind not in "buif":
        raise ValueError(f"holds {array.dtype}, not numbers of one channel each")
    return array


def _channel_axis(array: AnyArray, channels: int | None, frame: int | None) -> int | None:
    """Which axis of three holds channels; a study of one channel takes three, which may be equal.

    Where the study is not known, a slice number says that the first axis is a stack of slices.
    """
    last = {None: {1, 3, 4}, 1: {1, 3}}.get(channels, {channels})
    first = {channels} if channels is not None else {1, 3} if frame is None else {1}
    return 2 if array.shape[2] in last else 0 if array.shape[0] in first else None


@cache
def nibabel_reader() -> Any:
    """MONAI's reader of NIfTI, which turns axes to right, anterior, superior."""
    # MONAI takes seconds to import, and most studies have no NIfTI.
    from monai.data.image_reader import NibabelReader

    return NibabelReader(as_closest_canonical=True, squeeze_non_spatial_dims=False)


def nifti_volume(path: Path) -> tuple[AnyArray, AnyArray, Scale]:
    """The voxels ``[x, y, z, ...]`` to right, anterior and superior, their affine, and what the values are."""
    reader = nibabel_reader()
    image = reader.read(path)
    dtype = image.get_data_dtype()
    if dtype.kind not in "buif":
        raise ValueError(f"holds {dtype}, not numbers of one channel each")
    data, facts = reader.get_data(image)  # turned; ``image`` itself is not
    whole = dtype == np.uint8 and image.dataobj.slope == 1 and image.dataobj.inter == 0
    return np.asarray(data), np.asarray(facts["affine"]), "8-bit" if whole else "physical"


def read_nifti(path: Path, channels: int | None, frame: int | None) -> DecodedImage:
    """One axial slice of a NIfTI volume, scaled by its header, as radiologists look: right side on the left.

    Axes are first turned to right-anterior-superior; ``frame`` counts from the feet. A volume of one slice
    along another axis shows that slice. A fourth axis holds channels. Pixels are not resampled to square
    ones.
    """
    volume, _, scale = nifti_volume(path)
    volume = volume.reshape(*volume.shape, *[1] * (3 - volume.ndim))
    if volume.ndim > 4:
        raise ValueError(f"has shape {tuple(volume.shape)}; an image has at most three axes and channels")
    flat = [axis for axis in (2, 1, 0) if volume.shape[axis] == 1]
    axis = flat[0] if flat else 2
    plane = np.take(volume, pick(volume.shape[axis], frame if not flat else None), axis=axis)
    turned = np.swapaxes(plane[::-1, ::-1], 0, 1)  # [x, y] to rows from anterior, columns from the patient's right
    return _channels_first(turned, scale)


def read_dicom(path: Path, channels: int | None, frame: int | None) -> DecodedImage:
    """One DICOM image: modality rescale or table applied, MONOCHROME1 inverted, palettes and YBR as RGB.

    Of several frames ``frame`` picks one. Window settings are ignored: they are a viewer's, and differ within
    a site.
    """
    import pydicom  # half a second, like the other formats' libraries imported where it is read

    dataset = pydicom.dcmread(path)
    if "PixelData" not in dataset and "FloatPixelData" not in dataset:
        raise ValueError("has no pixel data")
    array: AnyArray = dataset.pixel_array
    if int(dataset.get("NumberOfFrames", 1) or 1) > 1:
        array = array[pick(len(array), frame)]
    return dicom_image(dataset, array)


def dicom_image(dataset: "pydicom.Dataset", array: AnyArray) -> DecodedImage:
    """One frame ``array`` ([H, W] or [H, W, C]) of ``dataset`` in the values it stands for."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    photometric = str(dataset.PhotometricInterpretation)
    bits = int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        colours = apply_color_lut(array, dataset)[..., :3]
        return _channels_first(colours, "8-bit" if colours.dtype == np.uint8 else "stored")
    if photometric == "MONOCHROME1":
        signed = int(dataset.PixelRepresentation) == 1
        array = (-1 if signed else 2**bits - 1) - array.astype(np.int64)
    rescaled = np.asarray(apply_modality_lut(array, dataset))
    byte = bits == 8 and np.array_equal(rescaled, array) and dataset.get("Modality") != "CT"
    return _channels_first(rescaled, "8-bit" if byte else "physical")
