"""An image file to a square tensor, or a volume to a box, in [0, 1]: read, normalise, resize."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import interpolate

from foundation.errors import DataError
from imaging.config import ImageConfig, Modality
from imaging.reading.formats import DecodedImage, FloatArray, Scale, reader_for
from imaging.reading.volumes import Volume, read_volume, resize_volume

HU_WINDOW = (-1000.0, 1000.0)
PERCENTILES = (0.5, 99.5)


def decode(path: Path, channels: int | None, frame: int | None = None) -> DecodedImage:
    """The image in ``path`` with exactly ``channels`` channels (any number if None).

    ``frame`` (from 0) picks a slice of a volume, stack or multi-page file, the middle one if None; files of
    one image ignore it. RGB with three equal channels counts as grey. DataError, one line with the file's
    name, for a missing or damaged file, another number of channels, or values that are not finite.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such image")
    with _reading(path):
        image = reader_for(path)(path, channels, frame)
    pixels = image.pixels
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise DataError(f"{path}: has shape {pixels.shape}, not channels, height and width")
    _check_finite(pixels, path)
    return image if channels is None else DecodedImage(_fit_channels(pixels, channels, path), image.scale)


def decode_volume(path: Path, channels: int) -> Volume:
    """The volume in the file or DICOM series folder ``path``, with exactly ``channels`` channels.

    DataError, one line with the name, for what is missing, damaged or no volume, another number of channels, or
    values that are not finite.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such volume")
    with _reading(path):
        volume = read_volume(path, channels)
    _check_finite(volume.pixels, path)
    return Volume(_fit_channels(volume.pixels, channels, path), volume.scale, volume.spacing)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into a DataError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # libraries warn of odd but readable files; the user cannot act on it
            yield
    except Exception as error:  # decoders raise anything at all on damaged bytes
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason[:250]})") from error


def _check_finite(pixels: FloatArray, path: Path) -> None:
    if not np.isfinite(pixels).all():
        raise DataError(f"{path}: holds values that are not finite; replace them or leave the image out")


def _fit_channels(pixels: FloatArray, channels: int, path: Path) -> FloatArray:
    if len(pixels) == channels:
        return pixels
    if channels == 1 and len(pixels) == 3 and (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all():
        return pixels[:1]
    raise DataError(
        f"{path}: has {len(pixels)} channel{'s' if len(pixels) > 1 else ''}, but image.channels is"
        f" {channels}; set image.channels to {len(pixels)} or convert the image"
    )


def to_unit(
    pixels: FloatArray, modality: Modality, scale: Scale = "stored", window: tuple[float, float] | None = None
) -> FloatArray:
    """Intensities [C, H, W] or [C, D, H, W] to float32 in [0, 1].

    8-bit images are divided by 255. CT in physical values is windowed from -1000 to 1000 HU, or to ``window``. All
    else is stretched between the image's own 0.5 and 99.5 percentiles, clipped: each channel alone for CT and MRI,
    whose channels are sequences, all together elsewhere, where they are colours. A constant image becomes
    0.
    """
    if scale == "8-bit":
        return pixels / np.float32(255.0)
    if modality == "ct" and scale == "physical":
        low, high = np.float32((window or HU_WINDOW)[0]), np.float32((window or HU_WINDOW)[1])
    else:
        axes = tuple(range(1 if modality in {"ct", "mri"} else 0, pixels.ndim))
        low, high = np.percentile(pixels, PERCENTILES, axis=axes, keepdims=True).astype(np.float32)
    span = np.where(high > low, high - low, np.float32(np.inf))
    unit: FloatArray = np.clip((pixels - low) / span, 0.0, 1.0).astype(np.float32, copy=False)
    return unit


def fitted_box(height: float, width: float, size: int) -> tuple[int, int, int, int]:
    """(top, left, height, width) of an image's place in the square of ``size``: aspect kept, centred.

    height, width: of the image, in pixels or millimetres.
    """
    longest = max(height, width)
    new_height = max(1, round(height * size / longest))
    new_width = max(1, round(width * size / longest))
    return (size - new_height) // 2, (size - new_width) // 2, new_height, new_width


def resize(pixels: FloatArray, size: int) -> FloatArray:
    """[C, H, W] to [C, size, size]: bilinear, antialiased where it shrinks, zeros beside the shorter side."""
    top, left, height, width = fitted_box(pixels.shape[1], pixels.shape[2], size)
    if (height, width) == pixels.shape[1:]:
        inner = pixels
    else:
        source = torch.from_numpy(np.ascontiguousarray(pixels))[None]
        inner = interpolate(source, (height, width), mode="bilinear", antialias=True)[0].numpy()
    if (height, width) == (size, size):
        return inner
    square = np.zeros((len(pixels), size, size), dtype=np.float32)
    square[:, top : top + height, left : left + width] = inner
    return square


def prepare(path: Path, image: ImageConfig, frame: int | None = None) -> FloatArray:
    """Read, normalise, resize: float32 of shape ``image.shape`` in [0, 1].

    A volume keeps the proportions that its slices have in millimetres; its slices become ``image.depth``.
    """
    if image.depth is None:
        decoded = decode(path, image.channels, frame)
        unit = to_unit(decoded.pixels, image.modality, decoded.scale, image.window)
        return np.clip(resize(unit, image.size), 0.0, 1.0)
    volume = decode_volume(path, image.channels)
    unit = to_unit(volume.pixels, image.modality, volume.scale, image.window)
    _, rows, columns = volume.spacing
    box = fitted_box(unit.shape[2] * rows, unit.shape[3] * columns, image.size)
    return np.clip(resize_volume(unit, box, image.depth, image.size), 0.0, 1.0)
