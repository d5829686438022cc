"""Models Genesis' four corruptions of an image, batched, in 2-D and 3-D (Zhou et al. 2021, sec. 2.2).

All take images ``[B, C, *shape]`` with values in [0, 1] and leave them unchanged. What is drawn comes in as tensors
of one row per image, so that an image's corruption depends on its own row only.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CURVE_POINTS = 1024
BLOCKS = 5
"""Painted blocks of an image at most."""
ANOTHER_BLOCK = 0.95
"""Chance that one more block follows, as in their code."""
INNER = (1 / 6, 1 / 3)
OUTER = (3 / 7, 4 / 7)
"""Sides of an in-painted block, and of a block that out-painting keeps, as shares of the image's (their code)."""


@dataclass(frozen=True)
class Chances:
    """Probability of each corruption; ``outpaint`` is the share of painted images that are painted outside."""

    bezier: float
    shuffle: float
    paint: float
    outpaint: float


@dataclass(frozen=True)
class Draws:
    """Uniform numbers of one batch on the CPU, B rows each: all are drawn whether they are used or not."""

    given: Tensor
    """``[B, 5]``: against the chances of Bezier, its falling, shuffling, painting, out-painting."""
    curve: Tensor
    """``[B, 4]``: x and y of the two inner control points."""
    window: Tensor
    """``[B, 2, axes]``: side and start of the windows."""
    order: Tensor
    """``[B, P]``: a number for every pixel; its rank is the pixel's place after shuffling."""
    blocks: Tensor
    """``[B, 1 + BLOCKS, 1 + 2 axes]``: whether a block follows, its side and its place along each axis."""
    noise: Tensor
    """As the images: what is painted."""


def draw(shape: Sequence[int], generator: torch.Generator) -> Draws:
    """The draws for images of ``shape`` ``[B, C, *shape]``."""
    count, axes, pixels = shape[0], len(shape) - 2, math.prod(shape[2:])
    return Draws(
        torch.rand(count, 5, generator=generator),
        torch.rand(count, 4, generator=generator),
        torch.rand(count, 2, axes, generator=generator),
        torch.rand(count, pixels, generator=generator),
        torch.rand(count, 1 + BLOCKS, 1 + 2 * axes, generator=generator),
        torch.rand(shape, generator=generator),
    )


def decided(draws: Draws, chances: Chances) -> dict[str, Tensor]:
    """What ``corrupt`` needs, on the CPU: which of the images go through what, and the numbers for those.

    ``shuffled``, ``curved`` ``[n]`` places, with ``window``, ``order``, ``curve``, ``falling`` of those images alone;
    ``hidden`` ``[B, *shape]`` bool, what is painted, and ``noise`` as the images.
    """
    given = draws.given
    shuffled, curved = _where(given[:, 2] < chances.shuffle), _where(given[:, 0] < chances.bezier)
    hidden = painted(draws.blocks, given[:, 4] < chances.outpaint, draws.noise.shape[2:])
    return {
        "shuffled": shuffled,
        "window": draws.window[shuffled],
        "order": draws.order[shuffled],
        "curved": curved,
        "curve": draws.curve[curved],
        "falling": given[curved, 1] < 0.5,
        "hidden": hidden & _per_row(given[:, 3] < chances.paint, hidden.ndim),
        "noise": draws.noise,
    }


def corrupt(images: Tensor, choices: dict[str, Tensor]) -> Tensor:
    """Shuffling, then Bezier, then painting, each with its chance (their order), as ``decided`` on the same device."""
    corrupted, shuffled, curved = images.clone(), choices["shuffled"], choices["curved"]
    if len(shuffled):
        corrupted[shuffled] = shuffle_locally(corrupted[shuffled], choices["window"], choices["order"])
    if len(curved):
        corrupted[curved] = bezier(corrupted[curved], choices["curve"], choices["falling"])
    return torch.where(choices["hidden"][:, None], choices["noise"], corrupted)


