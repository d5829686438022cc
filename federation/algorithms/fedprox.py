"""FedProx: Li et al. 2020, Federated optimization in heterogeneous networks, eq. 2."""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from federation.algorithms.mean import MeanAlgorithm
from federation.algorithms.table import AlgorithmConfig
from ssl_methods.components.similarity import as_float32


class FedProxConfig(AlgorithmConfig):
    """Strength of the pull towards the round's starting weights."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(
        default=0.01,
        ge=0.0,
        description="Weight of mu/2 |w - w_global|^2; the paper searches 0.001 to 1, and 0.01 is gentle.",
    )


class FedProx(MeanAlgorithm, name="fedprox"):
    """FedAvg whose sites add mu/2 |w - w_t|^2 to their loss."""

    Config = FedProxConfig
    config: FedProxConfig

    def penalty(self, trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor | None:
        """The proximal term over the shared parameters."""
        if self.config.mu == 0.0:
            return None
        squares = [(as_float32(value) - received[name]).square().sum() for name, value in trained.items()]
        return 0.5 * self.config.mu * torch.stack(squares).sum()
