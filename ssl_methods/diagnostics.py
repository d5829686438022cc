"""What features look like without labels: rank, alignment, uniformity, collapse."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from ssl_methods.encoders import features
from ssl_methods.method import Method


def _exact(features: Tensor) -> Tensor:
    """At least float32: half precision has too few digits for sums over thousands of rows."""
    return features if features.dtype == torch.float64 else features.float()


def rankme(features: Tensor) -> float:
    """RankMe, the effective rank of ``[N, D]`` features: between 1 and min(N, D) (Garrido et al. 2023, eq.
    1-2).

    exp(-sum p log p) with p = singular values / their sum + 1e-7. The features are neither centred nor
    normalised.
    """
    values = torch.linalg.svdvals(_exact(features))
    share = values / values.sum() + 1e-7
    return float((-(share * share.log()).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the unit features ``[N, D]`` of two views: 0 (same) to 4.

    Wang and Isola 2020, sec. 4.1.2, with alpha 2.
    """
    first, second = functional.normalize(_exact(first), dim=1), functional.normalize(_exact(second), dim=1)
    return float((first - second).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over pairs of unit features: 0 (one point) down to about -4.

    features ``[N, D]`` with N at least 2. Wang and Isola 2020, sec. 4.1.2, with t 2.
    """
    unit = functional.normalize(_exact(features), dim=1)
    return float(torch.pdist(unit).square().mul(-2.0).exp().mean().log())


def feature_std(features: Tensor) -> float:
    """Mean standard deviation of the channels of unit features ``[N, D]``, N at least 2.

    Far below 1/sqrt(D) means collapse: Chen and He 2021, sec. 4.1 and figure 2.
    """
    return float(functional.normalize(_exact(features), dim=1).std(dim=0).mean())


SPREAD = "output_spread"
"""The metric that ``collapsing`` reads."""
COLLAPSED_SPREAD = 0.1
LOST_SHARE = 0.25


@torch.no_grad()
def watch(method: Method, pictures: Tensor, generator: torch.Generator) -> dict[str, float]:
    """What the method's features of a site's ``pictures`` ``[N, C, ...]`` (N at least 2) look like after a round.

    ``feature_spread``, ``rankme`` and ``uniformity`` of the encoder's features of the plain pictures, ``alignment``
    of these with the features of one strong view each; ``output_spread`` of what the loss compares
    (``Method.output``): collapse shows there rounds before it reaches the encoder. A spread is ``feature_std``
    times sqrt(D): 1 when all directions are used alike, 0 when all pictures look the same.
    """
    training = method.training
    method.eval()
    plain = features(method.encoder, method.augmentation.plain(pictures))  # [N, D]
    changed = features(method.encoder, method.augmentation.strong(pictures, generator))
    output = method.output(plain)
    method.train(training)
    return {
        "feature_spread": feature_std(plain) * plain.shape[1] ** 0.5,
        "rankme": rankme(plain),
        "alignment": alignment(plain, changed),
        "uniformity": uniformity(plain),
        SPREAD: feature_std(output) * output.shape[1] ** 0.5,
    }


def collapsing(spreads: Sequence[float]) -> bool:
    """Whether a site's ``output_spread``, round by round, says that all pictures are coming to look the same.

    True when it is below 0.1 (a fresh head may be there in its first round, so one round says nothing) or has lost
    three quarters of its highest value, and still falls.
    """
    if len(spreads) < 2 or spreads[-1] >= spreads[-2]:
        return False
    return spreads[-1] < max(COLLAPSED_SPREAD, LOST_SHARE * max(spreads))
