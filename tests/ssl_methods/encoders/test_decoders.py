"""The convolutional decoder: every grid to every shape, and one image at a time."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from foundation.randomness import seeded_torch
from imaging.config import ImageConfig
from ssl_methods.encoders.decoders import GROUP, ConvDecoder, image_decoder, map_grid, restoration_loss
from ssl_methods.encoders.outputs import feature_maps
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder
from ssl_methods.method import Batch, Method
from ssl_methods.reconstruction import autoencoder

FLAT = ImageConfig(modality="mri", size=40, channels=2)
DEEP = ImageConfig(modality="ct", size=32, depth=16, channels=1)
SWIN = ImageConfig(modality="mri", size=64, channels=2)
ENCODERS = [
    (EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=24, heads=2), FLAT),
    (EncoderConfig(name="resnet10t"), FLAT),
    (EncoderConfig(name="swin_tiny_patch4_window7_224", depth=1, width=12), SWIN),
    (EncoderConfig(name="monai_vit", patch_size=(4, 8, 8), depth=1, width=24, heads=2), DEEP),
    (EncoderConfig(name="monai_swin_unetr", width=12, depth=1), DEEP.model_copy(update={"depth": 32})),
]


@pytest.mark.parametrize(("config", "image"), ENCODERS, ids=lambda value: getattr(value, "name", ""))
def test_every_kind_of_encoder_gets_a_decoder_to_its_images(config: EncoderConfig, image: ImageConfig) -> None:
    with seeded_torch(0, "test"):
        encoder = build_encoder(config, image)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    decoder = image_decoder(encoder, image, 32)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert encoder.training
    images = torch.randn(2, *image.shape, generator=torch.Generator().manual_seed(0))
    maps = feature_maps(encoder, images)
    assert tuple(maps.shape[2:]) == map_grid(encoder, image)
    assert decoder(maps).shape == images.shape


@given(
    sides=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9)), min_size=2, max_size=3),
    width=st.integers(8, 70),
    channels=st.integers(1, 3),
)
def test_any_grid_reaches_any_shape(sides: list[tuple[int, int]], width: int, channels: int) -> None:
    grid, shape = [part for part, _ in sides], [part * factor for part, factor in sides]
    decoder = ConvDecoder(6, channels, grid, shape, width)
    assert decoder(torch.randn(2, 6, *grid)).shape == (2, channels, *shape)


def coupled(decoder: nn.Module) -> bool:
    """Whether one image's restoration depends on another image, in training."""
    maps = torch.randn(3, 6, 2, 2, generator=torch.Generator().manual_seed(0))
    changed = torch.cat([maps[:1] * 3 + 1, maps[1:]])
    before, after = decoder.train()(maps), decoder(changed)
    assert not torch.allclose(before[0], after[0])
    return not torch.allclose(before[1:], after[1:], rtol=1e-5, atol=1e-6)


def test_normalisation_is_over_each_image_and_not_over_the_batch() -> None:
    with seeded_torch(0, "test"):
        decoder = ConvDecoder(6, 1, (2, 2), (8, 8), 32)
    assert not coupled(decoder)
    for stage in decoder.stages:  # the planted mutant
        assert isinstance(stage, nn.Sequential) and isinstance(stage[1], nn.GroupNorm)
        stage[1] = nn.BatchNorm2d(stage[1].num_channels)
    assert coupled(decoder)


def test_every_place_of_the_map_reaches_its_own_part_of_the_image() -> None:
    with seeded_torch(0, "test"):
        decoder = ConvDecoder(4, 1, (4, 4), (16, 16), GROUP * 2).eval()
    for stage in decoder.stages:  # group statistics reach everywhere: look at the convolutions alone
        assert isinstance(stage, nn.Sequential)
        stage[1] = nn.Identity()
    maps = torch.zeros(1, 4, 4, 4)
    changed = maps.clone()
    changed[0, :, 0, 3] = 1.0
    moved = (decoder(maps) != decoder(changed))[0, 0]
    assert moved[:4, 12:].any() and not moved[8:].any() and not moved[:, :8].any()


def test_restoration_loss_and_gradient_by_hand() -> None:
    prediction = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]], requires_grad=True)
    losses = restoration_loss(prediction, torch.tensor([[[[0.0, 0.0]]], [[[2.0, 0.0]]]]))
    losses.mean().backward()
    assert losses.tolist() == pytest.approx([(1 + 4) / 2, (4 + 0) / 2])
    assert prediction.grad is not None
    assert prediction.grad.flatten().tolist() == pytest.approx([0.5, 1.0, -1.0, 0.0])
    assert restoration_loss(prediction.bfloat16(), torch.zeros(2, 1, 1, 2).bfloat16()).dtype == torch.float32


def test_the_autoencoder_compares_what_it_restores_with_the_image(
    build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    method = build("autoencoder").eval()
    assert isinstance(method, autoencoder.Autoencoder)
    views = method.make_views(blobs(3), torch.Generator().manual_seed(0))
    squares = (method.restore(views).double() - views["images"].double()).square()
    assert method.loss(views)[0].item() == pytest.approx(squares.mean().item(), rel=1e-5)


def test_an_absolute_difference_is_noticed(
    build: Callable[..., Method], blobs: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoencoder, "restoration_loss", lambda prediction, images: (prediction - images).abs().mean())
    with pytest.raises(AssertionError):
        test_the_autoencoder_compares_what_it_restores_with_the_image(build, blobs)
