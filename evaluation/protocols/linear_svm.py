"""Linear support vector machine on standardised frozen features (squared hinge, L2), strength chosen on validation.

scikit-learn's LinearSVC in its primal form, which draws nothing at random; several classes one against the rest. The
margin is no likelihood: strengths are compared by balanced accuracy. Decision values become probabilities by Platt
scaling (Platt 2000; targets and objective of Lin et al. 2007) fitted on the validation images, with a slope that
never turns round: of two classes the order of scores is the machine's. Of more, each class's is, before rows are made
to sum to 1.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC

from evaluation.protocols.logistic import STRENGTHS, Standard
from evaluation.statistics.intervals import FloatArray, IntArray

SVM_STRENGTHS: tuple[float, ...] = tuple(strength for strength in STRENGTHS if strength < 1.01)
"""Up to C = 1, where the penalty hardly acts any more; from there to 1e5 a fit takes up to fifty times as long."""
_FLATTEST = 1e-3
_STEPS = 1000


@dataclass(frozen=True)
class Platt:
    """Decision values ``[N]`` to probabilities: 1 / (1 + exp(-(slope x value / unit + offset)))."""

    slope: float
    offset: float
    unit: float

    @classmethod
    def of(cls, values: FloatArray, positive: FloatArray) -> "Platt":
        """Fitted to truths ``[N]`` of 0 and 1, which are drawn in by one image of each class (Platt's prior)."""
        spread, count = float(values.std()), positive.sum()
        unit = spread if spread > 1e-9 * float(np.abs(values).max(initial=0.0)) else 1.0
        scaled = values / unit
        target = np.where(positive > 0, (count + 1) / (count + 2), 1 / (len(positive) - count + 2))

        def objective(line: FloatArray) -> tuple[float, FloatArray]:
            logits = line[0] * scaled + line[1]
            error = special.expit(logits) - target
            value = float((np.logaddexp(0.0, logits) - target * logits).mean())
            return value, np.array([(error * scaled).mean(), error.mean()])

        bounds = [(_FLATTEST, None), (None, None)]
        found = optimize.minimize(objective, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
        return cls(float(found.x[0]), float(found.x[1]), unit)

    def __call__(self, values: FloatArray) -> FloatArray:
        """Probabilities ``[N]``."""
        return np.asarray(special.expit(self.slope * values / self.unit + self.offset))


def decisions(features: FloatArray, labels: IntArray, strength: float, *others: FloatArray) -> list[FloatArray]:
    """Decision values ``[N, P]`` of ``others`` by the machine fitted to features ``[N, D]``, all standardised.

    P >= 2 classes occur in labels, a column each in their order; of two the second column is the first's negative.
    A fit that is still moving after 1,000 Newton steps is taken as it is: it is judged on validation like the others.
    """
    machine = LinearSVC(C=strength, dual=False, max_iter=_STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        machine.fit(features, labels)
    found = [np.asarray(machine.decision_function(rows), dtype=np.float64) for rows in others]
    return [np.stack([-values, values], axis=1) if values.ndim == 1 else values for values in found]


def svm_scores(
    train: tuple[FloatArray, IntArray], validation: tuple[FloatArray, IntArray], test: FloatArray, classes: int
) -> FloatArray:
    """``[N, K]`` for ``test`` at the strength of best balanced accuracy on validation images; rows sum to 1.

    Of equals the strongest penalty. A class without a training image has probability 0.
    """
    standard, present = Standard.of(train[0]), np.unique(train[1])
    scores = np.zeros((len(test), classes))
    if len(present) == 1:
        scores[:, present[0]] = 1.0
        return scores
    shown, known, unseen = (standard(features) for features in (train[0], validation[0], test))
    best, chosen = -1.0, [known, unseen]
    for strength in SVM_STRENGTHS:
        found = decisions(shown, train[1], strength, known, unseen)
        recall = _mean_recall(validation[1], present[found[0].argmax(1)])
        if recall > best:
            best, chosen = recall, found
    for column, k in enumerate(present):
        platt = Platt.of(chosen[0][:, column], (validation[1] == k).astype(np.float64))
        scores[:, k] = platt(chosen[1][:, column])
    if len(present) == 2:
        scores[:, present[0]] = 1.0 - scores[:, present[1]]
    return np.asarray(scores / scores.sum(1, keepdims=True))


def _mean_recall(labels: IntArray, guess: IntArray) -> float:
    """Balanced accuracy, defined where a single class occurs too."""
    return float(np.mean([(guess[labels == k] == k).mean() for k in np.unique(labels)]))
