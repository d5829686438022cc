"""What of a study's shared tensors a secure sum adds up, as one vector, and how a study encodes it."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from federation.algorithms.algorithm import is_parameter
from federation.privacy.config import SitePrivacyConfig
from federation.privacy.plan import noise_grid
from federation.secure_aggregation.encoding import FixedPoint, decode
from federation.secure_aggregation.server_session import Total

if TYPE_CHECKING:
    from federation.study import Study


def summed_parameters(shared: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The parameters by name, in the order of the names; counters and statistics stay as they were received."""
    return ((name, value) for name, value in sorted(shared.items()) if is_parameter(name, value))


def update_vector(weights: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """What a round changed in the parameters, float32 ``[numbers]``."""
    parts = [(value.float() - received[name].float()).flatten() for name, value in summed_parameters(weights)]
    vector: NDArray[np.float32] = torch.cat(parts).numpy()
    return vector


def fixed_point(study: "Study", numbers: int) -> FixedPoint:
    """The encoding of a study: the finest that cannot overflow, or that of its noise; ``numbers``: of an update."""
    config = study.secure_aggregation
    assert config is not None
    if isinstance(study.privacy, SitePrivacyConfig):
        return FixedPoint(min(config.largest_value, study.privacy.clip), 1, noise_grid(study, numbers).scale)
    return FixedPoint(config.largest_value, config.largest_count if study.privacy is None else 1)


def added(before: Mapping[str, Tensor], total: Total, fixed: FixedPoint) -> dict[str, Tensor]:
    """The next weights: ``before`` with the mean update, weighted by the counts, added in float64."""
    after = {name: value.clone() for name, value in before.items()}
    start = 0
    for name, value in summed_parameters(before):
        stop = start + value.numel()
        mean = torch.from_numpy(decode(total.sums[start:stop], total.count, fixed, total.sites)).reshape(value.shape)
        after[name] = (value.double() + mean).to(value.dtype)
        start = stop
    return after
