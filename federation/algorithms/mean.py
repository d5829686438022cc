"""Algorithms whose server half needs nothing of the sites but their mean: sums and noise may stand in its place."""

from collections.abc import Sequence

from federation.algorithms.algorithm import Algorithm, Contribution, State, Weights, average
from federation.algorithms.statistics import merged


def mean_of(weights: Weights, contributions: Sequence[Contribution]) -> Weights:
    """The mean of every parameter and counter over the sites, weighted by images, and their statistics merged.

    Names, order, shapes and types are those of ``weights``; each tensor of a site is read once.
    """
    statistics = merged(weights, contributions)
    averaged = {n: average(n, like, contributions) for n, like in weights.items() if n not in statistics}
    return {name: (averaged | statistics)[name] for name in weights}


class MeanAlgorithm(Algorithm):
    """An algorithm whose ``aggregate`` is the mean and ``after_mean``.

    The round loop calls ``after_mean`` alone where the mean came from a sum under masks, or has noise by site on it:
    what is made of a noised mean tells no more than the mean does.
    """

    def aggregate(self, weights: Weights, contributions: Sequence[Contribution], state: State) -> tuple[Weights, State]:
        """Average the sites, then ``after_mean``."""
        return self.after_mean(weights, mean_of(weights, contributions), state)

    def after_mean(self, weights: Weights, mean: Weights, state: State) -> tuple[Weights, State]:
        """The next global weights from this round's and the mean of what the sites made of them, and the next state.

        weights, mean: of the same names, shapes and types. By default the mean is the next weights.
        """
        return mean, {}
