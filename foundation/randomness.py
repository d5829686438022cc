"""Training randomness: one generator per (study seed, names ...), passed in. Nothing here is fit for protection."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def stream_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on every name and on their order (BLAKE2b), the same on every machine."""
    text = "\x1f".join([str(seed), *(f"{type(name).__name__}:{name}" for name in names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def torch_generator(seed: int, *names: str | int) -> torch.Generator:
    """A fresh torch generator on the CPU for the stream ``(seed, *names)``."""
    return torch.Generator().manual_seed(stream_seed(seed, *names))


def numpy_generator(seed: int, *names: str | int) -> np.random.Generator:
    """A fresh numpy generator for the stream ``(seed, *names)``."""
    return np.random.default_rng(stream_seed(seed, *names))


@contextmanager
def seeded_torch(seed: int, *names: str | int) -> Iterator[None]:
    """Run a block with torch's global generators seeded for the stream, then put their old states back.

    For code that takes no generator: ``nn.init``, timm's constructors, stochastic depth. Of GPUs only the current one's
    state is saved, and only where this process uses it already: to read a state opens a context there.
    """
    cuda = cast(Any, torch.cuda)  # is_initialized has no types
    devices = [cuda.current_device()] if cuda.is_available() and cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, *names))
        yield
