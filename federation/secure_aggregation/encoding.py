"""Updates as whole numbers that add up: fixed point with a stated error, weights and counts among the numbers.

Of n sites, site k with update d_k (float32, each |d| <= B = largest_value) and c_k images (at most C = largest_count;
1 of 1 in a private study) sends round(s w_k d_k), with w_k = c_k / C, and c_k as one more number, all modulo 2**32. The
server gets E = sum round(s w_k d_k) and c = sum c_k and from them the weighted mean E / (s c / C).

No sum overflows: with L = floor((2**31 - 1) / n) and s <= L / B each number is at most L, n of them at most 2**31 - 1;
n C <= 2**31 - 1 likewise. A site works s out for itself, from the n that are advertised, or holds the study's own s
against that limit: no server can ask for a sum that overflows.

The error (``error_bound``): rounding moves each number by at most 1/2. The product s w_k d_k in float64 has 3 roundings
(w_k, s w_k, the product), each of relative size u = 2**-53, so it is off by less than 3.01 u L < 2**-20. Hence
|E - sum s w_k d_k| <= n (1/2 + 2**-20), and after division by s W, W = c / C, the mean is off by at most
n (1/2 + 2**-20) / (s W). That division has 3 more roundings and is off by less than 3.01 u B < 2**-51 B; as s <= L / B
and W <= n, n / (s W) >= B / L > 2**-31 B, so that this is below 2**-20 n / (s W). In all: n (1/2 + 2**-19) / (s W).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation.streams import NUMBER
from foundation.errors import StudyError, TrainingError

LARGEST_SUM = 2**31 - 1
_BLOCK = 1 << 16


@dataclass(frozen=True)
class FixedPoint:
    """How a study encodes. scale: null for the finest that cannot overflow, or the study's own (privacy by site)."""

    largest_value: float
    largest_count: int
    scale: float | None = None

    def scale_for(self, sites: int) -> float:
        """s for so many sites; StudyError where a sum of ``sites`` such updates could overflow."""
        finest = LARGEST_SUM // sites / self.largest_value
        scale = finest if self.scale is None else self.scale
        if not 0 < scale <= finest:
            raise StudyError(
                f"secure aggregation at the scale {scale:g}: {sites} sites with numbers up to {self.largest_value:g} "
                f"can overflow 31 bits above {finest:g}; take a smaller scale or largest_value"
            )
        if sites * self.largest_count > LARGEST_SUM:
            raise StudyError(
                f"secure_aggregation.largest_count {self.largest_count}: {sites} such counts overflow 31 bits; at most "
                f"{LARGEST_SUM // sites}"
            )
        return scale

    def weight(self, count: int) -> float:
        """W of so many images."""
        return count / self.largest_count


def encode(
    update: NDArray[np.float32], count: int, fixed: FixedPoint, sites: int, noise: NDArray[np.int64] | None = None
) -> NDArray[np.uint32]:
    """The numbers that a site adds: uint32 [numbers + 1], the last of them its count of images.

    update: one-dimensional; noise: whole numbers in units of 1 / scale, added after rounding. TrainingError for a
    number that is not finite or larger than largest_value: it would come out as another one.
    """
    scale = fixed.scale_for(sites)
    if count < 1:
        raise TrainingError(f"an update of {count} images; it is weighted by at least 1")
    if noise is not None:
        _check_noise(noise, update, scale, fixed, sites)
    counted = min(count, fixed.largest_count)
    factor = scale * fixed.weight(counted)
    encoded = np.empty(update.size + 1, dtype=NUMBER)
    signed = encoded.view("<i4")
    space = np.empty(min(_BLOCK, update.size), dtype=np.float64)
    for start in range(0, update.size, _BLOCK):
        part = update[start : start + _BLOCK]
        _check_range(part, fixed.largest_value)
        wide = space[: part.size]
        np.multiply(part, factor, out=wide, dtype=np.float64)
        np.rint(wide, out=wide)
        if noise is not None:
            wide += noise[start : start + _BLOCK]  # exact: both are far below 2**53
        signed[start : start + part.size] = wide
    signed[-1] = counted
    return encoded


def decode(sums: NDArray[np.int32], count: int, fixed: FixedPoint, sites: int) -> NDArray[np.float64]:
    """The mean update, weighted by images, of any run of the summed numbers (not of the count).

    count: the sum of counts; sites: how many had advertised, whoever survived.
    """
    return sums / (fixed.scale_for(sites) * fixed.weight(count))


def error_bound(sites: int, largest_value: float, total_weight: float, scale: float | None = None) -> float:
    """How far at most a number of ``decode`` is from the weighted mean of the updates, without noise.

    n (1/2 + 2**-19) / (s W), see above; total_weight: W, the survivors' counts / largest_count.
    """
    scale = FixedPoint(largest_value, 1, scale).scale_for(sites)
    return sites * (0.5 + 2.0**-19) / (scale * total_weight)


def _check_range(part: NDArray[np.float32], largest: float) -> None:
    low, high = float(part.min()), float(part.max())
    if not (-largest <= low and high <= largest):  # so that NaN is caught
        raise TrainingError(
            f"the update has a number of {low if -low > high else high:.3g}, and secure_aggregation.largest_value is "
            f"{largest:g}: it is not sent, as it would overflow; raise largest_value or lower the learning rate"
        )


def _check_noise(
    noise: NDArray[np.int64], update: NDArray[np.float32], scale: float, fixed: FixedPoint, sites: int
) -> None:
    """Without a look at the update's numbers: whether it is sent must tell nothing of them."""
    if noise.shape != update.shape:
        raise ValueError(f"noise of shape {noise.shape} for an update of shape {update.shape}")
    largest = max(int(noise.max()), -int(noise.min())) if noise.size else 0
    if (scale * fixed.largest_value + largest) * sites > LARGEST_SUM:
        raise TrainingError(
            f"noise at the scale {scale:g} leaves {sites} updates no room in 31 bits; the study needs a smaller scale"
        )
