"""Multi-crop: sizes of the small crops, what each crop is of, and encoders that take images of two sizes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from foundation.errors import StudyError
from foundation.randomness import seeded_torch
from imaging.config import ImageConfig
from imaging.views.augment import Augmentation
from ssl_methods.components.heads import grid_positions
from ssl_methods.components.multi_crop import MultiCropConfig, by_view, crop_features, crops_of, draw_crops, small_side
from ssl_methods.encoders.outputs import feature_maps, features, patch_tokens
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder
from ssl_methods.method import Batch, Method, Views

Build = Callable[..., Method]
VIT = {"name": "vit_tiny_patch16_224", "depth": 1, "width": 48, "heads": 3}
SWIN = {"name": "swin_tiny_patch4_window7_224", "depth": 1, "width": 24, "heads": 1}


def image_config(size: int) -> ImageConfig:
    return ImageConfig(modality="mri", size=size, channels=1)


def fresh(size: int, **options: object) -> torch.nn.Module:
    with seeded_torch(0, "test"):
        return build_encoder(EncoderConfig.model_validate(options), image_config(size)).eval()


@pytest.mark.parametrize(
    ("size", "options", "side"),
    [
        (224, VIT | {"patch_size": 16}, 96),
        (128, VIT | {"patch_size": 16}, 48),
        (32, VIT | {"patch_size": 8}, 16),
        (32, VIT | {"patch_size": 16}, 16),
        (224, {"name": "resnet10t"}, 96),
        (128, {"name": "resnet10t"}, 56),
        (128, SWIN, 56),
    ],
)
def test_small_crops_have_the_papers_share_of_the_side(size: int, options: dict[str, object], side: int) -> None:
    encoder, image = fresh(size, **options), image_config(size)
    assert small_side(MultiCropConfig(), encoder, image) == side
    assert features(encoder, torch.randn(2, 1, side, side)).shape[0] == 2


@pytest.mark.parametrize(
    ("size", "options", "asked", "message"),
    [
        (
            64,
            VIT | {"patch_size": 16},
            40,
            "method.small_size 40 is no multiple of the encoder's patch of 16: set 32, say",
        ),
        (64, VIT | {"patch_size": 16}, 80, "method.small_size 80 is over image.size 64: small crops are never larger"),
        (
            32,
            {"name": "densenet121"},
            None,
            "crops of 16 pixels are too small for this encoder: set method.small_size to 32",
        ),
    ],
)
def test_small_crops_that_do_not_fit_are_refused(
    size: int, options: dict[str, object], asked: int | None, message: str
) -> None:
    with pytest.raises(StudyError) as caught:
        small_side(MultiCropConfig(small_size=asked), fresh(size, **options), image_config(size))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["swav", "dino", "lejepa"])
@pytest.mark.parametrize(("encoder", "side"), [(SWIN, 12), ({"name": "resnet10t"}, 16)])
def test_other_encoders_take_both_sizes(
    name: str, encoder: dict[str, object], side: int, build: Build, blobs: Callable[..., Batch]
) -> None:
    method = build(name, encoder=EncoderConfig.model_validate(encoder), small_crops=2).train()
    method.before_step(0.5)
    views = method.make_views(blobs(4), torch.Generator().manual_seed(0))
    assert views["large"].shape == (4, 2, 1, 32, 32) and views["small"].shape == (4, 2, 1, side, side)
    loss, _ = method.loss(views)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["swav", "dino", "ibot", "lejepa"])
def test_small_crops_may_be_left_out(name: str, build: Build, blobs: Callable[..., Batch]) -> None:
    method = build(name, small_crops=0)
    views = method.make_views(blobs(4), torch.Generator().manual_seed(0))
    assert "small" not in views and method.loss(views)[0].isfinite()


def crops(augmentation: Augmentation, batch: Batch, config: MultiCropConfig, side: int = 16) -> Views:
    draws = draw_crops(augmentation, len(batch.images), torch.Generator().manual_seed(0), config, side)
    return crops_of(augmentation, batch, draws, config, side)


def test_the_second_large_crop_and_every_other_small_one_are_of_the_partner(blobs: Callable[..., Batch]) -> None:
    batch = blobs(3)
    plain = ImageConfig(modality="mri", size=32, channels=1, augment={"gamma": 0, "brightness": 0, "contrast": 0,
        "bias_field": 0, "noise": 0, "speckle": 0, "blur": 0, "cutout": 0})  # fmt: skip
    augmentation, config = Augmentation(plain), MultiCropConfig(small_crops=4)
    dark = replace(batch, partners=torch.zeros_like(batch.images))
    views = crops(augmentation, dark, config)
    empty = {name: crops.flatten(2).std(dim=2) == 0 for name, crops in views.items()}
    assert empty["large"].tolist() == [[False, True]] * 3
    assert empty["small"].tolist() == [[False, True, False, True]] * 3
    alone = crops(augmentation, batch, config)
    assert not any((crops.flatten(2).std(dim=2) == 0).any() for crops in alone.values())
    assert torch.equal(alone["large"][:, 0], views["large"][:, 0])  # the partner takes no draw from the image


def test_crop_scales_are_the_studys(blobs: Callable[..., Batch], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, object]] = []

    def strong(self: Augmentation, images: Tensor, generator: object, scale: object = None, size: int = 32) -> Tensor:
        asked.append((scale, size))
        return images.new_zeros(len(images), 1, size, size)

    monkeypatch.setattr(Augmentation, "strong", strong)
    augmentation = Augmentation(image_config(32))
    config = MultiCropConfig(large_scale=(0.5, 1.0), small_scale=(0.1, 0.2), small_crops=1)
    crops(augmentation, blobs(2), config)
    assert asked == [((0.5, 1.0), 32), ((0.5, 1.0), 32), ((0.1, 0.2), 16)]
    crops(augmentation, blobs(2), MultiCropConfig(small_crops=0))
    assert asked[3:] == [(None, 32)] * 2  # the preset's


@given(st.integers(1, 4), st.integers(1, 3))
def test_features_are_ordered_by_view(count: int, views: int) -> None:
    crops = torch.arange(float(count * views)).reshape(count, views, 1, 1, 1)
    ordered = by_view(crops)
    assert all(torch.equal(ordered[view * count : (view + 1) * count], crops[:, view]) for view in range(views))


def test_crop_features_are_those_of_each_crop() -> None:
    encoder, crops = fresh(32, **VIT, patch_size=8), torch.randn(3, 2, 1, 16, 16)
    found = crop_features(encoder, crops)
    for view in range(2):
        torch.testing.assert_close(found[view], features(encoder, crops[:, view]))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_base_patch16_clip_224"])
def test_a_vit_takes_images_of_another_side(name: str) -> None:
    encoder = fresh(32, **VIT | {"name": name, "patch_size": 4})
    small = torch.randn(2, 1, 12, 12)
    tokens = patch_tokens(encoder, small)
    assert tokens.shape == (2, 9, 48)
    torch.testing.assert_close(features(encoder, small), tokens.mean(dim=1))
    torch.testing.assert_close(feature_maps(encoder, small).flatten(2).transpose(1, 2), tokens)
    places = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(patch_tokens(encoder, small, places), tokens)


def test_positions_of_a_small_crop_are_the_whole_grids_resampled() -> None:
    encoder = fresh(32, **VIT, patch_size=4)
    with torch.no_grad():  # embedded patches are 0 and blocks add nothing: what comes out is the position, normalised
        for weight in (encoder.patch_embed.proj.weight, encoder.patch_embed.proj.bias):
            weight.zero_()
    encoder.blocks = torch.nn.Identity()
    whole = grid_positions((8, 8), 48).T.reshape(1, 48, 8, 8)
    expected = functional.interpolate(whole, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    found = patch_tokens(encoder, torch.zeros(1, 1, 16, 16))
    torch.testing.assert_close(found, functional.layer_norm(expected, (48,), eps=1e-6))
    assert found.std(dim=1).max() > 0.1


def test_a_side_that_is_no_multiple_of_the_patch_is_an_error() -> None:
    with pytest.raises(AssertionError, match="divisible by patch size"):
        patch_tokens(fresh(32, **VIT, patch_size=8), torch.zeros(1, 1, 20, 20))
