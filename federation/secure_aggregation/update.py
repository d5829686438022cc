"""A study's update as the one vector that is summed, and the mean vector back as the next weights."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.algorithms.algorithm import is_parameter
from federation.privacy.config import SitePrivacyConfig
from federation.privacy.plan import NoiseGrid, noise_grid, shared_numbers
from federation.secure_aggregation.encoding import FixedPoint
from federation.secure_aggregation.thresholds import FEWEST
from foundation.errors import TrainingError

if TYPE_CHECKING:
    from federation.study import Study


def fixed_point(study: "Study") -> FixedPoint:
    """How the study's updates are encoded. Private studies count all sites alike; by site, on the grid of its noise."""
    config = study.secure_aggregation
    assert config is not None
    grid = grid_of(study)
    if grid is not None:
        assert isinstance(study.privacy, SitePrivacyConfig)
        return FixedPoint(study.privacy.clip, 1, grid.scale)
    return FixedPoint(config.largest_value, 1 if study.privacy is not None else config.largest_count)


def grid_of(study: "Study") -> NoiseGrid | None:
    """Grid and noise of a study with privacy by site, whose sites add noise before they mask; None for all others."""
    if not isinstance(study.privacy, SitePrivacyConfig) or study.secure_aggregation is None:
        return None
    return noise_grid(study, shared_numbers(study))


def fewest_survivors(study: "Study") -> int:
    """Updates that a sum has at least, whatever the quorum: by site the noise is made for so many."""
    grid = grid_of(study)
    return FEWEST if grid is None else max(FEWEST, grid.survivors)


def difference(trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor:
    """``trained`` less ``received`` as one float32 vector: all shared parameters, in the order of their names.

    Rounded towards zero, so that no difference is made longer than a clipping bound. Counters and normalisation
    statistics are no part of it.
    """
    parts = []
    for name in parameters(received):
        exact = (trained[name].double() - received[name].double()).flatten()
        near = exact.float()
        parts.append(torch.where(near.abs().double() > exact.abs(), torch.nextafter(near, torch.zeros(())), near))
    return torch.cat(parts)


def check_difference(update: Tensor, largest: float, norm_bound: float) -> None:
    """TrainingError for an update that cannot be encoded, or that is longer than the study permits.

    The server, which judges updates elsewhere, sees none of them here.
    """
    norm, most = float(update.double().norm()), float(update.abs().max())
    if not norm <= norm_bound:
        raise TrainingError(
            f"the update's norm {norm:.3g} is above rounds.norm_bound {norm_bound:g}: it is not sent; lower "
            "training.learning_rate or set training.clip"
        )
    if not most <= largest:
        raise TrainingError(
            f"the update has a number of {most:.3g}, and secure_aggregation.largest_value is {largest:g}: it is not "
            "sent, as it would overflow; raise largest_value or lower training.learning_rate"
        )


def moved(weights: Mapping[str, Tensor], mean: NDArray[np.float64], fixed: Collection[str] = ()) -> dict[str, Tensor]:
    """The weights moved by the mean vector of ``difference``; what is no parameter, or is in ``fixed``, stays."""
    result, start = dict(weights), 0
    for name in parameters(weights):
        value = weights[name]
        part = torch.from_numpy(mean[start : start + value.numel()]).reshape(value.shape)
        if name not in fixed:
            result[name] = (value.double() + part).to(value.dtype)
        start += value.numel()
    return result


def parameters(weights: Mapping[str, Tensor]) -> list[str]:
    """Names of the parameters, in the order of the vector."""
    return sorted(name for name, value in weights.items() if is_parameter(name, value))


def numbers_of(weights: Mapping[str, Tensor]) -> int:
    """Length of the vector."""
    return sum(weights[name].numel() for name in parameters(weights))
