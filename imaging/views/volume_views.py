"""Batched random views of volumes ``[B, C, D, H, W]`` on tensors, on any device.

Slices stay slices: crops are boxes, turns are about the axis that slices are stacked on. A trilinear view is
therefore a straight-line mixture of slices and then a 2-D view of each, which is several times faster than a 3-D
grid, and optics and detector noise work slice by slice as in 2-D.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from imaging.config import ImageConfig
from imaging.reading.standardise import statistics
from imaging.views import acquisition, geometry, intensity, saliency
from imaging.views.draws import Draws, changed, named, numbers
from imaging.views.presets import Preset

BIAS_POWERS = [
    (i, j, k)
    for i in range(intensity.BIAS_ORDER + 1)
    for j in range(intensity.BIAS_ORDER + 1 - i)
    for k in range(intensity.BIAS_ORDER + 1 - i - j)
    if i + j + k
]
GEOMETRY = ("area", "ratio", "left", "top", "thickness", "bottom", "horizontal", "vertical", "turned", "turns", "angle")
COARSE = ("coarse_given", "coarse", "coarse_axis")
SCANNER = (*COARSE, "blurred", "blur")
NOISE = ("speckle_given", "speckle", "speckle_start", "noise_given", "noise", "noise_start")
JITTER = ("gamma", "brightness", "contrast")
HOLE = ("hole", "hole_x", "hole_y", "hole_z")
SINGLE = (*GEOMETRY, *SCANNER, *NOISE, "jittered", *JITTER, *HOLE, *acquisition.DRAWS)
DRAWS = dict.fromkeys(SINGLE, 1) | {"bias": len(BIAS_POWERS)}
"""Uniform numbers of one view, by name; a view draws all of them, used or not, as in 2-D."""
LEAST_COARSE = 1.5
PLACE = ("left", "top", "bottom")
"""The numbers that say where a box lies."""

Made = tuple[Tensor, Tensor, Tensor]
"""Standardised views, and the mean and deviation they were standardised with."""


def draw(count: int, generator: torch.Generator) -> Draws:
    """The uniform numbers of ``count`` views, ``[count]`` (or ``[count, n]``) each, on the CPU."""
    return named(numbers(count, DRAWS, generator), DRAWS)


class VolumeViews:
    """What ``Augmentation`` does for volumes: the presets' operations, colour and stain left out.

    A setting that is a share of the image's area is the share of a slice's area; the box takes the same share of
    the slices as it takes of a slice's side, varied by ``crop_ratio``.
    """

    def __init__(self, image: ImageConfig, preset: Preset, focus: bool = False) -> None:
        self.image = image
        self.preset = preset
        self.focus = focus

    def draw(self, count: int, generator: torch.Generator, size: int | None) -> Draws:
        """What ``light`` or ``strong`` need to make ``count`` views; size: as ``strong`` has it."""
        table = numbers(count, DRAWS, generator)
        draws = named(table, DRAWS)
        found = {"table": table} | changed(draws, self.preset, size or self.image.size)
        axes = (3 * draws["coarse_axis"]).long()
        coarse = found["coarse_given"]
        found |= {f"coarse_{axis}": coarse[axes[coarse] == axis] for axis in range(3)}
        return found | {"others": saliency.places(count, PLACE, generator)} if self.focus else found

    def light(self, volumes: Tensor, draws: Draws) -> Made:
        """A large random box and flips, intensities as they are."""
        draws = self._focused(draws, volumes, self.preset.light_crop_scale)
        views = self._view(volumes, draws, self.preset.light_crop_scale, volumes.shape, True)
        _, mean, deviation = statistics(views, self.preset.standardise)
        return views.sub_(mean).div_(deviation), mean, deviation

    def strong(self, volumes: Tensor, draws: Draws, scale: tuple[float, float] | None, size: int | None) -> Made:
        """Box, flips, turns; coarse slices, blur, bias field, scan, noise; exposure, shuffling, hole.

        size: side of the views' slices, whose number shrinks alike.
        """
        preset = self.preset
        draws = self._focused(draws, volumes, scale or preset.crop_scale)
        slices, side = volumes.shape[2], size or volumes.shape[-1]
        shape = (*volumes.shape[:2], max(1, round(slices * side / volumes.shape[-1])), side, side)
        views = self._view(volumes, draws, scale or preset.crop_scale, shape)
        centre, mean, deviation = statistics(views, preset.standardise)
        views = self._acquire(views, draws)
        views = self._expose(views, draws, centre)
        return views.clamp_(0, 1).sub_(mean).div_(deviation), mean, deviation

    def _focused(self, draws: Draws, volumes: Tensor, scale: tuple[float, float]) -> Draws:
        if not self.focus:
            return draws

        def intervals(given: Draws) -> saliency.Intervals:
            (x, y, width, height), thickness = self._box(given, scale)
            return [((1 - thickness) * given["bottom"] + thickness / 2, thickness), (y, height), (x, width)]

        return saliency.focused(draws, PLACE, intervals, saliency.crop_saliency(volumes), draws["others"])

    def _box(self, draws: Draws, scale: tuple[float, float]) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """The window in a slice, and the share of the slices."""
        ratio = self.preset.crop_ratio
        box = geometry.crop_boxes((draws["area"], draws["ratio"], draws["left"], draws["top"]), scale, ratio)
        varied = ratio[0] * (ratio[1] / ratio[0]) ** draws["thickness"]
        return box, ((box[2] * box[3]).sqrt() * varied).clamp(max=1)

    def _view(
        self, volumes: Tensor, draws: Draws, scale: tuple[float, float], shape: Sequence[int], light: bool = False
    ) -> Tensor:
        """The boxes as ``shape``, flipped and (unless light) turned."""
        preset = self.preset
        box, thickness = self._box(draws, scale)
        mixed = mix(volumes, slice_weights(thickness, draws["bottom"], volumes.shape[2], shape[2]), axis=2)
        flips = geometry.flip(draws["horizontal"] < preset.horizontal_flip, draws["vertical"] < preset.vertical_flip)
        turn = torch.eye(2, device=flips.device).expand_as(flips)
        maps = [flips]
        if not light:
            turn = geometry.turn(math.radians(preset.rotation_degrees) * (2 * draws["angle"] - 1))
            turns = (1 + (3 * draws["turns"]).long()) * (draws["turned"] < preset.quarter_turns)
            maps = [geometry.quarter_turn(turns), flips]
        affine = geometry.window(box, turn, *maps)
        return geometry.resample(mixed.flatten(1, 2), affine, preset.outside, shape[-1]).view(*shape)

    def _acquire(self, views: Tensor, draws: Draws) -> Tensor:
        """What happens in the scanner, in that order: thick slices, blur, coil, scan, detector."""
        preset = self.preset
        if preset.anisotropy:
            views = self._coarsen(views, draws)
        planes = views.flatten(1, 2)  # [B, C * D, H, W]: a change here changes the views
        acquisition.focus_(planes, draws, preset)
        if preset.bias_field:
            views.mul_(bias_field(preset.bias_field * (2 * draws["bias"] - 1), views.shape[2:])[:, None])
        acquisition.scan_(planes, draws, preset)
        acquisition.noise_(planes, draws, preset)
        return views

    def _coarsen(self, views: Tensor, draws: Draws) -> Tensor:
        """Some volumes along one of their axes as if slices had been LEAST_COARSE to ``anisotropy`` times as thick."""
        factor = LEAST_COARSE + (self.preset.anisotropy - LEAST_COARSE) * draws["coarse"]
        for axis in range(3):
            at = draws[f"coarse_{axis}"]
            if len(at):
                views[at] = mix(views[at], coarse_weights(factor[at], views.shape[2 + axis]), axis=2 + axis)
        return views

    def _expose(self, views: Tensor, draws: Draws, centre: Tensor) -> Tensor:
        """What happens when a volume is shown: equalisation, gamma, gain, contrast; then shuffling, hole."""
        preset, device, planes = self.preset, views.device, views.flatten(1, 2)
        acquisition.equalise_(planes, draws, preset)
        jittered = draws["jittered"] < preset.jitter_probability
        amount = {name: _per_volume(jittered * (2 * draws[name] - 1)) for name in JITTER}
        if preset.gamma:
            views.clamp_(min=0).pow_((preset.gamma * amount["gamma"]).exp())
        if preset.brightness or preset.contrast:
            gain, factor = 1 + preset.brightness * amount["brightness"], 1 + preset.contrast * amount["contrast"]
            views.mul_(gain * factor).add_(centre * gain * (1 - factor))
        acquisition.shuffle_(planes, draws, preset)
        if preset.cutout:
            inside = torch.ones((), dtype=torch.bool, device=device)
            half = preset.cutout * draws["hole"][:, None] / 2
            for axis, name in enumerate(("hole_z", "hole_y", "hole_x")):
                count = views.shape[2 + axis]
                line = (torch.arange(count, device=device) + 0.5) / count
                near = (line - draws[name][:, None]).abs() < half
                inside = inside & near.view(len(views), 1, *(count if other == axis else 1 for other in range(3)))
            views = torch.where(inside, centre, views)
        return views


def _per_volume(values: Tensor) -> Tensor:
    """``[B]`` as ``[B, 1, 1, 1, 1]``."""
    return values.view(-1, 1, 1, 1, 1)


def mix(volumes: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Volumes ``[B, C, D, H, W]`` with one axis of N places made anew by ``weights`` ``[B, n, N]``."""
    moved = volumes.movedim(axis, 1)  # [B, N, ...]
    made = torch.bmm(weights.to(volumes.dtype), moved.flatten(2))
    return made.view(len(volumes), -1, *moved.shape[2:]).movedim(1, axis).contiguous()


