"""What a site's scanner makes of an ideal slice: resolution, coil shading, contrast, noise, gain, bit depth.

Built on MONAI's acquisition transforms (``GibbsNoise``, ``RandBiasField``, ``RandRicianNoise``), each with its
own random state drawn from the generator that is passed in.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from simulation.phantom_anatomy import Picture


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
    """Standard deviation of the point spread, in half picture sides."""
    ringing: float = 0.0
    """MONAI's Gibbs alpha: 0 none, towards 1 the outer frequencies are cut off more."""
    bits: Literal[8, 16] = 8
    """Depth of the stored picture."""

    def acquire(self, ideal: Picture, generator: np.random.Generator) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """The stored picture ``[size, size]`` of an ideal slice."""
        from monai.transforms.intensity.array import GibbsNoise, RandBiasField, RandRicianNoise  # slow to import

        size = ideal.shape[0]
        seeds = generator.integers(2**31, size=2)
        brightness = np.clip(ideal, 0.0, 1.0) ** self.gamma
        if self.blur > 0:
            brightness = gaussian_filter(brightness, self.blur * size / 2.0)
        signal = brightness[None].astype(np.float32)
        if self.ringing > 0:
            signal = np.clip(np.asarray(GibbsNoise(self.ringing)(signal)), 0.0, None)
        coil = RandBiasField(degree=3, coeff_range=self.shading, prob=1.0)
        noise = RandRicianNoise(prob=1.0, std=self.noise, sample_std=False)
        for transform, start in zip((coil, noise), seeds, strict=True):
            transform.set_random_state(int(start))
        reading = np.asarray(noise(coil(signal)))[0] * self.gain * generator.normal(1.0, 0.04)
        full = 255 if self.bits == 8 else 65535
        levels = np.asarray(np.round(np.clip(reading, 0.0, 1.0) * full), dtype=np.float64)
        return levels.astype(np.uint8) if self.bits == 8 else levels.astype(np.uint16)
