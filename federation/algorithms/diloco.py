"""DiLoCo: Douillard et al. 2023, DiLoCo: distributed low-communication training of language models, algorithm 1."""

from typing import Literal

from pydantic import Field

from federation.algorithms.algorithm import State, Weights
from federation.algorithms.fedavgm import momentum_step
from federation.algorithms.mean import MeanAlgorithm
from federation.algorithms.table import AlgorithmConfig
from federation.training_config import TrainingConfig
from foundation.errors import StudyError
from ssl_methods.method_config import MethodConfig


class DiLoCoConfig(AlgorithmConfig):
    """The outer optimiser: SGD with Nesterov momentum."""

    name: Literal["diloco"] = "diloco"
    outer_learning_rate: float = Field(default=0.7, gt=0, description="Step at the server; the paper's choice.")
    outer_momentum: float = Field(default=0.9, ge=0, lt=1, description="Nesterov momentum; the paper's choice.")


class DiLoCo(MeanAlgorithm, name="diloco"):
    """d = w - sum_k (n_k / n) w_k;  m <- beta m + d;  w <- w - eta (d + beta m), after many inner steps of AdamW.

    The inner moments stay at the sites from round to round. The paper counts all workers, of equal shards, alike; here
    each site counts by its images. The paper takes 50 to 500 inner steps between exchanges.
    """

    Config = DiLoCoConfig
    config: DiLoCoConfig

    def check(self, training: TrainingConfig, method: MethodConfig) -> None:
        """StudyError where the sites do not keep AdamW's moments."""
        if training.optimiser_state != "keep":
            raise StudyError(
                f"training.optimiser_state {training.optimiser_state}: algorithm 'diloco' has AdamW's moments stay at "
                "the sites from round to round: set it to keep, or choose fedavgm"
            )

    def after_mean(self, weights: Weights, mean: Weights, state: State) -> tuple[Weights, State]:
        """Step every parameter, in float64; statistics and counters are the mean's."""
        rate, beta = self.config.outer_learning_rate, self.config.outer_momentum
        return momentum_step(weights, mean, state, rate=rate, beta=beta, nesterov=True)
