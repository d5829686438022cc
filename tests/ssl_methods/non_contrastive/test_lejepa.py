"""LeJEPA: the loss by complex numbers, sums that sites may add up, the step's directions, and that nothing collapses.

Recorded values: test_oracles.py.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssl_methods.diagnostics import feature_std
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.method import Batch, Method, Views
from ssl_methods.non_contrastive import lejepa
from ssl_methods.non_contrastive.lejepa import LeJEPAConfig, characteristic_sums, invariance, lejepa_loss, sigreg

Build = Callable[..., Method]
Blobs = Callable[..., Batch]
Array = NDArray[np.float64]
SMALL_VIT = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=2, width=48, heads=3)
WEIGHT = 0.05


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(count: int, width: int, seed: int = 9) -> Tensor:
    rows = normal(count, width, seed=seed)
    return rows / rows.norm(dim=1, keepdim=True)


def by_formula(z: Array, u: Array, weight: float) -> tuple[float, Array]:
    """The loss of ``[V, B, P]`` on directions ``[M, P]``, two views being global, and its gradient, worked by hand.

    The integral is over both halves of the line, 33 points from -3 to 3, of a complex characteristic function.
    """
    views, images, _ = z.shape
    t = np.linspace(-3.0, 3.0, 33)
    step = np.where(np.abs(t) == 3.0, 0.5, 1.0) * (t[1] - t[0])  # the trapezoid's
    gauss = np.exp(-t * t / 2)
    value, gradient = 0.0, np.zeros_like(z)
    for view, direction in product(range(views), u):
        wave = np.exp(1j * np.outer(z[view] @ direction, t))  # [B, 33]
        gap = wave.sum(axis=0) / images - gauss
        value += weight * images * float((np.abs(gap) ** 2 * gauss * step).sum()) / (views * len(u))
        slope = 2 * np.real(np.conj(gap) * 1j * t * wave) @ (gauss * step)  # times images / images
        gradient[view] += weight * np.outer(slope, direction) / (views * len(u))
    apart = z - (z[0] + z[1]) / 2
    value += (1 - weight) * float((apart**2).sum()) / z.size
    pull = 2 * (1 - weight) * apart / z.size
    gradient += pull
    gradient[:2] -= pull.sum(axis=0) / 2
    return value, gradient


def agrees(views: int, images: int, weight: float) -> None:
    z, u = normal(views, images, 4, seed=images).requires_grad_(), unit_rows(7, 4)
    loss, terms = lejepa_loss(z, u, weight)
    loss.backward()
    value, gradient = by_formula(z.detach().numpy(), u.numpy(), weight)
    assert loss.item() == pytest.approx(value, rel=1e-12)
    torch.testing.assert_close(z.grad, torch.from_numpy(gradient), rtol=1e-10, atol=1e-14)
    assert loss.item() == pytest.approx((1 - weight) * terms["invariance"].item() + weight * terms["sigreg"].item())
    assert not any(term.requires_grad for term in terms.values())


@pytest.mark.parametrize(("views", "images"), [(2, 1), (2, 5), (6, 12)])
@pytest.mark.parametrize("weight", [0.0, WEIGHT, 1.0])
def test_agrees_with_the_formula(views: int, images: int, weight: float) -> None:
    agrees(views, images, weight)


def stopped(z: Tensor) -> Tensor:
    return (z - z[:2].mean(dim=0).detach()).square().mean()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("LARGEST", 5.0),
        ("KNOTS", 16),
        ("GLOBAL_VIEWS", 6),
        ("invariance", stopped),
        ("sigreg", lambda sums, images: sigreg(sums, images) / images),
        ("sigreg", lambda sums, images: sigreg(sums, images) / 2),
        ("sigreg", lambda sums, images: sigreg(sums[:, :2], images)),
        ("sigreg", lambda sums, images: sigreg(torch.stack([sums[0], sums[1] * 0]), images)),
    ],
    ids=["range", "knots", "all views' mean", "stop-gradient", "no N", "one half", "global only", "no sine"],
)
def test_another_loss_is_caught(name: str, other: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lejepa, name, other)
    with pytest.raises(AssertionError):
        agrees(6, 12, WEIGHT)


def test_a_finite_batch_favours_concentration() -> None:
    """Over all batches of three that are -a or a with equal chances: e(t) of the two points, and (1 - psi^2) / 3."""
    up, images = torch.ones(1, 1, dtype=torch.float64), 3
    t = torch.linspace(0, 3, 17, dtype=torch.float64)
    gauss = torch.exp(-t * t / 2)
    for a in (0.0, 0.7, 1.3):
        signs = torch.tensor(list(product((-a, a), repeat=images)), dtype=torch.float64)
        found = [sigreg(characteristic_sums(row[None, :, None], up), images).item() for row in signs]
        psi = torch.cos(a * t)
        expected = images * (psi - gauss).square() + 1 - psi.square()
        assert np.mean(found) == pytest.approx(2 * torch.trapezoid(expected * gauss, t).item(), rel=1e-12)


# What a federated form would add up over sites


SITES = (5, 12, 31)
ALL = sum(SITES)
Surrogate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of a site's projections, the directions, and the sums of all sites, which no gradient enters."""


