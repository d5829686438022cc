"""What a person is shown of images in grey, in colour, of several sequences, and of volumes."""

import numpy as np
import pytest
import torch

from imaging.config import ImageConfig
from imaging.reading.planes import in_colour, shown_plane


def image(modality: str, channels: int, depth: int | None = None) -> ImageConfig:
    return ImageConfig.model_validate({"modality": modality, "size": 16, "channels": channels, "depth": depth})


@pytest.mark.parametrize(
    ("modality", "channels", "colour"), [("fundus", 3, True), ("fundus", 1, False), ("mri", 3, False)]
)
def test_three_channels_are_colours_where_a_camera_took_them(modality: str, channels: int, colour: bool) -> None:
    assert in_colour(image(modality, channels)) == colour
    plane = shown_plane(torch.zeros(channels, 16, 16), image(modality, channels))
    assert plane.shape == ((16, 16, 3) if colour else (16, 16))


def test_the_middle_channel_or_the_one_asked_for() -> None:
    pixels = torch.arange(4.0).view(4, 1, 1).expand(4, 16, 16)
    assert shown_plane(pixels, image("mri", 4))[0, 0] == 2
    assert shown_plane(pixels, image("mri", 4), channel=1)[0, 0] == 0
    assert shown_plane(pixels[:3], image("fundus", 3), channel=3)[0, 0] == 2


def test_colours_stay_in_order_and_a_volume_is_its_middle_slice() -> None:
    pixels = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(shown_plane(pixels, image("fundus", 3)).transpose(2, 0, 1), pixels.numpy())
    volume = torch.arange(9.0).view(1, 9, 1, 1).expand(1, 9, 16, 16)
    assert shown_plane(volume, image("ct", 1, depth=9)).tolist() == [[4.0] * 16] * 16
