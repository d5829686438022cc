"""What a site's scanner makes of ideal slices: resolution, ringing, coil shading, contrast, noise, gain, bit depth.

As MONAI's ``GibbsNoise``, ``RandBiasField`` and ``RandRicianNoise`` do it, but for all slices of a patient at once.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulation.datasets.phantom_anatomy import Image, frequencies

_DEGREE = 3  # of the coil's field


@dataclass(frozen=True)
class Scanner:
    """Settings of one site's machine."""

    gain: float = 1.0
    """Factor on the measured signal; readings above full scale saturate."""
    gamma: float = 1.0
    """Exponent on brightness in [0, 1]: the contrast between tissues."""
    shading: tuple[float, float] = (0.0, 0.05)
    """Range of the coefficients of the coil's cubic field (in log brightness)."""
    noise: float = 0.02
    """Standard deviation of the Rician noise, of full scale."""
    blur: float = 0.0
    """Standard deviation of the point spread, in half image sides."""
    ringing: float = 0.0
    """0 none, towards 1 the outer frequencies are cut off more, from the image's corners inwards."""
    bits: Literal[8, 16] = 8
    """Depth of the stored image."""

    def acquire(self, ideal: Image, generator: np.random.Generator) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The stored images ``[N, size, size]`` of ideal slices ``[N, size, size]``."""
        count, size = len(ideal), ideal.shape[-1]
        signal = np.clip(ideal, 0.0, 1.0) ** np.float32(self.gamma)
        if self.blur > 0 or self.ringing > 0:
            spectrum = np.fft.rfft2(signal) * _transfer(size, self.blur, self.ringing)
            signal = np.clip(np.fft.irfft2(spectrum, s=(size, size)), 0.0, None)
        coefficients = generator.uniform(*self.shading, (count, len(_fields(size)))).astype(np.float32)
        signal = signal * np.exp(np.tensordot(coefficients, _fields(size), 1))
        real, imaginary = generator.standard_normal((2, *signal.shape), dtype=np.float32) * np.float32(self.noise)
        gain = self.gain * generator.normal(1.0, 0.04, (count, 1, 1)).astype(np.float32)
        reading = np.sqrt(np.square(signal + real) + np.square(imaginary)) * gain
        levels = np.asarray(np.round(np.clip(reading, 0.0, 1.0) * np.float32(255 if self.bits == 8 else 65535)))
        return levels.astype(np.uint8) if self.bits == 8 else levels.astype(np.uint16)


@cache
def _transfer(size: int, blur: float, ringing: float) -> Image:
    """What is left of each frequency, as ``rfft2`` orders them: that of a Gaussian point spread, none beyond a circle.

    The circle goes through the corners of the frequencies at ``ringing`` 0.
    """
    reach = np.hypot(*frequencies(size))
    kept = reach <= (1.0 - ringing) * np.sqrt(2.0) * size / 4.0
    return np.asarray(np.exp(-2.0 * np.square(np.pi * blur * reach)) * kept, dtype=np.float32)


@cache
def _fields(size: int) -> Image:
    """Products of Legendre polynomials of a total degree of 3 or less, ``[10, size, size]``."""
    powers = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, size), _DEGREE)
    pairs = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]
    return np.stack([np.outer(powers[:, i], powers[:, j]) for i, j in pairs]).astype(np.float32)