def slice_weights(thickness: Tensor, bottom: Tensor, count: int, made: int) -> Tensor:
    """``[B, made, count]``: ``made`` slices spread evenly over boxes of a share ``thickness`` of ``count`` slices.

    bottom: ``[B]`` uniform numbers that say where the box begins. Straight-line interpolation between the centres
    of slices; beyond the first and last centre the slice itself.
    """
    start = (1 - thickness) * bottom
    line = (torch.arange(made, device=start.device) + 0.5) / made
    return _between((start[:, None] + thickness[:, None] * line) * count - 0.5, count)


def coarse_weights(factor: Tensor, count: int) -> Tensor:
    """``[B, count, count]``: an axis averaged over places ``factor`` ``[B]`` times as long, and brought back.

    The number of long places is rounded, at least 2; between their centres straight-line interpolation.
    """
    long = (count / factor).round().clamp(min=2, max=count)[:, None, None]  # [B, 1, 1]: how many
    width = count / long
    place = torch.arange(count, device=factor.device)
    number = place[:, None]
    ends = torch.minimum((number + 1) * width, place + 1.0) - torch.maximum(number * width, place.float())
    averaged = ends.clamp(min=0) / width * (number < long)  # [B, long place, place]
    at = ((place + 0.5) / width[:, 0] - 0.5).clamp(min=0).minimum(long[:, 0] - 1)  # [B, place]
    return (1 - (at[:, :, None] - place).abs()).clamp(min=0) @ averaged


