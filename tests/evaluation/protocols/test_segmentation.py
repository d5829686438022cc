"""Segmentation protocols find what is there, are repeatable, and leave alone what they should."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from evaluation.config import EvaluationConfig, SegmentationConfig
from evaluation.protocols import segmentation, steps
from evaluation.protocols.segmentation import (
    LinearHead,
    Segmenter,
    decoder_masks,
    enlarged,
    flipped,
    linear_maps,
    linear_masks,
)
from evaluation.protocols.trial import Trial
from evaluation.tasks.overlap import overlap_table, patient_dice
from foundation.randomness import numpy_generator, seeded_torch
from imaging.config import AugmentConfig, ImageConfig
from imaging.views.presets import resolve
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

from ...tiers import slow

FLAT = ImageConfig(modality="mri", size=16, channels=1)
DEEP = ImageConfig(modality="ct", size=16, depth=8, channels=1)
VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=4, depth=2, width=32, heads=2)
RESNET = EncoderConfig(name="resnet10t")
VOLUME_VIT = EncoderConfig(name="monai_vit", patch_size=4, depth=1, width=24, heads=2)
Masks = Callable[[tuple[NDArray[np.float32], NDArray[np.uint8]], NDArray[np.float32], Trial], NDArray[np.uint8]]


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to see a change; tests that need more take ``epochs``."""
    monkeypatch.setattr(steps, "LEAST_STEPS", 4)


def trial(config: EncoderConfig, image: ImageConfig = FLAT, classes: int = 3, **options: float) -> Trial:
    def encoder(drop_path: float) -> nn.Module:
        with seeded_torch(1, "encoder"):
            return build_encoder(config.model_copy(update={"drop_path": drop_path}), image)

    tuned = SegmentationConfig.model_validate(
        {"epochs": 1, "learning_rate": 2e-2, "batch": 8, "width": 8, "layer_decay": 0.9, **options}
    )
    return Trial(
        classes, image, EvaluationConfig(kind="segmentation", segmentation=tuned), encoder, 7, torch.device("cpu")
    )


