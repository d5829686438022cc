"""Relative patch position: neighbours lie where their labels say, and nothing else says so."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import ssl_methods.predictive.relative_patch
from ssl_methods.encoders.outputs import features
from ssl_methods.method import Batch, Method, Views
from ssl_methods.predictive.relative_patch import DIRECTIONS, RelativePatch

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
NAMES = ["up left", "up", "up right", "left", "right", "down left", "down", "down right"]


@pytest.fixture
def bare(build: Build, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RelativePatch]:
    """Makes a method that cuts images as they are."""

    def make(**options: float) -> RelativePatch:
        method = build("relative_patch", **options)
        assert isinstance(method, RelativePatch)
        monkeypatch.setattr(method.augmentation, "light", lambda images, generator: images.clone())
        monkeypatch.setattr(ssl_methods.predictive.relative_patch, "standardised", lambda patches: patches)
        return method

    return make


def views_of(method: RelativePatch, count: int = 60) -> Views:
    """Views of images of which every pixel says its row and column: row + column / 100."""
    line = torch.arange(32.0)
    images = (line[:, None] + line / 100).expand(count, 1, 32, 32)
    return method.make_views(Batch(images, *[torch.arange(count)] * 3), torch.Generator().manual_seed(0))


def corners(views: Views) -> Tensor:
    """Row and column of each patch's upper left pixel, ``[B, 1 + N, 2]``."""
    first = views["patches"][:, :, 0, 0, 0]
    return torch.stack([first.floor(), ((first - first.floor()) * 100).round()], dim=2).long()


def check_places(method: RelativePatch, views: Views) -> None:
    """Every neighbour lies on the side that its label names, apart from the first patch by more than a pixel."""
    for (first, *others), labels in zip(corners(views).tolist(), views["directions"].tolist(), strict=True):
        assert len(set(labels)) == len(labels) == len(others)
        for (row, column), label in zip(others, labels, strict=True):
            name = NAMES[label]
            vertical = -1 if "up" in name else 1 if "down" in name else 0
            horizontal = -1 if "left" in name else 1 if "right" in name else 0
            for moved, sign in ((row - first[0], vertical), (column - first[1], horizontal)):
                assert abs(moved - sign * (method.side + method.gap)) <= 2 * method.jitter
                assert sign == 0 or sign * moved > method.side


@pytest.mark.parametrize("pairs", [1, 3, 8])
def test_neighbours_lie_where_their_labels_say(pairs: int, bare: Callable[..., RelativePatch]) -> None:
    method = bare(pairs=pairs)
    views = views_of(method)
    assert views["patches"].shape == (60, 1 + pairs, 1, 8, 8)
    assert set(views["directions"].flatten().tolist()) == set(range(8))
    check_places(method, views)


MUTANTS = {
    "a label off by one": DIRECTIONS[1:] + DIRECTIONS[:1],
    "rows for columns": tuple((column, row) for row, column in DIRECTIONS),
    "the other side": tuple((-row, -column) for row, column in DIRECTIONS),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_labels_are_caught(
    mutant: str, bare: Callable[..., RelativePatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssl_methods.predictive.relative_patch, "DIRECTIONS", MUTANTS[mutant])
    method = bare()
    with pytest.raises(AssertionError):
        check_places(method, views_of(method))


def test_a_gap_that_is_forgotten_is_caught(bare: Callable[..., RelativePatch]) -> None:
    method = bare()
    views = views_of(method)
    check_places(method, views)
    method.gap = 0
    with pytest.raises(AssertionError):
        check_places(method, views_of(method))


def test_the_first_patch_s_place_does_not_tell_the_direction(bare: Callable[..., RelativePatch]) -> None:
    method = bare(pairs=1, gap=0.1, jitter=0.01)  # a smaller gap leaves room to move
    method.side = 4
    views = views_of(method, count=4000)
    places, labels = corners(views)[:, 0].double(), views["directions"][:, 0]
    means = torch.stack([places[labels == label].mean(dim=0) for label in range(8)])
    spread = places.std(dim=0)
    assert (spread > 2).all()
    # Means of 500 places each: 5 standard errors. A first patch that is moved to make room would differ by spread.
    assert ((means - places.mean(dim=0)).abs() < 5 * spread / 500**0.5).all()


def test_patches_are_standardised(build: Build, blobs: Blobs) -> None:
    patches = build("relative_patch").make_views(blobs(4), torch.Generator().manual_seed(0))["patches"]
    assert patches.mean(dim=(-2, -1)).abs().max() < 1e-4


def test_the_loss_against_a_slow_reference(build: Build, blobs: Blobs) -> None:
    method = build("relative_patch", pairs=3).eval()
    views = method.make_views(blobs(3), torch.Generator().manual_seed(0))
    head = method.get_submodule("head")
    expected = 0.0
    for patches, labels in zip(views["patches"], views["directions"], strict=True):
        first = features(method.encoder, patches[:1])
        for patch, label in zip(patches[1:], labels, strict=True):
            pair = torch.cat([first, features(method.encoder, patch[None])], dim=1)
            expected -= head(pair).double().log_softmax(dim=1)[0, label].item() / 9
    loss, scalars = method.loss(views)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert 0 <= float(scalars["accuracy"]) <= 1


def test_directions_are_learned(build: Build, blobs: Blobs) -> None:
    method = build("relative_patch")
    views = method.make_views(blobs(8), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    for _ in range(60):
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(scalars["accuracy"]) > 0.6  # by chance 1 / 8
