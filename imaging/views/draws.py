"""The random choices of a batch of views: drawn on the CPU, then moved to where the images are.

What a choice does to the images is computed beside them, from uniform numbers. Only which images of a batch an
operation changes is found here: found on a GPU, their number would make the host wait.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from imaging.views.presets import Preset

Draws = dict[str, Tensor]


def numbers(count: int, widths: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Uniform numbers ``[count, n]`` of ``count`` views on the CPU, as many for each name as ``widths`` says."""
    return torch.rand(count, sum(widths.values()), generator=generator)


def named(table: Tensor, widths: Mapping[str, int]) -> Draws:
    """The columns of ``numbers`` by name, ``[count]`` (or ``[count, width]``) each, on any device."""
    columns = torch.split(table, list(widths.values()), dim=1)
    return {name: part[:, 0] if part.shape[1] == 1 else part for name, part in zip(widths, columns, strict=True)}


def chosen(draws: Tensor, probability: float) -> Tensor:
    """The places ``[n]`` of the images whose uniform number lies below ``probability``."""
    return (draws < probability).nonzero().squeeze(1)


def changed(draws: Draws, preset: Preset, size: int) -> Draws:
    """By operation the places ``[n]`` of the views of side ``size`` that it changes, from the ``named`` numbers.

    A name is that of the numbers that decide, whose place these take: ``draws | changed(draws, ...)``.
    """
    chances = {
        "blurred": preset.blur_probability * bool(preset.blur),
        "speckle_given": preset.noise_probability * bool(preset.speckle),
        "noise_given": preset.noise_probability * bool(preset.noise),
        "motion_given": preset.artefact_probability * bool(preset.motion),
        "ghosting_given": preset.artefact_probability * bool(preset.ghosting),
        "coarse_given": preset.anisotropy_probability * bool(preset.anisotropy),
        "equalise_given": preset.equalise_probability * bool(preset.equalise),
    }
    found = {name: chosen(draws[name], chance) for name, chance in chances.items()}
    return found | {"shuffled": (draws["shuffle"] * round(preset.shuffle * size) > 1).nonzero().squeeze(1)}
