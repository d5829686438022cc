"""Images and settings that views cannot be made of are refused in one line."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from foundation.errors import DataError, FedpretextError
from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from imaging.views.augment import Augmentation

BAD: dict[str, tuple[Tensor, str]] = {
    "channels": (torch.zeros(2, 1, 32, 32), r"shape \[2, 1, 32, 32\].*\[B, 3, 32, 32\].*image.channels"),
    "three dimensions": (torch.zeros(3, 32, 32), r"shape \[3, 32, 32\]"),
    "size": (torch.zeros(2, 3, 32, 48), r"shape \[2, 3, 32, 48\]"),
    "empty": (torch.zeros(0, 3, 32, 32), r"shape \[0, 3, 32, 32\]"),
    "bytes": (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), r"torch.uint8; give float32"),
    "range": (torch.full((2, 3, 32, 32), 255.0), r"from 255 to 255; scale"),
    "negative": (torch.full((2, 3, 32, 32), -0.5), r"from -0.5"),
    "not a number": (torch.full((2, 3, 32, 32), torch.nan), r"nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_are_refused_in_one_line(name: str) -> None:
    given_images, message = BAD[name]
    subject = Augmentation(ImageConfig(modality="fundus", size=32, channels=3))
    for make in (
        subject.plain,
        lambda x: subject.light(x, torch_generator(0)),
        lambda x: subject.strong(x, torch_generator(0)),
    ):
        with pytest.raises(DataError, match=message) as caught:
            make(given_images)
        assert isinstance(caught.value, FedpretextError) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop_scale": (0.9, 0.3)}, "smaller number first"),
        ({"crop_scale": (0.0, 0.3)}, "greater than 0"),
        ({"crop_scale": (0.5, 1.2)}, "less than or equal to 1"),
        ({"horizontal_flip": 1.5}, "less than or equal to 1"),
        ({"solarise": 0.1}, "not permitted"),
        ({"hue": 0.1}, "colour operation, but channels = 1"),
        ({"anisotropy": 1.2}, "0 for never, or a factor of 1.5 or more"),
        ({"motion": 0.5}, "less than or equal to 0.2"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ImageConfig.model_validate({"modality": "mri", "size": 32, "channels": 1, "augment": changes})
