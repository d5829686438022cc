"""Judging a round's replies together: an update far longer than the others' is left out and named."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from federation.algorithms.algorithm import Contribution, is_parameter
from federation.algorithms.statistics import distance
from federation.local_work import local_work
from federation.records import TrainReply
from federation.study import Study
from foundation.errors import RunError


@dataclass(frozen=True)
class UpdateScreening:
    """Update norms of those who are in, where they may be told; who is out, with the reason."""

    norms: dict[str, float]
    left_out: dict[str, str]


def judge_together(
    contributions: Sequence[Contribution], weights: Mapping[str, Tensor], study: Study, last_norms: Mapping[str, float]
) -> UpdateScreening:
    """Compare update norms with the absolute bound and with the median of what the others moved.

    A site's update grows with its steps, at most in proportion: for a site of 24 steps a round the norm of one of 3
    counts eight times, so that a large hospital among small ones is not taken for a broken one; for one of fewer
    steps it counts as it is. With one or two replies a median says nothing about which is wrong, so the last round's
    accepted norms are counted in; in a first round of two sites only the absolute bound holds.
    """
    rounds = study.rounds
    norms = {c.site: update_norm(c, weights) for c in contributions}
    steps = {c.site: local_work(study.training, c.images).steps for c in contributions}
    known = [*norms.items(), *(last_norms.items() if len(norms) < 3 else ())]
    left_out = {}
    for site, norm in norms.items():
        # A site that is not among this round's has steps that nobody knows: as many as this one.
        alike = [other * max(1.0, steps[site] / steps.get(name, steps[site])) for name, other in known]
        median = statistics.median(alike) if len(alike) > 2 else 0.0
        if norm > rounds.norm_bound:
            left_out[site] = f"update norm {norm:.3g} is above the bound {rounds.norm_bound:g} (rounds.norm_bound)"
        elif median > 0 and norm > rounds.norm_factor * median:
            left_out[site] = (
                f"update norm {norm:.3g} is {norm / median:.0f} times the median {median:.3g} for its steps "
                f"(rounds.norm_factor {rounds.norm_factor:g})"
            )
    left_out |= _far_statistics(contributions, weights, rounds.norm_factor)
    return UpdateScreening({site: norm for site, norm in norms.items() if site not in left_out}, left_out)


def judge_statistics(
    contributions: Sequence[Contribution], weights: Mapping[str, Tensor], study: Study
) -> UpdateScreening:
    """Judge answers of the exchange that estimates statistics: who changed a weight is left out, or is far off."""
    why = "changed weights in the exchange that only estimates statistics"
    moved = {c.site: why for c in contributions if update_norm(c, weights) > 0}
    kept = [c for c in contributions if c.site not in moved]
    return UpdateScreening({}, moved | _far_statistics(kept, weights, study.rounds.norm_factor))


def _far_statistics(
    contributions: Sequence[Contribution], weights: Mapping[str, Tensor], factor: float
) -> dict[str, str]:
    """Sites whose BatchNorm statistics moved ``factor`` times as far as the median of three sites or more."""
    moved = {c.site: distance(c, weights) for c in contributions}
    median = statistics.median(moved.values()) if len(moved) > 2 else 0.0
    return {
        site: f"BatchNorm statistics are {far / median:.0f} times as far off as the median (rounds.norm_factor)"
        for site, far in moved.items()
        if median > 0 and far > factor * median
    }


def judge_clipped(contributions: Sequence[Contribution], weights: Mapping[str, Tensor], clip: float) -> UpdateScreening:
    """Leave out updates longer than ``clip``, and no other: what is promised of sites holds for no longer one.

    Each is judged by itself. A median would let one site decide on the part that others take, and the noise is made for
    what a site does by its own update alone. The verdict tells no length, as nothing that is written down may.
    """
    why = "update is longer than privacy.clip; the site has to send what its own program has shortened"
    left_out = {c.site: why for c in contributions if not update_norm(c, weights) <= clip}
    return UpdateScreening({}, left_out)


def check_private(reply: TrainReply, sent: Mapping[str, Tensor]) -> None:
    """RunError where an update of a private study tells what no noise covers: a count, a metric, a statistic."""
    if reply.images != 1 or reply.metrics:
        raise RunError("tells a count of images or a metric, which stay at the site in a private study")
    for name, value in sent.items():
        if not is_parameter(name, value) and not torch.equal(reply.weights[name], value):
            raise RunError(f"changes tensor {name!r}, a counter or statistic that no noise covers")


def update_norm(contribution: Contribution, weights: Mapping[str, Tensor]) -> float:
    """L2 norm of (site's parameters - global parameters), in float64, one tensor at a time."""
    total = torch.zeros((), dtype=torch.float64)
    for name, before in weights.items():
        if is_parameter(name, before):
            change = contribution.tensor(name).double().sub_(before).flatten()
            total += change.dot(change)
    return float(total.sqrt())
