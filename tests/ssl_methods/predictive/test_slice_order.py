"""Slice order and time: signs, pairs without order, distances, and that order is learned."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.predictive.slice_order import SliceOrderConfig, gap_loss, order_loss

Build = Callable[..., Method]
GAPS = torch.tensor([2.0, -1.0, 0.0, -30.0, 0.5])


def check_order_loss(order_loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    """Value and gradient of a binary cross-entropy written out."""
    scores = torch.tensor([1.5, 0.3, -2.0, -4.0, 0.0], requires_grad=True)
    each, ordered = order_loss(scores, GAPS)
    each.sum().backward()
    assert ordered.tolist() == [True, True, False, True, True]
    for score, gap, loss, slope in zip(
        scores.tolist(), GAPS.tolist(), each.tolist(), scores.grad.tolist(), strict=True
    ):
        later = 1 / (1 + math.exp(-score))  # probability that the second lies later
        expected = 0.0 if gap == 0 else -math.log(later if gap > 0 else 1 - later)
        assert loss == pytest.approx(expected, rel=1e-5)
        assert slope == pytest.approx(0.0 if gap == 0 else later - float(gap > 0), rel=1e-4)


def test_order_loss_and_gradient_against_a_reference() -> None:
    check_order_loss(order_loss)


def test_order_loss_by_hand() -> None:
    each, _ = order_loss(torch.zeros(2), torch.tensor([1.0, -7.0]))
    assert each.tolist() == pytest.approx([math.log(2)] * 2)
    each, _ = order_loss(torch.tensor([math.log(3)]), torch.tensor([5.0]))  # three to one for "later"
    assert each.item() == pytest.approx(math.log(4 / 3))


MUTANTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "the gap's sign ignored": lambda scores, gaps: order_loss(scores, gaps.abs()),
    "the order the wrong way round": lambda scores, gaps: order_loss(scores, -gaps),
    "pairs without order counted": lambda scores, gaps: order_loss(scores, gaps.where(gaps != 0, -1.0)),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_orders_are_caught(mutant: str) -> None:
    with pytest.raises(AssertionError):
        check_order_loss(MUTANTS[mutant])


def test_gap_loss_by_hand() -> None:
    # log(1 + gap) is 1, 0 and 2: smooth L1 of 0 against 1 is .5, of 3.5 against 2 is 1.5 - .5; no gap counts nothing.
    gaps = torch.tensor([math.e - 1, 0.0, 1 - math.e**2])
    assert gap_loss(torch.tensor([0.0, 5.0, 3.5]), gaps).tolist() == pytest.approx([0.5, 0.0, 1.0], rel=1e-5)


def test_losses_keep_double_precision_and_lift_half() -> None:
    for loss in (lambda values: order_loss(values, GAPS)[0], lambda values: gap_loss(values, GAPS)):
        assert loss(torch.zeros(5, dtype=torch.float64)).dtype == torch.float64
        assert loss(torch.zeros(5, dtype=torch.bfloat16)).dtype == torch.float32


def heights(count: int, generator: torch.Generator) -> Batch:
    """Pairs of images of a bright bar that lies higher, the later the image; every sixth pair has no order."""
    places = 4 + 24 * torch.rand(2, count, generator=generator)
    places[1, ::6] = places[0, ::6]
    rows = torch.arange(32.0)[:, None]
    first, second = (
        torch.exp(-((rows - 31 + place[:, None, None, None]) ** 2) / 8).expand(-1, 1, 32, 32) for place in places
    )
    codes = torch.arange(count)
    return Batch(first.contiguous(), codes, codes, codes, second.contiguous(), places[1] - places[0])


@pytest.fixture
def pairs() -> Batch:
    return heights(12, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("by", "partner"), [("position", "placed"), ("date", "dated")])
def test_what_partners_are_asked_for(by: str, partner: str) -> None:
    assert SliceOrderConfig.model_validate({"by": by}).partner == partner


def test_pairs_without_order_are_counted_and_teach_nothing(build: Build, pairs: Batch) -> None:
    method = build("slice_order", gap_weight=1.0)
    views = method.make_views(pairs, torch.Generator().manual_seed(0))
    leaves: Views = views | {name: views[name].clone().requires_grad_() for name in ("first", "second")}
    loss, scalars = method.loss(leaves)
    loss.backward()
    assert float(scalars["pairs_left_out"]) == pytest.approx(2 / 12)
    for name in ("first", "second"):
        taught = leaves[name].grad.flatten(1).any(dim=1)
        assert taught.tolist() == [number % 6 != 0 for number in range(12)]


def test_a_batch_without_any_order_gives_no_gradient(build: Build, pairs: Batch) -> None:
    method = build("slice_order")
    views = method.make_views(pairs, torch.Generator().manual_seed(0))
    loss, scalars = method.loss(views | {"gaps": torch.zeros(12)})
    loss.backward()
    assert loss.item() == 0.0 and float(scalars["accuracy"]) == 0.0 and float(scalars["pairs_left_out"]) == 1.0
    assert not any(weight.grad.any() for weight in method.parameters() if weight.grad is not None)


def test_another_pair_s_order_does_not_change_a_pair_s_gradient(build: Build, pairs: Batch) -> None:
    """What per_sample promises, also where the other pair drops out of the mean."""
    method = build("slice_order")
    views = method.make_views(pairs, torch.Generator().manual_seed(0))
    gradients = []
    for gap in (0.0, 4.0):
        first = views["first"].clone().requires_grad_()
        gaps = views["gaps"].clone()
        gaps[5] = gap
        loss, _ = method.loss(views | {"first": first, "gaps": gaps})
        gradients.append(torch.autograd.grad(loss, first)[0])
    assert not torch.allclose(gradients[0][5], gradients[1][5])
    others = [number for number in range(12) if number != 5]
    torch.testing.assert_close(gradients[0][others], gradients[1][others])


@pytest.mark.parametrize("gap_weight", [0.0, 0.7])
def test_the_loss_against_a_slow_reference(gap_weight: float, build: Build, pairs: Batch) -> None:
    method = build("slice_order", gap_weight=gap_weight).eval()
    views = method.make_views(pairs, torch.Generator().manual_seed(0))
    head, expected, right = method.get_submodule("head"), 0.0, 0
    for first, second, gap in zip(views["first"], views["second"], views["gaps"].tolist(), strict=True):
        if gap == 0:
            continue
        both = [features(method.encoder, image[None]) for image in (first, second)]
        score, length = head(torch.cat(both, dim=1))[0].tolist()
        error = abs(length - math.log(1 + abs(gap)))
        expected += math.log(1 + math.exp(-score if gap > 0 else score)) / 12
        expected += gap_weight * (error**2 / 2 if error < 1 else error - 0.5) / 12
        right += (score > 0) == (gap > 0)
    loss, scalars = method.loss(views)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert float(scalars["accuracy"]) == pytest.approx(right / 10)


def test_the_partner_is_the_second_image(build: Build, pairs: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    method = build("slice_order")
    monkeypatch.setattr(method.augmentation, "light", lambda images, generator: images)
    views = method.make_views(pairs, torch.Generator())
    assert views["first"] is pairs.images and views["second"] is pairs.partners and views["gaps"] is pairs.gaps


def test_order_is_learned_and_holds_for_images_not_seen(build: Build) -> None:
    method, generator = build("slice_order"), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW([weight for weight in method.parameters() if weight.requires_grad], 2e-3)
    for _ in range(80):
        loss, _ = method.loss(method.make_views(heights(16, generator), generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        assert float(method.loss(method.make_views(heights(64, generator), generator))[1]["accuracy"]) > 0.8


def test_a_convolutional_encoder(build: Build, pairs: Batch) -> None:
    method = build("slice_order", encoder=EncoderConfig(name="resnet10t"))
    loss, _ = method.loss(method.make_views(pairs, torch.Generator().manual_seed(0)))
    loss.backward()
    assert torch.isfinite(loss)
