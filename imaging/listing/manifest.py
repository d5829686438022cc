"""A site's list of images: which file shows which patient, and what else is known of it."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from foundation.errors import DataError, nearest
from foundation.files import write_with
from imaging.reading.formats import is_dicom, is_image

if TYPE_CHECKING:
    import pydicom

Unit = Literal["patient", "image cluster"]

REQUIRED = ("image", "patient")
FILES = ("manifest.csv", "manifest.parquet")
_FILE_COLUMNS = ("image", "mask")
_TEXT = ("image", "patient", "study", "series", "date", "site", "mask", "boxes")


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images of one or several sites, a row an image; checked when made.

    ``table`` has the columns image and patient, where known study, series, slice, position, date, site, label, mask
    and boxes (JSON text, a list of ``[x0, y0, x1, y1, label]`` in pixels of the file), and any others, which are kept.
    image, patient, study, series, date, site, mask and boxes are text ("007" stays "007"); slice is a whole number
    that picks one slice (from 0) of a file that holds several; position is a number that orders the images of a
    series (millimetres or slice numbers); date is the day of the examination, 2024-05-31. Relative image
    and mask paths start at ``root``. ``unit`` is "image cluster" where patient ids are not known and rows
    stand for images or groups of them. DataError names a missing column, an empty patient, an image
    listed twice, a patient of two sites.
    """

    table: pd.DataFrame
    root: Path
    unit: Unit = "patient"

    def __post_init__(self) -> None:
        table = _typed(self.table.reset_index(drop=True))
        _check(table)
        object.__setattr__(self, "table", table)
        object.__setattr__(self, "root", Path(self.root))

    @staticmethod
    def open(path: Path) -> "Manifest":
        """The manifest file ``path``; in a folder its manifest.csv or .parquet, else ``from_folder``."""
        if path.is_dir():
            listed = [path / name for name in FILES if (path / name).is_file()]
            return Manifest.read(listed[0]) if listed else Manifest.from_folder(path)
        return Manifest.read(path)

    @staticmethod
    def read(path: Path, unit: Unit = "patient") -> "Manifest":
        """A .csv or .parquet manifest, rooted in its folder. Only empty cells are missing: "NA" is a name."""
        if not path.is_file():
            raise DataError(f"{path}: there is no such manifest; give a .csv or .parquet file, or a folder of images")
        try:
            if path.suffix == ".parquet":
                table = pd.read_parquet(path)
            elif path.suffix == ".csv":
                table = pd.read_csv(path, dtype=dict.fromkeys(_TEXT, str), keep_default_na=False, na_values=[""])
            else:
                raise DataError(f"{path}: a manifest is a .csv or .parquet file, not {path.suffix or 'a bare name'!r}")
        except pd.errors.EmptyDataError as error:
            raise DataError(f"{path}: is empty; it needs a heading with image,patient and a row an image") from error
        except (ValueError, OSError) as error:
            raise DataError(f"{path}: cannot be read as a manifest ({str(error).splitlines()[0]})") from error
        try:
            manifest = Manifest(table, path.parent, unit)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
        if not len(manifest):
            raise DataError(f"{path}: lists no images; add a row an image, or leave the site out of the study")
        return manifest

    @staticmethod
    def from_folder(folder: Path) -> "Manifest":
        """Every image below ``folder``, in the order of the names.

        The patient is, for DICOM files, PatientID (SeriesInstanceUID where that is empty), with study and
        series from the instance UIDs, the position along the slices and the day of the study;
        for other files the first-level subfolder; for those that lie in
        ``folder`` itself the file's stem, and then the unit is "image cluster". A DICOM file whose header
        cannot be read is listed under its subfolder or stem, for the tensor store to count as broken. Hidden
        files are passed over.
        """
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder; set the site's images to a folder or a manifest")
        rows = [_row(path, folder) for path in visible_files(folder) if is_image(path)]
        if not rows:
            raise DataError(
                f"{folder}: holds no images (.png .jpg .tif .bmp .npy .npz .nii .nii.gz .dcm);"
                " put some there or leave the site out of the study"
            )
        flat = [row for row in rows if row.pop("flat")]
        return Manifest(pd.DataFrame(rows), folder, "image cluster" if flat else "patient")

    def write(self, path: Path) -> None:
        """Write .csv or .parquet, atomically. The unit is not stored: it is an argument of ``read``."""
        if path.suffix not in {".csv", ".parquet"}:
            raise DataError(f"{path}: a manifest is a .csv or .parquet file, not {path.suffix or 'a bare name'!r}")
        write = self.table.to_parquet if path.suffix == ".parquet" else self.table.to_csv
        write_with(path, lambda handle: write(handle, index=False))

    def write_located(self, folder: Path) -> Path:
        """Write ``folder/manifest.csv`` with absolute image and mask paths, so that it can stand anywhere."""
        table, root = self.table.copy(), self.root.resolve()
        for column in _FILE_COLUMNS:
            if column in table:
                table[column] = table[column].map(lambda name: str(root / name), na_action="ignore")
        Manifest(table, folder, self.unit).write(folder / FILES[0])
        return folder

    def where(self, mask: npt.ArrayLike) -> "Manifest":
        """The rows where ``mask`` (bool, one a row) is true, possibly none, in the same order."""
        keep = np.asarray(mask)
        if keep.dtype != np.bool_ or keep.shape != (len(self),):
            raise DataError(f"a row mask must be {len(self)} booleans, not {keep.dtype} of shape {keep.shape}")
        return Manifest(self.table.loc[keep], self.root, self.unit)

    def paths(self) -> list[Path]:
        """The image file of every row, below the root unless absolute."""
        return [self.root / image for image in self.table["image"]]

    def patients(self) -> int | None:
        """How many patients the images are of; None where that is not known."""
        return None if self.unit == "image cluster" else int(self.table["patient"].nunique())

    def images_each(self) -> list[int]:
        """How many images each patient has, the most first."""
        return [int(count) for count in self.table["patient"].value_counts()]

    def codes(self, column: str) -> npt.NDArray[np.int64]:
        """Whole numbers from 0, equal where values of ``column`` are equal; a missing cell equals no other.

        A study, series or slice belongs to its patient: "1" of two patients is two codes.
        """
        if column not in self.table:
            has = [str(name) for name in self.table]
            raise DataError(f"the manifest has no column {column!r}; it has: {', '.join(has)}{nearest(column, has)}")
        values = self.table[column]
        missing = values.isna().to_numpy()
        text = values.astype(str)
        if column in {"study", "series", "slice"}:
            text = self.table["patient"] + "\x1f" + text
        codes = pd.factorize(text)[0].astype(np.int64)
        codes[missing] = len(codes) + np.arange(int(missing.sum()))
        return pd.factorize(codes)[0].astype(np.int64)

    def __len__(self) -> int:
        return len(self.table)


