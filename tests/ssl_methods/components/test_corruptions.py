"""Models Genesis' corruptions against slow references: what they change, and what they must keep."""

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_methods.components import corruptions
from ssl_methods.components.corruptions import Chances, Draws, bezier, corrupt, decided, draw, painted, shuffle_locally

from ...tiers import examples

unit = st.floats(0, 1, width=32)
NOTHING = Chances(0.0, 0.0, 0.0, 0.0)
SHAPES = [(24, 20), (8, 24, 20)]


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def drawn(seed: int, *shape: int) -> Draws:
    return draw(torch.Size(shape), torch.Generator().manual_seed(seed))


def slow_bezier(values: Tensor, control: Sequence[float], falling: bool) -> np.ndarray:
    """The curve from its definition (de Casteljau), at twenty thousand points, then looked up."""
    t = np.linspace(0, 1, 20_001)[:, None]
    points = [np.zeros(2), np.array(control[:2]), np.array(control[2:]), np.ones(2)]
    while len(points) > 1:
        points = [(1 - t) * a + t * b for a, b in pairwise(points)]
    x, y = points[0].T
    return np.interp(values.double().numpy(), x, 1 - y if falling else y)


@examples(50)
@given(st.tuples(unit, unit, unit, unit), st.booleans())
def test_bezier_is_the_curve(control: tuple[float, float, float, float], falling: bool) -> None:
    values = torch.linspace(0, 1, 101)
    found = bezier(values.view(1, 1, 101), torch.tensor([control]), torch.tensor([falling]))
    # Where the curve stands nearly upright, a step of the table in x is a large one in y: compare both ways.
    slack = torch.from_numpy(
        slow_bezier((values + 1e-5).clamp(max=1), control, falling)
        - slow_bezier((values - 1e-5).clamp(min=0), control, falling)
    ).abs()
    exact = torch.from_numpy(slow_bezier(values, control, falling))
    assert ((found.flatten().double() - exact).abs() <= slack + 2e-4).all()


@given(st.tuples(unit, unit, unit, unit), st.booleans(), st.integers(0, 99))
def test_bezier_keeps_or_reverses_the_order_of_intensities(
    control: tuple[float, float, float, float], falling: bool, seed: int
) -> None:
    values = numbers(seed, 200).sort().values
    found = bezier(values.view(1, 2, 10, 10), torch.tensor([control]), torch.tensor([falling])).flatten()
    steps = found.diff() * (-1 if falling else 1)
    assert steps.min() >= -1e-6
    assert found.min() >= 0 and found.max() <= 1


def test_bezier_of_points_on_the_diagonal_changes_nothing() -> None:
    values = numbers(0, 2, 1, 8, 8)
    straight = torch.tensor([[1 / 3, 1 / 3, 2 / 3, 2 / 3]] * 2)
    found = bezier(values, straight, torch.tensor([False, True]))
    torch.testing.assert_close(found, torch.stack([values[0], 1 - values[1]]), rtol=0, atol=1e-5)


