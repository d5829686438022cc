"""Encoders side by side: the right panels in the right order, each readable without seeing it."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation.explain.encoder_images import (
    EXPLANATIONS,
    TITLES,
    ImagePanel,
    Shown,
    encoder_panels,
    salient_points,
)
from foundation.randomness import numpy_generator, seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

GREY = ImageConfig(modality="mri", size=24, channels=1)
COLOUR = ImageConfig(modality="fundus", size=32, channels=3)
VOLUME = ImageConfig(modality="mri", size=16, depth=8, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, width=16, depth=1, heads=2)


def images(image: ImageConfig, count: int = 2) -> Tensor:
    return torch.from_numpy(numpy_generator(2, "images").uniform(size=(count, *image.shape))).float()


def shown(name: str, image: ImageConfig, config: EncoderConfig = VIT) -> Shown:
    with seeded_torch(4, name):
        return Shown(name, build_encoder(config, image).eval(), image, images(image))


def sides(panel: ImagePanel) -> tuple[int, int]:
    assert panel.png is not None
    return Image.open(io.BytesIO(panel.png)).size


def test_panels_come_image_by_image_and_encoder_by_encoder() -> None:
    found = encoder_panels(iter([shown("one", GREY), shown("two", COLOUR)]), [(0.5, 0.5), (0.1, 0.9)])
    kinds = [("image", "")]
    kinds += [(kind, name) for kind in ("attention", "components", "likeness") for name in ("one", "two")]
    assert [(panel.image, panel.kind, panel.encoder) for panel in found] == [
        (number, *rest) for number in (1, 2) for rest in kinds
    ]
    assert all(panel.png and len(panel.png) < 30_000 for panel in found)
    assert sides(found[1]) == (2 * 162 + 6, 162)  # two heads of 3 x 3 patches
    assert set(TITLES) == set(EXPLANATIONS) == {*(panel.kind for panel in found), "restoration"}
    again = encoder_panels([shown("one", GREY), shown("two", COLOUR)], [(0.5, 0.5), (0.1, 0.9)])
    assert again == found


def test_every_panel_tells_what_it_shows() -> None:
    found = encoder_panels([shown("one", GREY)], [(0.25, 0.75)] * 2)
    assert found[0].alt == "Image 1, with a ring at 25% of the width and 75% of the height."
    assert found[0].source == "data:image/png;base64," + base64.b64encode(found[0].png or b"").decode()
    for panel in found[1:4]:
        assert "image 1" in panel.alt and "in one." in panel.alt and panel.caption in panel.alt
    assert found[1].caption.startswith("Heads 1 to 2; the brightest patch receives ")


@pytest.mark.parametrize(
    "config",
    [EncoderConfig(name="resnet10t"), EncoderConfig(name="swin_tiny_patch4_window7_224", width=8, heads=1, depth=1)],
    ids=lambda config: str(config.name),
)
def test_encoders_without_attention_maps_say_so_and_show_the_rest(config: EncoderConfig) -> None:
    image = COLOUR.model_copy(update={"size": 64})
    found = encoder_panels([shown("other", image, config)], [(0.99, 0.0)] * 2)
    attention, components, likeness = found[1:4]
    assert attention.png is None and attention.source == ""
    assert attention.caption.startswith("No attention maps: ")
    assert sides(components) == sides(likeness) == (160, 160)


@pytest.mark.parametrize("name", ["monai_vit", "monai_swin_unetr"])
def test_of_a_volume_the_middle_slice_is_shown(name: str) -> None:
    config = EncoderConfig(name=name, width=12, depth=1, heads=2 if name == "monai_vit" else 1)
    image = VOLUME
    if name == "monai_vit":
        config = config.model_copy(update={"patch_size": (4, 8, 4)})
    else:
        image = VOLUME.model_copy(update={"size": 32, "depth": 32})
    one = shown("volume", image, config)
    found = encoder_panels([one], [(0.5, 0.5)] * 2)
    assert found[0].caption == "Middle slice of volume 1"
    assert (found[1].png is None) == (name == "monai_swin_unetr")
    marked = one.images.clone()
    marked[:, :, (image.depth or 0) // 2] = 0
    other = encoder_panels([Shown("volume", one.encoder, image, marked)], [(0.5, 0.5)] * 2)
    assert other[0].png != found[0].png


def test_background_is_black_and_what_shows_something_is_not() -> None:
    dark = images(GREY)
    dark[:, :, :8] = 0.0  # the upper of three rows of patches
    one = shown("one", GREY)
    components = encoder_panels([Shown("one", one.encoder, GREY, dark)], [(0.5, 0.5)] * 2)[2]
    drawn = np.array(Image.open(io.BytesIO(components.png or b"")))
    assert (drawn[:54] == 0).all()
    assert (drawn[54:].reshape(2, 54, 3, 54, 3)[:, 0, :, 0].max(axis=2) > 0).all()


def test_likeness_is_asked_for_at_the_point() -> None:
    """The patch asked for is like itself, and nothing is more so: its colour is the scale's brightest."""
    for point, place in (((0.0, 0.0), (27, 27)), ((1.0, 0.4), (81, 135))):
        panel = encoder_panels([shown("one", GREY)], [point] * 2)[3]
        drawn = np.array(Image.open(io.BytesIO(panel.png or b"")).convert("RGB"))
        assert drawn[place].tolist() == [253, 231, 37]  # the end of viridis


def test_points_and_images_must_match() -> None:
    with pytest.raises(ValueError, match="2 images, but 1 points"):
        encoder_panels([shown("one", GREY)], [(0.5, 0.5)])


@pytest.mark.parametrize("image", [GREY, VOLUME], ids=["images", "volumes"])
def test_the_salient_point_is_where_the_image_tells_something(image: ImageConfig) -> None:
    image = image.model_copy(update={"size": 64})
    flat = torch.zeros(2, *image.shape)
    flat[0, ..., 40:64, 8:32] = images(image)[0, ..., 40:64, 8:32]
    points = salient_points(flat)
    assert points[0] == ((2 + 0.5) / 8, (6 + 0.5) / 8)  # the middle of 3 x 3 cells of 8 pixels
    assert all(0 <= part <= 1 for part in points[1])
