"""Slices of a DICOM series, or frames of one file, put in order by where they lie in the patient."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom

from imaging.reading.formats import DecodedImage, FloatArray, Scale, dicom_image, is_dicom

Floats = npt.NDArray[np.float64]
SAME_PLACE = 1e-3
GAP = 1.5


@dataclass(frozen=True)
class Stack:
    """``pixels`` float32 [C, slice, row, column] and how they lie.

    spacing: millimetres from slice to slice, row to row, column to column. steps: the unit directions [3, 3] in
    which slice, row and column numbers rise, in DICOM's patient axes; None where the file does not say.
    """

    pixels: FloatArray
    scale: Scale
    spacing: tuple[float, float, float]
    steps: Floats | None


@dataclass(frozen=True)
class _Slice:
    image: DecodedImage
    position: Floats
    across: Floats  # the direction in which column numbers rise
    down: Floats
    spacing: tuple[float, float]  # row to row, column to column


def series_files(folder: Path) -> list[Path]:
    """The DICOM files of a folder by name; ValueError where there are none."""
    found = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name[0] != "." and is_dicom(path)]
    if not found:
        raise ValueError("the folder holds no DICOM files; name the folder of one series, or a volume's file")
    return found


def series_of(folder: Path) -> Stack:
    """The one series in ``folder``; ValueError where there are several, or slices are missing or do not fit."""
    datasets = [pydicom.dcmread(path) for path in series_files(folder)]
    series = {str(dataset.get("SeriesInstanceUID", "")) for dataset in datasets}
    if len(series) > 1:
        raise ValueError(f"the folder holds {len(series)} DICOM series; give each its own folder and row")
    if len(datasets) == 1:
        return frames_of(datasets[0])
    return _stacked([_slice(dataset) for dataset in datasets])


def frames_of(dataset: pydicom.Dataset) -> Stack:
    """The frames of a multi-frame file, in order of their places, or as they come where it knows no places."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    if count < 2:
        raise ValueError("is one DICOM slice; let the manifest name the folder of its series")
    array = dataset.pixel_array
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if groups is None:
        images = [dicom_image(dataset, frame) for frame in array]
        rows, columns = (float(value) for value in dataset.get("PixelSpacing", (1.0, 1.0)))
        apart = float(dataset.get("SpacingBetweenSlices", 0) or dataset.get("SliceThickness", 0) or rows)
        return Stack(_together(images), _scale(images), (apart, rows, columns), None)
    return _stacked([_frame(dataset, frame, group) for frame, group in zip(array, groups, strict=True)])


def _slice(dataset: pydicom.Dataset) -> _Slice:
    """A file of one slice."""
    for tag in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if dataset.get(tag) is None:
            raise ValueError(f"a slice (InstanceNumber {dataset.get('InstanceNumber', '?')}) has no {tag}")
    image = dicom_image(dataset, dataset.pixel_array)
    return _placed(image, dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing)


def _frame(dataset: pydicom.Dataset, array: Any, group: pydicom.Dataset) -> _Slice:
    """A frame of an enhanced file, whose tags stand in its own group or in the shared one."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]

    def value_of(sequence: str, tag: str) -> Any:
        for place in (group, shared):
            if place.get(sequence) and place[sequence][0].get(tag) is not None:
                return place[sequence][0][tag].value
        return None

    position = value_of("PlanePositionSequence", "ImagePositionPatient")
    orientation = value_of("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = value_of("PixelMeasuresSequence", "PixelSpacing")
    if position is None or orientation is None or spacing is None:
        raise ValueError("a frame has no position, orientation or pixel spacing")
    image = dicom_image(dataset, array)
    slope = value_of("PixelValueTransformationSequence", "RescaleSlope")
    if slope is not None:
        intercept = value_of("PixelValueTransformationSequence", "RescaleIntercept")
        image = DecodedImage(image.pixels * np.float32(slope) + np.float32(intercept or 0), "physical")
    return _placed(image, position, orientation, spacing)


def _placed(image: DecodedImage, position: Any, orientation: Any, spacing: Any) -> _Slice:
    """A slice with the values of its three tags."""
    directions = np.asarray(orientation, dtype=np.float64)
    rows, columns = (float(value) for value in spacing)
    return _Slice(image, np.asarray(position, dtype=np.float64), directions[:3], directions[3:], (rows, columns))


def _stacked(slices: Sequence[_Slice]) -> Stack:
    """Slices on one grid, sorted along their normal; ValueError where they are not on one."""
    first = slices[0]
    for other in slices:
        same = np.allclose([other.across, other.down], [first.across, first.down], atol=1e-3)
        same = same and np.allclose(other.spacing, first.spacing, rtol=1e-3)
        if not same or other.image.pixels.shape != first.image.pixels.shape:
            raise ValueError("its slices differ in direction, pixel spacing or size; give each stack its own folder")
    normal = np.cross(first.across, first.down)
    places = np.asarray([float(other.position @ normal) for other in slices])
    order = np.argsort(places, kind="stable")
    gaps = np.diff(places[order])
    if gaps.min() < SAME_PLACE:
        twice = places[order][int(gaps.argmin())]
        raise ValueError(f"has several slices at {twice:.1f} mm (echoes or times?); give each stack its own folder")
    apart = float(np.median(gaps))
    if gaps.max() > GAP * apart:
        before = places[order][int(gaps.argmax())]
        raise ValueError(
            f"misses slices after {before:.1f} mm ({gaps.max():.1f} mm to the next, {apart:.1f} mm elsewhere); "
            f"give the whole series"
        )
    images = [slices[int(index)].image for index in order]
    steps = np.stack([normal, first.down, first.across])
    return Stack(_together(images), _scale(images), (apart, *first.spacing), steps)


def _together(images: Sequence[DecodedImage]) -> FloatArray:
    """[C, slice, row, column]."""
    return np.stack([image.pixels for image in images], axis=1)


def _scale(images: Sequence[DecodedImage]) -> Scale:
    """8-bit only where every slice is."""
    return "8-bit" if all(image.scale == "8-bit" for image in images) else "physical"
