"""BatchNorm's statistics: shared tensors that no optimiser steps, and the exchange that estimates them at the end.

BatchNorm's running mean and variance, as training leaves them, are those of weights that were moving, over augmented
views. After the last round of a study without ``privacy`` each site therefore passes its training images once through
the final encoder, weights untouched, and the server merges what they saw: one exchange more than ``rounds.count``, for
an encoder with BatchNorm.

The merged statistics are those of all images together for the first normalisation layer. What reaches a deeper one was
normalised by its own site's batches, so that there they are close to, and not equal to, those of pooled images
(benchmarks/results/statistics/merged_batch_norm.md).
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from federation.algorithms.algorithm import COUNTER, MEAN, VARIANCE, Contribution, Weights, average
from federation.records import ENCODER

if TYPE_CHECKING:
    from federation.study import Study


def means_of(weights: Mapping[str, Tensor], part: str = "") -> list[str]:
    """Names of the running means among ``weights``, in their order; ``part``: how a name has to begin."""
    return sorted(name for name in weights if name.endswith(MEAN) and name.startswith(part))


def variance_of(mean: str) -> str:
    """The name of the running variance that belongs to a running mean."""
    return mean.removesuffix(MEAN) + VARIANCE


def exchanges(study: "Study", weights: Mapping[str, Tensor]) -> int:
    """Exchanges between server and sites: the rounds, and one for the statistics where the encoder has any.

    None for a private study: its statistics would tell what no noise covers.
    """
    return study.rounds.count + int(study.privacy is None and bool(means_of(weights, ENCODER)))


def only_estimates(study: "Study", round_: int) -> bool:
    """Whether the exchange of that number is the one after the last round, in which no weight moves."""
    return round_ > study.rounds.count


def merged(weights: Weights, contributions: Sequence[Contribution]) -> Weights:
    """The statistics among ``weights`` as those of all sites' images: the law of total variance, in float64.

    mean = sum p_k m_k and variance = sum p_k (v_k + (m_k - mean)^2), with p_k the share of site k's images. A plain
    mean of the variances would leave out what the sites differ by. Counters are averaged.
    """
    total = float(sum(c.images for c in contributions))
    result = {name: average(name, weights[name], contributions) for name in weights if name.endswith(COUNTER)}
    for name in means_of(weights):
        shares = [c.images / total for c in contributions]
        means = [c.tensor(name).double() for c in contributions]
        mean = torch.stack([p * m for p, m in zip(shares, means, strict=True)]).sum(dim=0)
        other = variance_of(name)
        parts = [
            p * (c.tensor(other).double() + (m - mean).square())
            for p, m, c in zip(shares, means, contributions, strict=True)
        ]
        result[name] = mean.to(weights[name].dtype)
        result[other] = torch.stack(parts).sum(dim=0).to(weights[other].dtype)
    return result


def distance(trained: Contribution, weights: Mapping[str, Tensor]) -> float:
    """How far a site's statistics are from ``weights``': L2 norm over means and standard deviations, in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for name in means_of(weights):
        other = variance_of(name)
        total += (trained.tensor(name).double() - weights[name].double()).square().sum()
        total += (trained.tensor(other).double().sqrt() - weights[other].double().sqrt()).square().sum()
    return float(total.sqrt())
