"""Mean and deviation that an image or volume is standardised with."""

import torch
from torch import Tensor

from imaging.views.presets import Standardisation

FLAT = 0.01
"""Smallest deviation divided by: a missing sequence or an empty slice stays flat, not blown up to noise."""
FIXED_MEAN, FIXED_DEVIATION = 0.5, 0.25


def statistics(images: Tensor, how: Standardisation) -> tuple[Tensor, Tensor, Tensor]:
    """Centre of the contrast, and mean and deviation to standardise with; ``[B or 1, C or 1, 1, 1]``.

    images: ``[B, C, H, W]``, or volumes ``[B, C, D, H, W]``, which give one axis of 1 more.
    """
    grouped = images.flatten(2) if how == "channel" else images.flatten(1)[:, None]
    centre = grouped.mean(dim=2, keepdim=True)
    ones = [1] * (images.ndim - 2)
    if how == "fixed":
        mean, deviation = (centre.new_full((1, 1, *ones), value) for value in (FIXED_MEAN, FIXED_DEVIATION))
        return centre.view(*centre.shape[:2], *ones), mean, deviation
    # A vector norm: torch.var_mean is thirty times slower on a CPU.
    spread = torch.linalg.vector_norm(grouped - centre, dim=2, keepdim=True) / grouped.shape[2] ** 0.5
    centre = centre.view(*centre.shape[:2], *ones)
    return centre, centre, spread.clamp_(min=FLAT).view(centre.shape)
