"""Every encoder has a pyramid of maps, and a decoder brings any pyramid to the image's size."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from foundation.randomness import seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders.outputs import feature_maps
from ssl_methods.encoders.pyramid import PyramidDecoder, feature_pyramid, pyramid_shapes
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

from ...tiers import examples

FLAT = ImageConfig(modality="mri", size=64, channels=2)
DEEP = ImageConfig(modality="ct", size=32, depth=16, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=5, width=24, heads=2)
VOLUME_VIT = EncoderConfig(name="monai_vit", patch_size=(4, 8, 8), depth=2, width=24, heads=2)
SWIN = EncoderConfig(name="swin_tiny_patch4_window7_224", depth=1, width=12)
VOLUME_SWIN = EncoderConfig(name="monai_swin_unetr", width=12, depth=1)
HALVED = [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]
FAMILIES: list[tuple[EncoderConfig, ImageConfig, list[int], list[tuple[int, ...]]]] = [
    (VIT, FLAT, [24] * 4, [(8, 8)] * 4),
    (EncoderConfig(name="resnet10t"), FLAT, [64, 64, 128, 256, 512], HALVED),
    (EncoderConfig(name="resnet18"), FLAT, [64, 64, 128, 256, 512], HALVED),
    (EncoderConfig(name="resnetv2_18"), FLAT, [64, 64, 128, 256, 512], HALVED),
    (EncoderConfig(name="regnetx_002"), FLAT, [32, 24, 56, 152, 368], HALVED),
    (EncoderConfig(name="densenet121"), FLAT, [64, 256, 512, 1024, 1024], HALVED),
    (EncoderConfig(name="efficientnet_b0"), FLAT, [16, 24, 40, 112, 320], HALVED),
    (EncoderConfig(name="convnext_atto"), FLAT, [40, 80, 160, 320], HALVED[1:]),
    (SWIN, FLAT, [12, 24, 48, 96], HALVED[1:]),
    (VOLUME_VIT, DEEP, [24] * 2, [(4, 4, 4)] * 2),
    (VOLUME_SWIN, DEEP, [12, 24, 48, 96, 192], [(8, 16, 16), (4, 8, 8), (2, 4, 4), (1, 2, 2), (1, 1, 1)]),
]
NAMES = [config.name for config, *_ in FAMILIES]


def fresh(config: EncoderConfig, image: ImageConfig) -> nn.Module:
    with seeded_torch(0, "test"):
        return build_encoder(config, image).eval()


def images(image: ImageConfig, count: int = 2) -> Tensor:
    return torch.randn(count, *image.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("config", "image", "widths", "grids"), FAMILIES, ids=NAMES)
def test_every_family_has_maps_from_fine_to_coarse(
    config: EncoderConfig, image: ImageConfig, widths: list[int], grids: list[tuple[int, ...]]
) -> None:
    encoder = fresh(config, image)
    found = feature_pyramid(encoder, images(image))
    expected = [(width, *grid) for width, grid in zip(widths, grids, strict=True)]
    assert [tuple(maps.shape) for maps in found] == [(2, *shape) for shape in expected]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    assert pyramid_shapes(encoder.train(), image) == expected
    assert encoder.training
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize(("config", "image", "widths", "grids"), FAMILIES, ids=NAMES)
def test_the_last_map_is_what_other_heads_see(
    config: EncoderConfig, image: ImageConfig, widths: list[int], grids: list[tuple[int, ...]]
) -> None:
    encoder = fresh(config, image)
    last, pooled_map = feature_pyramid(encoder, images(image))[-1], feature_maps(encoder, images(image))
    if config.name == "efficientnet_b0":  # widens its last map once more, for pooling only
        assert (last.shape[1], pooled_map.shape[1]) == (320, 1280)
    else:
        torch.testing.assert_close(last, pooled_map)


@pytest.mark.parametrize(("config", "image", "widths", "grids"), FAMILIES, ids=NAMES)
def test_gradients_reach_the_stem_from_every_map(
    config: EncoderConfig, image: ImageConfig, widths: list[int], grids: list[tuple[int, ...]]
) -> None:
    encoder = fresh(config, image)
    stem = next(weight for name, weight in encoder.named_parameters() if weight.requires_grad and weight.ndim > 1)
    for maps in feature_pyramid(encoder, images(image)):
        # Not the sum: that of layer-normed channels is constant.
        torch.autograd.backward(maps.square().flatten(1).sin().sum(), retain_graph=True)
        assert stem.grad is not None and float(stem.grad.abs().max()) > 0
        stem.grad = None


@pytest.mark.parametrize(
    ("depth", "taken"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (6, [2, 3, 5, 6]), (12, [3, 6, 9, 12])]
)
def test_a_vits_maps_are_tokens_after_evenly_spaced_blocks(depth: int, taken: list[int]) -> None:
    encoder = fresh(VIT.model_copy(update={"depth": depth}), FLAT)
    after: list[Tensor] = []
    for block in encoder.get_submodule("blocks").children():
        block.register_forward_hook(lambda module, given, tokens: after.append(tokens))
    found = feature_pyramid(encoder, images(FLAT))
    tokens = [after[number - 1] for number in taken]
    tokens[-1] = encoder.get_submodule("norm")(tokens[-1])
    for maps, expected in zip(found, tokens, strict=True):
        assert torch.equal(maps.flatten(2).transpose(1, 2), expected)
    assert torch.equal(found[-1][:, :, 2, 5], tokens[-1][:, 2 * 8 + 5])  # row 2, column 5


@pytest.mark.parametrize(("config", "image", "widths", "grids"), FAMILIES, ids=NAMES)
def test_every_family_gets_a_decoder_to_its_images(
    config: EncoderConfig, image: ImageConfig, widths: list[int], grids: list[tuple[int, ...]]
) -> None:
    encoder, shown = fresh(config, image), images(image)
    decoder = PyramidDecoder(pyramid_shapes(encoder, image), image, 3, 8)
    logits = decoder(shown, feature_pyramid(encoder, shown))
    assert logits.shape == (2, 3, *image.shape[1:])
    torch.autograd.backward(logits.square().mean())
    assert all(weight.grad is not None for weight in decoder.parameters())


@examples(30)
@given(
    sides=st.lists(st.integers(16, 25), min_size=1, max_size=1),
    depth=st.none() | st.integers(8, 12),
    grids=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    width=st.integers(8, 40),
)
def test_any_pyramid_reaches_any_image(sides: list[int], depth: int | None, grids: list[int], width: int) -> None:
    image = ImageConfig(modality="ct", size=sides[0], depth=depth, channels=1)
    shapes = [(5 + level, *[side] * image.dimensions) for level, side in enumerate(sorted(grids, reverse=True))]
    decoder = PyramidDecoder(shapes, image, 2, width)
    assert decoder(images(image), [torch.zeros(2, *shape) for shape in shapes]).shape == (2, 2, *image.shape[1:])


def test_stages_grow_twofold_up_to_half_of_the_image() -> None:
    def stages(grids: list[int], size: int) -> list[tuple[int, ...]]:
        image = ImageConfig(modality="mri", size=size, channels=1)
        return PyramidDecoder([(16, side, side) for side in grids], image, 2, 8).sizes

    assert stages([14, 14, 14, 14], 224) == [(28, 28), (56, 56), (112, 112), (224, 224)]  # UNETR's
    assert stages([8, 8, 8, 8], 64) == [(16, 16), (32, 32), (32, 32), (64, 64)]
    assert stages([32, 16, 8, 4, 2], 64) == [(4, 4), (8, 8), (16, 16), (32, 32), (64, 64)]
    assert stages([7], 56) == [(56, 56)]


def test_channels_double_as_sides_halve_and_no_stage_is_wider_than_its_map() -> None:
    def channels(shapes: list[tuple[int, ...]]) -> list[int]:
        decoder = PyramidDecoder(shapes, ImageConfig(modality="mri", size=64, channels=1), 2, 32)
        return [int(skip[0].out_channels) for skip in decoder.skips]  # type: ignore[index,union-attr,arg-type]

    assert channels([(20, 32, 32), (300, 16, 16), (400, 8, 8), (500, 4, 4)]) == [256, 128, 16, 32]
    assert channels([(192, 8, 8)] * 4) == [128, 64, 64, 32]  # at sides of 16, 32, 32 and 64


def test_a_image_is_decoded_by_itself() -> None:
    """Also in training: GroupNorm looks at no other image."""
    shapes = [(8, 16, 16), (16, 8, 8)]
    image = ImageConfig(modality="mri", size=32, channels=1)
    decoder = PyramidDecoder(shapes, image, 2, 8).train()
    draw = torch.Generator().manual_seed(1)
    shown, maps = images(image, 3), [torch.randn(3, *shape, generator=draw) for shape in shapes]
    together = decoder(shown, maps)
    alone = decoder(shown[1:2], [part[1:2] for part in maps])
    torch.testing.assert_close(alone, together[1:2], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changed", ["image", "fine", "coarse"])
def test_image_and_every_map_are_read(changed: str) -> None:
    shapes = [(8, 16, 16), (16, 8, 8)]
    image = ImageConfig(modality="mri", size=32, channels=1)
    decoder = PyramidDecoder(shapes, image, 2, 8)
    draw = torch.Generator().manual_seed(1)
    parts = {"fine": torch.randn(2, *shapes[0], generator=draw), "coarse": torch.randn(2, *shapes[1], generator=draw)}
    parts["image"] = images(image)

    def decoded() -> Tensor:
        with torch.no_grad():
            return decoder(parts["image"], [parts["fine"], parts["coarse"]])

    before = decoded()
    parts[changed] = parts[changed] + torch.randn(parts[changed].shape, generator=draw)
    assert float((decoded() - before).abs().max()) > 1e-3
