"""Logistic probe: standardised frozen features, L2, its strength chosen on validation patients.

45 strengths C from 1e-6 to 1e5, as in CLIP's linear probe (Radford et al. 2021, appendix A.3: 96 of them to 1e6).
Objective as scikit-learn's: sum of cross-entropies + |W|^2 / (2 C), bias free. Fitted along the path of C by truncated
Newton steps (conjugate gradients on exact Hessian products), each C from the last one's solution. In the basis of the
features' singular vectors the penalty is the same and the Hessian nearly diagonal, so few products are needed and more
features than images cost nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.statistics.intervals import FloatArray, IntArray

STRENGTHS: tuple[float, ...] = tuple(float(c) for c in np.logspace(-6.0, 5.0, 45))
NEWTON_STEPS = 60
TOLERANCE = 1e-6
"""Stop at a gradient this small per image: figures no longer move in the fifth digit."""
TALL = 4
"""So many times more images than features make their products the quicker way to the singular vectors."""


@dataclass(frozen=True)
class Standard:
    """Mean and spread of the training features; a constant feature gets spread 1."""

    centre: FloatArray
    spread: FloatArray

    @classmethod
    def of(cls, features: FloatArray) -> "Standard":
        """Fitted on ``[N, D]``."""
        spread = features.std(0)
        baseline = 1e-7 * max(1.0, float(np.abs(features).max(initial=0.0)))
        return cls(features.mean(0), np.where(spread > baseline, spread, 1.0))

    def __call__(self, features: FloatArray) -> FloatArray:
        """``[N, D]`` standardised."""
        return np.asarray((features - self.centre) / self.spread)


@dataclass(frozen=True)
class Problem:
    """One multinomial (two classes: binary) regression in the basis of the singular vectors.

    basis: ``[N, R]`` rotated features; targets ``[N, O]`` with O = 1 for two classes, else K one-hot columns.
    """

    basis: FloatArray
    targets: FloatArray
    strength: float

    def probabilities(self, weights: FloatArray) -> FloatArray:
        """``[N, O]``; weights ``[R + 1, O]``, the bias last."""
        return _probabilities(self.basis @ weights[:-1] + weights[-1])

    def value(self, weights: FloatArray) -> float:
        """The objective, per image."""
        logits = self.basis @ weights[:-1] + weights[-1]
        loss = float((_normaliser(logits) - (logits * self.targets).sum(1)).sum())
        return (loss + float((weights[:-1] ** 2).sum()) / (2 * self.strength)) / len(self.basis)

    def gradient(self, weights: FloatArray, probabilities: FloatArray) -> FloatArray:
        """Its gradient ``[R + 1, O]``."""
        return self._back(probabilities - self.targets, weights)

    def curve(self, direction: FloatArray, probabilities: FloatArray) -> FloatArray:
        """Hessian times ``direction`` ``[R + 1, O]``."""
        logits = self.basis @ direction[:-1] + direction[-1]
        if logits.shape[1] == 1:
            return self._back(probabilities * (1 - probabilities) * logits, direction)
        pulled = probabilities * logits
        return self._back(pulled - probabilities * pulled.sum(1, keepdims=True), direction)

    def near_inverse(self, probabilities: FloatArray) -> Callable[[FloatArray], FloatArray]:
        """Divides ``[R + 1, O]`` by a matrix near the Hessian: as if all images had the same mean class weights.

        Then the singular vectors, and the outputs' common eigenvectors, take it apart into single numbers.
        """
        within = np.diag(probabilities.mean(0)) - probabilities.T @ probabilities / len(probabilities)  # [O, O]
        energy, mixed = np.linalg.eigh(within)
        squares = np.append((self.basis**2).sum(0), len(self.basis))  # [R + 1]
        penalty = np.append(np.full(self.basis.shape[1], 1.0 / self.strength), 0.0)
        scale = (squares[:, None] * np.maximum(energy, 1e-12) + penalty[:, None]) / len(self.basis)
        return lambda direction: np.asarray((direction @ mixed / scale) @ mixed.T)

    def _back(self, residual: FloatArray, weights: FloatArray) -> FloatArray:
        top = self.basis.T @ residual + weights[:-1] / self.strength
        return np.asarray(np.vstack([top, residual.sum(0)])) / len(self.basis)


def _probabilities(logits: FloatArray) -> FloatArray:
    if logits.shape[1] == 1:
        return np.asarray(0.5 * (1.0 + np.tanh(logits / 2)))
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def _normaliser(logits: FloatArray) -> FloatArray:
    if logits.shape[1] == 1:
        return np.logaddexp(0.0, logits[:, 0])
    top = logits.max(1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(1)))


def _newton_step(problem: Problem, gradient: FloatArray, probabilities: FloatArray) -> FloatArray:
    """Preconditioned conjugate gradients on Hessian x step = -gradient, as exactly as the gradient is small."""
    prepared = problem.near_inverse(probabilities)
    step = np.zeros_like(gradient)
    residual = -gradient
    ready = prepared(residual)
    direction = ready
    power = float((residual * ready).sum())
    goal = power * min(0.1, float(np.sqrt((gradient**2).sum()))) ** 2
    for _ in range(gradient.size):
        curved = problem.curve(direction, probabilities)
        bend = float((direction * curved).sum())
        if bend <= 0.0:
            break
        length = power / bend
        step = step + length * direction
        residual = residual - length * curved
        ready = prepared(residual)
        after = float((residual * ready).sum())
        if after <= goal:
            break
        direction = ready + (after / power) * direction
        power = after
    return step


def minimise(problem: Problem, start: FloatArray) -> FloatArray:
    """Weights ``[R + 1, O]`` at the minimum (convex; Newton with step halving)."""
    weights, value = start, problem.value(start)
    for _ in range(NEWTON_STEPS):
        probabilities = problem.probabilities(weights)
        gradient = problem.gradient(weights, probabilities)
        if float(np.abs(gradient).max()) < TOLERANCE:
            break
        step = _newton_step(problem, gradient, probabilities)
        slope, share = float((gradient * step).sum()), 1.0
        while share > 1e-6:
            tried = problem.value(weights + share * step)
            if tried <= value + 1e-4 * share * slope:
                break
            share /= 2
        else:
            break
        weights, value = weights + share * step, tried
    return weights


@dataclass(frozen=True)
class Fitted:
    """A fitted probe: ``probabilities`` of features that were standardised like its training features."""

    rotation: FloatArray
    weights: FloatArray

    def probabilities(self, features: FloatArray) -> FloatArray:
        """``[N, K]`` from standardised features ``[N, D]``."""
        out = _probabilities(features @ (self.rotation @ self.weights[:-1]) + self.weights[-1])
        return np.hstack([1.0 - out, out]) if out.shape[1] == 1 else out


def singular_basis(features: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Features ``[N, D]`` in the basis of their singular vectors, ``[N, R]``, and the rotation ``[D, R]`` to it.

    Of many more images than features the vectors come from the products of the features, which costs one pass.
    Directions that rounding alone has made are left out.
    """
    eps = np.finfo(np.float64).eps
    if len(features) >= TALL * features.shape[1]:
        energy, vectors = np.linalg.eigh(features.T @ features)
        rotation = vectors[:, ::-1][:, energy[::-1] > len(vectors) * eps * max(float(energy.max(initial=0.0)), 1e-300)]
        return features @ rotation, rotation
    left, singular, right = np.linalg.svd(features, full_matrices=False)
    kept = singular > max(features.shape) * eps * max(float(singular.max(initial=0.0)), 1e-300)
    return left[:, kept] * singular[kept], np.asarray(right[kept].T)


