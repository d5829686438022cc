"""The randomness that protects: from the operating system's secure source alone, fresh at every call, never stored.

A call takes a new 256-bit key from ``os.urandom`` and stretches it by AES-256 in counter mode (faster here than
ChaCha20); key and stream are dropped at the end. No seed of a study, of torch or of numpy has any influence, and no
call can be repeated. The promise of differential privacy is then one against somebody who cannot break AES.
"""

import math
import os
import secrets
from functools import lru_cache

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray
from torch import Tensor

GRID_BITS = 20
"""What is released is rounded to multiples of about 2**-20 standard deviations of its noise."""
_BLOCK = 1 << 20  # numbers made at a time: memory is a few tens of MB, whatever the tensor
_TABLE_DEVIATION = 512  # largest deviation that a table is made for; a larger one is put together from two tables
_TAILS = 12  # deviations that a table reaches on either side; what is beyond has a probability of 4e-33
_TWO_TO = 2.0**-53


def secure_generator() -> torch.Generator:
    """A generator on the CPU, seeded from 63 secure bits, for views, masks and the choice of images.

    torch's Mersenne Twister keeps 32 bits of a seed and can be told from true chance. The promise does not rest on it:
    it holds whatever the views, as long as they are drawn without regard to who is in the data. Noise and the sampling
    of patients, on which it does rest, never come from here.
    """
    return torch.Generator().manual_seed(secrets.randbits(63))


def noised(total: Tensor, std: float) -> Tensor:
    """``total`` plus normal noise of deviation ``std``, as float32 of the same shape and place: the thing to release.

    The noise (Box and Muller 1958 from 53-bit uniforms; nothing beyond 8.6 deviations, where 1e-17 of a normal lies) is
    made on ``total``'s device (for mps, without float64, on the CPU) and added in float64, and the *sum* is rounded to
    multiples of ``grid(std)`` before it becomes float32.
    Rounding the noise alone would leave gaps in the sum that depend on what was added (Mironov 2012); rounding the sum
    is post-processing, and at 2**-20 deviations what float64 leaves below is out of sight.
    """
    step = grid(std)
    place = torch.device("cpu") if total.device.type == "mps" else total.device
    flat = total.detach().to(place).reshape(-1)
    out = torch.empty(flat.numel(), dtype=torch.float32, device=place)
    stream = _Stream()
    for start in range(0, flat.numel(), _BLOCK):
        noise = torch.empty_like(flat[start : start + _BLOCK], dtype=torch.float64)
        _normal(stream, noise)
        noise.mul_(std).add_(flat[start : start + _BLOCK])
        out[start : start + _BLOCK] = noise.div_(step).round_().mul_(step)
    return out.reshape(total.shape).to(total.device)


def grid(std: float) -> float:
    """The step to which ``noised`` rounds: the largest power of two up to ``std * 2**-20``, so that it is exact."""
    if not 0 < std < math.inf:
        raise ValueError(f"standard deviation {std}: noise has one above 0")
    return 2.0 ** (math.floor(math.log2(std)) - GRID_BITS)


def poisson_sample(count: int, rate: float) -> Tensor:
    """Which of ``count`` units take part: each by a throw of its own, with probability ``rate`` (to 2**-53).

    int64 indices in rising order; there may be none.
    """
    if count < 0 or not 0 <= rate <= 1:
        raise ValueError(f"count {count} is below 0, or rate {rate} is no probability")
    return torch.from_numpy(np.flatnonzero(_Stream().uniforms(count) < rate).astype(np.int64))


