"""Batched random views of images on tensors, on any device: no PIL and no loop over images."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from foundation.errors import DataError
from foundation.transfer import moved
from imaging.config import ImageConfig
from imaging.reading.standardise import statistics
from imaging.views import acquisition, geometry, intensity, saliency
from imaging.views.draws import Draws, changed, named, numbers
from imaging.views.intensity import per_image
from imaging.views.presets import Preset, resolve
from imaging.views.volume_views import COARSE, LEAST_COARSE, VolumeViews, coarse_weights
from imaging.views.volume_views import DRAWS as VOLUME_DRAWS

GEOMETRY = ("area", "ratio", "left", "top", "horizontal", "vertical", "turned", "turns", "angle")
OPTICS = (
    "blurred",
    "blur",
    "speckle_given",
    "speckle",
    "speckle_start",
    "noise_given",
    "noise",
    "noise_start",
)
JITTER = ("gamma", "brightness", "contrast", "saturation", "hue")
HOLE = ("hole", "hole_x", "hole_y")
SINGLE = (*GEOMETRY, *OPTICS, *COARSE, "jittered", *JITTER, *HOLE, *acquisition.DRAWS)
DRAWS = dict.fromkeys(SINGLE, 1) | {"stain": 6, "bias": intensity.BIAS_TERMS}
"""Uniform numbers of one view, by name. A view draws all of them, used or not: changing one setting leaves
the other choices as they were, and image i takes row i whatever the size of the batch."""
ROUNDING = 1e-5
"""How far a value may lie outside [0, 1], as float32 resizing leaves it."""
PLACE = ("left", "top")
"""The numbers that say where a crop lies."""


@dataclass(frozen=True)
class Made:
    """How one batch of views came about: ``Augmentation.made`` collects it for the image sheet.

    maps ``[B, 2, 3]``: places of the view to places of ``images``, both in [-1, 1] (None for volumes). A view's
    value times ``deviation`` plus ``mean`` (``[B or 1, C or 1, 1, 1]``) is its intensity in [0, 1].
    """

    kind: Literal["light", "strong"]
    images: Tensor
    views: Tensor
    mean: Tensor
    deviation: Tensor
    maps: Tensor | None


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No gradient and no autocast: bfloat16 maps would move crops by half a pixel."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast(device.type, enabled=False):
        yield


def draw(count: int, generator: torch.Generator) -> Draws:
    """The uniform numbers of ``count`` views, ``[count]`` (or ``[count, n]``) each, on the CPU."""
    return named(numbers(count, DRAWS, generator), DRAWS)


class Augmentation:
    """Views of images under the preset of the study's modality and the study's own changes to it.

    All methods take ``[B, *image.shape]`` float32 with values in [0, 1] on any device, leave it unchanged
    and return a standardised tensor of that shape and device, without gradient. Random choices come from a
    CPU generator wherever the images are, so that a seed gives the same views on a CPU and a GPU. A method draws
    the choices of all its views first (``draw``) and moves them together; who makes one view gives the generator.

    Standardisation by "image" or "channel" takes mean and deviation of the image inside the view's crop
    *before* its intensities are changed: taken afterwards, they would undo brightness and contrast.

    Raises DataError for a tensor of another shape, type or, where looking does not make a host wait, range.
    """

    def __init__(self, image: ImageConfig, focus: bool = False) -> None:
        """focus: places of crops are chosen by what the image shows there (imaging.views.saliency.focused)."""
        self.image = image
        self.focus = focus
        self.preset: Preset = resolve(image)
        self._volumes = VolumeViews(image, self.preset, focus) if image.dimensions == 3 else None
        self.made: list[Made] | None = None  # a list put here gets an entry for every batch of views

    def plain(self, images: Tensor) -> Tensor:
        """The images, standardised: what evaluation and an exported encoder see. No randomness."""
        self._check(images)
        with full_precision(images.device):
            _, mean, deviation = statistics(images, self.preset.standardise)
            return (images - mean).div_(deviation)

    def draw(self, count: int, generator: torch.Generator, size: int | None = None) -> Draws:
        """What ``light`` or ``strong`` need to make ``count`` views, of side ``size`` where that is not the images'."""
        if self._volumes is not None:
            return self._volumes.draw(count, generator, size)
        table = numbers(count, DRAWS, generator)
        draws = {"table": table} | changed(named(table, DRAWS), self.preset, size or self.image.size)
        return draws | {"others": saliency.places(count, PLACE, generator)} if self.focus else draws

    def light(self, images: Tensor, chance: torch.Generator | Draws) -> Tensor:
        """For masked and predictive methods: a large random crop and flips, intensities as they are.

        chance: what ``draw`` gave, on the images' device, or the generator that it is drawn from.
        """
        self._check(images)
        draws = self._drawn(images, chance, None)
        if self._volumes is not None:
            with full_precision(images.device):
                views, mean, deviation = self._volumes.light(images, draws)
            self._record(Made("light", images, views, mean, deviation, None))
            return views
        with full_precision(images.device):
            draws = self._focused(draws, images, self.preset.light_crop_scale)
            maps = self._maps(draws, self.preset.light_crop_scale, light=True)
            views = geometry.resample(images, maps, self.preset.outside)
            _, mean, deviation = statistics(views, self.preset.standardise)
            views = views.sub_(mean).div_(deviation)
        self._record(Made("light", images, views, mean, deviation, maps))
        return views

    def strong(
        self,
        images: Tensor,
        chance: torch.Generator | Draws,
        scale: tuple[float, float] | None = None,
        size: int | None = None,
    ) -> Tensor:
        """For joint embedding: crop, flips, turns; stain, blur, bias, scan, noise; exposure, colour, shuffle, hole.

        chance: as ``light`` has it. scale: area of the crop where it is not the preset's; size: side of the views
        where it is not the images' (the small crops of multi-crop). Volumes: imaging.views.volume_views says what is
        done.
        """
        self._check(images)
        draws = self._drawn(images, chance, size)
        if self._volumes is not None:
            with full_precision(images.device):
                views, mean, deviation = self._volumes.strong(images, draws, scale, size)
            self._record(Made("strong", images, views, mean, deviation, None))
            return views
        with full_precision(images.device):
            draws = self._focused(draws, images, scale or self.preset.crop_scale)
            maps = self._maps(draws, scale or self.preset.crop_scale)
            views = geometry.resample(images, maps, self.preset.outside, size)
            centre, mean, deviation = statistics(views, self.preset.standardise)
            self._acquire_(views, draws)
            views = self._expose(views, draws, centre)
            views = views.clamp_(0, 1).sub_(mean).div_(deviation)
        self._record(Made("strong", images, views, mean, deviation, maps))
        return views

    def _record(self, made: Made) -> None:
        if self.made is not None:  # a copy: a method may go on to change its view in place
            self.made.append(replace(made, views=made.views.clone()))

    def _drawn(self, images: Tensor, chance: torch.Generator | Draws, size: int | None) -> Draws:
        if isinstance(chance, torch.Generator):
            chance = moved(self.draw(len(images), chance, size), images.device)
        return named(chance["table"], DRAWS if self._volumes is None else VOLUME_DRAWS) | chance

    def _focused(self, draws: Draws, images: Tensor, scale: tuple[float, float]) -> Draws:
        if not self.focus:
            return draws

        def intervals(given: Draws) -> saliency.Intervals:
            x, y, width, height = self._box(given, scale)
            return [(y, height), (x, width)]

        return saliency.focused(draws, PLACE, intervals, saliency.crop_saliency(images), draws["others"])

    def _box(self, draws: Draws, scale: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        drawn = (draws["area"], draws["ratio"], draws["left"], draws["top"])
        return geometry.crop_boxes(drawn, scale, self.preset.crop_ratio)

    def _maps(self, draws: Draws, scale: tuple[float, float], light: bool = False) -> Tensor:
        preset, box = self.preset, self._box(draws, scale)
        flips = geometry.flip(draws["horizontal"] < preset.horizontal_flip, draws["vertical"] < preset.vertical_flip)
        if light:
            return geometry.window(box, torch.eye(2, device=flips.device).expand_as(flips), flips)
        angle = math.radians(preset.rotation_degrees) * (2 * draws["angle"] - 1)
        turns = (1 + (3 * draws["turns"]).long()) * (draws["turned"] < preset.quarter_turns)
        return geometry.window(box, geometry.turn(angle), geometry.quarter_turn(turns), flips)

    def _acquire_(self, views: Tensor, draws: Draws) -> None:
        """What happens before an image is digitised, in that order: stain, optics, coil, scan, detector."""
        preset = self.preset
        if preset.stain:
            intensity.stain_(views, preset.stain * (2 * draws["stain"] - 1))
        acquisition.focus_(views, draws, preset)
        if preset.bias_field:
            intensity.bias_field_(views, preset.bias_field * (2 * draws["bias"] - 1))
        acquisition.scan_(views, draws, preset)
        coarse = draws["coarse_given"]
        if len(coarse):
            factor = LEAST_COARSE + (preset.anisotropy - LEAST_COARSE) * draws["coarse"][coarse]
            weights = coarse_weights(factor, views.shape[-1])
            views[coarse] = acquisition.coarsened(views[coarse], weights, draws["coarse_axis"][coarse] < 0.5)
        acquisition.noise_(views, draws, preset)

    def _expose(self, views: Tensor, draws: Draws, centre: Tensor) -> Tensor:
        """What happens when an image is shown: equalisation, gamma, gain, contrast, colour; then shuffling, hole."""
        preset = self.preset
        acquisition.equalise_(views, draws, preset)
        jittered = draws["jittered"] < preset.jitter_probability
        amount = {name: jittered * (2 * draws[name] - 1) for name in JITTER}
        if preset.gamma:
            views.clamp_(min=0).pow_(per_image((preset.gamma * amount["gamma"]).exp()))
        if preset.brightness or preset.contrast:
            gain = per_image(1 + preset.brightness * amount["brightness"])
            factor = per_image(1 + preset.contrast * amount["contrast"])
            views.mul_(gain * factor).add_(centre * gain * (1 - factor))
        if preset.saturation or preset.hue:
            maps = intensity.colour_maps(1 + preset.saturation * amount["saturation"], preset.hue * amount["hue"])
            views = intensity.colour(views, maps)
        acquisition.shuffle_(views, draws, preset)
        if preset.cutout:
            side, x, y = (draws[name] for name in HOLE)
            views = intensity.cut_out(views, preset.cutout * side, x, y, centre)
        return views

    def _check(self, images: Tensor) -> None:
        expected = self.image.shape
        if not len(images) or images.shape != (len(images), *expected):
            raise DataError(
                f"images have shape {list(images.shape)}, the study says [B, {', '.join(map(str, expected))}]; "
                f"resize them, or change image.channels and {'image.depth, ' * (len(expected) - 3)}image.size"
            )
        if images.dtype != torch.float32:
            raise DataError(f"images are {images.dtype}; give float32 with values in [0, 1]")
        if images.device.type != "cpu":
            return  # the store's images are in range
        low, high = (bound.item() for bound in images.aminmax())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise DataError(f"images have values from {low:g} to {high:g}; scale them to [0, 1] first")
