"""3-D encoders are plain MONAI networks, and encoders of both kinds have maps, tokens, grids and layers."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from foundation.errors import StudyError
from foundation.randomness import seeded_torch
from foundation.tensor_files import save_tensors
from foundation.vision_import import timm
from imaging.config import ImageConfig
from ssl_methods import build_method
from ssl_methods.components.heads import TokenPredictor, grid_positions
from ssl_methods.contrastive.simclr import SimCLRConfig
from ssl_methods.encoders.outputs import feature_dim, feature_maps, features, grid_shape, patch_shape, patch_tokens
from ssl_methods.encoders.table import EncoderConfig, encoder_kind
from ssl_methods.encoders.timm_encoders import build_encoder, layer_depths, timm_line
from ssl_methods.method import Batch, Method
from ssl_methods.reconstruction.mae import MAE, MAEConfig, mae_loss, patchify, unpatchify

VOLUME = ImageConfig(modality="mri", size=16, depth=8, channels=2)
FLAT = ImageConfig(modality="mri", size=64, channels=2)
VIT = EncoderConfig(name="monai_vit", patch_size=(2, 8, 4), depth=2, width=48, heads=3)
SWIN = EncoderConfig(name="monai_swin_unetr", patch_size=(2, 4, 4), depth=1, width=12, heads=3)
FLAT_SWINS = {"swin_tiny_patch4_window7_224": "swin", "swinv2_tiny_window8_256": "swin"}
FLAT_NETWORKS = ["resnet10t", "convnext_atto", "densenet121", "efficientnet_b0", "regnetx_002"]


def fresh(config: EncoderConfig, image: ImageConfig = VOLUME) -> torch.nn.Module:
    with seeded_torch(0, "test"):
        return build_encoder(config, image).eval()


def images(image: ImageConfig = VOLUME, count: int = 3) -> Tensor:
    return torch.randn(count, *image.shape, generator=torch.Generator().manual_seed(0))


# MONAI


def test_the_vit_pools_the_mean_of_its_normalised_tokens() -> None:
    encoder = fresh(VIT)
    tokens = patch_tokens(encoder, images())
    assert grid_shape(encoder) == (4, 2, 4) and patch_shape(encoder) == (2, 8, 4)
    assert tokens.shape == (3, 32, 48) and feature_dim(encoder) == 48
    torch.testing.assert_close(tokens.mean(dim=2), torch.zeros(3, 32), atol=1e-5, rtol=0)
    torch.testing.assert_close(features(encoder, images()), tokens.mean(dim=1))
    torch.testing.assert_close(tokens, encoder(images())[0])  # what plain MONAI gives


def test_the_vits_map_has_each_token_at_its_place() -> None:
    encoder = fresh(VIT)
    tokens, maps = patch_tokens(encoder, images()), feature_maps(encoder, images())
    assert maps.shape == (3, 48, 4, 2, 4)
    for d, h, w in ((0, 0, 0), (1, 0, 3), (3, 1, 2)):
        assert torch.equal(maps[:, :, d, h, w], tokens[:, (d * 2 + h) * 4 + w])


def test_a_token_sees_the_voxels_of_its_own_patch() -> None:
    """The patch embedding, before any block: row-major over depth, height and width."""
    encoder: Any = fresh(VIT)
    before = encoder.patch_embedding(images())
    for d, h, w in ((0, 1, 0), (2, 0, 3), (3, 1, 1)):
        changed = images()
        changed[:, :, 2 * d : 2 * d + 2, 8 * h : 8 * h + 8, 4 * w : 4 * w + 4] += 1.0
        moved = (encoder.patch_embedding(changed) - before).abs().sum(dim=2) > 1e-6
        assert moved.nonzero()[:, 1].unique().tolist() == [(d * 2 + h) * 4 + w]


def test_hidden_voxels_reach_no_token() -> None:
    encoder = fresh(VIT)
    keep = torch.tensor([[0, 5, 31], [1, 2, 3], [7, 8, 30]])
    tokens = patch_tokens(encoder, images(), keep)
    assert tokens.shape == (3, 3, 48)
    assert not torch.allclose(tokens[0], patch_tokens(encoder, images())[0, keep[0]], atol=1e-4), "not picked later"
    patches = patchify(images(), (2, 8, 4))
    for place, seen in ((5, True), (6, False)):
        changed = patches.clone()
        changed[0, place] += 3.0
        after = patch_tokens(encoder, unpatchify(changed, (2, 8, 4), (4, 2, 4)), keep)
        assert torch.equal(after[0], tokens[0]) != seen
        assert torch.equal(after[1:], tokens[1:])


def test_positions_are_fixed_and_kept_in_the_state() -> None:
    encoder = fresh(VIT)
    positions = encoder.get_parameter("patch_embedding.position_embeddings")
    assert not positions.requires_grad and "patch_embedding.position_embeddings" in encoder.state_dict()
    torch.testing.assert_close(positions[0], grid_positions((4, 2, 4), 48))


def test_swin_gives_the_mean_of_its_last_map() -> None:
    encoder = fresh(SWIN)
    maps = feature_maps(encoder, images())  # 4 x 4 x 4 patches, halved four times
    assert maps.shape == (3, 16 * 12, 1, 1, 1) and feature_dim(encoder) == 192
    torch.testing.assert_close(features(encoder, images()), maps.mean(dim=(2, 3, 4)))
    torch.testing.assert_close(maps, encoder(images())[-1])
    assert features(encoder, images()).std(dim=0).max() > 0


@pytest.mark.parametrize("config", [VIT, SWIN], ids=lambda config: config.name)
def test_the_documented_line_of_monai_gives_the_same_tokens(
    config: EncoderConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = config.model_copy(update={"drop_path": 0.1}) if config is SWIN else config
    encoder = fresh(trained)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight.add_(0.01)
    save_tensors(tmp_path / "encoder.safetensors", encoder.state_dict())
    monkeypatch.chdir(tmp_path)
    line = timm_line(trained, VOLUME)
    assert "ssl_methods" not in line and "\n" not in line
    names: dict[str, Any] = {}
    exec(line, names)
    loaded, own = names["encoder"].eval()(images()), encoder(images())
    assert type(names["encoder"]).__module__.startswith("monai.")
    assert torch.equal(loaded[0], own[0]) and torch.equal(loaded[-1][-1], own[-1][-1])


def test_the_same_seed_gives_the_same_weights() -> None:
    config = MAEConfig(decoder_width=24, decoder_depth=1)
    first, again, other = (build_method(config, VIT, VOLUME, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("options", "image", "message"),
    [
        ({"name": "monai_vit"}, FLAT, "encoder 'monai_vit' is for volumes, but images are 2-D: set image.depth"),
        ({"name": "resnet18"}, VOLUME, "is for 2-D images, but image.depth 8 says volumes: choose monai_vit or"),
        ({"name": "monai_vitt"}, VOLUME, "is not a timm model; did you mean 'monai_vit'?"),
        (
            {"name": "monai_vit", "patch_size": [3, 4, 4]},
            VOLUME,
            "patch_size [3, 4, 4] does not tile volumes of [8, 16, 16] (image.depth, image.size twice): "
            "set encoder.patch_size to [2, 4, 4], say",
        ),
        ({"name": "monai_vit", "patch_size": [8, 16, 16]}, VOLUME, "set encoder.patch_size to [4, 8, 8], say"),
        ({"name": "monai_vit", "patch_size": 4, "width": 50, "heads": 5}, VOLUME, "width to a multiple of 6"),
        ({"name": "monai_vit", "patch_size": 4, "width": 48, "heads": 5}, VOLUME, "width 48 with 5 heads"),
        ({"name": "monai_vit", "patch_size": 4, "drop_path": 0.1}, VOLUME, "MONAI's ViT has none; leave it out"),
        ({"name": "vit_tiny_patch16_224", "patch_size": [2, 4, 4]}, FLAT, "[2, 4, 4] has three sides, but"),
        ({"name": "resnet18", "patch_size": 4}, FLAT, "encoder.patch_size 4 does nothing for 'resnet18'"),
    ],
)
def test_encoders_that_cannot_be_are_refused(options: dict[str, Any], image: ImageConfig, message: str) -> None:
    with pytest.raises(StudyError) as caught:
        build_encoder(EncoderConfig.model_validate(options), image)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_patch_without_a_side_is_refused() -> None:
    for patch in (0, (1, 0, 1)):
        with pytest.raises(ValidationError, match="1 pixel or more"):
            EncoderConfig(name="monai_vit", patch_size=patch)


@pytest.mark.parametrize(
    ("method", "encoder", "image", "message"),
    [
        ("ijepa", VIT, VOLUME, "method 'ijepa' does not take 3-D images: choose "),
        ("mae", SWIN, VOLUME, "method 'mae' takes vit encoders: choose for example 'monai_vit'"),
        ("simclr", VIT, FLAT, "encoder 'monai_vit' is for volumes"),
    ],
)
def test_methods_and_volumes_that_do_not_fit_are_one_line(
    method: str, encoder: EncoderConfig, image: ImageConfig, message: str
) -> None:
    from pydantic import TypeAdapter

    from ssl_methods import AnyMethodConfig

    config = TypeAdapter(AnyMethodConfig).validate_python({"name": method})
    with pytest.raises(StudyError) as caught:
        build_method(config, encoder, image, 0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# timm's maps, Swin and layers


@pytest.mark.parametrize("name", FLAT_NETWORKS)
def test_a_convolutional_map_pools_to_the_feature(name: str) -> None:
    encoder = fresh(EncoderConfig(name=name), FLAT)
    maps = feature_maps(encoder, images(FLAT))
    assert maps.shape == (3, feature_dim(encoder), 2, 2)
    if name != "convnext_atto":  # which normalises after pooling
        torch.testing.assert_close(maps.mean(dim=(2, 3)), features(encoder, images(FLAT)), rtol=1e-4, atol=1e-5)


def test_a_2d_vits_map_has_each_token_at_its_place() -> None:
    encoder = fresh(EncoderConfig(name="vit_tiny_patch16_224", patch_size=16, depth=1, width=48, heads=3), FLAT)
    assert grid_shape(encoder) == (4, 4) and patch_shape(encoder) == (16, 16)
    tokens, maps = patch_tokens(encoder, images(FLAT)), feature_maps(encoder, images(FLAT))
    assert torch.equal(maps[:, :, 2, 3], tokens[:, 2 * 4 + 3])


@pytest.mark.parametrize("name", FLAT_SWINS)
def test_a_2d_swin(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = EncoderConfig(name=name, patch_size=2, depth=1, width=24, heads=3, drop_path=0.1)
    encoder = fresh(config, FLAT)
    maps = feature_maps(encoder, images(FLAT))  # 32 x 32 patches, halved three times
    assert encoder_kind(name) == "swin" and maps.shape == (3, 8 * 24, 4, 4) and feature_dim(encoder) == 192
    torch.testing.assert_close(maps.mean(dim=(2, 3)), features(encoder, images(FLAT)), rtol=1e-4, atol=1e-5)
    # Channels came first: a corner of the image moves the corner of the map most.
    changed = images(FLAT)
    changed[:, :, :12, -12:] += 5.0
    moved = (feature_maps(encoder, changed) - maps).abs().sum(dim=(0, 1))
    assert moved.flatten().argmax() == 3, "the top right of 4 x 4"
    save_tensors(tmp_path / "encoder.safetensors", encoder.state_dict())
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"timm": timm}
    exec(timm_line(config, FLAT), names)
    assert torch.equal(names["encoder"].eval()(images(FLAT)), features(encoder, images(FLAT)))


def test_layers_rise_from_the_stem_a_block_each() -> None:
    vit, swin = layer_depths(fresh(VIT)), layer_depths(fresh(SWIN))
    assert vit["patch_embedding.patch_embeddings.weight"] == 0 and vit["patch_embedding.position_embeddings"] == 0
    assert vit["blocks.0.mlp.linear1.weight"] == 1 and vit["blocks.1.norm1.bias"] == 2 and vit["norm.weight"] == 2
    assert swin["patch_embed.proj.weight"] == 0 and max(swin.values()) == 4
    assert swin["layers1.0.blocks.0.attn.qkv.weight"] == swin["layers1.0.downsample.reduction.weight"] == 1
    assert swin["layers4.0.blocks.0.norm1.weight"] == 4
    flat = layer_depths(fresh(EncoderConfig(name="resnet10t"), FLAT))
    assert flat.keys() == dict(fresh(EncoderConfig(name="resnet10t"), FLAT).named_parameters()).keys()


# Positions, patches, predictor


def slow_positions(grid: tuple[int, ...], width: int) -> np.ndarray[Any, Any]:
    """By loops: the last axis first; of each axis sines, then cosines."""
    each = width // len(grid)
    table = np.zeros((*grid, width))
    for place in np.ndindex(*grid):
        for axis, at in enumerate(reversed(place)):
            for i in range(each // 2):
                angle = at * 10000 ** (-i / (each // 2))
                table[(*place, axis * each + i)] = math.sin(angle)
                table[(*place, axis * each + each // 2 + i)] = math.cos(angle)
    return table.reshape(-1, width)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=3), st.integers(1, 5))
def test_positions_are_those_of_the_slow_reference(grid: list[int], times: int) -> None:
    width = 2 * len(grid) * times
    np.testing.assert_allclose(grid_positions(grid, width).numpy(), slow_positions(tuple(grid), width), atol=1e-5)


def test_the_predictor_refuses_a_width_that_has_no_room_for_three_axes() -> None:
    with pytest.raises(
        StudyError, match="a decoder of width 16 cannot place patches on 3 axes: set its width to a mul"
    ):
        TokenPredictor(8, 6, (2, 2, 2), width=16, depth=1, heads=2)


def slow_patches(volume: Tensor, patch: tuple[int, int, int]) -> list[list[float]]:
    """The patches of one volume [C, D, H, W] by loops, row-major, channels last."""
    (_, depth, height, width), (pd, ph, pw) = volume.shape, patch
    return [
        [
            volume[c, d + i, h + j, w + k].item()
            for i in range(pd)
            for j in range(ph)
            for k in range(pw)
            for c in range(len(volume))
        ]
        for d in range(0, depth, pd)
        for h in range(0, height, ph)
        for w in range(0, width, pw)
    ]


@given(st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.integers(1, 3)] * 3), st.integers(1, 2))
def test_patches_of_volumes_are_those_of_the_slow_reference(
    grid: tuple[int, int, int], patch: tuple[int, int, int], channels: int
) -> None:
    sides = [count * side for count, side in zip(grid, patch, strict=True)]
    volumes = torch.arange(2.0 * channels * math.prod(sides)).reshape(2, channels, *sides)
    patches = patchify(volumes, patch)
    assert patches.tolist() == [slow_patches(volume, patch) for volume in volumes]
    assert torch.equal(unpatchify(patches, patch, grid), volumes)


def test_the_loss_of_a_volume_by_hand() -> None:
    volume = torch.arange(8.0).reshape(1, 1, 2, 2, 2)
    # The second of two patches of 1 x 2 x 2 voxels: 4, 5, 6, 7.
    raw = mae_loss(torch.tensor([[[4.0, 5.0, 6.0, 9.0]]]), volume, torch.tensor([[1]]), (1, 2, 2), norm_pixels=False)
    assert raw.item() == pytest.approx(1.0)
    # Mean 5.5, deviations -1.5, -.5, .5, 1.5; unbiased variance 5/3: a prediction of 0 costs 5 / (5/3) / 4.
    normed = mae_loss(torch.zeros(1, 1, 4), volume, torch.tensor([[1]]), (1, 2, 2), norm_pixels=True)
    assert normed.item() == pytest.approx(0.75, rel=1e-5)


# Methods on volumes


def batch(count: int = 6) -> Batch:
    """A bright ball in each volume, elsewhere each time."""
    draw = torch.Generator().manual_seed(0)
    z, y, x = torch.meshgrid(*(torch.linspace(0, 1, side) for side in VOLUME.shape[1:]), indexing="ij")
    rows = []
    for _ in range(count):
        centre = torch.rand(3, generator=draw)
        distance = (z - centre[0]) ** 2 + (y - centre[1]) ** 2 + (x - centre[2]) ** 2
        rows.append(torch.exp(-8 * distance).expand(2, -1, -1, -1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1))
    codes = torch.arange(count)
    return Batch(torch.stack(rows), codes, codes, codes)


Make = Callable[[], Method]
MAKES: dict[str, Make] = {
    "mae": lambda: build_method(MAEConfig(decoder_width=48, decoder_depth=1), VIT, VOLUME, 0),
    "simclr-vit": lambda: build_method(SimCLRConfig(projection=16), VIT, VOLUME, 0),
    "simclr-swin": lambda: build_method(SimCLRConfig(projection=16), SWIN, VOLUME, 0),
}


@pytest.mark.parametrize("name", MAKES)
def test_a_small_batch_of_volumes_is_learned(name: str) -> None:
    method = MAKES[name]()
    method.train()
    views = method.make_views(batch(), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    losses = []
    for _ in range(30):
        loss, _ = method.loss(views)
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_maes_restored_volumes_keep_what_was_seen() -> None:
    method = MAKES["mae"]()
    assert isinstance(method, MAE)
    views = method.make_views(batch(), torch.Generator().manual_seed(0))
    assert views["keep"].shape == (6, 8) and views["masked"].shape == (6, 24)
    restored = method.restore(views)
    assert restored.shape == views["images"].shape
    before, after = (patchify(volumes, (2, 8, 4)) for volumes in (views["images"], restored))
    seen = views["keep"][:, :, None].expand(-1, -1, before.shape[2])
    assert torch.equal(before.gather(1, seen), after.gather(1, seen))
    assert not torch.equal(before, after)
