"""A probe fitted by summed gradients is the central one, however the images lie at sites."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.federated.logistic import Moments, SiteShare, minimise, outputs_of, probabilities, standard_of, summed
from evaluation.protocols.logistic import Standard, path
from evaluation.statistics.intervals import FloatArray, IntArray
from foundation.errors import RunError

from ...tiers import examples

CLOSE = 1e-4


def images(seed: int, count: int, width: int, classes: int) -> tuple[FloatArray, IntArray]:
    """Correlated features of very different sizes, and classes that overlap; every class occurs."""
    draw = np.random.default_rng(seed)
    features = draw.normal(size=(count, width)) @ draw.normal(size=(width, width)) * 10.0 ** draw.uniform(-2, 2, width)
    features += draw.normal(size=width) * 50
    labels = (draw.normal(size=(count, classes)) + 0.02 * features[:, :1]).argmax(1)
    labels[:classes] = np.arange(classes)
    return features, labels.astype(np.int64)


def federated(sites: dict[str, SiteShare], strength: float, most: int = 2000) -> tuple[FloatArray, Standard]:
    shared = standard_of({name: site.moments() for name, site in sites.items()})
    first = next(iter(sites.values()))
    shape = (first.features.shape[1] + 1, outputs_of(first.classes))

    def ask(weights: FloatArray) -> tuple[float, FloatArray]:
        return summed({name: site.value_and_gradient(weights, shared) for name, site in sites.items()})

    return minimise(ask, shape, strength, most), shared


def central(features: FloatArray, labels: IntArray, classes: int, strength: float) -> tuple[FloatArray, FloatArray]:
    """Weights and probabilities of evaluation/protocols/logistic.py at that one C."""
    standard = Standard.of(features)
    (fitted,) = path(standard(features), labels, classes, [strength])
    weights = np.vstack([fitted.rotation @ fitted.weights[:-1], fitted.weights[-1:]])
    return weights, fitted.probabilities(standard(features))


def determined(weights: FloatArray) -> FloatArray:
    """Weights with biases of mean 0: of three classes and more, adding a number to all biases changes nothing."""
    moved = weights.copy()
    if weights.shape[1] > 1:
        moved[-1] -= moved[-1].mean()
    return moved


def split(features: FloatArray, labels: IntArray, classes: int, site: IntArray) -> dict[str, SiteShare]:
    names = {f"site-{code}": site == code for code in range(5)}  # some may have no image with a label
    return {name: SiteShare(features[own], labels[own], classes) for name, own in names.items()}


@examples(25)
@given(
    seed=st.integers(0, 10_000), count=st.integers(8, 60), width=st.integers(1, 12), classes=st.integers(2, 3),
    strength=st.sampled_from([0.01, 0.1, 1.0]), data=st.data(),
)  # fmt: skip
def test_any_split_into_sites_gives_the_central_probe(
    seed: int, count: int, width: int, classes: int, strength: float, data: st.DataObject
) -> None:
    features, labels = images(seed, count, width, classes)
    site = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)), dtype=np.int64)
    weights, standard = federated(split(features, labels, classes, site), strength)
    expected, scores = central(features, labels, classes, strength)
    assert np.abs(determined(weights) - determined(expected)).max() < CLOSE
    assert np.abs(probabilities(features, weights, standard) - scores).max() < CLOSE


@pytest.mark.parametrize("classes", [2, 3])
def test_sites_of_one_class_and_a_site_without_labels(classes: int) -> None:
    """A class a site, and one with nothing: no site alone could fit anything, together they do."""
    features, labels = images(3, 50, 6, classes)
    sites = {f"class-{k}": SiteShare(features[labels == k], labels[labels == k], classes) for k in range(classes)}
    sites["none"] = SiteShare(features[:0], labels[:0], classes)
    weights, standard = federated(sites, 0.1)
    expected, scores = central(features, labels, classes, 0.1)
    assert np.abs(determined(weights) - determined(expected)).max() < CLOSE
    assert np.abs(probabilities(features, weights, standard) - scores).max() < CLOSE
    assert sites["none"].value_and_gradient(weights, standard)[0] == 0.0
    assert not sites["none"].value_and_gradient(weights, standard)[1].any()


def test_a_bias_over_few_images_is_as_exact_as_the_weights() -> None:
    features, labels = images(8, 8, 2, 2)
    weights, _ = federated({"a": SiteShare(features, labels, 2)}, 0.01)
    assert np.abs(weights - central(features, labels, 2, 0.01)[0]).max() < CLOSE / 2


def test_more_features_than_images() -> None:
    features, labels = images(4, 20, 100, 2)
    weights, standard = federated(
        {"a": SiteShare(features[:9], labels[:9], 2), "b": SiteShare(features[9:], labels[9:], 2)}, 0.01
    )
    expected, scores = central(features, labels, 2, 0.01)
    assert np.abs(weights - expected).max() < CLOSE
    assert np.abs(probabilities(features, weights, standard) - scores).max() < CLOSE


def test_value_and_gradient_by_hand() -> None:
    """Two images at W = 0: each costs log 2; the gradient is (1/2 - y) x, summed."""
    share = SiteShare(np.array([[2.0], [6.0]]), np.array([0, 1]), 2)
    standard = standard_of({"a": share.moments()})
    assert standard.centre.tolist() == [4.0]
    assert standard.spread.tolist() == [2.0]
    value, gradient = share.value_and_gradient(np.zeros((2, 1)), standard)
    assert value == pytest.approx(2 * np.log(2), abs=1e-15)
    assert gradient.tolist() == [[-1.0], [0.0]]  # 1/2 x (-1) - 1/2 x 1, and 1/2 - 1/2


@pytest.mark.parametrize("classes", [2, 3])
def test_the_gradient_is_that_of_the_value(classes: int) -> None:
    features, labels = images(5, 12, 3, classes)
    share = SiteShare(features, labels, classes)
    standard = standard_of({"a": share.moments()})
    weights = np.random.default_rng(1).normal(size=(4, outputs_of(classes)))
    gradient = share.value_and_gradient(weights, standard)[1]
    for place in np.ndindex(weights.shape):
        step = np.zeros_like(weights)
        step[place] = 1e-6
        up, down = (share.value_and_gradient(weights + sign * step, standard)[0] for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(gradient[place], abs=1e-6)


@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 30), max_size=3))
def test_moments_of_sites_are_those_of_all(seed: int, cuts: list[int]) -> None:
    """Also for a mean a million times the spread, where sums of squares would lose every digit."""
    features = np.random.default_rng(seed).normal(size=(30, 4)) + np.array([0.0, 1e2, 1e6, 1e6])
    features[:, 3] = 1e6
    parts = np.split(features, sorted(cuts))
    found = standard_of({str(i): Moments.of(part) for i, part in enumerate(parts)})
    whole = Standard.of(features)
    assert np.allclose(found.centre, whole.centre, rtol=1e-14, atol=1e-14)
    assert np.allclose(found.spread, whole.spread, rtol=1e-8)
    assert found.spread[3] == 1.0


def test_the_order_of_arrival_changes_no_bit() -> None:
    features, labels = images(6, 60, 5, 3)
    sites = split(features, labels, 3, np.arange(60) % 5)
    one, _ = federated(sites, 0.1)
    other, _ = federated(dict(reversed(sites.items())), 0.1)
    assert one.tobytes() == other.tobytes()


def test_too_few_gradients_are_one_clear_line() -> None:
    features, labels = images(7, 60, 5, 2)
    with pytest.raises(RunError) as caught:
        federated(split(features, labels, 2, np.arange(60) % 5), 1.0, most=3)
    assert str(caught.value) == (
        "the probe has not converged after 3 gradients of each site; raise federated_evaluation.steps, or lower "
        "federated_evaluation.strength (1)"
    )