def path(features: FloatArray, labels: IntArray, classes: int, strengths: Sequence[float]) -> Iterator[Fitted]:
    """The probe at each C, in the order given (best rising). features ``[N, D]`` standardised."""
    basis, rotation = singular_basis(features)
    one_hot = (labels[:, None] == np.arange(classes)).astype(np.float64)
    targets = one_hot[:, 1:] if classes == 2 else one_hot
    weights = np.zeros((basis.shape[1] + 1, targets.shape[1]))
    for strength in strengths:
        weights = minimise(Problem(basis, targets, strength), weights)
        yield Fitted(rotation, weights)


def log_loss(labels: IntArray, probabilities: FloatArray) -> float:
    """Mean cross-entropy; probabilities are kept 1e-12 away from 0."""
    own = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(own, 1e-12, 1.0)).mean())


def logistic_scores(
    train: tuple[FloatArray, IntArray], validation: tuple[FloatArray, IntArray], test: FloatArray, classes: int
) -> FloatArray:
    """``[N, K]`` for ``test`` at the C of least log loss on validation images; of equals the strongest penalty."""
    standard = Standard.of(train[0])
    known, unseen = standard(validation[0]), standard(test)
    best, scores = np.inf, np.empty((0, classes))
    for fitted in path(standard(train[0]), train[1], classes, STRENGTHS):
        loss = log_loss(validation[1], fitted.probabilities(known))
        if loss < best - 1e-9:
            best, scores = loss, fitted.probabilities(unseen)
    return scores


def logistic_findings(
    train: tuple[FloatArray, IntArray], validation: tuple[FloatArray, IntArray], test: FloatArray
) -> FloatArray:
    """``[N, L]`` probabilities of each finding: a probe each, with a strength of its own. Labels ``[N, L]``, 0 or 1.

    A finding that all training images have, or none, gets that share.
    """
    scores = np.empty((len(test), train[1].shape[1]))
    for k, (seen, chosen) in enumerate(zip(train[1].T, validation[1].T, strict=True)):
        if seen.min() == seen.max():
            scores[:, k] = seen[0]
        else:
            scores[:, k] = logistic_scores((train[0], seen), (validation[0], chosen), test, 2)[:, 1]
    return scores
