"""What a private study's update may be: one site's part in the mean shortened to a known length."""

from collections.abc import Mapping

import torch
from torch import Tensor

from federation.algorithms.algorithm import is_parameter
from federation.privacy.config import SitePrivacyConfig
from federation.study import Study
from foundation.errors import TrainingError

_TRIES = 8


def released(study: Study, shared: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What leaves of ``shared`` after a round of a private study, from the weights that were ``received``.

    By patient the parameters are noised already. By site the update is clipped; its noise comes with the sum. Either
    way counters and normalisation statistics are as received: no noise is made for them.
    """
    if isinstance(study.privacy, SitePrivacyConfig):
        return clipped_update(shared, received, study.privacy.clip)
    return {name: value if is_parameter(name, value) else received[name].clone() for name, value in shared.items()}


def clipped_update(shared: Mapping[str, Tensor], received: Mapping[str, Tensor], clip: float) -> dict[str, Tensor]:
    """``shared`` with its difference to ``received`` shortened to an L2 norm of at most ``clip``.

    The norm is over all parameters (``is_parameter``), in float64; counters and normalisation statistics are as
    received: they are measured on images, and no noise is made for them. Weights are rounded to their own type after
    that, which can lengthen the difference by a hair: it is shortened until the weights that leave are within ``clip``.
    A clip that is far below what the weights' type can express leaves no difference. TrainingError where the difference
    is not finite.
    """
    names = [name for name, value in received.items() if is_parameter(name, value)]
    differences = {name: shared[name].double() - received[name].double() for name in names}
    factor = 1.0
    for _ in range(_TRIES):
        sent = {name: (received[name].double() + factor * differences[name]).to(received[name].dtype) for name in names}
        length = update_length(sent, received)
        if length <= clip:
            return {name: sent.get(name, value.clone()) for name, value in received.items()}
        factor *= clip / length * (1 - 1e-6)
    raise TrainingError(
        f"an update of length {length:g} cannot be shortened to privacy.clip {clip:g}; lower training.learning_rate or "
        "set training.clip"
    )


def update_length(shared: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> float:
    """L2 norm of the difference over all parameters of ``shared``, in float64."""
    squares = [
        (value.double() - received[name].double()).square().sum()
        for name, value in shared.items()
        if is_parameter(name, value)
    ]
    return float(torch.stack(squares).sum().sqrt())
