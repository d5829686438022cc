"""Batched random views of pictures on tensors, on any device: no PIL and no loop over pictures."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from foundation.errors import DataError
from imaging import geometry, intensity
from imaging.config import ImageConfig
from imaging.intensity import per_picture
from imaging.presets import Preset, resolve

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
SINGLE = (*GEOMETRY, *OPTICS, "jittered", *JITTER, *HOLE)
DRAWS = dict.fromkeys(SINGLE, 1) | {"stain": 6, "bias": intensity.BIAS_TERMS}
"""Uniform numbers of one view, by name. A view draws all of them, used or not: changing one setting leaves
the other choices as they were, and picture i takes row i whatever the size of the batch."""
FLAT = 0.01
"""Smallest deviation divided by: a missing sequence or an empty slice stays flat, not blown up to noise."""
FIXED_MEAN, FIXED_DEVIATION = 0.5, 0.25
ROUNDING = 1e-5
"""How far a value may lie outside [0, 1], as float32 resizing leaves it."""

Draws = dict[str, Tensor]


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """No gradient and no autocast: bfloat16 maps would move crops by half a pixel."""
    with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast(device.type, enabled=False):
        yield


def draw(count: int, generator: torch.Generator) -> Draws:
    """The uniform numbers of ``count`` views, ``[count]`` (or ``[count, n]``) each, on the CPU."""
    table = torch.rand(count, sum(DRAWS.values()), generator=generator)
    columns = torch.split(table, list(DRAWS.values()), dim=1)
    return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in zip(DRAWS, columns, strict=True)}


class Augmentation:
    """Views of pictures under the preset of the study's modality and the study's own changes to it.

    All methods take ``[B, C, size, size]`` float32 with values in [0, 1] on any device, leave it unchanged
    and return a standardised tensor of that shape and device, without gradient. Random choices come from a
    CPU generator wherever the pictures are, so that a seed gives the same views on a CPU and a GPU.

    Standardisation by "picture" or "channel" takes mean and deviation of the picture inside the view's crop
    *before* its intensities are changed: taken afterwards, they would undo brightness and contrast.

    Raises DataError for a tensor of another shape, type or range.
    """

    def __init__(self, image: ImageConfig) -> None:
        self.image = image
        self.preset: Preset = resolve(image)

    def plain(self, pictures: Tensor) -> Tensor:
        """The pictures, standardised: what evaluation and an exported encoder see. No randomness."""
        self._check(pictures)
        with exact(pictures.device):
            _, mean, deviation = self._statistics(pictures)
            return (pictures - mean).div_(deviation)

    def light(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """For masked and predictive methods: a large random crop and flips, intensities as they are."""
        self._check(pictures)
        draws = draw(len(pictures), generator)
        with exact(pictures.device):
            views = geometry.resample(pictures, self._maps(draws, light=True), self.preset.outside)
            _, mean, deviation = self._statistics(views)
            return views.sub_(mean).div_(deviation)

    def strong(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """For joint embedding: crop, flips, turns; stain, blur, bias field, noise; exposure, colour, hole."""
        self._check(pictures)
        draws = draw(len(pictures), generator)
        with exact(pictures.device):
            views = geometry.resample(pictures, self._maps(draws), self.preset.outside)
            centre, mean, deviation = self._statistics(views)
            self._acquire_(views, draws)
            views = self._expose(views, draws, centre)
            return views.clamp_(0, 1).sub_(mean).div_(deviation)

    def _maps(self, draws: Draws, light: bool = False) -> Tensor:
        preset = self.preset
        scale = preset.light_crop_scale if light else preset.crop_scale
        box = geometry.crop_boxes(
            (draws["area"], draws["ratio"], draws["left"], draws["top"]), scale, preset.crop_ratio
        )
        flips = geometry.flip(draws["horizontal"] < preset.horizontal_flip, draws["vertical"] < preset.vertical_flip)
        if light:
            return geometry.window(box, torch.eye(2).expand_as(flips), flips)
        angle = math.radians(preset.rotation_degrees) * (2 * draws["angle"] - 1)
        turns = (1 + (3 * draws["turns"]).long()) * (draws["turned"] < preset.quarter_turns)
        return geometry.window(box, geometry.turn(angle), geometry.quarter_turn(turns), flips)

    def _acquire_(self, views: Tensor, draws: Draws) -> None:
        """What happens before a picture is digitised, in that order: stain, optics, coil, detector."""
        preset, device = self.preset, views.device
        if preset.stain:
            intensity.stain_(views, (preset.stain * (2 * draws["stain"] - 1)).to(device))
        blurred = chosen(draws["blurred"], preset.blur_probability * bool(preset.blur))
        if len(blurred):
            largest = preset.blur * self.image.size
            part = views[blurred.to(device)]
            intensity.blur_(part, (largest * draws["blur"][blurred]).to(device), largest)
            views[blurred.to(device)] = part
        if preset.bias_field:
            intensity.bias_field_(views, (preset.bias_field * (2 * draws["bias"] - 1)).to(device))
        for kind, deviation in (("speckle", preset.speckle), ("noise", preset.noise)):
            noisy = chosen(draws[f"{kind}_given"], preset.noise_probability * bool(deviation))
            if len(noisy):
                part = views[noisy.to(device)]
                field = intensity.noise_at(draws[f"{kind}_start"][noisy], part.shape, device)
                field.mul_(per_picture((deviation * draws[kind][noisy]).to(device)))
                views[noisy.to(device)] = part.addcmul_(part, field) if kind == "speckle" else part.add_(field)

    def _expose(self, views: Tensor, draws: Draws, centre: Tensor) -> Tensor:
        """What happens when a picture is shown, in that order: gamma, gain, contrast, colour, hole."""
        preset, device = self.preset, views.device
        jittered = draws["jittered"] < preset.jitter_probability
        amount = {name: (jittered * (2 * draws[name] - 1)).to(device) for name in JITTER}
        if preset.gamma:
            views.clamp_(min=0).pow_(per_picture((preset.gamma * amount["gamma"]).exp()))
        if preset.brightness or preset.contrast:
            gain = per_picture(1 + preset.brightness * amount["brightness"])
            factor = per_picture(1 + preset.contrast * amount["contrast"])
            views.mul_(gain * factor).add_(centre * gain * (1 - factor))
        if preset.saturation or preset.hue:
            maps = intensity.colour_maps(1 + preset.saturation * amount["saturation"], preset.hue * amount["hue"])
            views = intensity.colour(views, maps)
        if preset.cutout:
            side, x, y = (draws[name].to(device) for name in HOLE)
            views = intensity.cut_out(views, preset.cutout * side, x, y, centre)
        return views

    def _statistics(self, pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre of the contrast, and mean and deviation to standardise with; ``[B or 1, C or 1, 1, 1]``."""
        grouped = pictures.flatten(2) if self.preset.standardise == "channel" else pictures.flatten(1)[:, None]
        centre = grouped.mean(dim=2, keepdim=True)
        if self.preset.standardise == "fixed":
            mean, deviation = centre.new_tensor([FIXED_MEAN, FIXED_DEVIATION]).view(2, 1, 1, 1, 1)
            return centre[..., None], mean, deviation
        # A vector norm: torch.var_mean is thirty times slower on a CPU.
        spread = torch.linalg.vector_norm(grouped - centre, dim=2, keepdim=True) / grouped.shape[2] ** 0.5
        return centre[..., None], centre[..., None], spread.clamp_(min=FLAT)[..., None]

    def _check(self, pictures: Tensor) -> None:
        image, size = self.image, self.image.size
        expected = (len(pictures), image.channels, image.size, image.size)
        if not len(pictures) or pictures.shape != expected:
            raise DataError(
                f"pictures have shape {list(pictures.shape)}, the study says [B, {image.channels}, {size}, {size}]; "
                "resize them, or change image.channels and image.size"
            )
        if pictures.dtype != torch.float32:
            raise DataError(f"pictures are {pictures.dtype}; give float32 with values in [0, 1]")
        low, high = (bound.item() for bound in pictures.aminmax())
        if not (low >= -ROUNDING and high <= 1 + ROUNDING):
            raise DataError(f"pictures have values from {low:g} to {high:g}; scale them to [0, 1] first")


def chosen(draws: Tensor, probability: float) -> Tensor:
    """The places ``[n]`` of the pictures whose uniform number lies below ``probability``."""
    return (draws < probability).nonzero().squeeze(1)