def windows(shape: Sequence[int], window: Tensor) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """The places of every window, pixel by pixel, from one image's draws ``[2, axes]``."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    largest = [max(2, length // 10) for length in shape]
    sides = [min(1 + int(chance * most), most) for chance, most in zip(window[0].tolist(), largest, strict=True)]
    starts = [int(chance * side) for chance, side in zip(window[1].tolist(), sides, strict=True)]
    for place in np.ndindex(*shape):
        name = tuple((at + start) // side for at, start, side in zip(place, starts, sides, strict=True))
        found.setdefault(name, []).append(place)
    return found


def shuffled_inside_windows(seed: int, shape: Sequence[int]) -> bool:
    """Whether every window keeps its pixels, channels together, and not all of them stay where they were."""
    first = torch.arange(float(np.prod(shape))).view(1, 1, *shape)
    images = torch.cat([first, first + 1e5], dim=1)
    draws = drawn(seed, 1, 2, *shape)
    found = corruptions.shuffle_locally(images, torch.full_like(draws.window, 0.99), draws.order)
    for places in windows(shape, torch.full_like(draws.window, 0.99)[0]).values():
        before = sorted(float(first[0, 0][place]) for place in places)
        after = sorted(float(found[0, 0][place]) for place in places)
        if before != after or any(found[0, 1][place] - found[0, 0][place] != 1e5 for place in places):
            return False
    return not torch.equal(found, images)


@pytest.mark.parametrize("shape", SHAPES)
def test_windows_keep_their_pixels(shape: tuple[int, ...]) -> None:
    assert shuffled_inside_windows(0, shape)


@examples(25)
@given(seed=st.integers(0, 999))
def test_windows_of_any_size_keep_their_pixels(seed: int) -> None:
    images = torch.arange(24.0 * 41).view(1, 1, 24, 41)
    draws = drawn(seed, 1, 1, 24, 41)
    found = shuffle_locally(images, draws.window, draws.order)
    for places in windows((24, 41), draws.window[0]).values():
        assert sorted(images[0, 0][at].item() for at in places) == sorted(found[0, 0][at].item() for at in places)


@pytest.mark.parametrize("mutant", ["identity", "whole image", "channels apart"])
def test_other_shufflings_are_caught(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(images: Tensor, window: Tensor, order: Tensor) -> Tensor:
        if mutant == "identity":
            return images
        flat = images.flatten(2)
        if mutant == "whole image":
            return flat[:, :, order[0].argsort()].view_as(images)
        halves = [shuffle_locally(part, window, order.roll(step)) for step, part in enumerate(images.split(1, dim=1))]
        return torch.cat(halves, dim=1)

    monkeypatch.setattr(corruptions, "shuffle_locally", wrong)
    assert not shuffled_inside_windows(0, (24, 20))


def test_shuffling_is_uniform_inside_a_window() -> None:
    window = torch.tensor([[[0.99, 0.99], [0.0, 0.0]]]).expand(4000, -1, -1)
    images = torch.arange(4.0).view(1, 1, 2, 2).expand(4000, -1, -1, -1)
    found = shuffle_locally(images, window, numbers(0, 4000, 4)).flatten(1)
    for place in range(4):
        share = torch.bincount(found[:, place].long(), minlength=4) / 4000
        assert (share - 0.25).abs().max() < 0.03


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("outside", [False, True])
def test_painting_hides_as_much_as_published_and_keeps_the_rest(shape: tuple[int, ...], outside: bool) -> None:
    images = numbers(0, 50, 1, *shape) + 2.0  # noise lies below 1
    draws = drawn(1, 50, 1, *shape)
    found = corrupt(images, decided(draws, dataclasses.replace(NOTHING, paint=1.0, outpaint=float(outside))))
    noise = (found < 1.0).flatten(1)
    assert torch.equal(found.flatten(1)[~noise], images.flatten(1)[~noise])
    assert torch.equal(found.flatten(1)[noise], draws.noise.flatten(1)[noise])
    shown = 1 - noise.float().mean(dim=1)
    axes = len(shape)
    if outside:
        assert shown.min() >= 0.9 * np.prod([int(3 * side / 7) / side for side in shape])
        assert shown.max() <= 6 * (4 / 7) ** axes
    else:
        assert shown.min() >= 1 - 5 * (1 / 3) ** axes
        assert (shown < 1).float().mean() > 0.8  # their code's first block comes with .95
    assert shown.std() > 0.01


def test_blocks_follow_each_other_as_long_as_they_are_drawn() -> None:
    blocks = torch.full((1, 6, 5), 0.5)
    blocks[0, :, 2] = torch.linspace(0, 0.99, 6)  # next to each other along the first axis
    one, three = blocks.clone(), blocks.clone()
    one[0, 1:, 0], three[0, 3:, 0] = 0.99, 0.99
    counts = [painted(each, torch.tensor([False]), torch.Size((60, 60))).sum().item() for each in (one, three)]
    assert counts[0] == 15 * 15 and counts[1] > 1.5 * counts[0]


CHANCES = Chances(0.9, 0.5, 0.9, 0.8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_depends_on_its_own_image_and_draws_only(shape: tuple[int, ...]) -> None:
    images, draws = numbers(0, 8, 2, *shape), drawn(1, 8, 2, *shape)
    before = images.clone()
    whole = corrupt(images, decided(draws, CHANCES))
    assert torch.equal(images, before)
    for row in range(8):
        own = Draws(*(getattr(draws, field.name)[row : row + 1] for field in dataclasses.fields(Draws)))
        assert torch.equal(corrupt(images[row : row + 1], decided(own, CHANCES)), whole[row : row + 1])


def test_each_corruption_comes_as_often_as_asked() -> None:
    images, draws = numbers(0, 600, 1, 24, 20), drawn(1, 600, 1, 24, 20)
    for name, chance in (("bezier", 0.9), ("shuffle", 0.5), ("paint", 0.9)):
        found = corrupt(images, decided(draws, dataclasses.replace(NOTHING, outpaint=1.0, **{name: chance})))
        changed = (found != images).flatten(1).any(dim=1).float().mean()
        # A window of 1 x 1 pixel (a quarter of the images of this size) shuffles nothing.
        expected = chance * 0.75 if name == "shuffle" else chance
        assert changed == pytest.approx(expected, abs=0.06), name
    assert torch.equal(corrupt(images, decided(draws, NOTHING)), images)


def test_falling_curves_come_half_of_the_time() -> None:
    values = torch.linspace(0, 1, 480).view(1, 1, 24, 20).expand(400, -1, -1, -1)
    found = corrupt(values, decided(drawn(0, 400, 1, 24, 20), dataclasses.replace(NOTHING, bezier=1.0))).flatten(1)
    assert (found[:, -1] < found[:, 0]).float().mean().item() == pytest.approx(0.5, abs=0.08)
