"""Encoders are plain timm models: names, options, tokens, export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from foundation.errors import StudyError
from foundation.randomness import seeded_torch
from foundation.tensor_files import save_tensors
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods.components.momentum import follower
from ssl_methods.encoders.outputs import feature_dim, features, patch_tokens
from ssl_methods.encoders.table import ENCODERS, EncoderConfig, encoder_dimensions, encoder_kind
from ssl_methods.encoders.timm_encoders import build_encoder, timm_line
from ssl_methods.method import Method

TWO_CHANNELS = ImageConfig(modality="mri", size=32, channels=2)
OF_EACH_FAMILY = ["resnet10t", "resnetv2_18", "convnext_atto", "densenet121", "efficientnet_b0", "regnetx_002"]
OTHER_VITS = ["vit_little_patch16_reg4_gap_256", "vit_base_patch16_siglip_224", "vit_base_patch16_clip_224"]


def fresh(config: EncoderConfig, image: ImageConfig) -> torch.nn.Module:
    with seeded_torch(0, "test"):
        return build_encoder(config, image).eval()


def images(image: ImageConfig, count: int = 3) -> torch.Tensor:
    return torch.randn(count, image.channels, image.size, image.size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_convolutional_families_give_pooled_features(name: str) -> None:
    encoder = fresh(EncoderConfig(name=name), TWO_CHANNELS)
    pooled = features(encoder, images(TWO_CHANNELS))
    assert encoder_kind(name) == "convolutional"
    assert pooled.shape == (3, feature_dim(encoder))
    assert pooled.std(dim=0).max() > 0


@pytest.mark.parametrize("name", OF_EACH_FAMILY)
def test_a_convolutional_encoder_computes_with_the_channels_last_and_keeps_to_it(name: str) -> None:
    encoder = fresh(EncoderConfig(name=name), TWO_CHANNELS)
    state = {key: value.contiguous() for key, value in encoder.state_dict().items()}
    plain = timm.create_model(name, num_classes=0, in_chans=2).eval()
    plain.load_state_dict(state)
    torch.testing.assert_close(features(encoder, images(TWO_CHANNELS)), features(plain, images(TWO_CHANNELS)))
    encoder.load_state_dict(state)
    for copied in (encoder, follower(encoder)):
        weights = [weight for weight in copied.parameters() if weight.ndim == 4]
        assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize("name", OTHER_VITS)
def test_any_plain_vit_gives_patch_tokens_and_their_mean(name: str) -> None:
    encoder = fresh(EncoderConfig(name=name, patch_size=8, depth=1, width=48, heads=3), TWO_CHANNELS)
    tokens = patch_tokens(encoder, images(TWO_CHANNELS))
    assert tokens.shape == (3, 16, 48)
    torch.testing.assert_close(features(encoder, images(TWO_CHANNELS)), tokens.mean(dim=1))


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_recommended_encoders_exist_with_the_size_that_is_written(name: str) -> None:
    if encoder_dimensions(name) == 3:
        image = ImageConfig(modality="mri", size=96, depth=96, channels=1)
        encoder = build_encoder(EncoderConfig(name=name), image)
    else:
        with torch.device("meta"):
            encoder = timm.create_model(name, num_classes=0)
    assert f"{sum(weight.numel() for weight in encoder.parameters()) / 1e6:.1f} M weights" in ENCODERS[name].summary
    assert encoder_kind(name) in ("vit", "convolutional", "swin")


def test_dropping_tokens_is_not_the_same_as_picking_from_all(image: ImageConfig, tiny_vit: EncoderConfig) -> None:
    encoder = fresh(tiny_vit, image)
    everything = torch.arange(64).expand(3, -1)
    torch.testing.assert_close(
        patch_tokens(encoder, images(image), everything), encoder.get_submodule("").forward_features(images(image))
    )
    few = patch_tokens(encoder, images(image), everything[:, :5])
    assert not torch.allclose(few, patch_tokens(encoder, images(image))[:, :5], atol=1e-4)


def test_position_embedding_is_fixed_and_kept_in_the_state(image: ImageConfig, tiny_vit: EncoderConfig) -> None:
    encoder = fresh(tiny_vit, image)
    positions = encoder.get_parameter("pos_embed")
    assert not positions.requires_grad
    assert "pos_embed" in encoder.state_dict()
    # Patch (row 3, column 5) of 8 x 8, width 48: column sines at frequencies 10000^(-i/12), rows from channel 24 on.
    assert positions[0, 3 * 8 + 5, 0].item() == pytest.approx(torch.tensor(5.0).sin().item(), rel=1e-5)
    expected = torch.tensor(3.0 * 10000 ** (-1 / 12)).cos().item()
    assert positions[0, 3 * 8 + 5, 24 + 12 + 1].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit_tiny_patch16_224", {"patch_size": 8, "depth": 2, "width": 48, "heads": 3}),
        ("resnet10t", {}),
        ("convnext_atto", {}),
        ("resnet10t", {"norm": "group"}),
        ("efficientnet_lite0", {"norm": "group"}),
    ],
)
def test_the_documented_line_of_timm_gives_the_same_features(
    name: str, options: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EncoderConfig.model_validate({"name": name, "drop_path": 0.1, **options})
    encoder = fresh(config, TWO_CHANNELS)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.01)
    save_tensors(tmp_path / "encoder.safetensors", encoder.state_dict())
    monkeypatch.chdir(tmp_path)
    names = {"timm": timm}
    exec(timm_line(config, TWO_CHANNELS), names)
    loaded = names["encoder"].eval()
    if encoder_kind(name) == "convolutional":  # laid out as ours is: in another order sums round otherwise
        loaded = loaded.to(memory_format=torch.channels_last)
    assert torch.equal(loaded(images(TWO_CHANNELS)), features(encoder, images(TWO_CHANNELS)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"name": "vit_tinny_patch16_224"},
            "encoder 'vit_tinny_patch16_224' is not a timm model; did you mean 'vit_tiny_patch16_224'?",
        ),
        (
            {"name": "mixer_s16_224"},
            "is of timm's family 'mlp_mixer'; taken are vision_transformer, resnet",
        ),
        (
            {"name": "vit_tiny_patch16_224", "patch_size": 5},
            "patch_size 5 does not divide image.size 32 into 2 x 2 patches or more: set encoder.patch_size to 4, say",
        ),
        (
            {"name": "vit_tiny_patch16_224", "patch_size": 32},
            "patch_size 32 does not divide image.size 32 into 2 x 2 patches or more: set encoder.patch_size to 16, say",
        ),
        ({"name": "vit_tiny_patch16_224", "patch_size": 8, "heads": 5}, "width 192 with 5 heads"),
        ({"name": "resnet18", "depth": 3}, "encoder.depth 3 does nothing for 'resnet18'"),
        ({"name": "densenet121", "drop_path": 0.1}, "encoder 'densenet121' cannot be built as the study says"),
    ],
)
def test_encoders_that_cannot_be_are_refused(options: dict[str, object], message: str, image: ImageConfig) -> None:
    with pytest.raises(StudyError) as caught:
        build_encoder(EncoderConfig.model_validate(options), image)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_image_of_a_prime_size_is_the_thing_to_change() -> None:
    odd = ImageConfig(modality="mri", size=31, channels=1)
    with pytest.raises(StudyError, match=r"set image\.size to 16, say"):
        build_encoder(EncoderConfig(name="vit_tiny_patch16_224", patch_size=8), odd)


@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_patch_methods_on_a_resnet_are_refused(method: str, build: Callable[..., Method]) -> None:
    with pytest.raises(StudyError) as caught:
        build(method, encoder=EncoderConfig(name="resnet18"))
    assert str(caught.value) == (
        f"encoder 'resnet18' is convolutional, but method '{method}' takes vit encoders: "
        "choose for example 'vit_tiny_patch16_224'"
    )
