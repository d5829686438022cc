"""A study's shared tensors as one run of bytes (safetensors): what travels between a server and its sites.

One piece and not one a tensor, because every object costs Flower two requests through proxy and database, which took
longer than a round of a small model. Of the same names, shapes and types the header is always the same bytes, so that a
site can hold an update against what the study shares, to the byte.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from federation.records import WithheldError, all_finite
from foundation.tensor_files import detach_to_cpu

_Layout = tuple[tuple[str, str, tuple[int, ...]], ...]


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """The tensors, moved to the CPU, made contiguous and cut loose from each other."""
    return save(detach_to_cpu(tensors))


def unpack(data: bytes) -> dict[str, Tensor]:
    """The tensors, each with memory of its own; an exception of some kind when the bytes are not whole."""
    return load(data)


def check_packed(data: bytes, expected: Mapping[str, Tensor]) -> None:
    """WithheldError unless the bytes are exactly tensors of the names, shapes and types of ``expected``, all finite."""
    layout = tuple((name, str(value.dtype), tuple(value.shape)) for name, value in sorted(expected.items()))
    header, offsets, size = _header(layout)
    if len(data) != size or data[: len(header)] != header:
        raise WithheldError(f"an update's bytes are not those of the {len(expected)} tensors that the study shares")
    buffer = bytearray(data)  # torch warns of memory that it could write to and must not
    for name, start in offsets.items():
        like = expected[name]
        if like.numel() == 0:
            continue
        if not all_finite(torch.frombuffer(buffer, dtype=like.dtype, count=like.numel(), offset=start)):
            raise WithheldError(f"tensor {name!r} has values that are not finite")


@lru_cache(maxsize=8)
def _header(layout: _Layout) -> tuple[bytes, dict[str, int], int]:
    """The header that such tensors have, where each begins, and the size of the whole."""
    types = {name: getattr(torch, dtype.removeprefix("torch.")) for name, dtype, _ in layout}
    blank = {name: torch.zeros(shape, dtype=types[name]) for name, _, shape in layout}
    data = save(blank)
    start = 8 + int.from_bytes(data[:8], "little")
    facts: dict[str, Any] = json.loads(data[8:start])
    return data[:start], {name: start + facts[name]["data_offsets"][0] for name, _, _ in layout}, len(data)