def bezier(images: Tensor, control: Tensor, falling: Tensor) -> Tensor:
    """Every value v becomes y where the curve has x = v; one curve per image.

    control ``[B, 4]``: x1, y1, x2, y2 in [0, 1] of the cubic Bezier curve from (0, 0) to (1, 1). falling ``[B]``: the
    curve runs from (0, 1) to (1, 0) (they reverse y). With inner points in the unit square both coordinates rise
    along the curve, so that the map is monotone: the order of intensities, the image's content, survives.
    """
    t = torch.linspace(0, 1, CURVE_POINTS, dtype=torch.float64, device=control.device)
    basis = torch.stack([3 * (1 - t) ** 2 * t, 3 * (1 - t) * t**2])  # [2, T]
    points = control.double().view(-1, 2, 2).transpose(1, 2) @ basis + t**3  # [B, 2, T]
    x, y = points.to(torch.float32).unbind(dim=1)  # [B, T] each
    values = images.flatten(1).contiguous()  # [B, P]
    after = torch.searchsorted(x.contiguous(), values).clamp(1, CURVE_POINTS - 1)
    left, right = x.gather(1, after - 1), x.gather(1, after)
    low, high = y.gather(1, after - 1), y.gather(1, after)
    share = ((values - left) / (right - left).clamp(min=1e-12)).clamp(0, 1)
    mapped = (low + share * (high - low)).view_as(images)
    return torch.where(_per_row(falling, images.ndim), 1 - mapped, mapped)


def shuffle_locally(images: Tensor, window: Tensor, order: Tensor) -> Tensor:
    """Shuffle the pixels inside every window of a tiling; all channels of a pixel move together.

    window ``[B, 2, axes]``: uniform numbers for the windows' sides (1 to a tenth of the image's side, at least 2)
    and for where the tiling starts. order ``[B, P]``: uniform, one for each pixel. Windows keep their multiset of
    pixels. Their code shuffles 10 000 windows, each of another size, one after another, which overlap; here an
    image's windows are of one size and tile it.
    """
    shape = images.shape[2:]
    name = torch.zeros(len(images), *[1] * len(shape), dtype=torch.float64, device=images.device)
    for axis, length in enumerate(shape):
        largest = max(2, length // 10)
        side = 1 + (window[:, 0, axis] * largest).long().clamp(max=largest - 1)  # [B]
        start = (window[:, 1, axis] * side).long()
        line = torch.arange(length, device=images.device)
        along = (line + start[:, None]) // side[:, None]  # [B, length]: number of the window
        spread = [length if other == axis else 1 for other in range(len(shape))]
        name = name * (length + 2) + along.view(-1, *spread)
    name = name.flatten(1)  # [B, P]
    places = name.argsort(dim=1, stable=True)  # a window's places, one window after the other
    source = (name + order).argsort(dim=1, stable=True)  # the same windows, each in random order
    moved = torch.empty_like(places).scatter_(1, places, source)  # [B, P]: where each place's pixel comes from
    flat = images.flatten(2)
    return flat.gather(2, moved[:, None].expand_as(flat)).view_as(images)


def painted(blocks: Tensor, outside: Tensor, shape: torch.Size) -> Tensor:
    """Which pixels ``[B, *shape]`` are painted over.

    In-painting hides up to 5 blocks of 1/6 to 1/3 of the sides; out-painting (``outside`` ``[B]``) hides all but up
    to 6 blocks of 3/7 to 4/7. blocks ``[B, 6, 1 + 2 axes]``: uniform; the last block is out-painting's own, which
    is always there.
    """
    follows = (blocks[..., 0] < ANOTHER_BLOCK).long().cumprod(dim=1).bool()  # [B, 6]
    follows[:, -1] = outside
    inside = follows.view(*follows.shape, *[1] * len(shape))
    for axis, length in enumerate(shape):
        chance, place = blocks[..., 1 + 2 * axis], blocks[..., 2 + 2 * axis]  # [B, 6]
        low, high = (torch.where(outside, outer, inner) for outer, inner in zip(OUTER, INNER, strict=True))
        side = ((low + (high - low) * chance.T).T * length).long().clamp(min=1)
        start = (place * (length - side + 1)).long()
        line = torch.arange(length)
        within = (line >= start[..., None]) & (line < (start + side)[..., None])  # [B, 6, length]
        spread = [length if other == axis else 1 for other in range(len(shape))]
        inside = inside & within.view(*follows.shape, *spread)
    blocked = inside.any(dim=1)
    return blocked ^ _per_row(outside, blocked.ndim)


def _where(chosen: Tensor) -> Tensor:
    """The places ``[n]`` of the true ones."""
    return chosen.nonzero().squeeze(1)


def _per_row(values: Tensor, axes: int) -> Tensor:
    """``[B]`` with as many axes of 1 behind as make ``axes``."""
    return values.view(-1, *[1] * (axes - 1))
