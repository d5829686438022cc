"""Files that are either whole or absent: written beside their place, then renamed."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from foundation.errors import RunError


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file beside ``path``, flush it to disk, then rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):  # what cannot be written to may not be cleared either; the reason has been told
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: could not be written ({error.strerror}); free space or permit writing, then go on")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    write_with(path, lambda temporary: temporary.write_bytes(data))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; RunError when it is missing or cut short."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: is damaged ({error})") from error


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as a line. A torn last line (a killed writer) is ended first; ``read_jsonl`` skips it."""
    line = (json.dumps(row) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as handle:
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else b"\n" + line
            handle.write(line)
    except OSError as error:
        raise _not_written(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSONL file, [] when there is none."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors (moved to the CPU, made contiguous, cut loose from each other) as safetensors, atomically."""
    whole: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().to("cpu").contiguous()
        place = value.untyped_storage().data_ptr()
        whole[name] = value.clone() if place in taken else value  # safetensors refuses memory that two names share
        taken.add(place)
    write_with(path, lambda temporary: _save(whole, temporary, dict(metadata) if metadata else None))


def _save(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None) -> None:
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        # A full disk reaches us only as text: "... (os error 28)".
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1]))) from error


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file and its metadata; RunError when missing or damaged."""
    try:
        with safe_open(path, framework="pt") as handle:
            return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing") from error
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path}: is damaged ({str(error).splitlines()[0]})") from error


class TensorFile:
    """The tensors of a safetensors file, read piece by piece, so that a pass over many files holds no model.

    safetensors' ``safe_open`` reads the whole header at every opening, and, kept open, keeps every page that was looked
    at. Here the header (the 8 bytes of its length, then JSON) is read once, and a tensor's bytes when they are asked
    for. The file is opened each time: thousands of sites may have one, and a process few open files.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = 0
        self._header: dict[str, Any] = {}

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor of that name, in memory of its own. RunError when the file is missing or damaged."""
        flat = self.piece(name)
        return flat.reshape(self._header[name]["shape"])

    def piece(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Numbers ``start`` to ``stop`` (not more than there are) of the flattened tensor; errors as ``tensor``."""
        try:
            if not self._header:
                self._read_header()
            facts = self._header[name]
            dtype, (begin, end) = _DTYPES[facts["dtype"]], facts["data_offsets"]
            first = begin + start * dtype.itemsize
            last = end if stop is None else min(end, begin + stop * dtype.itemsize)
            data = torch.empty(last - first, dtype=torch.uint8)
            with self._path.open("rb", buffering=0) as handle:
                handle.seek(self._start + first)
                if handle.readinto(cast(Any, data.numpy())) != last - first:
                    raise ValueError("it is cut short")
            return data.view(dtype)
        except FileNotFoundError as error:
            raise RunError(f"{self._path}: is missing") from error
        except (KeyError, ValueError, RuntimeError, OverflowError, OSError) as error:
            raise RunError(f"{self._path}: is damaged ({str(error).splitlines()[0]})") from error

    def _read_header(self) -> None:
        with self._path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            self._start, self._header = 8 + length, json.loads(handle.read(length))


_LONGEST_HEADER = 100_000_000  # safetensors' own limit
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def replace_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder into its place; an older folder there is removed first."""
    if path.exists():
        shutil.rmtree(path)
    temporary.replace(path)


def digest(*parts: bytes | memoryview | str) -> str:
    """SHA-256 in hex over the parts, each with its length, so that no two lists of parts collide."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update((data.nbytes if isinstance(data, memoryview) else len(data)).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()
