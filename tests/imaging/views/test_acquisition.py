"""Motion, ghosts, coarse sampling, equalisation, shuffling: against k-space and histograms written out."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from foundation.randomness import torch_generator
from imaging.config import ImageConfig
from imaging.views import acquisition, geometry
from imaging.views.acquisition import BINS, CLIP, FIRST_LINE, TILES
from imaging.views.augment import draw
from imaging.views.draws import changed
from imaging.views.presets import IN_PLANE, PRESETS, Preset, resolve
from imaging.views.volume_views import coarse_weights

from ...tiers import examples

BARE = Preset(standardise="fixed", outside="zeros", crop_scale=(1, 1))


def images(count: int = 4, side: int = 32, channels: int = 2, seed: int = 0) -> Tensor:
    small = torch.rand(count, channels, 6, 6, generator=torch_generator(seed, "acquisition"))
    return torch.nn.functional.interpolate(small, size=side, mode="bicubic").clamp(0, 1)


def with_places(draws: dict[str, Tensor], preset: Preset, side: int = 32) -> dict[str, Tensor]:
    return draws | changed(draws, preset, side)


@pytest.mark.parametrize("side", [32, 33])
@pytest.mark.parametrize("copies", [2, 4, 6])
def test_ghosts_are_damped_lines_of_k_space(side: int, copies: int) -> None:
    given_images, strength = images(side=side), 0.7
    lines = np.abs(np.rint(np.fft.fftfreq(side) * side)).astype(int)
    weights = np.where(lines % copies == copies // 2, 1 - strength, 1.0)
    space = np.fft.fft2(given_images.double().numpy())
    expected = np.abs(np.fft.ifft2(space * weights[:, None]))
    ghosts = acquisition.ghosted(given_images, torch.full((4,), strength), torch.full((4,), copies))
    assert np.abs(ghosts.numpy() - expected).max() < 1e-5


def test_the_ghost_of_two_is_the_image_half_a_field_away() -> None:
    point = torch.zeros(1, 1, 32, 32)
    point[0, 0, 10, 7] = 1
    ghost = acquisition.ghosted(point, torch.tensor([0.4]), torch.tensor([2]))
    assert ghost[0, 0, 10, 7].item() == pytest.approx(0.8) and ghost[0, 0, 26, 7].item() == pytest.approx(0.2)
    assert ghost.sum().item() == pytest.approx(1.0, abs=1e-4)


def test_motion_takes_the_late_lines_of_k_space_from_the_moved_image() -> None:
    given_images, line = images(), torch.tensor([0.0, 0.2, 0.6, 1.0])
    shift = torch.tensor([[0.1, 0.0], [0.0, -0.05], [0.02, 0.03], [0.0, 0.0]])
    angle = torch.tensor([0.0, 0.1, -0.05, 0.2])
    maps = torch.cat([geometry.turn(angle), 2 * shift[:, :, None]], dim=2)
    before = np.fft.fft2(given_images.double().numpy())
    after = np.fft.fft2(geometry.resample(given_images, maps, "zeros").double().numpy())
    expected = np.empty(before.shape)
    for i in range(4):
        start = FIRST_LINE[0] + (FIRST_LINE[1] - FIRST_LINE[0]) * line[i].item()
        mixed = np.where((np.fft.fftfreq(32) > start)[:, None], after[i], before[i])
        expected[i] = np.abs(np.fft.ifft2(mixed))
    moved = acquisition.moved(given_images, shift, angle, line, "zeros")
    assert np.abs(moved.numpy() - expected).max() < 1e-5
    still = acquisition.moved(given_images, torch.zeros(4, 2), torch.zeros(4), line, "zeros")
    assert torch.allclose(still, given_images, atol=1e-5), "who does not move leaves no trace"


def test_motion_shifts_by_the_share_of_the_side_that_is_drawn() -> None:
    """With all lines late (a negative start) the magnitude is the moved image: a shift of 4 of 32 pixels."""
    point = torch.zeros(1, 1, 32, 32)
    point[0, 0, 16, 16] = 1
    all_late = torch.tensor([-10.0])
    moved = acquisition.moved(point, torch.tensor([[0.125, 0.0]]), torch.zeros(1), all_late, "zeros")
    assert divmod(int(moved.argmax()), 32) == (16, 12)


@examples(15)
@given(st.integers(0, 2**31))
def test_only_chosen_views_are_scanned_and_each_by_its_own_draws(seed: int) -> None:
    preset = Preset(
        standardise="fixed", outside="zeros", crop_scale=(1, 1), motion=0.1, ghosting=0.8, artefact_probability=0.4
    )
    given_images, draws = images(8), draw(8, torch_generator(seed))
    views = given_images.clone()
    acquisition.scan_(views, with_places(draws, preset), preset)
    hit = (draws["motion_given"] < 0.4) | (draws["ghosting_given"] < 0.4)
    assert torch.equal(views[~hit], given_images[~hit])
    for i in hit.nonzero().flatten().tolist():
        alone = given_images[i : i + 1].clone()
        own = {name: value[i : i + 1] for name, value in draws.items()}
        acquisition.scan_(alone, with_places(own, preset), preset)
        assert torch.allclose(alone[0], views[i], atol=1e-6)
        assert not torch.equal(alone[0], given_images[i])


def test_artefacts_run_along_rows_and_columns() -> None:
    point = torch.zeros(2, 1, 32, 32)
    point[:, :, 10, 7] = 1
    draws = draw(2, torch_generator(0)) | {name: torch.zeros(2) for name in acquisition.DRAWS}
    draws |= {"ghosting": torch.ones(2), "ghosting_axis": torch.tensor([0.2, 0.8])}
    preset = Preset(**{**vars(BARE), "ghosting": 0.4})
    acquisition.scan_(point, with_places(draws, preset), preset)
    assert point[0, 0, 26, 7].item() == pytest.approx(0.2) == point[1, 0, 10, 23].item()


def test_coarse_rows_or_columns_keep_the_mean_and_the_other_axis() -> None:
    given_images = images(2)
    made = acquisition.coarsened(
        given_images, coarse_weights(torch.tensor([4.0, 4.0]), 32), torch.tensor([True, False])
    )
    blocks = given_images[0].unflatten(1, (8, 4)).mean(2)  # rows in fours
    centres = made[0].unflatten(1, (8, 4))[:, :, 1:3].mean(2)  # beside each centre, an eighth to either neighbour
    inner = 0.75 * blocks[:, 1:-1] + 0.125 * (blocks[:, :-2] + blocks[:, 2:])
    assert torch.allclose(centres[:, 1:-1], inner, atol=0.13 * float(blocks.diff(dim=1).abs().max()))
    assert torch.allclose(made[1], acquisition.coarsened(
        given_images[1:].transpose(2, 3), coarse_weights(torch.tensor([4.0]), 32), torch.tensor([True])
    )[0].transpose(1, 2))  # fmt: skip
    flat = torch.full((1, 1, 32, 32), 0.3)
    assert torch.allclose(
        acquisition.coarsened(flat, coarse_weights(torch.tensor([2.3]), 32), torch.tensor([True])), flat
    )


def reference_equalised(plane: np.ndarray) -> np.ndarray:
    """Loops, float64: one histogram a tile, cut, summed; each pixel between the four nearest tiles' curves."""
    height, width = plane.shape
    curves = np.zeros((TILES, TILES, BINS + 1))
    for row in range(TILES):
        for column in range(TILES):
            rows = [y for y in range(height) if y * TILES // height == row]
            columns = [x for x in range(width) if x * TILES // width == column]
            values = [min(int(plane[y, x] * BINS), BINS - 1) for y in rows for x in columns]
            counts = np.bincount(values, minlength=BINS).astype(float)
            limit = CLIP * len(values) / BINS
            excess = np.maximum(counts - limit, 0).sum()
            curves[row, column, 1:] = np.cumsum(np.minimum(counts, limit) + excess / BINS) / len(values)
    result = np.zeros_like(plane)
    for y in range(height):
        for x in range(width):
            down, across = (
                min(max((at + 0.5) / side * TILES - 0.5, 0), TILES - 1) for at, side in ((y, height), (x, width))
            )
            top, left = min(int(down), TILES - 2), min(int(across), TILES - 2)
            for row, high in ((top, 1 - (down - top)), (top + 1, down - top)):
                for column, wide in ((left, 1 - (across - left)), (left + 1, across - left)):
                    result[y, x] += (
                        high * wide * np.interp(plane[y, x] * BINS, np.arange(BINS + 1), curves[row, column])
                    )
    return result


@pytest.mark.parametrize("side", [32, 30])
def test_equalisation_is_the_clipped_histogram_of_the_tile(side: int) -> None:
    given_images = 0.3 + 0.2 * images(2, side)
    given_images[0, 0, :12] = 0.0
    equalised = acquisition.equalised(given_images)
    for image, own in zip(given_images.flatten(0, 1), equalised.flatten(0, 1), strict=True):
        assert np.abs(own.numpy() - reference_equalised(image.double().numpy())).max() < 2e-4
    assert equalised[0, 0, :12].abs().max() == 0, "black stays black"
    assert (equalised.std((2, 3)) > 1.2 * given_images.std((2, 3)))[1].all(), "a flat image gains contrast"


def test_equalisation_is_mixed_in_by_the_drawn_share() -> None:
    given_images, draws = images(6), draw(6, torch_generator(2))
    views = given_images.clone()
    preset = Preset(**{**vars(BARE), "equalise": 0.5, "equalise_probability": 0.5})
    acquisition.equalise_(views, with_places(draws, preset), preset)
    given_ = draws["equalise_given"] < 0.5
    assert 0 < given_.sum() < 6
    share = (0.5 * draws["equalise"] * given_).view(-1, 1, 1, 1)
    expected = given_images + share * (acquisition.equalised(given_images) - given_images)
    assert torch.allclose(views, expected, atol=1e-5)


@examples(40)
@given(st.integers(0, 2**31), st.floats(0.05, 1.0))
def test_shuffling_moves_whole_pixels_inside_one_square(seed: int, largest: float) -> None:
    side = 24
    views = torch.arange(side**2, dtype=torch.float32).view(1, 1, side, side).repeat(5, 2, 1, 1)
    views[:, 1] += 1000
    before, draws = views.clone(), draw(5, torch_generator(seed))
    preset = Preset(**{**vars(BARE), "shuffle": largest})
    acquisition.shuffle_(views, with_places(draws, preset, side), preset)
    assert torch.equal(views[:, 1], views[:, 0] + 1000), "channels move together"
    assert torch.equal(views.flatten(2).sort(2).values, before.flatten(2).sort(2).values), "nothing is lost or doubled"
    for view, given_, share in zip(views[:, 0], before[:, 0], draws["shuffle"].tolist(), strict=True):
        rows, columns = (view != given_).nonzero(as_tuple=True)
        if len(rows):
            extent = max(int(rows.max() - rows.min()), int(columns.max() - columns.min())) + 1
            assert extent <= math.ceil(share * round(largest * side)) + 1


def test_a_slice_is_never_as_coarse_as_a_volume() -> None:
    flat = ImageConfig(modality="mri", size=32, channels=1)
    assert resolve(flat).anisotropy == IN_PLANE < PRESETS["mri"].anisotropy
    assert resolve(flat.model_copy(update={"depth": 16})).anisotropy == PRESETS["mri"].anisotropy
    chosen = ImageConfig.model_validate({**flat.model_dump(), "augment": {"anisotropy": 4}})
    assert resolve(chosen).anisotropy == 4
