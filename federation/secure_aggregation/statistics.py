"""BatchNorm's statistics under masks: numbers whose plain mean over sites is the merged mean and variance.

A site with mean m and variance v sends, of each channel, a = (m - r) / u and b = (v + (m - r)^2) / u^2 with the
received mean r and a unit u near the received deviation: both are means over its images, so that the sum of all sites'
gives the mean r + u a and the variance u^2 (b - a^2) of all images, the law of total variance. The unit follows the
statistics from round to round, so that after the first round a number is near 1 and its fixed-point step far below.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.algorithms.statistics import means_of, variance_of
from federation.secure_aggregation.update import difference, fixed_point, moved, numbers_of
from foundation.errors import TrainingError

if TYPE_CHECKING:
    from federation.study import Study

RANGE = 1000.0
"""Units that can be encoded: what is more counts as so much, until the unit has followed a round later."""
_LEAST = 1e-3
"""Of a layer's mean variance: a channel that is nearly constant has no smaller unit."""


def summed_vector(study: "Study", trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor:
    """What a site of a study adds to the sum: its update and, without ``privacy``, its statistics."""
    update = difference(trained, received)
    if study.privacy is not None:
        return update
    return torch.cat([update, statistics_moved(trained, received, fixed_point(study).largest_value)])


def summed_numbers(study: "Study", weights: Mapping[str, Tensor]) -> int:
    """Length of ``summed_vector``."""
    return numbers_of(weights) + (0 if study.privacy is not None else statistics_numbers(weights))


def after_sum(
    study: "Study", weights: Mapping[str, Tensor], mean: NDArray[np.float64], fixed: Collection[str] = ()
) -> dict[str, Tensor]:
    """The weights after the mean vector of ``summed_vector``; parameters in ``fixed`` stay."""
    result = moved(weights, mean, fixed)
    if study.privacy is None:
        result |= statistics_of(weights, mean[numbers_of(weights) :], fixed_point(study).largest_value)
    return result


def statistics_moved(trained: Mapping[str, Tensor], received: Mapping[str, Tensor], largest: float) -> Tensor:
    """a and b of every layer as one float32 vector; RANGE units are ``largest``, the largest number of the encoding."""
    return (_units(trained, received).clamp(-RANGE, RANGE) * (largest / RANGE)).float()


def check_encodable(trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> None:
    """TrainingError for statistics beyond RANGE, for the last exchange, after which no unit follows them."""
    most = float(_units(trained, received).abs().max())
    if not most <= RANGE:
        raise TrainingError(
            f"the encoder's BatchNorm statistics are {most:.3g} units from those of the round before, and {RANGE:g} "
            "can be summed: they are not sent; lower training.learning_rate, or train more rounds"
        )


def statistics_of(weights: Mapping[str, Tensor], mean: NDArray[np.float64], largest: float) -> dict[str, Tensor]:
    """The merged statistics from the mean vector of ``statistics_moved``; a variance is at least 0."""
    result, start = {}, 0
    units = torch.from_numpy(mean) * (RANGE / largest)
    for name in means_of(weights):
        other, size = variance_of(name), weights[name].numel()
        unit = _unit(weights[other])
        first, second = units[start : start + size], units[start + size : start + 2 * size]
        result[name] = (weights[name].double() + unit * first).to(weights[name].dtype)
        result[other] = (unit.square() * (second - first.square())).clamp(min=0.0).to(weights[other].dtype)
        start += 2 * size
    return result


def statistics_numbers(weights: Mapping[str, Tensor]) -> int:
    """Length of the vector."""
    return 2 * sum(weights[name].numel() for name in means_of(weights))


def _units(trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor:
    parts = [torch.zeros(0, dtype=torch.float64)]
    for name in means_of(received):
        unit = _unit(received[variance_of(name)])
        gap = trained[name].double() - received[name].double()
        second = trained[variance_of(name)].double() + gap.square()
        parts += [(gap / unit).flatten(), (second / unit.square()).flatten()]
    return torch.cat(parts)


def _unit(variance: Tensor) -> Tensor:
    wide = variance.double()
    return wide.clamp(min=max(_LEAST * float(wide.mean()), 1e-12)).sqrt()
