"""VICReg's three terms by hand (its value and gradient: test_oracles.py)."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ssl_methods.method import Batch, Method
from ssl_methods.non_contrastive import vicreg
from ssl_methods.non_contrastive.vicreg import covariance, invariance, variance, vicreg_loss


def test_variance_by_hand() -> None:
    # Unbiased variances 2 and 1/2: the first deviates enough, the second by about .707.
    rows = torch.tensor([[0.0, 0.0], [2.0, 1.0]])
    assert variance(rows).item() == pytest.approx((0 + 1 - math.sqrt(0.5 + 1e-4)) / 2, rel=1e-6)
    assert variance(torch.ones(4, 3)).item() == pytest.approx(1 - math.sqrt(1e-4), rel=1e-6)


def test_covariance_by_hand() -> None:
    rows = torch.tensor([[0.0, 0.0], [2.0, 1.0]])  # covariance (1 * .5 + 1 * .5) / (2 - 1) = 1, twice, over 2 channels
    assert covariance(rows).item() == pytest.approx(1.0, rel=1e-6)
    assert covariance(torch.eye(4)[:, :1]).item() == pytest.approx(0.0, abs=1e-7)


def slow_loss(first: Tensor, second: Tensor, weights: tuple[float, float, float]) -> float:
    """Eq. 1 to 6 with the official code's means, in Python numbers."""
    count, width = first.shape
    distance = sum((a - b) ** 2 for a, b in zip(first.flatten().tolist(), second.flatten().tolist(), strict=True))
    hinge = covariances = 0.0
    for rows in (first, second):
        means = [sum(column) / count for column in rows.T.tolist()]
        for i in range(width):
            for j in range(width):
                c = sum((row[i] - means[i]) * (row[j] - means[j]) for row in rows.tolist()) / (count - 1)
                if i == j:
                    hinge += max(0.0, 1 - math.sqrt(c + 1e-4)) / width / 2
                else:
                    covariances += c**2 / width
    return weights[0] * distance / (count * width) + weights[1] * hinge + weights[2] * covariances


WEIGHTS = (25.0, 25.0, 1.0)


def pair() -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return first, second


def test_agrees_with_the_equations() -> None:
    loss, terms = vicreg_loss(*pair(), WEIGHTS)
    assert loss.item() == pytest.approx(slow_loss(*pair(), WEIGHTS), rel=1e-10)
    assert terms["invariance"].item() == pytest.approx(invariance(*pair()).item())
    assert loss.item() == pytest.approx(sum(w * float(t) for w, t in zip(WEIGHTS, terms.values(), strict=True)))


def test_a_hinge_on_the_variance_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vicreg, "variance", lambda rows: torch.relu(1 - rows.var(dim=0)).mean())
    with pytest.raises(AssertionError):
        test_agrees_with_the_equations()


def test_the_method_weighs_its_terms(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    method = build("vicreg", projection=8, invariance=3.0, variance=2.0, covariance=0.5).train()
    views = method.make_views(blobs(6), torch.Generator().manual_seed(0))
    first, second = (method.output(method.encoder(views[view])).detach().double() for view in ("first", "second"))
    loss, terms = method.loss(views)
    assert loss.item() == pytest.approx(slow_loss(first, second, (3.0, 2.0, 0.5)), rel=1e-4)
    assert set(terms) == {"invariance", "variance", "covariance"}
