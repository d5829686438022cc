"""Masks: streams of pseudorandom 32-bit numbers, added to a vector modulo 2**32.

AES-256 in counter mode, of which a key is used once; 22 million numbers take 16 ms where the processor has AES
instructions, ChaCha20 twice that. All streams advance together, block by block, so that memory is one block and the
vector passes through the processor's cache once.
"""

from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

NUMBER = np.dtype("<u4")
_BLOCK = 1 << 15  # numbers: vector, zeros and stream of one block stay in a core's cache


def add_streams(values: NDArray[np.uint32], plus: Sequence[bytes], minus: Sequence[bytes] = ()) -> None:
    """Add the streams of the keys ``plus`` and subtract those of ``minus``, modulo 2**32, in place.

    values: one-dimensional, little-endian uint32, contiguous. Keys have 32 bytes each.
    """
    if values.dtype != NUMBER or values.ndim != 1 or not values.flags.c_contiguous:
        raise ValueError(f"values are {values.dtype} {values.shape}; little-endian uint32 in one dimension are masked")
    added, subtracted = [_stream(key) for key in plus], [_stream(key) for key in minus]
    zeros = bytes(_BLOCK * NUMBER.itemsize)
    space = bytearray(len(zeros) + 15)  # what the cipher wants beside its output
    numbers = np.frombuffer(space, dtype=NUMBER, count=_BLOCK)
    for start in range(0, len(values), _BLOCK):
        part = values[start : start + _BLOCK]
        mask = numbers[: len(part)]
        for streams, operation in ((added, np.add), (subtracted, np.subtract)):
            for stream in streams:
                stream.update_into(zeros, space)
                operation(part, mask, out=part)


def _stream(key: bytes) -> CipherContext:
    return Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
