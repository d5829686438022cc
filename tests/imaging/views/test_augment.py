"""Views: geometry against hand-made computations, strengths against statistics, and that each setting acts."""

import math
from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.randomness import torch_generator
from imaging.config import AugmentConfig, ImageConfig, Modality
from imaging.reading.standardise import FIXED_DEVIATION, FIXED_MEAN, FLAT
from imaging.views import geometry, intensity
from imaging.views.augment import Augmentation, draw
from imaging.views.presets import PRESETS, Preset

from ...tiers import examples

OFF: dict[str, Any] = dict.fromkeys(AugmentConfig.model_fields, 0.0) | {
    "crop_scale": (1, 1),
    "light_crop_scale": (1, 1),
    "crop_ratio": (1, 1),
}
COLOUR = ("stain", "saturation", "hue")


def augmentation(modality: Modality = "fundus", size: int = 32, channels: int = 3, **changes: Any) -> Augmentation:
    """One with every operation off, except for ``changes``; "fundus" has a fixed standardisation."""
    off = {name: value for name, value in OFF.items() if channels == 3 or name not in COLOUR}
    return Augmentation(
        ImageConfig(modality=modality, size=size, channels=channels, augment=AugmentConfig(**(off | changes)))
    )


def preset_augmentation(modality: Modality, size: int, channels: int) -> Augmentation:
    return Augmentation(ImageConfig(modality=modality, size=size, channels=channels))


def images(count: int = 6, size: int = 32, channels: int = 3, seed: int = 0) -> Tensor:
    """Smooth and coloured, so that every operation leaves a trace."""
    noise = torch.rand(count, channels, size, size, generator=torch_generator(seed, "images"))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1, padding=2).clamp(0, 1)


def unstandardised(views: Tensor) -> Tensor:
    return views * FIXED_DEVIATION + FIXED_MEAN


@pytest.mark.parametrize("modality", get_args(Modality))
@pytest.mark.parametrize(("channels", "size"), [(1, 32), (3, 64), (5, 96)])
def test_every_preset_gives_finite_repeatable_views(modality: Modality, channels: int, size: int) -> None:
    subject, before = preset_augmentation(modality, size, channels), images(4, size, channels)
    given = before.clone()
    for make in (subject.strong, subject.light):
        views = make(given, torch_generator(1))
        assert views.shape == given.shape and views.dtype == torch.float32 and not views.requires_grad
        assert views.isfinite().all()
        assert torch.equal(views, make(given, torch_generator(1)))
        assert not torch.allclose(views, make(given, torch_generator(2)), atol=0.05)
    assert torch.equal(given, before), "the input is left as it was"


@pytest.mark.parametrize("modality", ["mri", "histopathology"])
def test_views_are_those_of_the_generator_whether_it_is_given_or_drawn_from_before(modality: Modality) -> None:
    subject, given_images = preset_augmentation(modality, 32, 3), images(4)
    draws = subject.draw(4, torch_generator(1))
    assert torch.equal(subject.light(given_images, draws), subject.light(given_images, torch_generator(1)))
    assert torch.equal(subject.strong(given_images, draws), subject.strong(given_images, torch_generator(1)))
    small = subject.strong(given_images, subject.draw(4, torch_generator(1), 16), size=16)
    assert torch.equal(small, subject.strong(given_images, torch_generator(1), size=16))


def test_presets_are_one_row_per_modality_and_keep_the_finding_in_the_crop() -> None:
    assert set(PRESETS) == set(get_args(Modality))
    assert {name.name for name in fields(Preset)} - {"standardise", "outside"} == set(AugmentConfig.model_fields)
    for modality, preset in PRESETS.items():
        assert preset.light_crop_scale[0] >= 0.3
        assert preset.crop_scale[0] >= 0.3 or modality in ("histopathology", "microscopy")
        for name in AugmentConfig.model_fields:
            AugmentConfig.model_validate({name: getattr(preset, name)})  # within the ranges users have


