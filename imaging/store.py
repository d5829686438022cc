"""The tensor store: every image decoded once, then read at memory speed."""

import csv
import fcntl
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from foundation.errors import DataError, RunError
from foundation.files import append_jsonl, digest, read_json, read_jsonl, write_json, write_text
from foundation.progress import track
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest, slices
from imaging.reading.formats import FloatArray
from imaging.reading.readers import prepare

TOP = 65535
BROKEN_SHARE = 0.05
_VERSION = 1  # raise it when decoding changes, so that older entries are made anew
_BLOCK = 64  # images between two flushes: what an interruption can cost


@dataclass(frozen=True, eq=False)
class TensorStore:
    """Decoded images of a manifest, in its order without the broken ones.

    On disk uint16 [N, *image.shape] holding round(65535 x): half the size of float32, exact for 8-bit and 16-bit
    sources (v / 255 comes back as the nearest float32 of v / 255), where float16 would keep 11 bits.
    ``table`` holds the manifest's rows of the images that are kept. The file is mapped, not read, and
    mapped anew after pickling, so that a worker process gets a path instead of the images.
    """

    folder: Path
    table: pd.DataFrame
    slots: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    """Per image a code of its patient."""
    studies: npt.NDArray[np.int64]
    """Per image a code of its study (of its patient); a code of its own where the manifest knows none."""
    series: npt.NDArray[np.int64]
    """Per image a code of its series (of its patient); a code of its own where the manifest knows none."""
    _mapped: list[npt.NDArray[np.uint16]] = field(default_factory=list, repr=False)

    @staticmethod
    def build(manifest: Manifest, image: ImageConfig, folder: Path, *, progress: bool = True) -> "TensorStore":
        """Decode the manifest's images into ``folder/<key>/``, or find them there.

        The key covers size, depth, channels, CT or not, its window, and every file's path, size, time and slice, so
        that a changed file is decoded again. An interrupted build continues where it stopped; of two processes one
        builds, the other waits. Broken images are left out and listed in the entry's skipped.csv. DataError
        when more than 5 % are broken, RunError when the disk is full.
        """
        if not len(manifest):
            raise DataError("the manifest has no images; leave the site out of the study")
        key = _key(manifest, image)
        entry = folder / key
        folder.mkdir(parents=True, exist_ok=True)
        if not (entry / "rows.json").is_file():
            with _locked(folder / f".{key}.lock"):
                if not (entry / "rows.json").is_file():
                    _build_entry(manifest, image, entry, folder / f".{key}.building", progress)
        kept = np.asarray(read_json(entry / "rows.json")["kept"], dtype=np.int64)
        mask = np.zeros(len(manifest), dtype=np.bool_)
        mask[kept] = True
        whole = manifest.where(mask)
        singletons = np.arange(len(kept), dtype=np.int64)
        studies, series = (whole.codes(name) if name in whole.table else singletons for name in ("study", "series"))
        return TensorStore(entry, whole.table, kept, whole.codes("patient"), studies, series)

    @property
    def labels(self) -> npt.NDArray[Any] | None:
        """The label column as the manifest has it; None without one."""
        return self.table["label"].to_numpy() if "label" in self.table else None

    @property
    def skipped(self) -> list[dict[str, str]]:
        """The broken images: image, slice, reason."""
        with (self.folder / "skipped.csv").open(newline="") as handle:
            return list(csv.DictReader(handle))

    def batch(self, indices: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """float32 [B, *image.shape] in [0, 1] of the images at ``indices`` (0 to len - 1), on the CPU."""
        return in_unit_range(self.stored(indices))

    def stored(self, indices: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        """uint16 [B, *image.shape], the images at ``indices`` as they lie in the store: half the bytes to copy."""
        if not self._mapped:
            self._mapped.append(np.load(self.folder / "images.npy", mmap_mode="r").view(np.ndarray))
        return torch.from_numpy(self._mapped[0][self.slots[np.asarray(indices, dtype=np.int64)]])

    def __len__(self) -> int:
        return len(self.slots)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": []}


def in_unit_range(stored: torch.Tensor) -> torch.Tensor:
    """float32 in [0, 1] of images as ``stored`` gives them, with the same bits on every device.

    uint16 is divided; float32, of a store in memory, is in that range already.
    """
    if stored.dtype == torch.float32:
        return stored
    # Not by a plain number: on a GPU that is a product with its inverse, which is rounded otherwise.
    top = torch.full((), float(TOP), device=stored.device)
    return stored.to(torch.float32).div_(top)


def _key(manifest: Manifest, image: ImageConfig) -> str:
    rows = []
    for path, frame in zip(manifest.paths(), slices(manifest), strict=True):
        try:
            stats = [file.stat() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
            rows.append([str(path.resolve()), *(each for s in stats for each in (s.st_size, s.st_mtime_ns)), frame])
        except OSError:
            rows.append([str(path.absolute()), -1, -1, frame])
    settings: list[Any] = [_VERSION, image.size, image.channels]
    settings += [image.modality in {"ct", "mri"}, image.modality == "ct"]
    added = {"depth": image.depth, "window": image.window}  # where they are set, so that older entries keep their key
    settings += [[name, value] for name, value in added.items() if value is not None]
    return digest(json.dumps(settings), json.dumps(rows))[:32]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock that the kernel lets go of when the process dies."""
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _build_entry(manifest: Manifest, image: ImageConfig, entry: Path, work: Path, progress: bool) -> None:
    work.mkdir(exist_ok=True)
    shape = (len(manifest), *image.shape)
    try:
        _check_space(work, shape)
        broken = _decode_all(manifest, image, work, shape, progress)
        _list_skipped(manifest, broken, work / "skipped.csv")
        _check_broken(manifest, broken, work / "skipped.csv")
        kept = [index for index in range(len(manifest)) if index not in broken]
        write_json(work / "rows.json", {"kept": kept, "shape": list(shape)})
        (work / "decoded.jsonl").unlink(missing_ok=True)
        if entry.exists():
            shutil.rmtree(entry)  # without rows.json: not one of ours, or damaged
        work.replace(entry)
    except OSError as error:
        raise RunError(f"{work}: cannot be written ({error.strerror}); free space, then start again") from error


def _check_space(work: Path, shape: tuple[int, ...]) -> None:
    path = work / "images.npy"
    held = path.stat().st_blocks * 512 if path.exists() else 0
    needed = 2 * int(np.prod(shape)) - held
    free = shutil.disk_usage(work).free
    if needed > free:
        raise RunError(
            f"{work}: needs {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; free space or set another folder"
        )


def _decode_all(
    manifest: Manifest, image: ImageConfig, work: Path, shape: tuple[int, ...], progress: bool
) -> dict[int, str]:
    """Decode what ``decoded.jsonl`` does not list as done; return the broken rows and why.

    Written by file handle, not through a map: a full disk under a map kills the process, here it is an
    OSError.
    """
    journal = work / "decoded.jsonl"
    header = _npy_header(shape)
    with (work / "images.npy").open("a+b") as created:
        fresh = created.seek(0, os.SEEK_END) < len(header) + 2 * int(np.prod(shape))
    if fresh:
        journal.unlink(missing_ok=True)
    done = {int(index) for row in read_jsonl(journal) for index in row["done"]}
    paths, frames = manifest.paths(), slices(manifest)
    todo = [index for index in range(len(manifest)) if index not in done]
    broken: dict[int, str] = {}
    with (work / "images.npy").open("r+b") as handle:
        if fresh:
            handle.write(header)
            handle.truncate(len(header) + 2 * int(np.prod(shape)))
        writer = _Writer(handle, journal, len(header), shape)
        try:
            for index in track(todo, f"decoding {len(todo)} images", show=progress):
                try:
                    decoded = prepare(paths[index], image, frames[index])
                    writer.add(index, decoded)
                except DataError as error:
                    broken[index] = str(error)
        finally:
            writer.flush()
    return broken


@dataclass
class _Writer:
    """Puts images at their places; a block is listed as decoded only after its bytes are on the disk."""

    handle: BinaryIO
    journal: Path
    offset: int
    shape: tuple[int, ...]
    pending: list[int] = field(default_factory=list)

    def add(self, index: int, image: FloatArray) -> None:
        self.handle.seek(self.offset + index * 2 * int(np.prod(self.shape[1:])))
        self.handle.write(np.rint(image * np.float32(TOP)).astype("<u2").tobytes())
        self.pending.append(index)
        if len(self.pending) >= _BLOCK:
            self.flush()

    def flush(self) -> None:
        if self.pending:
            self.handle.flush()
            os.fsync(self.handle.fileno())
            append_jsonl(self.journal, {"done": self.pending})
            self.pending = []


def _npy_header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<u2", "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _list_skipped(manifest: Manifest, broken: dict[int, str], path: Path) -> None:
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(["image", "slice", "reason"])
    frames = slices(manifest)
    for index, reason in sorted(broken.items()):
        rows.writerow([manifest.table["image"].iloc[index], "" if frames[index] is None else frames[index], reason])
    write_text(path, buffer.getvalue())


def _check_broken(manifest: Manifest, broken: dict[int, str], listed: Path) -> None:
    if len(broken) > BROKEN_SHARE * len(manifest):
        raise DataError(
            f"{len(broken)} of {len(manifest)} images ({len(broken) / len(manifest):.1%}) cannot be used,"
            f" more than {BROKEN_SHARE:.0%}; first: {broken[min(broken)]}; all are listed in {listed}"
        )
