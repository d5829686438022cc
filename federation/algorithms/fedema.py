"""FedEMA: Zhuang et al. 2022, Divergence-aware federated self-supervised learning (ICLR); and its forerunner FedU.

FedU: Zhuang et al. 2021, Collaborative unsupervised visual representation learning from decentralized data (ICCV). Both
as in the authors' EasyFL (applications/fedssl/client.py).
"""

from collections.abc import Mapping
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from federation.algorithms.algorithm import State, Weights, is_parameter
from federation.algorithms.mean import MeanAlgorithm
from federation.algorithms.table import AlgorithmConfig
from federation.records import ENCODER
from federation.training_config import TrainingConfig
from foundation.errors import StudyError
from ssl_methods import METHODS, method_class
from ssl_methods.method_config import MethodConfig
from ssl_methods.table import Role

_ROUND, _DISTANCE, _SCALE, _OWN = "round", "distance", "scale", "own/"


class FedEMAConfig(AlgorithmConfig):
    """How much of its own weights a site starts the next round with; exactly one of the two is set."""

    name: Literal["fedema"] = "fedema"
    tau: float | None = Field(
        default=0.7,
        gt=0,
        le=1,
        description="FedEMA: share of its own weights that a site keeps where it moved as far as in its first round; "
        "null where `threshold` is set.",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="FedU: a site that moved at least as far keeps its own predictor, and takes the rest; the authors' "
        "code has 0.4.",
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.tau is None) == (self.threshold is None):
            raise ValueError("tau and threshold: exactly one of them is set, the other is null")
        return self


class FedEMA(MeanAlgorithm, name="fedema"):
    """A site starts round r from w <- mu w_k + (1 - mu) w_g, with its own weights w_k of round r - 1; FedAvg otherwise.

    mu = min(lambda d_k, 1), with d_k the mean over the encoder's weights (convolutions, matrices) of the L2 distance
    that the site's training of round r - 1 moved them, and lambda = tau / d_k of the first round that it trained.
    Parameters are mixed, all shared ones alike (encoder, projector, predictor); statistics and counters are the
    global ones. With ``threshold`` it is FedU: mu is 0, and 1 for the predictor where d_k is at least the threshold.
    The target stays at the site. A site that did not train round r - 1 starts from the global weights alone, and its
    target is made anew from them; lambda stays.

    d_k is measured from where the round's training began, as in the authors' code, and the first of them in the first
    round, where that is w_g. Measured from w_g, it would grow with mu until sites kept to themselves.
    """

    Config = FedEMAConfig
    config: FedEMAConfig

    def check(self, training: TrainingConfig, method: MethodConfig) -> None:
        """StudyError for a method without the networks that this is about, or a first round that moves too little."""
        if not _has_target(_roles(method)):
            if _has_target(method_class(method).parts):
                raise StudyError(
                    "method.share: algorithm 'fedema' has the predictor sent and the target stay at the site: leave "
                    "share out"
                )
            able = " or ".join(name for name, facts in METHODS.items() if _has_target(facts.parts))
            raise StudyError(
                f"algorithm 'fedema' is for methods with a predictor and a target that stays at the site, which "
                f"{method.name!r} has not: choose method {able}, or algorithm fedavg"
            )
        if self.config.tau is not None and training.warmup > 0:
            raise StudyError(
                f"training.warmup {training.warmup:g}: algorithm 'fedema' measures all later rounds by how far a site "
                "moved in its first, which a warm-up shortens, so that sites would keep to themselves: set warmup to 0"
            )

    def start(self, round_: int, received: Weights, kept: State) -> Weights:
        """The received weights, mixed with the site's own where it trained the round before."""
        if not self.goes_on(round_, kept):
            return received
        own = {name.removeprefix(_OWN): value for name, value in kept.items() if name.startswith(_OWN)}
        share = self._share(kept)
        return received | {name: _mixed(value, received[name], share) for name, value in own.items()}

    def goes_on(self, round_: int, kept: State) -> bool:
        """Whether the site trained the round before."""
        return _ROUND in kept and int(kept[_ROUND]) == round_ - 1

    def keep(self, round_: int, received: Weights, trained: Weights, kept: State) -> State:
        """The round, how far the site moved, lambda, and the parameters to mix in (FedU: the predictor's)."""
        distance = _distance(self.start(round_, received, kept), trained)
        state = {_ROUND: torch.tensor(round_), _DISTANCE: distance}
        if self.config.tau is not None and (_SCALE in kept or distance > 0):
            state[_SCALE] = kept[_SCALE] if _SCALE in kept else self.config.tau / distance
        mixed = "" if self.config.tau is not None else "predictor."
        own = {n: v for n, v in trained.items() if is_parameter(n, v) and n.startswith(mixed)}
        return state | {f"{_OWN}{name}": value for name, value in own.items()}

    def _share(self, kept: State) -> float:
        """mu; 0 where a site has never moved."""
        distance = float(kept[_DISTANCE])
        if self.config.threshold is not None:
            return float(distance >= self.config.threshold)
        return min(float(kept[_SCALE]) * distance, 1.0) if _SCALE in kept else 0.0


def _mixed(own: Tensor, received: Tensor, share: float) -> Tensor:
    return (share * own.double() + (1.0 - share) * received.double()).to(received.dtype)


def _distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Tensor:
    """Mean over the encoder's weights of two and more dimensions of the L2 distance, a scalar in float64."""
    names = [name for name, value in before.items() if _is_measured(name, value)]
    return torch.stack([(after[name].double() - before[name].double()).norm() for name in names]).mean()


def _is_measured(name: str, value: Tensor) -> bool:
    return name.startswith(ENCODER) and name.endswith(".weight") and value.ndim > 1


def _roles(method: MethodConfig) -> Mapping[str, Role]:
    """The role of every part under the study's ``share``."""
    parts = method_class(method).parts
    if method.share is None:
        return parts
    return {part: "shared" if part in method.share else "local" for part, role in parts.items() if role != "derived"}


def _has_target(parts: Mapping[str, Role]) -> bool:
    """Whether an encoder that follows the online one stays at the site, and the predictor is sent."""
    followers = [role for part, role in parts.items() if part.endswith("_encoder")]
    return parts.get("predictor") == "shared" and "local" in followers
