"""Volumes: one file, or one folder of a DICOM series, as ``[C, D, H, W]`` with its voxels' size in millimetres.

All are turned alike: slices from the feet to the head, each as radiologists look (rows from the patient's front,
columns from the right), so that slice k is what ``imaging.reading.formats`` reads as slice k of the same file.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import torch
from torch.nn.functional import interpolate

from imaging.reading.dicom_series import Stack, frames_of, series_of
from imaging.reading.formats import AnyArray, FloatArray, Scale, kind_of, load_numpy, nifti_volume, scale_of

Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Volume:
    """``pixels`` float32 [C, D, H, W] in the file's own intensities, what these are (``formats.DecodedImage``), and the
    distances of neighbouring slices, rows and columns in millimetres (1 each where the file does not say)."""

    pixels: FloatArray
    scale: Scale
    spacing: Spacing


def read_volume(path: Path, channels: int) -> Volume:
    """The volume in a NIfTI, .npy, .npz or multi-frame DICOM file, or in the folder of a DICOM series.

    ValueError where the file holds no volume of ``channels`` channels, DICOM slices have no common grid, or the
    format is another.
    """
    kind = "series" if path.is_dir() else kind_of(path)
    if kind == "series":
        volume = _upright(series_of(path))
    elif kind == "NumPy":
        volume = _read_numpy(path, channels)
    elif kind == "NIfTI":
        volume = _read_nifti(path, channels)
    elif kind == "DICOM":
        volume = _upright(frames_of(pydicom.dcmread(path)))
    else:
        raise ValueError(f"{path.suffix!r} holds no volume; give .nii .nii.gz .npy .npz, or a DICOM series' folder")
    if volume.pixels.ndim != 4 or min(volume.pixels.shape[1:], default=0) < 2:
        raise ValueError(
            f"has {list(volume.pixels.shape[1:])} slices, rows and columns; a volume has 2 of each or more"
        )
    return volume


def _read_nifti(path: Path, channels: int) -> Volume:
    array, affine, scale = nifti_volume(path)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[3] not in {1, channels}:
        raise ValueError(
            f"has shape {tuple(array.shape)}, several volumes in one file; write each to its own file "
            f"(nibabel.four_to_three), or set image.channels to their number where they are sequences"
        )
    across, along, up = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return Volume(_sliced(array), scale, (up, along, across))


def _sliced(array: AnyArray) -> FloatArray:
    """[x to the right, y to the front, z up, C] to [C, slices from below, rows from the front, columns from right]."""
    return np.ascontiguousarray(np.transpose(array, (3, 2, 1, 0))[:, :, ::-1, ::-1], dtype=np.float32)


def _upright(stack: Stack) -> Volume:
    """A DICOM stack [C, slice, row, column] turned by its directions; as it comes where it has none."""
    if stack.steps is None:
        return Volume(stack.pixels, stack.scale, stack.spacing)
    orientations: Any = import_module("nibabel.orientations")  # of other people's, without types
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ stack.steps.T  # DICOM's axes point left and back, NIfTI's do not
    orientation = orientations.io_orientation(affine)
    turned: AnyArray = orientations.apply_orientation(np.moveaxis(stack.pixels, 0, -1), orientation)  # [x, y, z, C]
    sizes = dict(zip(orientation[:, 0].astype(int).tolist(), stack.spacing, strict=True))
    return Volume(_sliced(turned), stack.scale, (sizes[2], sizes[1], sizes[0]))


def _read_numpy(path: Path, channels: int) -> Volume:
    """[D, H, W], or with channels first or last; the file knows no millimetres."""
    array = load_numpy(path)
    if array.ndim == 3:
        array = array[None]
    elif array.ndim == 4 and array.shape[0] != channels and array.shape[3] in {channels, 3}:
        array = np.moveaxis(array, -1, 0)
    if array.ndim != 4:
        raise ValueError(f"has shape {tuple(array.shape)}; a volume has three axes, or four with channels")
    scale = scale_of(array.dtype)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    return Volume(np.ascontiguousarray(array, dtype=np.float32), scale, (1.0, 1.0, 1.0))


def resize_volume(pixels: FloatArray, box: tuple[int, int, int, int], depth: int, size: int) -> FloatArray:
    """[C, D, H, W] to [C, depth, size, size]: trilinear, antialiased where it shrinks, zeros beside ``box``.

    box: (top, left, height, width) of a slice's place in the square (``readers.fitted_box``). Slices are stretched
    over all of ``depth``.
    """
    top, left, height, width = box
    planes = torch.from_numpy(np.ascontiguousarray(pixels))  # [C, D, H, W]: slices are the channels of one image
    if planes.shape[2:] != (height, width):
        planes = interpolate(planes, (height, width), mode="bilinear", antialias=True)
    if planes.shape[1] != depth:
        columns = planes.flatten(2)[:, None]  # [C, 1, D, h * w]: only the first side changes
        planes = interpolate(columns, (depth, height * width), mode="bilinear", antialias=True)[:, 0]
    inner = planes.reshape(len(pixels), depth, height, width).numpy()
    if (height, width) == (size, size):
        return inner
    block = np.zeros((len(pixels), depth, size, size), dtype=np.float32)
    block[:, :, top : top + height, left : left + width] = inner
    return block
