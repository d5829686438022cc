"""An empirical audit in a single run with many known patients (Steinke, Nasr and Jagielski 2023).

Each of ``canaries`` patients takes part by a throw of a fair coin, with a gradient along an axis of its own that is
clipped to the full length. The adversary sees the noised sum of one step and guesses of the ``guesses`` most telling
axes on either side who took part. Under epsilon and delta the number of right guesses among r is hardly larger than a
binomial of r throws with probability e^epsilon / (1 + e^epsilon): the bound is the smallest epsilon that the number is
not too large for.
"""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import binom
from torch import Tensor, nn

from benchmarks.privacy.audit_game import CONFIDENCE, Linear, Seen
from client.privacy.step import PrivateStep
from client.training.round import Learner
from federation.algorithms import build_algorithm
from federation.algorithms.fedavg import FedAvgConfig
from federation.privacy.accounting import noise_for
from federation.privacy.config import PatientPrivacyConfig
from imaging.store import TensorStore

_LARGE = 10.0


class Axes(TensorStore):
    """Patients of one image each, which is an axis of its own; made when it is asked for."""

    def __init__(self, axes: NDArray[np.int64], width: int) -> None:
        singletons = np.arange(len(axes))
        super().__init__(Path(), cast(Any, None), singletons, singletons, singletons, singletons)
        object.__setattr__(self, "axes", torch.from_numpy(axes))
        object.__setattr__(self, "width", width)

    def stored(self, indices: Any) -> Tensor:
        """Those images, ``[B, 1, 1, width]``."""
        chosen = self.__dict__["axes"][torch.as_tensor(np.asarray(indices))]
        return _LARGE * nn.functional.one_hot(chosen, self.__dict__["width"])[:, None, None].float()


def right_guesses(epsilon: float, delta: float, canaries: int, guesses: int) -> int:
    """Right ones among 2 x ``guesses`` guesses about one private step that claims ``epsilon`` at ``delta``."""
    taking_part = np.random.default_rng().random(canaries) < 0.5
    store = Axes(np.flatnonzero(taking_part).astype(np.int64), canaries)
    privacy = PatientPrivacyConfig(epsilon=epsilon, delta=delta, patients=canaries, patients_per_step=canaries)
    method = Linear(canaries)
    weight = cast(nn.Linear, method.encoder).weight
    seen = Seen(weight)
    sigma = noise_for(epsilon, delta, 1.0, 1)
    learner = Learner(method, build_algorithm(FedAvgConfig()), cast(Any, seen), torch.device("cpu"))
    PrivateStep(learner, store, privacy, sigma, 256).take()
    order = np.argsort(seen.gradients[0])
    return int(taking_part[order[-guesses:]].sum() + (~taking_part[order[:guesses]]).sum())


def lower_bound(right: int, made: int, canaries: int, delta: float, confidence: float = CONFIDENCE) -> float:
    """The smallest epsilon with which so many right guesses are not too many, by halving."""
    low, high = 0.0, 20.0
    if chance(right, made, canaries, low, delta) > 1 - confidence:
        return 0.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if chance(right, made, canaries, middle, delta) > 1 - confidence else (middle, high)
    return low


def chance(right: int, made: int, canaries: int, epsilon: float, delta: float) -> float:
    """At most so likely are ``right`` or more right guesses of ``made`` (their main theorem).

    P[B >= v] + 2 m delta max_i P[v - i <= B < v] / i for a binomial B of r throws, v right, m canaries.
    """
    probability = 1 / (1 + np.exp(-epsilon))
    below = binom.pmf(np.arange(right - 1, -1, -1), made, probability).cumsum()
    share = (below / np.arange(1, right + 1)).max() if right else 0.0
    return float(min(1.0, binom.sf(right - 1, made, probability) + 2 * canaries * delta * share))
