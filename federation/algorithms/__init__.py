"""All federated algorithms, by the name a study uses. Adding one: a file here, a line here, a test."""

from typing import Annotated

from pydantic import Field

from federation.algorithms.algorithm import Algorithm, AlgorithmConfig
from federation.algorithms.fedavg import FedAvg, FedAvgConfig
from federation.algorithms.fedprox import FedProx, FedProxConfig
from federation.algorithms.flower_strategies import FedAdam, FedAdamConfig, FedMedian, FedMedianConfig

ALGORITHMS: dict[str, type[Algorithm]] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
    "fedadam": FedAdam,
    "fedmedian": FedMedian,
}

AnyAlgorithmConfig = Annotated[
    FedAvgConfig | FedProxConfig | FedAdamConfig | FedMedianConfig, Field(discriminator="name")
]


def build_algorithm(config: AlgorithmConfig) -> Algorithm:
    """The algorithm that a study's section names."""
    return next(kind(config) for kind in ALGORITHMS.values() if isinstance(config, kind.Config))
