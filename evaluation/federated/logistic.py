"""Logistic probe without bringing images or labels together: sites give sums, the minimum is that of all together.

Objective as evaluation/protocols/logistic.py's at one fixed C: sum over the training images of all sites of
cross-entropies +
|W|^2 / (2 C), bias free. The features are standardised with the mean and spread over all sites. Sites give counts,
means and squared deviations once, then for each W the value and the gradient of their own sum; whoever minimises adds
the penalty and takes L-BFGS steps (Liu and Nocedal 1989). Away from the bias the objective is 1/C-convex, so that a
gradient of norm g leaves the weights within C g of the minimum: that is when the steps end.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from evaluation.protocols.logistic import Fitted, Problem, Standard
from evaluation.statistics.intervals import FloatArray, IntArray
from foundation.errors import RunError

PRECISION = 1e-5
"""How far the weights may be from the minimum, by the bound above."""
_MEMORY = 30  # pairs that L-BFGS keeps: a step is a question to every site, so that memory is the cheaper of the two


@dataclass(frozen=True)
class Moments:
    """Of features ``[N, D]``: how many, their mean ``[D]``, and the sum of squared deviations from it ``[D]``."""

    count: int
    mean: FloatArray
    deviations: FloatArray

    @classmethod
    def of(cls, features: FloatArray) -> "Moments":
        """Of one site's training images, ``[N, D]``, N may be 0."""
        if not len(features):
            return cls(0, np.zeros(features.shape[1]), np.zeros(features.shape[1]))
        mean = features.mean(0)
        return cls(len(features), mean, ((features - mean) ** 2).sum(0))

    def with_(self, other: "Moments") -> "Moments":
        """Of both together (Chan et al. 1983), which loses no digits where the mean is far larger than the spread."""
        count = self.count + other.count
        if count == 0:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * (other.count / count)
        between = apart**2 * (self.count * other.count / count)
        return Moments(count, mean, self.deviations + other.deviations + between)


def standard_of(sites: Mapping[str, Moments]) -> Standard:
    """Mean and spread over all sites, summed in the order of their names; a constant feature gets spread 1."""
    first, *others = (sites[name] for name in sorted(sites))
    whole = first
    for moments in others:
        whole = whole.with_(moments)
    spread = np.sqrt(whole.deviations / max(whole.count, 1))
    baseline = 1e-7 * max(1.0, float(np.abs(whole.mean).max(initial=0.0)))
    return Standard(whole.mean, np.where(spread > baseline, spread, 1.0))


def outputs_of(classes: int) -> int:
    """Columns O of the weights: one for two classes, else one a class."""
    return 1 if classes == 2 else classes


@dataclass(frozen=True)
class SiteShare:
    """A site's training images: features ``[N, D]``, class codes ``[N]`` below ``classes``. Only sums leave it."""

    features: FloatArray
    labels: IntArray
    classes: int

    def moments(self) -> Moments:
        """What the site adds to the common mean and spread."""
        return Moments.of(self.features)

    def value_and_gradient(self, weights: FloatArray, standard: Standard) -> tuple[float, FloatArray]:
        """The sum of cross-entropies at ``weights`` ``[D + 1, O]``, the bias last, and its gradient ``[D + 1, O]``."""
        count = len(self.labels)
        if count == 0:
            return 0.0, np.zeros_like(weights)
        one_hot = (self.labels[:, None] == np.arange(self.classes)).astype(np.float64)
        targets = one_hot[:, 1:] if self.classes == 2 else one_hot
        problem = Problem(standard(self.features), targets, math.inf)
        gradient = problem.gradient(weights, problem.probabilities(weights))
        return count * problem.value(weights), count * gradient


def probabilities(features: FloatArray, weights: FloatArray, standard: Standard) -> FloatArray:
    """``[N, K]`` of raw features ``[N, D]``."""
    return Fitted(np.eye(len(weights) - 1), weights).probabilities(standard(features))


def summed(answers: Mapping[str, tuple[float, FloatArray]]) -> tuple[float, FloatArray]:
    """The sites' values and gradients together, in the order of their names, so that arrival changes no bit."""
    parts = [answers[name] for name in sorted(answers)]
    return math.fsum(value for value, _ in parts), np.sum([gradient for _, gradient in parts], axis=0)


LEAST_BEND = 10.0
"""Curvature that the stopping rule counts on at most: a bias over a few images has little more."""


def minimise(
    ask: Callable[[FloatArray], tuple[float, FloatArray]], shape: tuple[int, int], strength: float, most: int
) -> FloatArray:
    """Weights ``shape`` = ``[D + 1, O]`` at the minimum of what ``ask`` sums over the sites, and the penalty.

    strength: C. most: how often ``ask`` may be asked; RunError where that is not enough.
    """
    # The penalty bends the weights by 1 / C, but not the bias, which only the images hold: hence the second bound.
    goal = PRECISION * min(1 / strength, LEAST_BEND) / math.sqrt(shape[0] * shape[1])
    asked = 0

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        nonlocal asked
        if asked == most:
            raise RunError(
                f"the probe has not converged after {most} gradients of each site; raise federated_evaluation.steps, "
                f"or lower federated_evaluation.strength ({strength:g})"
            )
        asked += 1
        weights = flat.reshape(shape)
        value, gradient = ask(weights)
        penalised = weights[:-1]
        value += float((penalised**2).sum()) / (2 * strength)
        gradient = gradient + np.vstack([penalised / strength, np.zeros((1, shape[1]))])
        return value, gradient.ravel()

    options = {"maxcor": _MEMORY, "ftol": 0.0, "gtol": goal, "maxiter": most, "maxfun": most, "maxls": 40}
    found = optimize.minimize(objective, np.zeros(math.prod(shape)), jac=True, method="L-BFGS-B", options=options)
    return np.asarray(found.x, dtype=np.float64).reshape(shape)
