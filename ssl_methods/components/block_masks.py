"""I-JEPA's multi-block masks (Assran et al. 2023, sec. 3 and appendix A), of fixed size within a batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from imaging.views.saliency import CANDIDATES, TOLERANCE
from ssl_methods.components.token_masks import EMPTY, SALIENT, strata, stratified

LEAST_CONTEXT = 10
REDRAWS = 10


@dataclass(frozen=True)
class BlockRanges:
    """Ranges that blocks are drawn from: scales are shares of the grid's area, aspects height over width."""

    targets: int
    target_scale: tuple[float, float]
    target_aspect: tuple[float, float]
    context_scale: tuple[float, float]
    context_kept: float


def context_length(patches: int, kept: float) -> int:
    """Context patches of an image: the share ``kept``, at least 10 (a third of a grid under 30)."""
    return max(round(kept * patches), min(LEAST_CONTEXT, patches // 3), 1)


def block_masks(
    count: int, side: int, ranges: BlockRanges, generator: torch.Generator, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Row-major places ``(context [count, K], targets [count, T, M])`` on a grid of ``side`` x ``side``.

    One target size is drawn for the batch, places for each image by itself; no draw depends on an image.
    Context and targets of an image never meet. Both are in rising order.

    weights ``[count, N]`` (CPU): saliency, 0 where a patch is empty. Of 8 layouts the first is then taken that is
    within a tenth of the best in (share of the hidden patches that are not empty) x (how far salient patches left
    over suffice for their share of the context), and the context is a stratified sample (token_masks.stratified).
    """
    patches = side * side
    height, width = target_size(side, ranges, generator)
    length = context_length(patches, ranges.context_kept)
    length = min(length, patches - height * width)
    levels = None if weights is None else strata(weights)
    hidden_by, context = _draw(count, side, (height, width), ranges, generator)
    if levels is not None:
        others = [_draw(count, side, (height, width), ranges, generator) for _ in range(CANDIDATES - 1)]
        hidden_by, context = _best([(hidden_by, context), *others], levels, length)
    for _ in range(REDRAWS):
        short = (context & ~hidden_by.any(dim=1)).sum(dim=1) < length
        if not short.any():
            break
        hidden_by[short], context[short] = _draw(int(short.sum()), side, (height, width), ranges, generator)
    free = context & ~hidden_by.any(dim=1)  # [count, N]
    short = free.sum(dim=1) < length
    # A grid this small has no room: all targets of the image move to the first one's place, the context is
    # the rest.
    hidden_by[short] = hidden_by[short][:, :1].expand(-1, ranges.targets, -1)
    free[short] = ~hidden_by[short].any(dim=1)
    scores = torch.rand(count, patches, generator=generator)
    if levels is not None:
        scores = 3 - stratified(scores, levels, length, free)
    kept = scores.masked_fill(~free, -1.0).topk(length, dim=1).indices.sort(dim=1).values
    places = hidden_by.nonzero()[:, 2].reshape(count, ranges.targets, height * width)
    return kept, places


def target_size(side: int, ranges: BlockRanges, generator: torch.Generator) -> tuple[int, int]:
    """Height and width of target blocks in patches, below the grid's: area and aspect drawn independently."""
    chance = torch.rand(2, generator=generator).tolist()
    scale = _between(ranges.target_scale, chance[0])
    aspect = _between(ranges.target_aspect, chance[1])
    most = max(side - 1, 1)
    height = min(max(round((scale * side * side * aspect) ** 0.5), 1), most)
    width = min(max(round((scale * side * side / aspect) ** 0.5), 1), most)
    return height, width


def _draw(
    count: int, side: int, size: tuple[int, int], ranges: BlockRanges, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Target blocks ``[count, T, N]`` and context blocks ``[count, N]`` as bool maps."""
    targets = _blocks((count, ranges.targets), side, size, generator)
    scale = _between(ranges.context_scale, float(torch.rand(1, generator=generator)))
    square = min(max(round(side * scale**0.5), 1), side)
    return targets, _blocks((count,), side, (square, square), generator)


def _best(layouts: list[tuple[Tensor, Tensor]], levels: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Of each image the first of the layouts (targets, context) that is nearly the best, as ``block_masks`` says."""
    salient = levels == SALIENT
    need = (salient.sum(dim=1) * length / levels.shape[1]).ceil().clamp(min=1)
    goodness = []
    for hidden_by, context in layouts:
        hidden = hidden_by.any(dim=1)  # [count, N]
        free = context & ~hidden
        filled = (hidden & (levels != EMPTY)).sum(dim=1) / hidden.sum(dim=1)
        suffices = ((free & salient).sum(dim=1) / need).clamp(max=1)
        goodness.append(filled * suffices * (free.sum(dim=1) >= length))
    scores = torch.stack(goodness)  # [layouts, count]
    taken = (scores >= TOLERANCE * scores.amax(dim=0)).int().argmax(dim=0)  # the first
    rows = torch.arange(len(taken))
    chosen = [torch.stack(parts)[taken, rows] for parts in zip(*layouts, strict=True)]
    return chosen[0], chosen[1]


def _blocks(shape: tuple[int, ...], side: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Bool maps ``[*shape, N]`` of one block each, anywhere up to the last row and column."""
    height, width = size
    top = torch.randint(side - height + 1, (*shape, 1), generator=generator)
    left = torch.randint(side - width + 1, (*shape, 1), generator=generator)
    line = torch.arange(side)
    rows = (line >= top) & (line < top + height)  # [*shape, side]
    columns = (line >= left) & (line < left + width)
    return (rows[..., :, None] & columns[..., None, :]).flatten(-2)


def _between(limits: tuple[float, float], share: float) -> float:
    """The point at ``share`` between two limits."""
    return limits[0] + share * (limits[1] - limits[0])
