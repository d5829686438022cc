"""Diagnostics on clouds of points whose values are known."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from ssl_methods.diagnostics import alignment, collapsing, feature_diagnostics, feature_std, rankme, uniformity
from ssl_methods.method import Batch, Method


def test_rankme_counts_equal_directions() -> None:
    basis = torch.eye(6)[:4]
    assert rankme(basis) == pytest.approx(4.0, rel=1e-4)
    assert rankme(basis * 100) == pytest.approx(4.0, rel=1e-4)
    assert rankme(torch.ones(10, 5)) == pytest.approx(1.0, abs=1e-4)


def test_rankme_is_the_entropy_of_unequal_directions() -> None:
    share = [0.5, 0.25, 0.25]
    entropy = -sum(p * math.log(p) for p in share)
    assert rankme(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(math.exp(entropy), rel=1e-4)


def test_alignment_is_the_squared_distance_of_directions() -> None:
    first = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert alignment(first, first * 3) == pytest.approx(0.0, abs=1e-6)
    assert alignment(first, torch.tensor([[0.0, 5.0], [0.0, -1.0]])) == pytest.approx((2 + 4) / 2)


def test_uniformity_by_hand() -> None:
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0.0, abs=1e-5)
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])  # 4 pairs at d^2 2, 2 pairs at 4
    expected = math.log((4 * math.exp(-4) + 2 * math.exp(-8)) / 6)
    assert uniformity(square) == pytest.approx(expected, rel=1e-5)


def test_feature_std_is_one_over_root_d_on_the_sphere_and_0_when_collapsed() -> None:
    spread = functional.normalize(torch.randn(4000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    assert feature_std(spread * 7) == pytest.approx(1 / 4, rel=0.02)
    assert feature_std(torch.ones(10, 16)) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("spreads", "alarm"),
    [
        ([], False),
        ([0.05], False),
        ([0.9, 0.05], False),  # one round says nothing
        ([0.9, 0.05, 0.05], True),  # gone, and it stays away
        ([0.9, 0.2, 0.2], True),  # three quarters lost
        ([0.9, 0.3, 0.25], False),
        ([0.05, 0.06], False),  # rising: a fresh head
        ([0.9, 0.1, 0.15], False),  # mending
        ([0.05] * 9, False),  # it takes its time
        ([0.05] * 10, True),  # it never learned to tell images apart
        ([0.02, 0.5, 0.09, 0.08], True),  # a quarter of .5 is .125
        ([0.02, 0.2, 0.09, 0.08], True),  # below the floor, where it was above
    ],
)
def test_the_alarm_of_a_loss_that_compares_images(spreads: list[float], alarm: bool) -> None:
    rest = {"feature_spread": 0.5, "output_rank": 0.5}
    assert collapsing([rest | {"output_spread": spread} for spread in spreads]) is alarm


@pytest.mark.parametrize(
    ("ranks", "alarm"),
    [
        ([0.5, 0.25, 0.25], True),
        ([0.5, 0.25], False),
        ([0.5, 0.31, 0.28], False),
        ([0.3, 0.25, 0.25], False),
        ([0.5, 0.1, 0.2], False),
    ],
)
def test_the_alarm_when_directions_are_lost(ranks: list[float], alarm: bool) -> None:
    rest = {"feature_spread": 0.5, "output_spread": 0.9}
    assert collapsing([rest | {"output_rank": rank} for rank in ranks]) is alarm


@pytest.mark.parametrize(
    ("spreads", "alarm"),
    [([0.03, 0.02, 0.02], False), ([0.4, 0.05, 0.05], True), ([0.4, 0.05, 0.06], False), ([0.4, 0.2, 0.2], False)],
)
def test_the_alarm_of_other_losses_goes_by_what_is_lost(spreads: list[float], alarm: bool) -> None:
    """Features of nearly empty images lie close together from the start: that is no collapse."""
    assert collapsing([{"loss": 1.0}, *({"feature_spread": spread} for spread in spreads)]) is alarm


def test_the_watch_sees_a_collapsed_head_and_leaves_the_method_as_it_was(
    build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    method = build("simclr").train()
    state = {name: value.clone() for name, value in method.state_dict().items()}
    images = blobs(12).images
    before = feature_diagnostics(method, images, torch.Generator().manual_seed(0))
    assert method.training
    assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
    assert before == feature_diagnostics(method, images, torch.Generator().manual_seed(0))
    last = method.projector[-1]
    last.running_mean.fill_(-1e4)  # every projection points the same way
    after = feature_diagnostics(method, images, torch.Generator().manual_seed(0))
    assert after["output_spread"] < 0.1 * before["output_spread"]
    assert after["feature_spread"] == before["feature_spread"]


def test_the_watch_of_a_loss_that_compares_no_images(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    seen = feature_diagnostics(build("mae"), blobs(8).images, torch.Generator().manual_seed(0))
    assert set(seen) == {"feature_spread", "rankme", "alignment", "uniformity"}
