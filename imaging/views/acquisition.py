"""What goes wrong or is set otherwise while an image is acquired: motion, ghosts, coarse sampling, equalisation.

Images are ``[B, C, H, W]`` with values in [0, 1]; of volumes ``[B, C * D, H, W]``, so that all slices are changed
alike. Parameters are ``[B]`` tensors on the images' device, as is all of ``draws``, of which the names of
imaging.views.draws.changed say which views are changed. All artefacts are those of a scan whose field of view is
the image given, and run along its rows; ``turned`` makes them run along its columns.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from imaging.views import geometry
from imaging.views.draws import Draws
from imaging.views.intensity import blur_, noise_at, per_image
from imaging.views.presets import Preset
from imaging.views.saliency import histogram

MOTION = ("motion_given", "motion_axis", "motion_turn", "motion_x", "motion_y", "motion_line")
GHOSTING = ("ghosting_given", "ghosting_axis", "ghosting", "ghosting_copies")
EQUALISE = ("equalise_given", "equalise")
SHUFFLE = ("shuffle", "shuffle_x", "shuffle_y", "shuffle_order")
DRAWS = (*MOTION, *GHOSTING, *EQUALISE, *SHUFFLE)
"""Uniform numbers of one view that the functions on views below read."""
FIRST_LINE = (0.03, 0.3)
"""Lines of k-space (share of all, from the middle) from which on the patient lies elsewhere: the middle, and with it
the image's contrast and place, is always that of before."""
TILES, BINS, CLIP = 4, 64, 3.0
"""Of the adaptive equalisation: tiles along a side, bins of a histogram, largest count in multiples of the mean."""


def focus_(views: Tensor, draws: Draws, preset: Preset) -> None:
    """Blur for the views that their draws choose."""
    blurred = draws["blurred"]
    if len(blurred):
        largest = preset.blur * views.shape[-1]
        part = views[blurred]
        blur_(part, largest * draws["blur"][blurred], largest)
        views[blurred] = part


def noise_(views: Tensor, draws: Draws, preset: Preset) -> None:
    """Speckle, then noise, for the views that their draws choose."""
    for kind, deviation in (("speckle", preset.speckle), ("noise", preset.noise)):
        noisy = draws[f"{kind}_given"]
        if len(noisy):
            part = views[noisy]
            field = noise_at(draws[f"{kind}_start"][noisy], part.shape)
            field.mul_(per_image(deviation * draws[kind][noisy]))
            views[noisy] = part.addcmul_(part, field) if kind == "speckle" else part.add_(field)


def scan_(views: Tensor, draws: Draws, preset: Preset) -> None:
    """Motion, then ghosts, for the views that their draws choose."""
    for kind, strength in (("motion", preset.motion), ("ghosting", preset.ghosting)):
        hit = draws[f"{kind}_given"]
        if not len(hit):
            continue
        own = {name: draws[name][hit] for name in (MOTION if kind == "motion" else GHOSTING)[1:]}
        upright = own[f"{kind}_axis"] < 0.5
        part = turned(views[hit], upright)
        if kind == "motion":
            shift = strength * (2 * torch.stack([own["motion_x"], own["motion_y"]], dim=1) - 1)
            angle = 2 * strength * (2 * own["motion_turn"] - 1)
            part = moved(part, shift, angle, own["motion_line"], preset.outside)
        else:
            copies = 2 + 2 * (3 * own["ghosting_copies"]).long()
            part = ghosted(part, strength * own["ghosting"], copies)
        views[hit] = turned(part, upright)


def turned(images: Tensor, upright: Tensor) -> Tensor:
    """Square images with rows and columns exchanged where ``upright`` ``[B]`` is false."""
    return torch.where(per_image(upright), images, images.transpose(2, 3))


def moved(
    images: Tensor, shift: Tensor, angle: Tensor, line: Tensor, outside: Literal["zeros", "reflection"]
) -> Tensor:
    """A scan during which the patient moves once: the magnitude of k-space of two places, one line after the other.

    shift ``[B, 2]``: in sides, at most 1; angle ``[B]``: radians. line ``[B]``: in [0, 1], where in
    ``FIRST_LINE`` the place changes. Lines run along the rows, so that all of a column is one encoding.
    """
    maps = torch.cat([geometry.turn(angle), 2 * shift[:, :, None]], dim=2)
    change = geometry.resample(images, maps, outside) - images
    frequency = torch.fft.fftfreq(images.shape[2], device=images.device)  # [H], in cycles a pixel
    start = FIRST_LINE[0] + (FIRST_LINE[1] - FIRST_LINE[0]) * line
    late = (frequency > start[:, None]).view(len(images), 1, -1, 1)
    spread = torch.fft.ifft(torch.fft.fft(change, dim=2) * late, dim=2)
    magnitude: Tensor = (images + spread).abs()
    return magnitude


