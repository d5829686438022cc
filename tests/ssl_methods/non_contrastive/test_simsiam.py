"""SimSiam: the loss, where the gradient stops, the predictor's rate (collapse: test_collapse.py)."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_methods.components.similarity import unit
from ssl_methods.method import Batch, Method
from ssl_methods.non_contrastive import simsiam
from ssl_methods.non_contrastive.simsiam import simsiam_loss

Build = Callable[..., Method]
Blobs = Callable[..., Batch]


def test_loss_by_hand() -> None:
    right, up = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert simsiam_loss((right, up), (up, up)).item() == pytest.approx(-0.5)
    assert simsiam_loss((right, up), (up, right)).item() == pytest.approx(-1.0)


def projector_gradient(method: Method, first: Tensor, second: Tensor) -> Tensor:
    """Eq. 4 written out, with the stop-gradient as numbers that were computed before."""
    projector, predictor = method.get_submodule("projector"), method.get_submodule("predictor")
    projections = [projector(method.encoder(view)) for view in (first, second)]
    fixed = [torch.tensor(each.tolist()) for each in projections]
    one, other = predictor(projections[0]), predictor(projections[1])
    loss = -(unit(one) * unit(fixed[1])).sum(dim=1).mean() / 2 - (unit(other) * unit(fixed[0])).sum(dim=1).mean() / 2
    return torch.autograd.grad(loss, projector.get_parameter("0.weight"))[0]


def test_the_gradient_stops_at_the_projections(build: Build, blobs: Blobs) -> None:
    method = build("simsiam", projection=32).train()
    views = method.make_views(blobs(6), torch.Generator().manual_seed(0))
    weight = method.get_parameter("projector.0.weight")
    ours = torch.autograd.grad(method.loss(views)[0], weight)[0]
    torch.testing.assert_close(ours, projector_gradient(method, views["first"], views["second"]), rtol=1e-4, atol=1e-6)


def test_a_loss_without_stop_gradient_is_caught(build: Build, blobs: Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simsiam, "negative_cosine", lambda p, z: -(unit(p) * unit(z)).sum(dim=1).mean())
    with pytest.raises(AssertionError):
        test_the_gradient_stops_at_the_projections(build, blobs)


def test_the_predictors_rate_does_not_fall(build: Build) -> None:
    method = build("simsiam")
    assert method.rate("predictor", 0.9, 0.1, 2.0) == 2.0
    assert method.rate("encoder", 0.9, 0.1, 2.0) == 0.1
    assert method.rate("projector", 0.9, 0.1, 2.0) == 0.1


def test_the_predictor_is_a_bottleneck(build: Build) -> None:
    assert build("simsiam", projection=64).get_parameter("predictor.0.weight").shape == (16, 64)
    assert build("simsiam", predictor_width=5).get_parameter("predictor.0.weight").shape == (5, 512)
