"""Tensors in files that are either whole or absent (safetensors), and one reader that takes them piece by piece."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from foundation.errors import RunError
from foundation.files import write_with


def detach_to_cpu(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, moved to the CPU, made contiguous and cut loose from each other."""
    whole: dict[str, torch.Tensor] = {}
    taken: set[int] = set()
    for name, value in tensors.items():
        value = value.detach().to("cpu").contiguous()
        place = value.untyped_storage().data_ptr()
        whole[name] = value.clone() if place in taken else value  # safetensors refuses memory that two names share
        taken.add(place)
    return whole


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, as ``detach_to_cpu`` makes them, as safetensors, atomically."""
    whole = detach_to_cpu(tensors)
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
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES = {**_FLOATS, **_WHOLE, "BOOL": torch.bool}
