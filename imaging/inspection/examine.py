"""One look at one image file: whether it can be read, what it is, and what is needed to compare it with others."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image

from foundation.errors import DataError
from foundation.files import digest
from foundation.progress import track
from imaging.config import ImageConfig
from imaging.inspection.burnt_in_text import TextLine, find_text
from imaging.inspection.identifiers import Header, header_of
from imaging.listing.clusters import difference_hash, thumbnail
from imaging.listing.manifest import Manifest, slices
from imaging.reading.dicom_series import series_files
from imaging.reading.formats import FloatArray, is_dicom, kind_of, load_numpy, nibabel_reader
from imaging.reading.readers import decode, decode_volume

BLANK = 0.999
"""An image of which this share has the value of its corner shows nothing."""
_BIT_DEPTHS = {"1": "1-bit", "I;16": "16-bit", "I;16B": "16-bit", "I;16L": "16-bit", "I": "32-bit", "F": "float32"}


@dataclass(frozen=True, eq=False)
class InspectedFile:
    """What one row's file turned out to be; ``problem`` is the decoder's reason where it cannot be used."""

    row: int
    file: str
    """As the manifest has it, with "#3" where it names a slice."""
    format: str
    patient: str
    problem: str = ""
    sliced: bool = False
    """Whether the manifest says which slice is meant."""
    height: int = 0
    width: int = 0
    channels: int = 0
    slices: int = 1
    depth: str = "unknown"
    blank: bool = False
    file_digest: str = ""
    pixel_digest: str = ""
    hash: int = 0
    thumbnail: npt.NDArray[np.float16] = field(default_factory=lambda: np.zeros(0, dtype=np.float16))
    text: TextLine | None = None
    header: Header | None = None

    @property
    def readable(self) -> bool:
        """Whether a decoder made an image of it, fit for the study or not."""
        return self.channels > 0


def look_at(manifest: Manifest, rows: Sequence[int], image: ImageConfig | None, title: str) -> Iterator[InspectedFile]:
    """Look at these rows of the manifest, with a progress bar; a broken file is a finding, not an error.

    image: what a study asks of images; None takes any image, and of a volume the middle slice.
    """
    paths, frames = manifest.paths(), slices(manifest)
    names, patients = manifest.table["image"].tolist(), manifest.table["patient"].tolist()
    for row in track(rows, title):
        name = str(names[row]) + ("" if frames[row] is None else f"#{frames[row]}")
        yield _inspect(row, name, str(patients[row]), paths[row], frames[row], image)


def _inspect(
    row: int, name: str, patient: str, path: Path, frame: int | None, image: ImageConfig | None
) -> InspectedFile:
    inspected = InspectedFile(row, name, "", patient, problem=_absent(path), sliced=frame is not None)
    if inspected.problem:
        return replace(inspected, format=path.suffix.lstrip(".").upper() or "unknown")
    inspected = replace(inspected, format=format_of(path), header=_header(path), file_digest=_bytes_digest(path))
    try:
        pixels, slices_, problem = _pixels(path, frame, image)
    except DataError as error:
        return replace(inspected, problem=_reason(error, path))
    channels, height, width = pixels.shape
    return replace(
        inspected,
        problem=problem,
        height=height,
        width=width,
        channels=channels,
        slices=max(slices_, inspected.header.frames if inspected.header else 1),
        depth=_depth(path, inspected.header),
        blank=bool((pixels == pixels[:, :1, :1]).mean() >= BLANK),
        pixel_digest=digest(str(pixels.shape), pixels.tobytes()),
        hash=difference_hash(pixels),
        thumbnail=thumbnail(pixels).astype(np.float16),
        text=find_text(pixels),
    )


def _absent(path: Path) -> str:
    """Why there is nothing to decode, if there is nothing."""
    if path.is_dir():
        return ""
    try:
        with path.open("rb") as handle:
            return "" if handle.read(1) else "is empty (0 bytes)"
    except FileNotFoundError:
        return "there is no such file"
    except OSError as error:
        return f"cannot be opened ({error.strerror})"


def _pixels(path: Path, frame: int | None, image: ImageConfig | None) -> tuple[FloatArray, int, str]:
    """The image [C, H, W] to judge, how many slices the file has, and why the study refuses it, if it does."""
    channels = None if image is None else image.channels
    if path.is_dir() or (image is not None and image.depth is not None):
        volume = decode_volume(path, channels or 1).pixels
        return volume[:, volume.shape[1] // 2], volume.shape[1], ""
    problem = ""
    try:
        pixels = decode(path, channels, frame).pixels
    except DataError as error:
        if channels is None:
            raise
        pixels = decode(path, None, frame).pixels
        problem = _reason(error, path)
    return pixels, _slices(path, pixels), problem


def _reason(error: DataError, path: Path) -> str:
    """The error without the file's name, which stands beside it."""
    return str(error).removeprefix(f"{path}: ").removeprefix("cannot be read (").removesuffix(")")


def format_of(path: Path) -> str:
    """The format's name, by the file's name as the readers go by it."""
    if path.is_dir():
        return "DICOM series"
    suffix = path.suffix.lower().lstrip(".")
    kind = kind_of(path)
    names = {"jpg": "JPEG", "jpeg": "JPEG", "tif": "TIFF", "tiff": "TIFF"}
    return kind if kind not in ("Pillow", "") else names.get(suffix, suffix.upper()) or "unknown"


def _header(path: Path) -> Header | None:
    """The DICOM header, of a series' folder the first file's; None for other formats and damaged headers."""
    try:
        first = series_files(path)[0] if path.is_dir() else path
        if not is_dicom(first):
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom warns of odd but readable values
            return header_of(pydicom.dcmread(first, stop_before_pixels=True))
    except Exception:  # a damaged header raises anything at all; decoding says what is wrong with the file
        return None


def _slices(path: Path, pixels: FloatArray) -> int:
    """How many slices, pages or stacked images a file other than DICOM holds."""
    kind = kind_of(path)
    if kind == "NumPy":
        return max(1, load_numpy(path).size // pixels.size)
    if kind == "NIfTI":
        return max(1, int(np.prod(nibabel_reader().read(path).shape)) // pixels.size)
    if path.suffix.lower() in (".tif", ".tiff"):
        with Image.open(path) as image:
            return int(getattr(image, "n_frames", 1))
    return 1


def _depth(path: Path, header: Header | None) -> str:
    """Bits of a stored value, in words."""
    if header is not None:
        return f"{header.bits}-bit" if header.bits else "unknown"
    if path.is_dir():
        return "unknown"
    kind = kind_of(path)
    if kind == "NumPy":
        return str(load_numpy(path).dtype)
    if kind == "NIfTI":
        return str(nibabel_reader().read(path).get_data_dtype())
    with Image.open(path) as image:
        return _BIT_DEPTHS.get(image.mode, "8-bit")


def _bytes_digest(path: Path) -> str:
    """SHA-256 of the file, of a folder of its files' digests in the order of their names."""
    if path.is_dir():
        return digest(*[_bytes_digest(file) for file in sorted(path.iterdir()) if file.is_file()])
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
