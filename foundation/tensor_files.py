"""Tensors in files that are either whole or absent (safetensors), and one reader that takes them piece by piece."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from safetensors import SafetensorError, safe_open

from foundation.files import reading, write_with


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
    """Write tensors from any device as safetensors, atomically; only one at a time is copied, if at all.

    safetensors' own ``save_file`` tells of a full disk by no OSError and, killed, leaves a file of its own behind;
    its ``save`` takes the memory of two more copies.
    """
    write_with(path, lambda handle: _write(handle, tensors, dict(metadata or {})))


def _write(handle: BinaryIO, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    # The widest types first, so that each tensor lies at a multiple of its type's size, as the format asks.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, value in ordered:
        start, end = end, end + value.numel() * value.element_size()
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    handle.write(len(text).to_bytes(8, "little") + text)
    for _, value in ordered:
        flat = value.detach().to("cpu").contiguous().reshape(-1)
        handle.write(flat.view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """All tensors of a safetensors file and its metadata; RunError when missing or damaged."""
    with reading(path, SafetensorError, OSError, ValueError), safe_open(path, framework="pt") as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, dict(handle.metadata() or {})  # noqa: SIM118


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
        with reading(self._path, KeyError, ValueError, RuntimeError, OverflowError, OSError):
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

    def _read_header(self) -> None:
        with self._path.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _LONGEST_HEADER:
                raise ValueError("its header is too long")
            self._start, self._header = 8 + length, json.loads(handle.read(length))


_LONGEST_HEADER = 100_000_000  # safetensors' own limit
_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_FLOATS |= {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "C64": torch.complex64}
_WHOLE = {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_WHOLE |= {"U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16}
_DTYPES = {**_FLOATS, **_WHOLE, "BOOL": torch.bool}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
