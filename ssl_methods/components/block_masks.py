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


def draw_blocks(
    count: int, side: int, ranges: BlockRanges, generator: torch.Generator, focused: bool = False
) -> dict[str, Tensor]:
    """Random blocks of ``count`` images on a grid of ``side`` x ``side``, on the CPU, for ``block_masks``.

    One target size is drawn for the batch, places for each image by itself; no draw depends on an image.

    ``targets`` ``[L, count, T, M]``: places of the target blocks in L layouts; ``blocks`` ``[L, count, N]``: bool maps
    of their context blocks; ``patches`` ``[count, N]``: uniform numbers. The first layout leaves every image room for
    its context; where the masks are to look at the images 8 more follow, of which the first is the one that the first
    layout was, before images without room were drawn again.
    """
    patches = side * side
    height, width = target_size(side, ranges, generator)
    length = _length(patches, height * width, ranges.context_kept)
    layouts = [_draw(count, side, (height, width), ranges, generator) for _ in range(CANDIDATES if focused else 1)]
    hidden_by, context = (part.clone() for part in layouts[0])
    for _ in range(REDRAWS):
        short = (context & ~hidden_by.any(dim=1)).sum(dim=1) < length
        if not short.any():
            break
        hidden_by[short], context[short] = _draw(int(short.sum()), side, (height, width), ranges, generator)
    short = (context & ~hidden_by.any(dim=1)).sum(dim=1) < length
    # A grid this small has no room: all targets of the image move to the first one's place, the context is
    # the rest.
    hidden_by[short] = hidden_by[short][:, :1].expand(-1, ranges.targets, -1)
    context[short] = True
    given = [(hidden_by, context), *(layouts if focused else [])]
    targets = [hidden.nonzero()[:, 2].reshape(count, ranges.targets, height * width) for hidden, _ in given]
    return {
        "targets": torch.stack(targets),
        "blocks": torch.stack([block for _, block in given]),
        "patches": torch.rand(count, patches, generator=generator),
    }


def block_masks(drawn: dict[str, Tensor], kept: float, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Row-major places ``(context [B, K], targets [B, T, M])`` of what ``draw_blocks`` drew, on any device.

    Context and targets of an image never meet. Both are in rising order. kept: ``BlockRanges.context_kept``.

    weights ``[B, N]``: saliency, 0 where a patch is empty. Of 8 layouts the first is then taken that is within a
    tenth of the best in (share of the hidden patches that are not empty) x (how far salient patches left over suffice
    for their share of the context), and the context is a stratified sample (token_masks.stratified).
    """
    targets, context, chance = drawn["targets"], drawn["blocks"], drawn["patches"]  # [L, B, T, M], [L, B, N], [B, N]
    length = _length(chance.shape[1], targets.shape[3], kept)
    hidden = torch.zeros_like(context).scatter(2, targets.flatten(2), True)  # [L, B, N]
    free = context & ~hidden
    levels = None if weights is None else strata(weights)
    if levels is None:
        targets, free = targets[0], free[0]
    else:
        taken = _best(hidden, free, levels, length)  # [B]
        rows = torch.arange(len(taken), device=taken.device)
        targets, free = targets[taken, rows], free[taken, rows]
        chance = stratified(chance, levels, length, free)
    order = chance.masked_fill(~free, 4.0).argsort(dim=1, stable=True)
    return order[:, :length].sort(dim=1).values, targets


def _length(patches: int, hidden: int, kept: float) -> int:
    """Context patches of an image whose target blocks hide ``hidden`` patches each."""
    return min(context_length(patches, kept), patches - hidden)


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


def _best(hidden: Tensor, free: Tensor, levels: Tensor, length: int) -> Tensor:
    """Of each image the first of the layouts 1 to 8 that is nearly the best, as ``block_masks`` says; ``[B]``.

    hidden, free ``[L, B, N]`` bool. Where none of them is any good it is 0, the layout that has room.
    """
    salient = levels == SALIENT
    need = (salient.sum(dim=1) * length / levels.shape[1]).ceil().clamp(min=1)
    filled = (hidden & (levels != EMPTY)).sum(dim=2) / hidden.sum(dim=2)
    suffices = ((free & salient).sum(dim=2) / need).clamp(max=1)
    scores = (filled * suffices * (free.sum(dim=2) >= length))[1:]  # [8, B]
    best = scores.amax(dim=0)
    taken = 1 + (scores >= TOLERANCE * best).int().argmax(dim=0)  # the first
    return torch.where(best > 0, taken, 0)


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
