"""What features look like without labels: rank, alignment, uniformity, collapse."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ssl_methods.components.similarity import as_float32, unit
from ssl_methods.encoders.outputs import features
from ssl_methods.method import Method
from ssl_methods.watched import FEATURE_SPREAD, OUTPUT_RANK, OUTPUT_SPREAD


def rankme(features: Tensor) -> float:
    """RankMe, the effective rank of ``[N, D]`` features: between 1 and min(N, D) (Garrido et al. 2023, eq.
    1-2).

    exp(-sum p log p) with p = singular values / their sum + 1e-7. The features are neither centred nor
    normalised.
    """
    values = torch.linalg.svdvals(as_float32(features))
    share = values / values.sum() + 1e-7
    return float((-(share * share.log()).sum()).exp())


def alignment(first: Tensor, second: Tensor) -> float:
    """Mean squared distance of the unit features ``[N, D]`` of two views: 0 (same) to 4.

    Wang and Isola 2020, sec. 4.1.2, with alpha 2.
    """
    first, second = unit(first), unit(second)
    return float((first - second).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """log of the mean of exp(-2 d^2) over pairs of unit features: 0 (one point) down to about -4.

    features ``[N, D]`` with N at least 2. Wang and Isola 2020, sec. 4.1.2, with t 2.
    """
    return float(torch.pdist(unit(features)).square().mul(-2.0).exp().mean().log())


def feature_std(features: Tensor) -> float:
    """Mean standard deviation of the channels of unit features ``[N, D]``, N at least 2.

    Far below 1/sqrt(D) means collapse: Chen and He 2021, sec. 4.1 and figure 2.
    """
    return float(unit(features).std(dim=0).mean())


# Chosen by training methods with and without what keeps them from collapse (tests/ssl_methods/test_collapse.py).
COLLAPSED_SPREAD, LOST_SPREAD = 0.1, 0.25
COLLAPSED_RANK, LOST_RANK = 0.3, 0.6
MENDING, PATIENCE = 1.1, 10
_ALIGNED = 8  # images: alignment is a mean of one number an image, the others need many images to be anything


@torch.no_grad()
def feature_diagnostics(method: Method, images: Tensor, generator: torch.Generator) -> dict[str, float]:
    """What the method's features of a site's ``images`` ``[N, C, ...]`` (N at least 2) look like after a round.

    ``feature_spread``, ``rankme`` and ``uniformity`` of the encoder's features of the plain images, ``alignment``
    of the first eight with the features of one strong view each; ``output_spread`` and ``output_rank`` of what the loss
    compares, where it compares images (``Method.output``): collapse shows there rounds before it reaches the
    encoder. A spread is ``feature_std`` times sqrt(D): 1 when all directions are used alike, 0 when all images look
    the same. ``output_rank`` is RankMe of the unit outputs as a share of min(N, P).
    """
    training = method.training
    method.eval()
    plain = features(method.encoder, method.augmentation.plain(images))  # [N, D]
    changed = features(method.encoder, method.augmentation.strong(images[:_ALIGNED], generator))
    output = method.output(plain)
    method.train(training)
    seen = {
        FEATURE_SPREAD: feature_std(plain) * plain.shape[1] ** 0.5,
        "rankme": rankme(plain),
        "alignment": alignment(plain[:_ALIGNED], changed),
        "uniformity": uniformity(plain),
    }
    if output is None:
        return seen
    most = min(output.shape)
    return seen | {
        OUTPUT_SPREAD: feature_std(output) * output.shape[1] ** 0.5,
        OUTPUT_RANK: rankme(unit(output)) / most,
    }


def collapsing(rounds: Sequence[Mapping[str, float]]) -> bool:
    """Whether a site's metrics, round by round, say that all images are coming to look the same to the encoder.

    One round says nothing; what counts must hold in two rounds running and not be mending. Where the loss compares
    images, its output says it: a spread below a quarter of its highest; below 0.1 where it was above once, or in the
    tenth round (a fresh head starts there, and BatchNorm's running statistics lag behind); or a rank below 0.3 and
    below 0.6 of its highest (a last BatchNorm holds the spread up, SimSiam's for one). Of other losses the features
    say it, which may lie close together from the start, in nearly empty images say: a spread below a quarter of its
    highest.
    """
    watched = [metrics for metrics in rounds if FEATURE_SPREAD in metrics]
    if len(watched) < 2:
        return False
    if OUTPUT_SPREAD not in watched[-1]:
        return _stays_below([metrics[FEATURE_SPREAD] for metrics in watched], LOST_SPREAD)
    spreads = [metrics.get(OUTPUT_SPREAD, 0.0) for metrics in watched]
    ranks = [metrics.get(OUTPUT_RANK, 0.0) for metrics in watched]
    if max(spreads) < COLLAPSED_SPREAD and len(spreads) < PATIENCE:
        return False
    lost = _stays_below(spreads, max(LOST_SPREAD, COLLAPSED_SPREAD / max(*spreads, 1e-9)))
    return lost or (max(ranks[-2:]) < COLLAPSED_RANK and _stays_below(ranks, LOST_RANK))


def _stays_below(values: Sequence[float], share: float) -> bool:
    """Whether the last two values are below ``share`` of the highest, and the last is not mending."""
    return max(values[-2:]) < share * max(values) and values[-1] < MENDING * values[-2]