def surrogate(z: Tensor, directions: Tensor, everyone: Tensor) -> Tensor:
    """A site's loss: its own sums have a gradient, the others' are numbers; weighted by its images in the mean."""
    own = characteristic_sums(z, directions)
    sums = everyone - own.detach() + own
    return (1 - WEIGHT) * invariance(z) + WEIGHT * ALL / z.shape[1] * sigreg(sums, ALL)


def with_local_count(z: Tensor, directions: Tensor, everyone: Tensor) -> Tensor:
    own = characteristic_sums(z, directions)
    sums = everyone - own.detach() + own
    return (1 - WEIGHT) * invariance(z) + WEIGHT * ALL / z.shape[1] * sigreg(sums, z.shape[1])


def without_the_factor(z: Tensor, directions: Tensor, everyone: Tensor) -> Tensor:
    own = characteristic_sums(z, directions)
    return (1 - WEIGHT) * invariance(z) + WEIGHT * sigreg(everyone - own.detach() + own, ALL)


def alone(z: Tensor, directions: Tensor, everyone: Tensor) -> Tensor:
    return lejepa_loss(z, directions, WEIGHT)[0]


BY_IMAGES = [count / ALL for count in SITES]


def distance_from_pooled(loss: Surrogate, weights: list[float]) -> float:
    """Largest difference of the sites' weighted mean gradient from the pooled one, over the largest of the latter."""
    directions = unit_rows(20, 4)
    model = [normal(6, 8, seed=1).requires_grad_(), normal(8, 4, seed=2).requires_grad_()]
    images = [normal(6, count, 6, seed=count) + 0.3 * site for site, count in enumerate(SITES)]  # [views, images, 6]

    def projected(given: Tensor) -> Tensor:
        return torch.tanh(given @ model[0]) @ model[1]

    pooled = torch.autograd.grad(lejepa_loss(projected(torch.cat(images, dim=1)), directions, WEIGHT)[0], model)
    everyone = torch.stack([characteristic_sums(projected(own).detach(), directions) for own in images]).sum(dim=0)
    assert everyone.shape == (2, 6, 20, 17)
    each = [torch.autograd.grad(loss(projected(own), directions, everyone), model) for own in images]
    means = [
        torch.stack([weight * own for weight, own in zip(weights, site, strict=True)]).sum(dim=0)
        for site in zip(*each, strict=True)
    ]
    apart = [(mean - whole).abs().max() for mean, whole in zip(means, pooled, strict=True)]
    return float(max(apart) / max(whole.abs().max() for whole in pooled))


def test_with_everyones_sums_the_sites_gradients_are_the_pooled_ones() -> None:
    assert distance_from_pooled(surrogate, BY_IMAGES) < 1e-10


@pytest.mark.parametrize(
    ("loss", "weights"),
    [(surrogate, [1 / 3] * 3), (with_local_count, BY_IMAGES), (without_the_factor, BY_IMAGES), (alone, BY_IMAGES)],
    ids=["equal weights", "local N", "missing factor", "own sums only"],
)
def test_another_exchange_is_caught(loss: Surrogate, weights: list[float]) -> None:
    assert distance_from_pooled(loss, weights) > 1e-3


# The method


def views_of(method: Method, batch: Batch, seed: int = 0) -> Views:
    return method.make_views(batch, torch.Generator().manual_seed(seed))


