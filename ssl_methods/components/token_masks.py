"""Random masks over patches: uniform, or stratified by how salient the patches are."""

import torch
from torch import Tensor

SALIENT_SHARE = 0.25
"""Share of the patches that are not empty which count as salient: the highest of the image."""
EMPTY, ORDINARY, SALIENT, BARRED = range(4)


def random_masks(chance: Tensor, ratio: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Random places ``(keep [B, K], masked [B, N - K])`` by ``chance`` ``[B, N]``, uniform numbers in [0, 1).

    K = floor(N (1 - ratio)) as in the paper's code (He et al. 2022), at least 1 and at most N - 1. Each row is in
    rising order.

    weights ``[B, N]``: saliency, 0 where a patch is empty. The places kept are then a stratified
    sample: of the salient patches at least their share K / N is kept, of the ordinary ones that share rounded
    up, as far as K allows, and empty patches fill what is left. None: every patch is equally likely.
    """
    patches = chance.shape[1]
    kept = min(max(int(patches * (1.0 - ratio)), 1), patches - 1)
    if weights is not None:
        chance = stratified(chance, strata(weights), kept)
    order = chance.argsort(dim=1, stable=True)
    return order[:, :kept].sort(dim=1).values, order[:, kept:].sort(dim=1).values


def strata(weights: Tensor) -> Tensor:
    """``[B, N]`` int64: EMPTY where a patch has weight 0, SALIENT or else ORDINARY.

    Salient is the highest quarter (rounded up) of an image's patches that are not empty; of equal ones the first.
    """
    filled = weights > 0
    most = (filled.sum(dim=1, keepdim=True) * SALIENT_SHARE).ceil()
    rank = weights.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return filled.long() + (filled & (rank < most)).long()


def stratified(chance: Tensor, stratum: Tensor, kept: int, free: Tensor | None = None) -> Tensor:
    """Numbers ``[B, N]`` of which the ``kept`` least are a stratified random sample of the places.

    chance ``[B, N]``: uniform numbers in [0, 1); within a stratum the least are kept. Each stratum keeps the share
    kept / N of its places, salient and ordinary ones rounded up, empty ones what is then left. free ``[B, N]`` bool:
    places that may be kept, at least ``kept``; where a stratum has too few of them, others of any stratum fill up.
    """
    count = chance.shape[1]
    size = torch.stack([(stratum == level).sum(dim=1) for level in range(3)], dim=1)  # [B, 3]
    salient = (size[:, SALIENT] * kept / count).ceil()
    ordinary = (size[:, ORDINARY] * kept / count).ceil().minimum(kept - salient)
    barred = torch.zeros_like(salient)
    quota = torch.stack([kept - salient - ordinary, ordinary, salient, barred], dim=1)  # [B, 4]
    level = stratum if free is None else stratum.masked_fill(~free, BARRED)
    # Sorted by level, then chance: a place's rank within its level.
    by_chance = chance.argsort(dim=1, stable=True)
    by_level = level.gather(1, by_chance).argsort(dim=1, stable=True)
    order = by_chance.gather(1, by_level).argsort(dim=1)
    present = torch.stack([(level == each).sum(dim=1) for each in range(4)], dim=1)
    within = order - (present.cumsum(dim=1) - present).gather(1, level)
    return chance + (within >= quota.gather(1, level)) + (level == BARRED)


def counted(masked: Tensor, weights: Tensor | None) -> Tensor:
    """Which of the places ``masked`` ``[B, M]`` are to be predicted: ``[B, M]`` bool.

    All without ``weights``; else those that are not empty, or all where an image has no other.
    """
    if weights is None:
        return torch.ones_like(masked, dtype=torch.bool)
    filled = weights.gather(1, masked) > 0
    return filled | ~filled.any(dim=1, keepdim=True)


def spared(hidden: Tensor, weights: Tensor, chance: Tensor) -> Tensor:
    """Masks ``[B, N]`` bool of another law without their empty patches and without too many salient ones.

    A mask that hides h of N patches may hide the share h / N of the salient ones, rounded down; of more than those the
    rest is shown, those whose ``chance`` ``[B, N]`` is highest. A mask of which nothing would be left stays as it is.
    """
    level = strata(weights)
    allowed = (level == SALIENT).sum(dim=1) * hidden.sum(dim=1) // hidden.shape[1]  # [B]
    salient = hidden & (level == SALIENT)
    rank = chance.masked_fill(~salient, 2.0).argsort(dim=1, stable=True).argsort(dim=1)
    left = hidden & (level != EMPTY) & ~(salient & (rank >= allowed[:, None]))
    return torch.where(left.any(dim=1, keepdim=True), left, hidden)
