"""Flower's own strategies, through one adapter and an explicit table of those tested.

What an entry of the table has to say: how the strategy is made, how few replies it can take, which of its attributes
are state to checkpoint. Flower's strategies see only float32 parameters; normalisation statistics are merged and
counters averaged by us, because a server optimiser must not step a variance and a median of counters means nothing.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedMedian as FlowerFedMedian
from pydantic import Field

from federation.algorithms.algorithm import (
    Algorithm,
    Contribution,
    State,
    Weights,
    is_parameter,
)
from federation.algorithms.mean import mean_of
from federation.algorithms.table import AlgorithmConfig
from federation.flower.private_identity import reply_as_received
from federation.flower.records import tensors_to_arrays

_ROUNDS = "rounds"


class FlowerStrategy(Algorithm):
    """Runs one of Flower's strategies on a list of validated replies and carries its state across restarts."""

    state_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def strategy(self) -> FlowerFedAvg:
        """The Flower strategy as this study sets it."""

    def aggregate(self, weights: Weights, contributions: Sequence[Contribution], state: State) -> tuple[Weights, State]:
        """Let the strategy make the parameters, merge statistics, average the rest. Results have the declared types."""
        parameters = {name: value for name, value in weights.items() if is_parameter(name, value)}
        strategy: Any = self.strategy()
        rounds = int(state[_ROUNDS]) if _ROUNDS in state else 0
        strategy.current_arrays = {name: value.numpy() for name, value in parameters.items()}
        for attribute in self.state_names:
            moments = {n.split("/", 1)[1]: v.numpy() for n, v in state.items() if n.startswith(f"{attribute}/")}
            setattr(strategy, attribute, moments or None)
        replies = [_reply(number, c, parameters, rounds) for number, c in enumerate(contributions, start=1)]
        arrays, _ = strategy.aggregate_train(rounds + 1, replies)
        if arrays is None:
            raise ValueError("Flower's strategy made no weights from the replies it was given")
        aggregated = mean_of({n: value for n, value in weights.items() if n not in parameters}, contributions)
        for name, like in parameters.items():
            aggregated[name] = torch.from_numpy(np.array(arrays[name].numpy())).to(like.dtype)
        return {name: aggregated[name] for name in weights}, self._state_of(strategy, rounds + 1)

    def _state_of(self, strategy: Any, rounds: int) -> State:
        state = {
            f"{attribute}/{name}": torch.from_numpy(np.array(value))
            for attribute in self.state_names
            for name, value in (getattr(strategy, attribute) or {}).items()
        }
        return {**state, _ROUNDS: torch.tensor(rounds)}


def _reply(number: int, contribution: Contribution, parameters: Weights, rounds: int) -> Any:
    arrays: ArrayRecord = tensors_to_arrays({name: contribution.tensor(name) for name in parameters})
    metrics = MetricRecord({"num-examples": contribution.images})
    return reply_as_received(RecordDict({"arrays": arrays, "metrics": metrics}), number, rounds + 1)


class FedAdamConfig(AlgorithmConfig):
    """Server-side Adam on the averaged update."""

    name: Literal["fedadam"] = "fedadam"
    server_learning_rate: float = Field(
        default=0.01, gt=0, description="eta of the paper; its experiments end between 0.001 and 0.1."
    )
    beta_1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta_2: float = Field(default=0.99, ge=0, lt=1, description="Decay of the second moment.")
    tau: float = Field(default=1e-3, gt=0, description="Added to the root of the second moment: adaptivity.")


class FedAdam(FlowerStrategy, name="fedadam"):
    """Flower's FedAdam."""

    Config = FedAdamConfig
    state_names = ("m_t", "v_t")
    config: FedAdamConfig

    def strategy(self) -> FlowerFedAvg:
        """FedAdam with this study's settings."""
        c = self.config
        return FlowerFedAdam(eta=c.server_learning_rate, beta_1=c.beta_1, beta_2=c.beta_2, tau=c.tau)


class FedMedianConfig(AlgorithmConfig):
    """Nothing to set."""

    name: Literal["fedmedian"] = "fedmedian"


class FedMedian(FlowerStrategy, name="fedmedian"):
    """Flower's FedMedian."""

    Config = FedMedianConfig
    config: FedMedianConfig

    def strategy(self) -> FlowerFedAvg:
        """FedMedian has no settings."""
        return FlowerFedMedian()