def test_directions_are_the_steps_own(build: Build, blobs: Blobs) -> None:
    method, batch = build("lejepa", directions=40, projection=8), blobs(4)
    first, second = (views_of(method, batch, seed)["directions"] for seed in (0, 1))
    assert first.shape == (4, 40, 8) and first.stride(0) == 0  # of all images the same, in memory once
    torch.testing.assert_close(first.norm(dim=2), torch.ones(4, 40))
    assert not torch.isclose(first, second).all(dim=2).any()
    drawn = method.draw(4, torch.Generator().manual_seed(0))["directions"]
    assert torch.equal(drawn, first[0])
    # Of every way alike: the mean of u u' is the identity over the width.
    many = build("lejepa", directions=20000, projection=3).draw(1, torch.Generator().manual_seed(0))["directions"]
    torch.testing.assert_close(many.T @ many / 20000, torch.eye(3) / 3, rtol=0, atol=0.01)


@pytest.mark.parametrize("small_crops", [0, 3])
def test_the_method_compares_all_views_on_its_directions(small_crops: int, build: Build, blobs: Blobs) -> None:
    options = {"weight": 0.3, "directions": 5, "projection": 8, "projector_width": 12, "small_crops": small_crops}
    method = build("lejepa", **options).train()
    views = views_of(method, blobs(6))
    crops = [crop for size in ("large", "small") if size in views for crop in views[size].unbind(dim=1)]
    z = torch.stack([method.output(features(method.encoder, crop)) for crop in crops]).detach().double()
    loss, terms = method.loss(views)
    assert z.shape == (2 + small_crops, 6, 8)
    value, _ = by_formula(z.numpy(), views["directions"][0].double().numpy(), 0.3)
    assert loss.item() == pytest.approx(value, rel=1e-5)
    assert set(terms) == {"invariance", "sigreg"}


OTHER: dict[str, Any] = {
    "weight": 0.1,
    "directions": 9,
    "projector_width": 20,
    "projection": 5,
    "small_crops": 1,
    "small_scale": (0.3, 0.6),
    "small_size": 20,
    "large_scale": (0.9, 1.0),
    "focus": "entropy",
    "positives": "patient",
}


@pytest.mark.parametrize("setting", OTHER)
def test_every_setting_does_something(setting: str, build: Build, blobs: Blobs) -> None:
    assert OTHER.keys() == LeJEPAConfig.model_fields.keys() - {"name", "share"}
    batch = blobs(4)
    batch = replace(batch, partners=batch.images.roll(1, dims=0))
    found = []
    for options in ({}, {setting: OTHER[setting]}):
        method = build("lejepa", **{"directions": 16, "small_crops": 2} | options)
        given = batch if method.config.partner else replace(batch, partners=None)
        found.append(method.loss(views_of(method, given))[0].item())
    assert found[1] != pytest.approx(found[0], rel=1e-5)


def test_the_projector_has_no_batch_normalisation(build: Build) -> None:
    method = build("lejepa")
    assert not method.batch_normalised() and method.is_batch_coupled()
    widths = [layer.out_features for layer in method.modules() if isinstance(layer, torch.nn.Linear)][-3:]
    assert widths == [512, 512, 16]


def trained(method: Method, batch: Batch, fixed: bool) -> tuple[list[float], float]:
    """The losses of 60 steps, on the same views or on new ones, and the spread of projections: 1, all ways alike."""
    generator, losses = torch.Generator().manual_seed(0), []
    method.train()
    optimiser = torch.optim.AdamW(method.parameters(), 2e-3)
    views = method.make_views(batch, generator)
    for _ in range(60):
        loss, _ = method.loss(views if fixed else method.make_views(batch, generator))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    with torch.no_grad():
        output = method.output(features(method.encoder, views_of(method, batch, 5)["large"][:, 0]))
    assert output is not None
    return losses, feature_std(output) * output.shape[1] ** 0.5


def test_a_small_batch_is_learned(build: Build, blobs: Blobs) -> None:
    losses, _ = trained(build("lejepa", encoder=SMALL_VIT, directions=64), blobs(8), fixed=True)
    assert losses[-1] < 0.6 * losses[0]


def test_nothing_collapses_but_without_sigreg(build: Build, blobs: Blobs) -> None:
    options: dict[str, Any] = {"encoder": SMALL_VIT, "directions": 64, "small_crops": 2}
    _, whole = trained(build("lejepa", **options), blobs(16), fixed=False)
    _, without = trained(build("lejepa", **options, weight=0.0), blobs(16), fixed=False)
    assert without < 0.25 < 0.5 < whole
