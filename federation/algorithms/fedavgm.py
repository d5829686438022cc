"""FedAvgM: Hsu et al. 2019, Measuring the effects of non-identical data distribution, section 4.2."""

from typing import Literal

from pydantic import Field

from federation.algorithms.algorithm import State, Weights, is_parameter
from federation.algorithms.mean import MeanAlgorithm
from federation.algorithms.table import AlgorithmConfig


def momentum_step(
    weights: Weights, mean: Weights, state: State, *, rate: float, beta: float, nesterov: bool
) -> tuple[Weights, State]:
    """The weights and the moments after m <- beta m + d, w <- w - rate m, with d = w - mean; in float64.

    nesterov: w <- w - rate (d + beta m). state: m by parameter, of the parameter's type and shape; empty before the
    first round, where m is 0. What is no parameter is as in ``mean``.
    """
    moved, moments = dict(mean), {}
    for name, value in weights.items():
        if is_parameter(name, value):
            gap = value.double() - mean[name].double()
            moment = beta * state[name].double() + gap if name in state else gap
            step = gap + beta * moment if nesterov else moment
            moved[name] = (value.double() - rate * step).to(value.dtype)
            moments[name] = moment.to(value.dtype)
    return moved, moments


class FedAvgMConfig(AlgorithmConfig):
    """Server-side momentum on the averaged update."""

    name: Literal["fedavgm"] = "fedavgm"
    beta: float = Field(default=0.9, ge=0, lt=1, description="Momentum at the server; the paper searches 0 to 0.997.")
    server_learning_rate: float = Field(
        default=1.0, gt=0, description="eta; with momentum an update counts eta / (1 - beta) times in the long run."
    )


class FedAvgM(MeanAlgorithm, name="fedavgm"):
    """d = w - sum_k (n_k / n) w_k;  m <- beta m + d;  w <- w - eta m. With beta 0 and eta 1 it is FedAvg."""

    Config = FedAvgMConfig
    config: FedAvgMConfig

    def after_mean(self, weights: Weights, mean: Weights, state: State) -> tuple[Weights, State]:
        """Step every parameter; statistics and counters are the mean's."""
        rate, beta = self.config.server_learning_rate, self.config.beta
        return momentum_step(weights, mean, state, rate=rate, beta=beta, nesterov=False)
