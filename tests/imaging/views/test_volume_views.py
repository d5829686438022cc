"""Views of volumes: boxes, turns, thick slices, bias field; each volume for itself."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.errors import DataError
from foundation.randomness import torch_generator
from imaging.config import AugmentConfig, ImageConfig, Modality
from imaging.reading.standardise import FIXED_DEVIATION, FIXED_MEAN
from imaging.views.augment import Augmentation
from imaging.views.volume_views import BIAS_POWERS, VolumeViews, bias_field, coarse_weights, draw, slice_weights

OFF: dict[str, Any] = {
    "crop_scale": (1, 1), "light_crop_scale": (1, 1), "crop_ratio": (1, 1), "horizontal_flip": 0, "vertical_flip": 0,
    "quarter_turns": 0, "rotation_degrees": 0, "blur": 0, "bias_field": 0, "speckle": 0, "noise": 0, "gamma": 0,
    "brightness": 0, "contrast": 0, "cutout": 0, "anisotropy": 0, "motion": 0, "ghosting": 0, "equalise": 0,
    "shuffle": 0,
}  # fmt: skip
DEPTH, SIDE = 12, 16


def image(modality: Modality = "fundus", channels: int = 1, **changes: Any) -> ImageConfig:
    """All operations off but ``changes``; "fundus" has a fixed standardisation."""
    augment = AugmentConfig(**(OFF | changes))
    return ImageConfig(modality=modality, size=SIDE, depth=DEPTH, channels=channels, augment=augment)


def volumes(count: int = 4, channels: int = 1, seed: int = 0) -> Tensor:
    noise = torch.rand(count, channels, DEPTH, SIDE, SIDE, generator=torch_generator(seed, "volumes"))
    return F.avg_pool3d(noise, 3, stride=1, padding=1).clamp(0, 1)


def intensities(views: Tensor) -> Tensor:
    return views * FIXED_DEVIATION + FIXED_MEAN


@pytest.mark.parametrize("modality", ["ct", "mri", "ultrasound", "microscopy", "x-ray"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_presets_give_finite_repeatable_views_each_from_its_own_row(modality: Modality, channels: int) -> None:
    augmentation = Augmentation(ImageConfig(modality=modality, size=SIDE, depth=DEPTH, channels=channels))
    given_volumes = volumes(5, channels)
    before = given_volumes.clone()
    for view in (augmentation.strong, augmentation.light):
        first = view(given_volumes, torch_generator(3, "v"))
        assert first.shape == given_volumes.shape and first.isfinite().all()
        assert torch.equal(first, view(given_volumes, torch_generator(3, "v")))
        assert not torch.equal(first, view(given_volumes, torch_generator(4, "v")))
        others = given_volumes.clone()
        others[1:] = volumes(4, channels, seed=9)
        torch.testing.assert_close(view(others, torch_generator(3, "v"))[0], first[0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(view(given_volumes[:2], torch_generator(3, "v")), first[:2], rtol=1e-5, atol=1e-6)
    assert torch.equal(given_volumes, before)


def test_plain_is_the_volume_with_mean_0_and_deviation_1() -> None:
    given_volumes = volumes(channels=2) * torch.tensor([1.0, 0.2]).view(1, 2, 1, 1, 1)
    plain = Augmentation(ImageConfig(modality="mri", size=SIDE, depth=DEPTH, channels=2)).plain(given_volumes)
    torch.testing.assert_close(plain.flatten(2).mean(dim=2), torch.zeros(4, 2), atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.flatten(2).std(dim=2), torch.ones(4, 2), atol=1e-2, rtol=0)


def test_everything_off_leaves_the_volume() -> None:
    augmentation = Augmentation(image())
    for view in (augmentation.strong, augmentation.light):
        torch.testing.assert_close(intensities(view(volumes(), torch_generator(0, "v"))), volumes(), atol=1e-5, rtol=0)


def reference_view(views: VolumeViews, given_volumes: Tensor, seed: int) -> Tensor:
    """One 3-D grid over the whole volume, from the same draws; slices are repeated beyond the first and last."""
    preset, draws = views.preset, draw(len(given_volumes), torch_generator(seed, "v"))
    maps = torch.zeros(len(given_volumes), 3, 4, dtype=torch.float64)
    for row in range(len(given_volumes)):
        low, high = preset.crop_scale
        side = math.sqrt(low + (high - low) * draws["area"][row].item())
        angle = math.radians(preset.rotation_degrees) * (2 * draws["angle"][row].item() - 1)
        mirrored = -1.0 if draws["horizontal"][row].item() < preset.horizontal_flip else 1.0
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        maps[row, :2, :2] = turn.double() * side @ torch.diag(torch.tensor([mirrored, 1.0], dtype=torch.float64))
        maps[row, 2, 2] = side * DEPTH / (DEPTH + 2)
        for axis, (name, room) in enumerate((("left", 1.0), ("top", 1.0), ("bottom", DEPTH / (DEPTH + 2)))):
            maps[row, axis, 3] = (side + 2 * (1 - side) * draws[name][row].item() - 1) * room
    padded = torch.cat([given_volumes[:, :, :1], given_volumes, given_volumes[:, :, -1:]], dim=2).double()
    grid = F.affine_grid(maps, list(given_volumes.shape), align_corners=False)
    return F.grid_sample(padded, grid, align_corners=False)


@given(st.integers(0, 99))
def test_a_view_is_what_one_3d_grid_gives(seed: int) -> None:
    setting = image(crop_scale=(0.3, 0.9), rotation_degrees=25.0, horizontal_flip=0.5)
    made = intensities(Augmentation(setting).strong(volumes(), torch_generator(seed, "v")))
    views = VolumeViews(setting, Augmentation(setting).preset)
    torch.testing.assert_close(made.double(), reference_view(views, volumes(), seed), atol=2e-5, rtol=0)


@given(st.floats(0.2, 1), st.floats(0, 1), st.integers(4, 20), st.integers(3, 20))
def test_slices_of_a_box_lie_evenly_in_it(thickness: float, bottom: float, count: int, made: int) -> None:
    weights = slice_weights(torch.tensor([thickness]), torch.tensor([bottom]), count, made)[0]
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(made))
    at = weights @ torch.arange(count, dtype=torch.float32)
    start = (1 - thickness) * bottom
    wanted = [(start + thickness * (k + 0.5) / made) * count - 0.5 for k in range(made)]
    np.testing.assert_allclose(at.numpy(), np.clip(wanted, 0, count - 1), atol=1e-4)


def thick_slices(line: np.ndarray[Any, Any], factor: float) -> np.ndarray[Any, Any]:
    """Average over long places, and straight lines between their middles: by sums and np.interp."""
    count = len(line)
    long = min(max(round(count / factor), 2), count)
    edges = np.arange(long + 1) * count / long
    whole = np.concatenate([[0.0], np.cumsum(line)])
    means = np.diff(np.interp(edges, np.arange(count + 1), whole)) / (count / long)
    return np.asarray(np.interp(np.arange(count) + 0.5, (edges[1:] + edges[:-1]) / 2, means))


@given(st.integers(5, 30), st.floats(1.5, 5), st.integers(0, 9))
def test_thick_slices_average_and_come_back_as_straight_lines(count: int, factor: float, seed: int) -> None:
    line = np.random.default_rng(seed).random(count)
    made = coarse_weights(torch.tensor([factor]), count)[0].double().numpy() @ line
    np.testing.assert_allclose(made, thick_slices(line, factor), atol=1e-5)


def test_one_axis_is_made_coarse_at_the_given_rate() -> None:
    coarse = Augmentation(image(anisotropy=5.0, anisotropy_probability=0.5))
    given_volumes = torch.rand(200, 1, DEPTH, SIDE, SIDE, generator=torch_generator(0, "noise"))
    made = intensities(coarse.strong(given_volumes, torch_generator(1, "v")))
    changed = (made - given_volumes).abs().flatten(1).amax(dim=1) > 1e-3
    assert 0.4 < changed.float().mean() < 0.6
    # Along the coarse axis neighbours lie on straight lines, along the two others noise stays noise.
    rough = torch.stack([made.diff(dim=axis).abs().flatten(1).mean(dim=1) for axis in (2, 3, 4)], dim=1)[changed]
    smooth = rough.argmin(dim=1)
    assert (rough.sort(dim=1).values[:, 0] < 0.7 * rough.sort(dim=1).values[:, 1]).all()
    assert min(torch.bincount(smooth, minlength=3).tolist()) > 15


def test_the_bias_field_is_a_cubic_whose_log_has_mean_0() -> None:
    generator = torch_generator(0, "bias")
    coefficients = torch.rand(3, len(BIAS_POWERS), generator=generator) - 0.5
    shape = (5, 6, 7)
    log = bias_field(coefficients, shape).double().log()
    axes = [np.linspace(-1, 1, side) for side in shape]
    z, y, x = np.meshgrid(*axes, indexing="ij")
    wanted = np.zeros((3, *shape))
    for column, (i, j, k) in enumerate(BIAS_POWERS):
        term = z**i * y**j * x**k
        wanted += coefficients[:, column].numpy()[:, None, None, None] * (term - term.mean())
    assert len(set(BIAS_POWERS)) == 19 and all(1 <= sum(powers) <= 3 for powers in BIAS_POWERS)
    np.testing.assert_allclose(log.numpy(), wanted, atol=1e-4)
    np.testing.assert_allclose(log.numpy().mean(axis=(1, 2, 3)), 0, atol=1e-5)


ACTING: dict[str, tuple[Any, dict[str, Any]]] = {
    "crop_scale": ((0.3, 0.5), {}),
    "crop_ratio": ((0.4, 0.5), {"crop_scale": (0.3, 0.5)}),
    "horizontal_flip": (1.0, {}),
    "vertical_flip": (1.0, {}),
    "quarter_turns": (1.0, {}),
    "rotation_degrees": (30.0, {}),
    "blur": (0.05, {"blur_probability": 1.0}),
    "bias_field": (0.5, {}),
    "speckle": (0.3, {"noise_probability": 1.0}),
    "noise": (0.2, {"noise_probability": 1.0}),
    "gamma": (0.5, {"jitter_probability": 1.0}),
    "brightness": (0.5, {"jitter_probability": 1.0}),
    "contrast": (0.9, {"jitter_probability": 1.0}),
    "cutout": (0.8, {}),
    "anisotropy": (5.0, {"anisotropy_probability": 1.0}),
}


@pytest.mark.parametrize("name", ACTING)
def test_every_setting_does_something(name: str) -> None:
    value, needed = ACTING[name]
    without, with_it = Augmentation(image(**needed)), Augmentation(image(**(needed | {name: value})))
    given_volumes = volumes(8)
    made, plain = (part.strong(given_volumes, torch_generator(0, "v")) for part in (with_it, without))
    assert (made - plain).abs().max() > 0.05


def test_a_hole_is_a_box_of_the_mean() -> None:
    made = intensities(Augmentation(image(cutout=0.9)).strong(volumes(30), torch_generator(0, "v")))
    for row, volume in zip(made, volumes(30), strict=True):
        hole = (row - volume).abs()[0] > 1e-4
        if not hole.any():
            continue
        assert row[0][hole].std(correction=0) < 1e-4 and row[0][hole].mean() == pytest.approx(
            volume.mean().item(), abs=1e-4
        )
        spans = [hole.movedim(axis, 0).flatten(1).any(dim=1).nonzero() for axis in range(3)]
        size = math.prod(int(span.max() - span.min() + 1) for span in spans)
        assert hole.sum() >= 0.98 * size, "a full box but for voxels that happen to have the mean"


def test_small_views_for_multi_crop() -> None:
    made = Augmentation(image()).strong(volumes(), torch_generator(0, "v"), scale=(0.1, 0.3), size=8)
    assert made.shape == (4, 1, 6, 8, 8)


def test_a_tensor_of_another_shape_is_one_line() -> None:
    with pytest.raises(DataError) as caught:
        Augmentation(image()).plain(torch.zeros(2, 1, SIDE, SIDE))
    assert str(caught.value) == (
        f"images have shape [2, 1, 16, 16], the study says [B, 1, {DEPTH}, 16, 16]; "
        "resize them, or change image.channels and image.depth, image.size"
    )
