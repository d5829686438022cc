"""Attention, components and likeness of tokens: against timm and MONAI, and by hand."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from evaluation.explain.token_maps import attention_received, last_attention, likeness, token_colours
from foundation.randomness import numpy_generator, seeded_torch
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

FLAT = ImageConfig(modality="mri", size=24, channels=2)
VOLUME = ImageConfig(modality="mri", size=16, depth=8, channels=1)
SMALL = {"depth": 2, "heads": 2}
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, width=16, **SMALL)
MONAI_VIT = EncoderConfig(name="monai_vit", patch_size=(4, 8, 4), width=12, **SMALL)
SWIN = EncoderConfig(name="swin_tiny_patch4_window7_224", width=8, heads=1, depth=1)
RESNET = EncoderConfig(name="resnet10t")


def built(config: EncoderConfig, image: ImageConfig) -> nn.Module:
    with seeded_torch(4, config.name):
        return build_encoder(config, image).eval()


def some(image: ImageConfig, count: int = 2) -> Tensor:
    return torch.from_numpy(numpy_generator(2, "images").uniform(size=(count, *image.shape))).float()


def weighted(encoder: nn.Module) -> nn.Module:
    """With query and key weights so large that attention is far from even."""
    with torch.no_grad():
        cast(Any, encoder).blocks[-1].attn.qkv.weight.mul_(20)
    return encoder


def test_attention_is_what_timm_computes() -> None:
    encoder, images = weighted(built(VIT, FLAT)), some(FLAT)
    layer = cast(Any, encoder).blocks[-1].attn
    received = attention_received(encoder, images)
    layer.fused_attn = False
    seen: list[Tensor] = []
    layer.attn_drop.register_forward_hook(lambda _module, given, _result: seen.append(given[0]))
    encoder(images)
    assert received.shape == (2, 2, 3, 3)
    torch.testing.assert_close(received.flatten(2), seen[0].mean(dim=2))
    assert float(received.max()) > 2 / 9  # not the even share that any mistake would give, too


def test_attention_with_normalised_queries_and_keys_is_what_timm_computes() -> None:
    with seeded_torch(1):
        encoder = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=16, depth=1, num_heads=2, num_classes=0, qk_norm=True,
            class_token=False, global_pool="avg",
        ).eval()  # fmt: skip
    layer = encoder.blocks[-1].attn
    with torch.no_grad():
        layer.q_norm.weight.mul_(5)
        layer.k_norm.bias.add_(torch.arange(8.0))
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    received = attention_received(encoder, images)
    layer.fused_attn = False
    seen: list[Tensor] = []
    layer.attn_drop.register_forward_hook(lambda _module, given, _result: seen.append(given[0]))
    encoder(images)
    torch.testing.assert_close(received.flatten(2), seen[0].mean(dim=2))


def test_attention_in_a_volume_is_what_monai_computes() -> None:
    encoder, volumes = weighted(built(MONAI_VIT, VOLUME)), some(VOLUME)
    layer = cast(Any, encoder).blocks[-1].attn
    layer.save_attn = True
    received = attention_received(encoder, volumes)
    assert received.shape == (2, 2, 2, 2, 4)
    torch.testing.assert_close(received.flatten(2), layer.att_mat.mean(dim=2))
    torch.testing.assert_close(received.flatten(2).sum(dim=2), torch.ones(2, 2))


def test_a_block_without_weights_attends_evenly_and_leaves_no_hook() -> None:
    encoder = built(VIT, FLAT)
    layer = cast(Any, encoder).blocks[-1].attn
    nn.init.zeros_(layer.qkv.weight)
    torch.testing.assert_close(attention_received(encoder, some(FLAT)), torch.full((2, 2, 3, 3), 1 / 9))
    assert not layer.qkv._forward_hooks


@pytest.mark.parametrize("config", [SWIN, RESNET], ids=lambda config: str(config.name))
def test_other_encoders_have_no_attention_maps(config: EncoderConfig) -> None:
    encoder = built(config, ImageConfig(modality="mri", size=32, channels=1))
    assert last_attention(encoder) is None
    with pytest.raises(ValueError, match="has no attention maps"):
        attention_received(encoder, torch.zeros(1, 1, 32, 32))


def test_components_by_hand() -> None:
    """Five tokens on a line: red rises along it, and nothing is left for green and blue."""
    maps = np.zeros((1, 4, 1, 6))
    maps[0, 2, 0] = [0, 1, 2, 3, 4, 99]
    inside = np.array([[[True] * 5 + [False]]])
    colours, share = token_colours(maps, inside)
    # The 2nd and the 98th percentile of 0..4 lie at .08 and 3.92.
    red = [0, (1 - 0.08) / 3.84, 0.5, (3 - 0.08) / 3.84, 1, 0]
    np.testing.assert_allclose(colours[0, 0, :, 0], red, atol=1e-12)
    np.testing.assert_array_equal(colours[0, 0, :, 1:], [[0.5, 0.5]] * 5 + [[0, 0]])
    assert share == 1.0


def test_components_are_those_of_all_images_and_hold_their_share() -> None:
    """Variances 9 : 4 : 1 : 1 on four axes: three of them hold 14 / 15, each the colour of its rank."""
    axes = np.repeat(np.diag([1.0, 3.0, 2.0, 1.001]), 2, axis=0) * np.array([1, -1] * 4)[:, None]  # [8, 4]
    maps = axes.reshape(2, 4, 4).transpose(0, 2, 1)[:, :, :, None]
    colours, share = token_colours(maps, np.ones((2, 4, 1), dtype=np.bool_))
    assert share == pytest.approx((9 + 4 + 1.001**2) / (9 + 4 + 1.001**2 + 1))
    flat = colours.reshape(8, 3)
    np.testing.assert_allclose(flat[[2, 3]], [[1, 0.5, 0.5], [0, 0.5, 0.5]], atol=1e-12)
    np.testing.assert_allclose(flat[[4, 7]], [[0.5, 1, 0.5], [0.5, 0.5, 0]], atol=1e-12)


@given(seed=st.integers(0, 2**31), tokens=st.integers(1, 12), width=st.integers(1, 6))
def test_colours_are_colours_whatever_the_tokens(seed: int, tokens: int, width: int) -> None:
    draw = numpy_generator(seed, "tokens")
    maps, inside = draw.normal(size=(2, width, tokens, 1)), draw.random((2, tokens, 1)) < 0.5
    colours, share = token_colours(maps, inside)
    assert colours.shape == (2, tokens, 1, 3)
    assert colours.min() >= 0 and colours.max() <= 1 and 0 <= share <= 1 + 1e-9
    if inside.sum() >= 4:
        assert (colours[~inside] == 0).all()
    np.testing.assert_array_equal(token_colours(maps, inside)[0], colours)


def test_tokens_that_are_all_the_same_have_one_colour() -> None:
    colours, share = token_colours(np.full((1, 8, 3, 3), 0.7), np.ones((1, 3, 3), dtype=np.bool_))
    np.testing.assert_array_equal(colours, 0.5)
    assert np.isfinite(share)


def test_likeness_by_hand() -> None:
    tokens = np.array([[1, 0, 3, -1, 0], [0, 2, 3, 0, 0]], dtype=np.float64)[:, None]
    np.testing.assert_allclose(likeness(tokens, (0, 0)), [[1, 0, 0.5**0.5, -1, 0]])
    np.testing.assert_allclose(likeness(tokens, (0, 2)), [[0.5**0.5, 0.5**0.5, 1, -(0.5**0.5), 0]])
