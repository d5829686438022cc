"""BYOL: the loss, which side learns, and how the target follows (collapse: test_collapse.py)."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_methods.components.similarity import unit
from ssl_methods.method import Batch, Method
from ssl_methods.non_contrastive import byol
from ssl_methods.non_contrastive.byol import BYOL, byol_loss

Build = Callable[..., Method]
Blobs = Callable[..., Batch]


@pytest.fixture
def method(build: Build) -> BYOL:
    made = build("byol", momentum=0.9, momentum_batch=8)
    assert isinstance(made, BYOL)
    return made.train()


def test_loss_by_hand() -> None:
    right, up = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    # The first view predicts "right" where the second's target is "up": squared distance 2; the other way the same
    # vector of another length: 0.
    assert byol_loss((right, up), (up, up)).item() == pytest.approx(2.0)
    assert byol_loss((right, right), (-right, -right)).item() == pytest.approx(8.0)


def squared_distances(predictions: list[Tensor], targets: list[Tensor]) -> float:
    """Eq. 2 for both directions: distances of unit vectors, not cosines."""
    pairs = [(predictions[0], targets[1]), (predictions[1], targets[0])]
    return float(sum((unit(p) - unit(t)).square().sum(dim=1).mean() for p, t in pairs))


def test_each_view_predicts_the_other_views_target(method: BYOL, blobs: Blobs) -> None:
    views = method.make_views(blobs(4), torch.Generator().manual_seed(0))
    both = (views["first"], views["second"])
    predictions = [method.predictor(method.projector(method.encoder(view))).detach().double() for view in both]
    targets = [method.target_projector(method.target_encoder(view)).detach().double() for view in both]
    assert method.loss(views)[0].item() == pytest.approx(squared_distances(predictions, targets), rel=1e-4)


def test_a_loss_of_a_view_with_itself_is_caught(method: BYOL, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byol, "byol_loss", lambda predictions, targets: byol_loss(predictions, targets[::-1]))
    with pytest.raises(AssertionError):
        test_each_view_predicts_the_other_views_target(method, blobs)


def test_only_the_online_network_learns(method: BYOL, blobs: Blobs) -> None:
    method.loss(method.make_views(blobs(4), torch.Generator().manual_seed(0)))[0].backward()
    learning = {name.split(".")[0] for name, weight in method.named_parameters() if weight.grad is not None}
    assert learning == {"encoder", "projector", "predictor"}


def test_the_target_follows_by_hand(method: BYOL) -> None:
    online, target = method.encoder.get_parameter("norm.bias"), method.target_encoder.get_parameter("norm.bias")
    by_hand = target.detach().clone().double()
    for number, (progress, images) in enumerate([(0.0, 8), (0.25, 4), (0.5, 16)]):
        with torch.no_grad():
            online.fill_(number + 1.0)
        method.after_step(progress, images)
        momentum = (1 - (1 - 0.9) * (math.cos(math.pi * progress) + 1) / 2) ** (images / 8)
        by_hand = momentum * by_hand + (1 - momentum) * (number + 1)
    torch.testing.assert_close(target.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_the_target_stays_at_the_site_and_starts_as_the_network_received(method: BYOL) -> None:
    assert {key.split(".")[0] for key in method.local_state()} == {"target_encoder", "target_projector"}
    with torch.no_grad():
        for weight in (*method.encoder.parameters(), *method.projector.parameters()):
            weight.add_(1.0)
    method.start_local_parts()
    for online, target in ((method.encoder, method.target_encoder), (method.projector, method.target_projector)):
        for name, value in online.state_dict().items():
            assert torch.equal(target.state_dict()[name], value)
