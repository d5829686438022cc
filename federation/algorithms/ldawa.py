"""L-DAWA: Rehman et al. 2023, L-DAWA: layer-wise divergence aware weight aggregation (ICCV); its L-DAWA-Agg.py."""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from federation.algorithms.algorithm import Algorithm, Contribution, State, Weights, average, is_parameter
from federation.algorithms.statistics import merged
from federation.algorithms.table import AlgorithmConfig


class LDAWAConfig(AlgorithmConfig):
    """Whether layers keep their length."""

    name: Literal["ldawa"] = "ldawa"
    normalised: bool = Field(
        default=False,
        description="Divide by sum_k c_k, with c_k at least 0, so that the sites' weights in a layer sum to one; "
        "false: by the number of sites, as published, so that a layer shrinks where sites leave its direction.",
    )


class LDAWA(Algorithm, name="ldawa"):
    """Layer by layer, w <- 1/K sum_k c_k w_k, with c_k = cos(w_k, w), at most 1; sites count alike, whatever they have.

    A layer is one tensor, weight or bias; scalars are averaged plainly (c_k = 1), as in the authors' code. Where that
    would divide by a norm of 0, as with biases that start at 0, c_k is 1 here. By default a layer is divided by K, so
    that a study has what the published figures are of. ``normalised`` divides by sum_k c_k; a site that points away
    (c_k < 0) is left out there, as a sum near 0 would blow the layer up, and where all do it is the plain mean.
    """

    Config = LDAWAConfig
    config: LDAWAConfig

    def aggregate(self, weights: Weights, contributions: Sequence[Contribution], state: State) -> tuple[Weights, State]:
        """Weigh every parameter by its direction, merge statistics, average counters."""
        result = merged(weights, contributions)
        for name, like in weights.items():
            if is_parameter(name, like):
                result[name] = self._layer(name, like, contributions)
            elif name not in result:
                result[name] = average(name, like, contributions)
        return {name: result[name] for name in weights}, {}

    def _layer(self, name: str, like: Tensor, contributions: Sequence[Contribution]) -> Tensor:
        """One tensor, in float64; each site's is read once, or twice where all point away."""
        total, weight = torch.zeros_like(like, dtype=torch.float64), 0.0
        for c in contributions:
            trained = c.tensor(name).double()
            share = agreement(trained, like.double())
            if self.config.normalised:
                share = max(share, 0.0)
                weight += share
            else:
                weight += 1.0
            total.add_(trained, alpha=share)
        if weight == 0.0:
            for c in contributions:
                total.add_(c.tensor(name).double(), alpha=1 / len(contributions))
            return total.to(like.dtype)
        return (total / weight).to(like.dtype)


def agreement(trained: Tensor, before: Tensor) -> float:
    """Cosine of two tensors of one shape, at most 1; 1 for scalars and where one of them is 0."""
    norms = float(trained.norm() * before.norm())
    if trained.ndim == 0 or norms == 0.0:
        return 1.0
    return min(float((trained * before).sum()) / norms, 1.0)
