"""FedAvg: McMahan et al. 2017, Communication-efficient learning of deep networks, algorithm 1."""

from collections.abc import Sequence
from typing import Literal

from federation.algorithms.algorithm import Algorithm, Contribution, State, Weights, average
from federation.algorithms.statistics import merged
from federation.algorithms.table import AlgorithmConfig


class FedAvgConfig(AlgorithmConfig):
    """Nothing to set."""

    name: Literal["fedavg"] = "fedavg"


class FedAvg(Algorithm, name="fedavg"):
    """w <- sum_k (n_k / n) w_k, with n_k the images of site k."""

    Config = FedAvgConfig
    config: FedAvgConfig

    def aggregate(self, weights: Weights, contributions: Sequence[Contribution], state: State) -> tuple[Weights, State]:
        """Average every parameter over the sites, and merge their statistics."""
        statistics = merged(weights, contributions)
        averaged = {n: average(n, like, contributions) for n, like in weights.items() if n not in statistics}
        return {name: (averaged | statistics)[name] for name in weights}, {}