def squares(count: int, seed: int, image: ImageConfig = FLAT) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Grey noise with a bright square (class 1) and a dark one (class 2) of 8 pixels on places of a grid of 4."""
    rng = numpy_generator(seed, "squares")
    sides = image.shape[1:]
    images = rng.normal(0.5, 0.03, (count, *sides))
    masks = np.zeros((count, *sides), dtype=np.uint8)
    for number in range(count):
        first, second = rng.permutation(4)[:2]
        for value, corner, change in ((1, first, 0.3), (2, second, -0.3)):
            top, left = 8 * (corner // 2), 8 * (corner % 2)
            place = (number, ..., slice(top, top + 8), slice(left, left + 8))
            images[place] += change
            masks[place] = value
    return images.clip(0, 1)[:, None].astype(np.float32), masks


def noise(count: int) -> NDArray[np.float32]:
    """Images of nothing."""
    return numpy_generator(0, "noise").uniform(0, 1, (count, 1, 16, 16)).astype(np.float32)


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> float:
    """The worse one of the two classes, over all images."""
    table = overlap_table(found, truth, ("1", "2"))
    columns = ("intersection", "predicted", "truth")
    return min(patient_dice(*(table[f"{column}_{name}"] for column in columns)) for name in "12")


@pytest.mark.parametrize("protocol", [linear_masks, decoder_masks])
@pytest.mark.parametrize(
    ("config", "image"), [(VIT, FLAT), slow(RESNET, FLAT), slow(VOLUME_VIT, DEEP)], ids=["vit", "resnet", "volumes"]
)
def test_squares_are_found(protocol: Masks, config: EncoderConfig, image: ImageConfig) -> None:
    unseen, truth = squares(9, 2, image)
    found = protocol(squares(24, 1, image), unseen, trial(config, image, epochs=13))
    assert found.shape == truth.shape and found.dtype == np.uint8
    assert dice(found, truth) > 0.8


@pytest.mark.parametrize("protocol", [linear_masks, decoder_masks])
def test_the_same_seed_gives_the_same_masks_and_moves_no_other_generator(protocol: Masks) -> None:
    train, unseen = squares(9, 1), noise(6)
    state = torch.random.get_rng_state()
    found = protocol(train, unseen, trial(VIT))
    np.testing.assert_array_equal(protocol(train, unseen, trial(VIT)), found)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (protocol(train, unseen, replace(trial(VIT), seed=8)) != found).any()


@pytest.mark.parametrize("protocol", [linear_masks, decoder_masks])
def test_a_class_without_training_pixels_is_never_found(protocol: Masks) -> None:
    (images, masks), (unseen, _) = squares(16, 1), squares(5, 2)
    found = protocol((images, np.where(masks == 2, 0, masks).astype(np.uint8)), unseen, trial(VIT, epochs=15))
    assert set(np.unique(found)) == {0, 1}


def test_one_training_image_is_enough_for_a_linear_layer() -> None:
    """Also where the last map is one pixel, so that no batch normalisation could do."""
    images, masks = squares(1, 1)
    assert dice(linear_masks((images, masks), images, trial(RESNET, epochs=40)), masks) > 0.9


@pytest.mark.parametrize("protocol", [linear_masks, decoder_masks])
@pytest.mark.parametrize(
    "option", [{"learning_rate": 1e-3}, {"weight_decay": 5.0}, {"warmup": 0.9}, {"batch": 3}, {"epochs": 30}]
)
def test_settings_of_both_protocols_matter(protocol: Masks, option: dict[str, float]) -> None:
    assert_matters(protocol, option)


@pytest.mark.parametrize(
    ("protocol", "option"),
    [(linear_masks, {"dropout": 0.5}), (decoder_masks, {"width": 16}), (decoder_masks, {"layer_decay": 0.2})],
)
def test_settings_of_one_protocol_matter(protocol: Masks, option: dict[str, float]) -> None:
    assert_matters(protocol, option)


def assert_matters(protocol: Masks, option: dict[str, float]) -> None:
    """Images of noise only, where every change of the training shows in the masks."""
    train, unseen = squares(9, 1), noise(6)
    found = (protocol(train, unseen, trial(VIT, **changed)) for changed in ({}, option))
    assert (next(found) != next(found)).any()


# What is trained


class Spy(nn.Module):
    """Keeps every encoder a trial makes, and its weights as they were made."""

    def __init__(self, made: Callable[[float], nn.Module]) -> None:
        super().__init__()
        self.made, self.encoders, self.before, self.drop_paths = made, [], [], []

    def forward(self, drop_path: float) -> nn.Module:
        encoder = self.made(drop_path)
        self.encoders.append(encoder)
        self.before.append({name: value.clone() for name, value in encoder.state_dict().items()})
        self.drop_paths.append(drop_path)
        return encoder


def spied(protocol: Masks, config: EncoderConfig) -> dict[str, bool]:
    """For every tensor of the encoder whether the protocol changed it."""
    plain = trial(config)
    spy = Spy(plain.encoder)
    protocol(squares(9, 1), noise(2), replace(plain, encoder=spy))
    after = spy.encoders[0].state_dict()
    return {name: not torch.equal(value, after[name]) for name, value in spy.before[0].items()}


def test_the_linear_layer_leaves_the_encoder_as_it_is() -> None:
    """Also its running statistics."""
    assert not any(spied(linear_masks, RESNET).values())


def test_the_decoder_trains_all_weights_of_the_encoder() -> None:
    assert all(spied(decoder_masks, RESNET).values())
    fixed = {name for name, changed in spied(decoder_masks, VIT).items() if not changed}
    assert fixed == {"pos_embed"}


def test_small_sets_are_passed_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """9 images in batches of 4 are 3 steps a pass: 2 epochs are 6 steps, but at least 40 steps need 14 passes."""
    monkeypatch.setattr(steps, "LEAST_STEPS", 40)
    batches = list(steps.batches(9, 2, 4, 0))
    assert len(batches) == 42
    passes = [
        torch.cat([chosen for _, chosen in batches[start : start + 3]]).sort().values for start in range(0, 42, 3)
    ]
    assert all(torch.equal(places, torch.arange(9)) for places in passes)
    progress = [share for share, _ in batches]
    np.testing.assert_allclose(progress, (np.arange(42) + 0.5) / 42)
    monkeypatch.setattr(steps, "LEAST_STEPS", 5)
    assert len(list(steps.batches(9, 2, 4, 0))) == 6


# The linear layer


@pytest.mark.parametrize(
    ("config", "grids"),
    [
        (EncoderConfig(name="vit_tiny_patch16_224", patch_size=2, depth=4, width=12, heads=2), [32]),
        (RESNET, [16, 8, 4, 2]),
        (EncoderConfig(name="swin_tiny_patch4_window7_224", depth=1, width=12), [16, 8, 4, 2]),
    ],
    ids=["vit", "resnet", "swin"],
)
def test_a_linear_layer_sees_the_last_map_on_each_grid(config: EncoderConfig, grids: list[int]) -> None:
    image = ImageConfig(modality="mri", size=64, channels=1)
    with seeded_torch(0, "test"):
        encoder = build_encoder(config, image).eval()
    shown = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = linear_maps(encoder, shown)
        last = segmentation.feature_pyramid(encoder, shown)[-1]
    assert [maps.shape[2:] for maps in found] == [(side, side) for side in grids]
    assert torch.equal(found[-1], last)


def test_the_head_is_one_linear_layer_on_all_maps_side_by_side() -> None:
    """Standardised over images and places, enlarged, joined along channels, one 1x1 convolution."""
    draw = torch.Generator().manual_seed(0)
    known = [3 * torch.randn(5, 4, 8, 8, generator=draw) + 2, torch.randn(5, 6, 2, 2, generator=draw) - 1]
    known[1][:, 3] = 0.25  # a constant channel
    head = LinearHead(known, 3, 0.5).eval()
    assert not head(known, (16, 16)).any()
    for weight in head.parameters():
        nn.init.normal_(weight, generator=draw)
    standard = []
    for maps in known:
        flat = maps.transpose(0, 1).flatten(1)
        centre, spread = flat.mean(1), flat.std(1, correction=0)
        spread[spread < 1e-6] = 1
        standard.append(enlarged((maps - centre[:, None, None]) / spread[:, None, None], (16, 16)))
    kernel = torch.cat([one.weight for one in head.convolutions], dim=1)  # type: ignore[arg-type]  # they are tensors
    bias = sum(one.bias for one in head.convolutions)  # type: ignore[arg-type,misc]
    expected = nn.functional.conv2d(torch.cat(standard, dim=1), kernel, bias)  # type: ignore[arg-type]
    torch.testing.assert_close(head(known, (16, 16)), expected, rtol=1e-4, atol=1e-4)


# Flips


def coded(count: int, depth: int | None = None) -> tuple[Tensor, Tensor]:
    """Images whose every pixel tells its place, and masks that say the same."""
    shape = (count, 5, 7) if depth is None else (count, depth, 5, 7)
    masks = torch.arange(int(np.prod(shape))).view(shape).remainder(251).to(torch.uint8)
    return masks[:, None].float(), masks


@pytest.mark.parametrize("depth", [None, 3])
def test_images_and_masks_are_flipped_together(depth: int | None) -> None:
    images, masks = coded(400, depth)
    both = resolve(ImageConfig(modality="histopathology", size=16, channels=1))
    seen, truth = flipped(images, masks, both, torch.Generator().manual_seed(0))
    assert torch.equal(seen[:, 0], truth.float())
    ways = {"as it was": (), "left-right": (-1,), "up-down": (-2,), "both": (-1, -2)}
    counted = {
        name: sum(bool(torch.equal(after, before.flip(axes))) for before, after in zip(masks, truth, strict=True))
        for name, axes in ways.items()
    }
    assert sum(counted.values()) == 400
    assert all(70 < count < 130 for count in counted.values())  # a quarter each


def test_flips_are_those_of_the_modality() -> None:
    images, masks = coded(50)

    def seen(image: ImageConfig) -> Tensor:
        return flipped(images, masks, resolve(image), torch.Generator().manual_seed(0))[1]

    assert torch.equal(seen(ImageConfig(modality="ct", size=16, channels=1)), masks)  # liver and heart have a side
    turned = AugmentConfig(vertical_flip=1.0)
    assert torch.equal(seen(ImageConfig(modality="ct", size=16, channels=1, augment=turned)), masks.flip(-2))
    sideways = seen(ImageConfig(modality="mri", size=16, channels=1))
    assert not torch.equal(sideways, masks)
    assert torch.equal(sideways.sort(dim=-1).values, masks.sort(dim=-1).values)  # rows stay rows


def test_only_the_training_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every training image upside down an organ in the upper half is found in the lower half."""
    image = ImageConfig(
        modality="mri", size=16, channels=1, augment=AugmentConfig(vertical_flip=1.0, horizontal_flip=0.0)
    )
    images = noise(16)
    masks = np.zeros((16, 16, 16), dtype=np.uint8)
    masks[:, :8] = 1
    found = decoder_masks((images, masks), images, trial(VIT, image, classes=2, epochs=15))
    assert found[:, 8:].mean() > 0.9 > 0.1 > found[:, :8].mean()


def test_the_segmenter_gives_logits_of_the_images_size() -> None:
    plain = trial(VIT, classes=4)
    network = Segmenter(plain.encoder(0.0), plain)
    assert network(torch.zeros(2, 1, 16, 16)).shape == (2, 4, 16, 16)
