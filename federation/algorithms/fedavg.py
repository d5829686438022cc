"""FedAvg: McMahan et al. 2017, Communication-efficient learning of deep networks, algorithm 1."""

from typing import Literal

from federation.algorithms.mean import MeanAlgorithm
from federation.algorithms.table import AlgorithmConfig


class FedAvgConfig(AlgorithmConfig):
    """Nothing to set."""

    name: Literal["fedavg"] = "fedavg"


class FedAvg(MeanAlgorithm, name="fedavg"):
    """w <- sum_k (n_k / n) w_k, with n_k the images of site k."""

    Config = FedAvgConfig
    config: FedAvgConfig
