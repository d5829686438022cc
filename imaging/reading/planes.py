"""The flat image by which a person is shown an image or a volume."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from imaging.config import ImageConfig

COLOUR_MODALITIES = ("histopathology", "fundus", "dermoscopy", "endoscopy", "microscopy")


def shown_plane(pixels: Tensor, image: ImageConfig, channel: int | None = None) -> NDArray[np.float32]:
    """``[H, W]`` or, in colour, ``[H, W, 3]`` of ``[C, H, W]`` or the middle slice of ``[C, D, H, W]``.

    channel: which one to show, from 1; None: in colour where it is, else the middle channel.
    """
    plane = pixels[:, middle_slice(pixels.shape[1])] if pixels.ndim == 4 else pixels
    if channel is None and in_colour(image):
        return plane.permute(1, 2, 0).float().numpy()
    return plane[shown_channel(image, channel)].float().numpy()


def middle_slice(depth: int) -> int:
    """Which of ``depth`` slices stands for a volume."""
    return depth // 2


def in_colour(image: ImageConfig) -> bool:
    """Whether the three channels are red, green and blue."""
    return image.channels == 3 and image.modality in COLOUR_MODALITIES


def shown_channel(image: ImageConfig, channel: int | None = None) -> int:
    """The place of the channel ``channel`` (from 1), or of the middle one."""
    return image.channels // 2 if channel is None else channel - 1
