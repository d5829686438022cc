"""Tensors to a device in one copy, which the host does not wait for."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Any]
"""Tensors by name, or further such tables."""


def moved(given: Tensors, device: torch.device) -> Tensors:
    """The tensors of ``given``, which are on the CPU, on ``device``, with their shapes, types and every bit.

    Their bytes lie one behind the other in one buffer, which is copied; what comes back are views of the copy. Each
    copy from memory that is not pinned makes a GPU's host wait, and a small one costs as much as the whole.
    """
    leaves = sorted(_leaves(given), key=lambda leaf: -leaf.element_size())  # so that each begins where its type may
    if device.type == "cpu" or not leaves:
        return given
    ends = list(accumulate(leaf.numel() * leaf.element_size() for leaf in leaves))
    pinned = device.type == "cuda" and torch.cuda.is_available()
    buffer = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=pinned)
    torch.cat([leaf.contiguous().view(-1).view(torch.uint8) for leaf in leaves], out=buffer)
    there = buffer.to(device, non_blocking=pinned)
    found: dict[int, Tensor] = {}
    for leaf, start, end in zip(leaves, [0, *ends], ends, strict=False):
        found[id(leaf)] = there[start:end].view(leaf.dtype).view(leaf.shape)
    return _replaced(given, found)


def _leaves(given: Tensors) -> Iterator[Tensor]:
    for value in given.values():
        if isinstance(value, Tensor):
            yield value
        else:
            yield from _leaves(value)


def _replaced(given: Tensors, found: dict[int, Tensor]) -> Tensors:
    return {
        name: found[id(value)] if isinstance(value, Tensor) else _replaced(value, found)
        for name, value in given.items()
    }