@pytest.mark.parametrize("modality", get_args(Modality))
def test_two_copies_of_a_image_in_a_batch_get_two_views(modality: Modality) -> None:
    twice = images(1, 64).expand(2, -1, -1, -1).contiguous()
    subject = preset_augmentation(modality, 64, 3)
    for make in (subject.strong, subject.light):
        views = make(twice, torch_generator(5))
        assert (views[0] - views[1]).abs().mean() > 0.05


@examples(20)
@given(modality=st.sampled_from(get_args(Modality)), seed=st.integers(0, 2**32), keep=st.integers(1, 5))
def test_a_view_does_not_depend_on_the_rest_of_the_batch(modality: Modality, seed: int, keep: int) -> None:
    subject, given_images = preset_augmentation(modality, 32, 3), images(6)
    other = torch.cat([given_images[:keep], images(3, seed=9)])
    for make in (subject.strong, subject.light):
        views = make(given_images, torch_generator(seed))
        assert torch.allclose(views[:keep], make(other, torch_generator(seed))[:keep], atol=1e-5)


@pytest.mark.parametrize("size", [32, 33, 96])
def test_with_every_strength_zero_views_are_the_plain_images(size: int) -> None:
    for modality, channels in (("mri", 5), ("ultrasound", 1), ("fundus", 3)):
        subject, given_images = augmentation(modality, size, channels), images(3, size, channels)
        plain = subject.plain(given_images)
        assert torch.allclose(subject.strong(given_images, torch_generator(0)), plain, atol=1e-4)
        assert torch.allclose(subject.light(given_images, torch_generator(0)), plain, atol=1e-4)


def test_plain_standardises_as_the_preset_says() -> None:
    given_images = images(3, channels=3) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    for modality, axes in (("mri", (2, 3)), ("x-ray", (1, 2, 3))):
        mean = given_images.double().mean(axes, keepdim=True)
        expected = (given_images - mean) / given_images.double().std(axes, correction=0, keepdim=True)
        assert torch.allclose(augmentation(modality).plain(given_images).double(), expected, atol=1e-4)
    expected = (given_images - 0.5) / 0.25
    assert torch.allclose(augmentation("histopathology").plain(given_images), expected, atol=1e-6)


def test_flat_channels_stay_flat() -> None:
    given_images = images(2)
    given_images[:, 1] = 0.3
    given_images[:, 2] = 0.3 + 1e-4 * (given_images[:, 2] - 0.5)
    views = augmentation("mri").plain(given_images)
    assert views[:, 1].abs().max() < 1e-3
    assert views[:, 2].abs().max() < 1e-4 / FLAT


def test_crop_of_a_ramp_has_the_values_of_its_window() -> None:
    """A bilinear image (x, y) -> .1 + .5 x + .3 y is reproduced exactly by bilinear sampling."""
    size, count = 32, 40
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    ramp = 0.1 + 0.5 * place[None, :] + 0.3 * place[:, None]
    subject = augmentation(size=size, channels=1, crop_scale=(0.2, 0.6), crop_ratio=(0.5, 2))
    given_images = ramp.float().expand(count, 1, size, size).contiguous()
    views = unstandardised(subject.strong(given_images, torch_generator(3)))
    draws = draw(count, torch_generator(3))
    for i in range(count):
        area = 0.2 + 0.4 * draws["area"][i].item()
        lowest, highest = max(0.5, area), min(2.0, 1 / area)
        ratio = lowest * (highest / lowest) ** draws["ratio"][i].item()
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        left, top = draws["left"][i].item() * (1 - width), draws["top"][i].item() * (1 - height)
        expected = 0.1 + 0.5 * (left + width * place[None, :]) + 0.3 * (top + height * place[:, None])
        # Half a pixel along the edge, sampling mixes in what lies outside.
        assert torch.allclose(views[i, 0, 2:-2, 2:-2].double(), expected[2:-2, 2:-2], atol=1e-5)