def discrete_gaussian(count: int, deviation: float) -> NDArray[np.int64]:
    """``count`` whole numbers k with probability proportional to exp(-k^2 / (2 deviation^2)) (Canonne et al. 2020).

    By inverse cumulative distribution from 64-bit uniforms over +-12 deviations, in a table. Over 512 the number is
    put together as a * Y + Z from two tables, a a power of two, Z of deviation 512: the sum is a discrete Gaussian up
    to a factor of 1 +- 4 exp(-2 pi^2 s^2), s being Z's deviation over a, seen through Y's share (Micciancio and Walter
    2017); a is chosen so that s >= 4 and the factor is 1 to 136 digits. Errors, in total variation a draw: the tables'
    2**-64 per entry and the exponentials' 2**-50, together under 2**-45. ``deviation`` is .5 to 2**24.
    """
    if not 0.5 <= deviation <= 2**24:
        raise ValueError(f"deviation {deviation}: is .5 to 2**24 units of the grid")
    coarse = _coarse(deviation)
    tables = [_table(deviation)] if coarse == 1 else [_table(part) for part in _parts(deviation, coarse)]
    out = np.empty(count, dtype=np.int64)
    stream = _Stream()
    for start in range(0, count, _BLOCK):
        block = out[start : start + _BLOCK]
        block[:] = tables[-1].draw(stream.words(len(block)))
        if coarse > 1:
            block += coarse * tables[0].draw(stream.words(len(block)))
    return out


class _Stream:
    """A stream of secure bits from a key of its own."""

    def __init__(self) -> None:
        # The counter may start at 0: no two streams have a key in common.
        self._encryptor = Cipher(AES(os.urandom(32)), CTR(bytes(16))).encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """``count`` words of 64 bits."""
        # The cipher wants room for a block less a byte more than it writes; of zeros it makes the key stream itself.
        out = bytearray(8 * count + 15)
        self._encryptor.update_into(bytes(8 * count), out)
        return np.frombuffer(out, dtype=np.uint64, count=count)

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """``count`` multiples of 2**-53 from 0 to below 1."""
        return (self.words(count) >> np.uint64(11)).astype(np.float64) * _TWO_TO


def _normal(stream: _Stream, out: Tensor) -> None:
    """Fill a flat float64 tensor with standard normal numbers."""
    pairs = (out.numel() + 1) // 2
    uniform = torch.from_numpy(stream.uniforms(2 * pairs)).to(out.device)
    # 2**-53 more than the first: in (0, 1], which has a logarithm.
    radius = uniform[:pairs].add_(_TWO_TO).log_().mul_(-2).sqrt_()
    angle = uniform[pairs:].mul_(2 * math.pi)
    torch.mul(radius, angle.cos(), out=out[:pairs])
    out[pairs:] = radius.mul_(angle.sin_())[: out.numel() - pairs]


class _Table:
    """Boundaries of a discrete Gaussian's cumulative distribution in units of 2**-64."""

    def __init__(self, deviation: float) -> None:
        reach = math.ceil(_TAILS * deviation)
        half = [int(math.ldexp(math.exp(-((k / deviation) ** 2) / 2), 120)) for k in range(reach + 1)]
        weights = half[:0:-1] + half
        total, sum_, bounds = sum(weights), 0, []
        for weight in weights[:-1]:
            sum_ += weight
            bounds.append((sum_ << 64) // total)
        self._lowest = -reach
        self._bounds = np.array(bounds, dtype=np.uint64)
        # For each value of a word's first 16 bits the first and the last place that it can have.
        starts = np.arange(1 << 16, dtype=np.uint64) << np.uint64(48)
        self._first = np.searchsorted(self._bounds, starts, side="right")
        last = np.searchsorted(self._bounds, starts | np.uint64((1 << 48) - 1), side="right")
        self._sure = self._first == last

    def draw(self, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        prefix = (words >> np.uint64(48)).astype(np.int64)
        place = self._first[prefix]
        unsure = np.flatnonzero(~self._sure[prefix])
        place[unsure] = np.searchsorted(self._bounds, words[unsure], side="right")
        return place + self._lowest


@lru_cache(maxsize=8)
def _table(deviation: float) -> _Table:
    return _Table(deviation)


def _coarse(deviation: float) -> int:
    """The power of two by which the coarse part is multiplied; 1 where one table does."""
    return 1 if deviation <= 2 * _TABLE_DEVIATION else 2 ** math.ceil(math.log2(deviation / (2 * _TABLE_DEVIATION)))


def _parts(deviation: float, coarse: int) -> tuple[float, float]:
    """Deviations of the coarse part, before it is multiplied, and of the fine part."""
    fine = max(_TABLE_DEVIATION, 4.0 * coarse)
    return math.sqrt(deviation**2 - fine**2) / coarse, fine
