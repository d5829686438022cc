"""Where an image shows something: local entropy, and crops that keep it."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from imaging.views.draws import Draws

BINS = 32
EMPTY = 0.1
"""Entropy in nats below which a cell is empty: about one pixel in 50 leaves the commonest bin."""
CELL = 8
"""Side in pixels (and slices) of the cells by which crops are judged."""
FINEST = 128
"""Crops are judged on images thinned to sides of at least this."""
CANDIDATES = 8
"""Places among which a crop's is chosen."""
TOLERANCE = 0.9
"""A place is taken when it keeps this share of what the best candidate keeps."""

Intervals = list[tuple[Tensor, Tensor]]
"""A box of each image: centre and length ``[B]`` along (depth,) height and width, as shares of the side."""


def entropy_map(images: Tensor, grid: Sequence[int]) -> Tensor:
    """Entropy in nats ``[B, *grid]`` of the intensities in each cell of ``[B, C, *shape]``; 0 where it is below EMPTY.

    Every image's channel is cut into 32 equal bins between its own least and greatest value, so that the unit of
    the values does not matter; the entropies of the channels are averaged. Counts are whole numbers: the same on every
    device and whatever else is in the batch. Noise of less than a bin (1/32 of the range) counts as nothing; so does
    the contrast of soft tissue in a wide CT window: narrow ``image.window`` where that is what matters.
    """
    places = tuple(range(2, images.ndim))
    low, high = images.amin(dim=places, keepdim=True), images.amax(dim=places, keepdim=True)
    bins = ((images - low) * (BINS / (high - low).clamp(min=1e-6))).int().clamp_(max=BINS - 1)
    cell = torch.zeros(images.shape[2:], dtype=torch.int32, device=images.device)
    for axis, (length, count) in enumerate(zip(images.shape[2:], grid, strict=True)):
        along = torch.arange(length, dtype=torch.int32, device=images.device) * count // length
        cell = cell * count + along.view([length if other == axis else 1 for other in range(len(grid))])
    planes, cells = images.shape[0] * images.shape[1], math.prod(grid)
    first = torch.arange(planes, dtype=torch.int32, device=images.device) * cells * BINS
    first = first.view(*images.shape[:2], *[1] * len(grid))
    found = histogram((bins + cell * BINS + first).flatten(), planes * cells * BINS)
    share = found.view(*images.shape[:2], cells, BINS).float()
    share = share / share.sum(dim=3, keepdim=True).clamp(min=1)
    entropy = torch.special.entr(share).sum(dim=3).mean(dim=1)  # [B, cells]
    return torch.where(entropy < EMPTY, 0.0, entropy).view(-1, *grid)


def histogram(values: Tensor, length: int) -> Tensor:
    """``[length]`` int64: how often each whole number from 0 to ``length`` - 1 is among ``values`` ``[n]``."""
    if values.device.type == "cpu":
        return torch.bincount(values, minlength=length)
    # Elsewhere bincount makes the host wait, to see how many numbers there are. Whole numbers add up in any order.
    counts = torch.zeros(length, dtype=torch.int64, device=values.device)
    return counts.index_add_(0, values, torch.ones_like(values, dtype=torch.int64))


def crop_saliency(images: Tensor) -> Tensor:
    """The map ``[B, *grid]`` that crops of ``[B, C, *shape]`` are judged by."""
    thin = max(1, images.shape[-1] // FINEST)
    thinned = images[..., ::thin, ::thin]
    return entropy_map(thinned, [max(1, math.ceil(side / CELL)) for side in thinned.shape[2:]])


def places(count: int, names: Sequence[str], generator: torch.Generator) -> Tensor:
    """Uniform numbers ``[count, 7, names]`` on the CPU: the other places that ``focused`` looks at."""
    return torch.rand(count, CANDIDATES - 1, len(names), generator=generator)


def focused(
    draws: Draws,
    names: Sequence[str],
    intervals: Callable[[Draws], Intervals],
    saliency: Tensor,
    others: Tensor,
) -> Draws:
    """The draws with another place of the crop where the one drawn shows little of what the image has to show.

    names: the numbers among ``draws`` that say where the box lies; its size and all else stay as drawn. intervals:
    the boxes of given draws. saliency: ``[B, *grid]``. others: ``places`` of
    the names.

    Of 8 places, the drawn one and 7 more, the first is taken that keeps at least .9 of the entropy that the best of
    them keeps. So a place that was good enough stays, large crops of centred anatomy hardly change, a crop beside the
    anatomy or without its richest part is replaced, and places stay random: only the worst of them go. Boxes are
    judged before they are turned. Where an image is empty, the drawn place stays.
    """
    candidates = [draws, *(draws | dict(zip(names, one.unbind(1), strict=True)) for one in others.unbind(1))]
    kept = torch.stack([kept_share(saliency, intervals(one)) for one in candidates], dim=1)  # [B, 8]
    taken = (kept >= TOLERANCE * kept.amax(dim=1, keepdim=True)).int().argmax(dim=1, keepdim=True)  # the first
    return draws | {name: torch.stack([one[name] for one in candidates], 1).gather(1, taken)[:, 0] for name in names}


def kept_share(saliency: Tensor, box: Intervals) -> Tensor:
    """``[B]``: which share of each map ``[B, *grid]`` lies in its box; 0 where the map is empty."""
    inside = saliency
    for centre, length in box:  # the first axis of the grid is summed away each time
        inside = torch.einsum("bi...,bi->b...", inside, _covered(inside.shape[1], centre, length))
    return inside / saliency.flatten(1).sum(dim=1).clamp(min=1e-6)


def _covered(cells: int, centre: Tensor, length: Tensor) -> Tensor:
    """``[B, cells]``: the share of each cell of a line from 0 to 1 that an interval covers."""
    edges = torch.arange(cells + 1, device=centre.device) / cells
    before = (edges - (centre - length / 2)[:, None]).clamp(min=0).minimum(length[:, None])  # up to each edge
    return before.diff(dim=1) * cells
