"""Jigsaw: orders far apart, tiles shuffled as the label says, tiles encoded one by one."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import ssl_methods.predictive.jigsaw
from ssl_methods.encoders.outputs import features
from ssl_methods.method import Batch, Method, Views
from ssl_methods.predictive.jigsaw import Jigsaw, permutation_set

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
Order = tuple[int, ...]


def hamming(one: Order, other: Order) -> int:
    return sum(a != b for a, b in zip(one, other, strict=True))


def slow_set(count: int, tiles: int) -> list[Order]:
    """Greedy, by loops: the smallest distance to those chosen as large as can be, then the sum, then the first."""
    every = list(itertools.permutations(range(tiles)))
    chosen = [every[0]]
    while len(chosen) < count:
        best = max((min(hamming(order, c) for c in chosen), sum(hamming(order, c) for c in chosen)) for order in every)
        chosen.append(
            next(
                order
                for order in every
                if (min(hamming(order, c) for c in chosen), sum(hamming(order, c) for c in chosen)) == best
            )
        )
    return chosen


@pytest.mark.parametrize(("tiles", "count"), [(3, 6), (4, 12), (5, 20)])
def test_the_greedy_choice_against_a_slow_reference(tiles: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl_methods.predictive.jigsaw, "TILES", tiles)
    assert list(permutation_set.__wrapped__(count)) == slow_set(count, tiles)


def test_a_hundred_orders_lie_far_apart() -> None:
    orders = permutation_set(100)
    assert orders[0] == tuple(range(9))
    assert all(sorted(order) == list(range(9)) for order in orders)
    distances = [hamming(one, other) for one, other in itertools.combinations(orders, 2)]
    assert min(distances) == 6
    assert sum(distances) / len(distances) > 8.05  # two random orders: 8
    # More than nine cannot all differ in every place: two of ten would have the same tile in the first.
    assert {hamming(one, other) for one, other in itertools.combinations(orders[:9], 2)} == {9}


def test_a_smaller_set_is_the_beginning_of_a_larger_one() -> None:
    assert permutation_set(100)[:20] == permutation_set(20)


def coordinates(count: int) -> Tensor:
    """Images of which every pixel says its row and column: row + column / 100."""
    line = torch.arange(32.0)
    return (line[:, None] + line / 100).expand(count, 1, 32, 32)


@pytest.fixture
def bare(build: Build, monkeypatch: pytest.MonkeyPatch) -> Jigsaw:
    """A method that shuffles tiles of the images as they are."""
    method = build("jigsaw")
    assert isinstance(method, Jigsaw)
    monkeypatch.setattr(method.augmentation, "light", lambda images, generator: images.clone())
    monkeypatch.setattr(ssl_methods.predictive.jigsaw, "standardised", lambda tiles: tiles)
    return method


def corners(views: Views) -> Tensor:
    """Row and column of each tile's upper left pixel, ``[B, 9, 2]``."""
    first = views["tiles"][:, :, 0, 0, 0]
    return torch.stack([first.floor(), ((first - first.floor()) * 100).round()], dim=2).long()


def check_places(method: Jigsaw, views: Views) -> None:
    """At place k lies the tile that was cut in the cell ``permutations[order][k]``."""
    for own, order in zip(corners(views).tolist(), views["order"].tolist(), strict=True):
        for (row, column), place in zip(own, permutation_set(100)[order], strict=True):
            assert (row // 10, column // 10) == divmod(place, 3)
            assert row % 10 + method.side <= 10 and column % 10 + method.side <= 10


def test_tiles_lie_where_the_order_says(bare: Jigsaw) -> None:
    views = bare.make_views(Batch(coordinates(40), *[torch.arange(40)] * 3), torch.Generator().manual_seed(0))
    assert views["tiles"].shape == (40, 9, 1, 8, 8)
    assert len(set(views["order"].tolist())) > 20
    check_places(bare, views)


def test_an_order_that_is_applied_inversely_is_caught(bare: Jigsaw) -> None:
    bare.permutations = bare.permutations.argsort(dim=1)
    views = bare.make_views(Batch(coordinates(40), *[torch.arange(40)] * 3), torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        check_places(bare, views)


def test_labels_off_by_one_are_caught(bare: Jigsaw) -> None:
    views = bare.make_views(Batch(coordinates(40), *[torch.arange(40)] * 3), torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        check_places(bare, views | {"order": (views["order"] + 1) % 100})


def test_each_tile_is_cut_anywhere_in_its_cell(bare: Jigsaw) -> None:
    views = bare.make_views(Batch(coordinates(300), *[torch.arange(300)] * 3), torch.Generator().manual_seed(0))
    shifts = corners(views).flatten(0, 1) % 10
    counts = torch.bincount(shifts[:, 0] * 3 + shifts[:, 1], minlength=9)
    assert len(counts) == 9  # 0, 1 or 2 pixels down and to the right
    assert (counts / counts.sum() - 1 / 9).abs().max() < 0.03


def test_the_encoder_sees_one_tile_at_a_time(build: Build, blobs: Blobs) -> None:
    method = build("jigsaw").eval()
    views = method.make_views(blobs(2), torch.Generator().manual_seed(0))
    caught: list[Tensor] = []
    method.get_submodule("head.tile").register_forward_hook(lambda _, inputs, output: caught.append(output.detach()))
    method.loss(views)
    changed = views["tiles"].clone()
    changed[1, 4] += 1.0 + changed[1, 4].flip(-1)
    method.loss(views | {"tiles": changed})
    moved = (caught[0] - caught[1]).abs().amax(dim=1) > 1e-5
    assert moved.nonzero().flatten().tolist() == [1 * 9 + 4]


def test_the_loss_against_a_slow_reference(build: Build, blobs: Blobs) -> None:
    method = build("jigsaw", permutations=7).eval()
    views = method.make_views(blobs(3), torch.Generator().manual_seed(0))
    tile, order = method.get_submodule("head.tile"), method.get_submodule("head.order")
    expected = 0.0
    for tiles, label in zip(views["tiles"], views["order"], strict=True):
        side_by_side = torch.cat([functional.relu(tile(features(method.encoder, t))) for t in tiles[:, None]], dim=1)
        expected -= order(side_by_side).double().log_softmax(dim=1)[0, label].item() / 3
    assert method.loss(views)[0].item() == pytest.approx(expected, rel=1e-5)


def test_orders_are_learned(build: Build, blobs: Blobs) -> None:
    method = build("jigsaw", permutations=20)
    views = method.make_views(blobs(8), torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    for _ in range(40):
        loss, scalars = method.loss(views)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(scalars["accuracy"]) > 0.8  # by chance 1 / 20


def test_the_orders_are_not_part_of_the_state(build: Build) -> None:
    assert not any("permutations" in key for key in build("jigsaw").state_dict())