def slices(manifest: Manifest) -> list[int | None]:
    """The wanted slice of every row, None where the manifest does not say."""
    if "slice" not in manifest.table:
        return [None] * len(manifest)
    return [None if pd.isna(value) else int(value) for value in manifest.table["slice"]]


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """A copy with text columns as text (missing stays missing) and slices as whole numbers."""
    table = table.copy()
    for name in _TEXT:
        if name in table:
            filled = table[name].notna()
            table[name] = table[name].astype(object).where(filled, None)
            table[name] = table[name].map(str, na_action="ignore").astype("str")
            table.loc[table[name].str.strip() == "", name] = None
    if "slice" in table:
        try:
            table["slice"] = pd.to_numeric(table["slice"]).astype("Int64")
        except (ValueError, TypeError) as error:
            raise DataError(f"column 'slice' must hold whole numbers ({str(error).splitlines()[0]})") from error
    if "position" in table:
        try:
            table["position"] = pd.to_numeric(table["position"]).astype("Float64")
        except (ValueError, TypeError) as error:
            raise DataError(f"column 'position' must hold numbers ({str(error).splitlines()[0]})") from error
    if "date" in table:
        try:
            pd.to_datetime(table["date"], format="%Y-%m-%d")
        except (ValueError, TypeError) as error:
            raise DataError(f"column 'date' must hold days as 2024-05-31 ({str(error).splitlines()[0]})") from error
    return table