def _between(at: Tensor, count: int) -> Tensor:
    """``[B, n, count]``: weights of the neighbouring whole places of ``at`` ``[B, n]``, within 0 and count - 1."""
    places = torch.arange(count, device=at.device)
    return (1 - (at.clamp(0, count - 1)[:, :, None] - places).abs()).clamp(min=0)


def bias_field(coefficients: Tensor, shape: Sequence[int]) -> Tensor:
    """``[B, D, H, W]``: exp of a cubic polynomial in x, y, z in [-1, 1] whose log has mean 0.

    coefficients: ``[B, 19]``, of the monomials ``BIAS_POWERS``, each less its mean (Van Leemput et al. 1999).
    """
    orders = intensity.BIAS_ORDER + 1
    lines = [torch.linspace(-1, 1, side, device=coefficients.device) for side in shape]
    powers = [torch.stack([line**order for order in range(orders)]) for line in lines]
    table = coefficients.new_zeros(len(coefficients), orders, orders, orders)
    for column, (i, j, k) in enumerate(BIAS_POWERS):
        table[:, i, j, k] = coefficients[:, column]
    means = [line.mean(dim=1) for line in powers]
    constant = torch.einsum("bijk,i,j,k->b", table, *means)
    field = torch.einsum("bijk,iz,jy,kx->bzyx", table, *powers)
    return (field - constant[:, None, None, None]).exp()