def ghosted(images: Tensor, strength: Tensor, copies: Tensor) -> Tensor:
    """Periodic ghosts: every ``copies``-th line of k-space (2, 4 or 6) damped by the share ``strength``.

    The lines half-way between are meant, so that the middle one stays, and with it the mean. With 2 it is the N/2
    ghost of echo-planar images.
    """
    number = torch.arange(images.shape[2] // 2 + 1, device=images.device)
    damped = (number % copies[:, None]) == copies[:, None] // 2
    weights = (1 - strength[:, None] * damped)[:, None, :, None]  # [B, 1, lines, 1]
    magnitude: Tensor = torch.fft.irfft(torch.fft.rfft(images, dim=2) * weights, n=images.shape[2], dim=2).abs()
    return magnitude


def coarsened(images: Tensor, weights: Tensor, upright: Tensor) -> Tensor:
    """Images with their rows (or columns) made anew by ``weights`` ``[B, H, H]``."""
    rows = turned(images, upright)
    return turned(torch.matmul(weights[:, None], rows), upright)


def equalise_(views: Tensor, draws: Draws, preset: Preset) -> None:
    """Adaptive equalisation for the views that their draws choose, mixed in by a drawn share."""
    hit = draws["equalise_given"]
    if len(hit):
        part = views[hit].clamp_(0, 1)
        share = (preset.equalise * draws["equalise"][hit]).view(-1, 1, 1, 1)
        views[hit] = part.lerp_(equalised(part), share)


def equalised(images: Tensor) -> Tensor:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994) of each plane, values in [0, 1].

    A tile's curve is straight between the edges of its bins and starts at 0, so that black stays black; between the
    middles of tiles curves are interpolated.
    """
    height, width = images.shape[2:]
    device, planes = images.device, images.flatten(0, 1)  # [P, H, W]
    down, across = (torch.arange(side, device=device) * TILES // side for side in (height, width))
    tile = torch.arange(len(planes), device=device)[:, None, None] * TILES**2 + down[:, None] * TILES + across
    bins = (planes * BINS).long().clamp_(0, BINS - 1)
    counted = histogram((tile * BINS + bins).flatten(), len(planes) * TILES**2 * BINS)
    counts = counted.view(-1, TILES**2, BINS).to(planes.dtype)
    total = counts.sum(dim=2, keepdim=True)
    limit = CLIP * total / BINS
    cut = counts.minimum(limit)
    cut = cut + (total - cut.sum(dim=2, keepdim=True)) / BINS
    curves = F.pad(cut.cumsum(dim=2) / total, (1, 0))  # [P, tiles, BINS + 1]
    table = curves.transpose(1, 2).reshape(len(planes), 1, BINS + 1, TILES, TILES)
    place = [
        ((torch.arange(side, device=device) + 0.5) / side * TILES - 0.5) * 2 / (TILES - 1) - 1
        for side in (width, height)
    ]
    x, y = place[0].expand_as(planes), place[1][:, None].expand_as(planes)
    grid = torch.stack([x, y, 2 * planes - 1], dim=-1)[:, None]  # [P, 1, H, W, 3]
    return F.grid_sample(table, grid, padding_mode="border", align_corners=True).view_as(images)


def shuffle_(views: Tensor, draws: Draws, preset: Preset) -> None:
    """One square of each view with its pixels in random order; all channels of a pixel move together.

    The square's side is drawn up to ``preset.shuffle`` of the image's. It is the middle of a patch of the largest
    side, which lies anywhere in the image.
    """
    size, device = views.shape[-1], views.device
    largest = round(preset.shuffle * size)
    side = draws["shuffle"] * largest  # [B]
    hit = draws["shuffled"]
    if not len(hit):
        return
    left, top = ((draws[name][hit] * (size - largest + 1)).long() for name in ("shuffle_x", "shuffle_y"))
    line = torch.arange(largest, device=device)
    row, column = line.repeat_interleave(largest), line.repeat(largest)
    off_centre = torch.maximum((2 * row - largest + 1).abs(), (2 * column - largest + 1).abs())  # [largest ** 2]
    inside = off_centre < side[hit, None]  # [n, largest ** 2]
    key = noise_at(draws["shuffle_order"][hit], torch.Size([len(hit), 1, largest, largest])).flatten(1)
    # The square's places, and the same in random order; the rest of the patch stands behind them in both.
    places = (~inside).int().argsort(dim=1, stable=True)
    source = torch.where(inside, key, torch.inf).argsort(dim=1, stable=True)
    patch = (top[:, None] + row) * size + left[:, None] + column  # [n, largest ** 2]: where in the image
    part = views[hit].flatten(2)
    origin, target = (patch.gather(1, each)[:, None].expand(-1, part.shape[1], -1) for each in (source, places))
    part.scatter_(2, target, part.gather(2, origin))
    views[hit] = part.view(-1, *views.shape[1:])