def _check(table: pd.DataFrame) -> None:
    for name in REQUIRED:
        if name not in table:
            has = [str(column) for column in table]
            raise DataError(f"the manifest has no column {name!r}; it has: {', '.join(has)}{nearest(name, has)}")
    for name in REQUIRED:
        if (empty := table[name].isna()).any():
            row = int(np.flatnonzero(empty)[0]) + 1
            image = f" ({table['image'].iloc[row - 1]})" if name == "patient" else ""
            raise DataError(
                f"row {row}{image} has an empty {name!r} cell ({int(empty.sum())} rows in all); every image needs one"
            )
    key = ["image", "slice"] if "slice" in table else ["image"]
    if (twice := table.duplicated(key)).any():
        image = table["image"][twice].iloc[0]
        raise DataError(f"image {image!r} is listed twice ({int(twice.sum())} repeated rows); keep one row of each")
    if "site" in table:
        _check_sites(table)


def _check_sites(table: pd.DataFrame) -> None:
    pairs = table[["patient", "site"]].fillna("").drop_duplicates().sort_values(["patient", "site"])
    twice = pairs[pairs.duplicated("patient", keep=False)]
    if len(twice):
        patient = twice["patient"].iloc[0]
        sites = [repr(site) for site in twice["site"][twice["patient"] == patient]]
        raise DataError(
            f"patient {patient!r} is listed in {len(sites)} sites, {' and '.join(sites)}; a patient belongs"
            f" to one site ({twice['patient'].nunique()} such patients)"
        )


def visible_files(folder: Path) -> list[Path]:
    """All files below a folder that are not hidden, in the order of their names."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]


def _row(path: Path, folder: Path) -> dict[str, Any]:
    relative = path.relative_to(folder)
    flat = len(relative.parts) == 1
    row: dict[str, Any] = {"image": relative.as_posix(), "patient": path.stem if flat else relative.parts[0]}
    tags = _dicom_tags(path) if is_dicom(path) else {}
    return {**row, **tags, "flat": flat and "patient" not in tags}


def _dicom_tags(path: Path) -> dict[str, str]:
    import pydicom  # half a second, which other lists do without

    names = ["PatientID", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate"]
    places = ["ImagePositionPatient", "ImageOrientationPatient", "InstanceNumber"]
    try:
        header = pydicom.dcmread(path, specific_tags=[*names, *places], stop_before_pixels=True)
        patient, study, series, date = (str(header.get(name) or "").strip() for name in names)
        position = _position(header)
    except Exception:  # a damaged header raises anything at all; the tensor store counts the file
        return {}
    day = f"{date[:4]}-{date[4:6]}-{date[6:]}" if re.fullmatch(r"\d{8}", date) else ""
    found = {"patient": patient or series, "study": study, "series": series, "position": position, "date": day}
    return {name: value for name, value in found.items() if value}


def _position(header: "pydicom.Dataset") -> str:
    """Millimetres along the normal of the slice (DICOM PS3.3, C.7.6.2), else the number in the series, else nothing."""
    place, directions = header.get("ImagePositionPatient"), header.get("ImageOrientationPatient")
    if place and directions:
        across, down = np.asarray(directions, dtype=np.float64).reshape(2, 3)
        return f"{float(np.cross(across, down) @ np.asarray(place, dtype=np.float64)):.3f}"
    number = header.get("InstanceNumber")
    return "" if number is None else str(int(number))