@examples(50)
@given(
    seed=st.integers(0, 2**32),
    scale=st.tuples(st.floats(0.02, 1), st.floats(0.02, 1)),
    ratio=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
)
def test_windows_have_the_asked_area_and_lie_in_the_image(
    seed: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    low, high = sorted(scale)
    draws = torch.rand(4, 64, generator=torch_generator(seed)).unbind()
    x, y, width, height = geometry.crop_boxes(draws, (low, high), (min(ratio), max(ratio)))
    area = width * height
    assert ((area >= low * 0.999) & (area <= high * 1.001)).all()
    for centre, extent in ((x, width), (y, height)):
        assert (centre - extent / 2 >= -1e-6).all() and (centre + extent / 2 <= 1 + 1e-6).all()
    shape = width / height
    fits = (shape >= min(ratio) * 0.999) & (shape <= max(ratio) * 1.001)
    touches = (width > 0.999) | (height > 0.999)
    assert (fits | touches).all(), "another ratio only where no window of this area has an asked one"


@pytest.mark.parametrize(("setting", "axis"), [("horizontal_flip", 3), ("vertical_flip", 2)])
def test_flips_mirror(setting: str, axis: int) -> None:
    given_images = images()
    subject = augmentation(**{setting: 1.0})
    expected = subject.plain(given_images.flip(axis))
    for make in (subject.strong, subject.light):
        assert torch.allclose(make(given_images, torch_generator(0)), expected, atol=1e-4)


def test_half_of_the_images_flip_at_one_half() -> None:
    given_images = images(400, 16)
    subject = augmentation(size=16, horizontal_flip=0.5)
    views = subject.light(given_images, torch_generator(0))
    plain = subject.plain(given_images)
    flipped = ((views - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-4).sum().item()
    kept = ((views - plain).abs().amax((1, 2, 3)) < 1e-4).sum().item()
    assert flipped + kept == 400 and 160 < flipped < 240


def test_quarter_turns_are_exact_and_each_occurs() -> None:
    given_images = images(60)
    subject = augmentation(quarter_turns=1.0)
    views, plain = subject.strong(given_images, torch_generator(0)), subject.plain(given_images)
    pairs = list(zip(views, plain, strict=True))
    counts = [
        sum(torch.allclose(view, torch.rot90(own, turns, (1, 2)), atol=1e-4) for view, own in pairs)
        for turns in range(4)
    ]
    assert counts[0] == 0 and sum(counts) == 60 and min(counts[1:]) > 8


def test_rotation_turns_a_disc_about_the_centre_by_at_most_the_angle() -> None:
    size, count, limit = 64, 200, 30.0
    y, x = torch.meshgrid(torch.arange(size) - 31.5, torch.arange(size) - 31.5, indexing="ij")
    disc = torch.exp(-((x - 16) ** 2 + y**2) / 18)
    subject = augmentation(size=size, channels=1, rotation_degrees=limit)
    views = unstandardised(subject.strong(disc.expand(count, 1, -1, -1).contiguous(), torch_generator(0)))
    mass = views[:, 0] / views[:, 0].sum((1, 2), keepdim=True)
    centre_x, centre_y = (mass * x).sum((1, 2)), (mass * y).sum((1, 2))
    angles = torch.rad2deg(torch.atan2(-centre_y, centre_x))
    assert torch.allclose(torch.hypot(centre_x, centre_y), torch.tensor(16.0), atol=0.1)
    assert angles.abs().max() < limit + 0.5 and angles.max() > limit - 3 and angles.min() < 3 - limit


def test_rotated_windows_see_black_or_the_reflected_image() -> None:
    white = torch.ones(50, 3, 32, 32)
    black = unstandardised(augmentation("fundus", rotation_degrees=45.0).strong(white, torch_generator(0)))
    reflected = unstandardised(augmentation("dermoscopy", rotation_degrees=45.0).strong(white, torch_generator(0)))
    assert black[:, :, 0, 0].min() == 0
    assert torch.allclose(reflected, white, atol=1e-5)


@pytest.mark.parametrize("kind", ["noise", "speckle"])
def test_noise_has_the_drawn_deviation_and_is_fresh_and_white(kind: str) -> None:
    count, level = 60, 0.4
    grey = torch.full((count, 2, 64, 64), level)
    subject = augmentation(size=64, channels=2, **{"noise_probability": 1.0, kind: 0.1})
    field = unstandardised(subject.strong(grey, torch_generator(0))) - level
    expected = 0.1 * draw(count, torch_generator(0))[kind] * (level if kind == "speckle" else 1)
    assert torch.allclose(field.std((1, 2, 3)), expected, rtol=0.05, atol=1e-4)
    assert (field.mean((1, 2, 3)).abs() < 4 * expected / math.sqrt(2 * 64 * 64) + 1e-6).all()
    planes = torch.nn.functional.normalize(field.flatten(0, 1).flatten(1), dim=1)
    likeness = (planes @ planes.T).fill_diagonal_(0)
    assert likeness.abs().max() < 0.1, "no two planes share their noise"
    neighbours = (planes[:, 1:] * planes[:, :-1]).sum(1)
    assert neighbours.abs().max() < 0.1


def test_noise_reaches_the_given_share_of_images() -> None:
    grey = torch.full((600, 1, 16, 16), 0.5)
    subject = augmentation(size=16, channels=1, noise=0.1, noise_probability=0.33)
    changed = (subject.strong(grey, torch_generator(0)) - subject.plain(grey)).abs().amax((1, 2, 3)) > 1e-4
    assert 0.27 < changed.float().mean() < 0.39


def test_blur_is_the_gaussian_of_the_drawn_width() -> None:
    """A step blurred by a Gaussian is its distribution function, as far as pixels allow."""
    size, count = 64, 20
    step = (torch.arange(size) >= 32).float().expand(count, 1, size, size).contiguous()
    for image, axis in ((step, 3), (step.transpose(2, 3).contiguous(), 2)):
        subject = augmentation(size=size, channels=1, blur=0.05, blur_probability=1.0)
        views = unstandardised(subject.strong(image, torch_generator(4)))
        sigma = (0.05 * size * draw(count, torch_generator(4))["blur"]).clamp(min=0.01)[:, None]
        profile = views[:, 0, 20] if axis == 3 else views[:, 0, :, 20]
        expected = 0.5 * (1 + torch.erf((torch.arange(size) - 31.5) / (sigma * math.sqrt(2))))
        wide = sigma[:, 0] > 0.7
        assert wide.sum() > 5 and (profile - expected)[wide].abs().max() < 0.02


def test_bias_field_is_smooth_alike_in_all_channels_and_means_one() -> None:
    count, level = 50, 0.05
    grey = torch.full((count, 3, 64, 64), level)
    subject = augmentation(size=64, bias_field=0.5)
    field = unstandardised(subject.strong(grey, torch_generator(0))) / level
    assert torch.allclose(field[:, 0], field[:, 2], atol=1e-5)
    assert torch.allclose(field.log().mean((1, 2, 3)), torch.zeros(count), atol=1e-3), "mean log is 0"
    assert (field.mean((1, 2, 3)) - 1).abs().max() < 0.5
    assert field.std((2, 3)).min() > 0.03, "each image has a field"
    # Fourth differences of a cubic are zero.
    assert torch.diff(field[:, 0].double().log(), n=4, dim=1).abs().max() < 1e-3
    assert torch.diff(field[:, 0].double().log(), n=4, dim=2).abs().max() < 1e-3


def test_gamma_brightness_and_contrast_follow_their_formulas() -> None:
    given_images = 0.3 + 0.3 * images(8)
    draws = {
        name: (2 * values - 1).view(-1, 1, 1, 1)
        for name, values in draw(8, torch_generator(0)).items()
        if values.ndim == 1
    }
    mean = given_images.mean((1, 2, 3), keepdim=True)
    expected = {
        "gamma": given_images ** (0.3 * draws["gamma"]).exp(),
        "brightness": given_images * (1 + 0.3 * draws["brightness"]),
        "contrast": mean + (given_images - mean) * (1 + 0.3 * draws["contrast"]),
    }
    for name, values in expected.items():
        subject = augmentation(jitter_probability=1.0, **{name: 0.3})
        views = unstandardised(subject.strong(given_images, torch_generator(0)))
        assert torch.allclose(views, values.clamp(0, 1), atol=1e-4), name


def test_brightness_survives_standardisation_by_image() -> None:
    given_images = 0.2 + 0.4 * images(8)
    subject = augmentation("x-ray", jitter_probability=1.0, brightness=0.2)
    views = subject.strong(given_images, torch_generator(0))
    assert views.mean((1, 2, 3)).std() > 0.1


def test_colour_operations_keep_grey_and_luma() -> None:
    grey = images(8, channels=1).expand(-1, 3, -1, -1).contiguous()
    subject = augmentation(jitter_probability=1.0, saturation=0.5, hue=0.3)
    views = unstandardised(subject.strong(grey, torch_generator(0)))
    assert torch.allclose(views, grey, atol=1e-4)
    coloured = 0.35 + 0.3 * images(8)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    views = unstandardised(subject.strong(coloured, torch_generator(0)))
    assert torch.allclose((views * luma).sum(1), (coloured * luma).sum(1), atol=1e-4)
    assert (views - coloured).abs().max() > 0.01


def test_saturation_blends_with_grey() -> None:
    coloured = 0.2 + 0.6 * images(1)
    maps = intensity.colour_maps(torch.tensor([0.4]), torch.tensor([0.0]))
    luma = (coloured * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    assert torch.allclose(intensity.colour(coloured, maps), luma + 0.4 * (coloured - luma), atol=1e-5)


def test_a_third_of_a_turn_of_hue_makes_red_greenish_or_bluish() -> None:
    red = torch.tensor([0.6, 0.3, 0.3]).view(1, 3, 1, 1)
    turned = [
        intensity.colour(red, intensity.colour_maps(torch.ones(1), torch.tensor([sign / 3]))).flatten().argmax()
        for sign in (1, -1)
    ]
    assert {int(index) for index in turned} == {1, 2}


def test_stain_change_scales_one_stain() -> None:
    """Tissue of pure haematoxylin, density d: changed by (a, b) it is pure haematoxylin of density (1 + a) d + b."""
    vector = torch.tensor(intensity.STAINS[0]) / torch.tensor(intensity.STAINS[0]).norm()
    amounts = torch.tensor([0.2, 0.5, 1.0])
    tissue = (10 ** (-vector[:, None] * amounts)).view(1, 3, 1, 3).clone()
    intensity.stain_(tissue, torch.tensor([[0.1, 0.3, 0.4, 0.05, 0.0, 0.0]]))
    expected = 10 ** (-vector[:, None] * (1.1 * amounts + 0.05))
    assert torch.allclose(tissue.view(3, 3), expected, atol=1e-5)


def test_cutout_sets_one_square_to_the_mean() -> None:
    given_images = images(40)
    subject = augmentation(cutout=0.5)
    views = unstandardised(subject.strong(given_images, torch_generator(0)))
    changed = ((views - given_images).abs() > 1e-4).any(1)
    sides = 0.5 * 32 * draw(40, torch_generator(0))["hole"]
    for view, image, hole, side in zip(views, given_images, changed, sides, strict=True):
        rows, columns = hole.any(1).sum().item(), hole.any(0).sum().item()
        assert rows <= side + 1 and columns <= side + 1 and hole.sum() == rows * columns
        if hole.any():
            assert (view[:, hole] - image.mean()).abs().max() < 1e-4
    assert changed.any((1, 2)).float().mean() > 0.8


ACTING: dict[str, tuple[Any, dict[str, Any]]] = {
    "crop_scale": ((0.3, 0.5), {}),
    "light_crop_scale": ((0.3, 0.5), {}),
    "crop_ratio": ((2.0, 3.0), {"crop_scale": (0.3, 0.3)}),
    "horizontal_flip": (1.0, {}),
    "vertical_flip": (1.0, {}),
    "quarter_turns": (1.0, {}),
    "rotation_degrees": (30.0, {}),
    "stain": (0.1, {}),
    "blur": (0.03, {"blur_probability": 1.0}),
    "blur_probability": (1.0, {"blur": 0.03}),
    "bias_field": (0.5, {}),
    "speckle": (0.2, {"noise_probability": 1.0}),
    "noise": (0.1, {"noise_probability": 1.0}),
    "noise_probability": (1.0, {"noise": 0.1}),
    "gamma": (0.5, {"jitter_probability": 1.0}),
    "brightness": (0.5, {"jitter_probability": 1.0}),
    "contrast": (0.5, {"jitter_probability": 1.0}),
    "saturation": (0.5, {"jitter_probability": 1.0}),
    "hue": (0.2, {"jitter_probability": 1.0}),
    "jitter_probability": (1.0, {"gamma": 0.5}),
    "cutout": (0.5, {}),
    "anisotropy": (4.0, {"anisotropy_probability": 1.0}),
    "anisotropy_probability": (1.0, {"anisotropy": 4.0}),
    "motion": (0.1, {"artefact_probability": 1.0}),
    "ghosting": (0.8, {"artefact_probability": 1.0}),
    "artefact_probability": (1.0, {"ghosting": 0.8}),
    "equalise": (1.0, {"equalise_probability": 1.0}),
    "equalise_probability": (1.0, {"equalise": 1.0}),
    "shuffle": (0.5, {}),
}


@pytest.mark.parametrize("name", AugmentConfig.model_fields)
def test_every_setting_does_something(name: str) -> None:
    value, needed = ACTING[name]
    given_images = images(8)
    for modality in ("fundus", "x-ray", "mri"):
        without, with_it = augmentation(modality, **needed), augmentation(modality, **needed, **{name: value})
        changes = [
            (getattr(with_it, view)(given_images, torch_generator(0))
             - getattr(without, view)(given_images, torch_generator(0))).abs().max().item()
            for view in ("strong", "light")
        ]  # fmt: skip
        light_only = name == "light_crop_scale"
        assert changes[light_only] > 0.05
        if name not in ("horizontal_flip", "vertical_flip", "crop_ratio"):
            assert changes[not light_only] < 1e-6, "and acts on its own kind of view only"


def test_changing_one_setting_leaves_the_other_choices_as_they_were() -> None:
    given_images = images(8)
    cropped = augmentation(crop_scale=(0.3, 0.6)).strong(given_images, torch_generator(0))
    darker = augmentation(crop_scale=(0.3, 0.6), brightness=0.5, jitter_probability=1.0)
    views = unstandardised(darker.strong(given_images, torch_generator(0)))
    factor = views / unstandardised(cropped)
    inside = (views < 0.999).float()
    spread = ((factor - factor.amin((1, 2, 3), keepdim=True)) * inside).abs().amax((1, 2, 3))
    assert spread.max() < 1e-3, "the same crop, only the gain differs"


def test_autocast_does_not_coarsen_views() -> None:
    subject, given_images = preset_augmentation("histopathology", 64, 3), images(4, 64)
    expected = subject.strong(given_images, torch_generator(0)), subject.light(given_images, torch_generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = subject.strong(given_images, torch_generator(0)), subject.light(given_images, torch_generator(0))
    assert all(torch.equal(view, own) for view, own in zip(views, expected, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("modality", get_args(Modality))
def test_a_seed_gives_the_same_views_on_a_gpu(modality: Modality) -> None:
    subject, given_images = preset_augmentation(modality, 64, 3), images(16, 64)
    for make in (subject.strong, subject.light):
        on_gpu = make(given_images.cuda(), torch_generator(0))
        assert on_gpu.is_cuda
        assert (on_gpu.cpu() - make(given_images, torch_generator(0))).abs().max() < 5e-3
