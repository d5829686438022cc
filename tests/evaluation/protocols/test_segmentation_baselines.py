"""The baselines of segmentation need no encoder, and find what single pixels and their places tell."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from evaluation.protocols import segmentation_baselines as segmentation_baselines
from evaluation.protocols.segmentation_baselines import background_masks, described_pixels, pixel_masks
from evaluation.tasks.overlap import overlap_table, patient_dice
from foundation.randomness import numpy_generator

Pair = tuple[NDArray[np.float32], NDArray[np.uint8]]


def discs(count: int, seed: int, sides: tuple[int, ...] = (24, 24)) -> Pair:
    """Noisy images of two channels with a bright ball (class 1) and a dark one (class 2, rare) at random places."""
    rng = numpy_generator(seed, "discs")
    images = rng.normal(0.5, 0.05, (count, 2, *sides))
    masks = np.zeros((count, *sides), dtype=np.uint8)
    places = np.stack(np.meshgrid(*(np.arange(side) for side in sides), indexing="ij"))
    for number in range(count):
        for value, radius, change in ((1, 5, 0.3), (2, 2, -0.3)):
            if value == 1 or number % 3 == 0:
                centre = rng.uniform(0, np.array(sides)).reshape(-1, *[1] * len(sides))
                inside = np.sqrt(((places - centre) ** 2).sum(0)) < radius
                images[number, 0][inside] = 0.5 + change + rng.normal(0, 0.05, int(inside.sum()))
                masks[number][inside] = value
    return images.clip(0, 1).astype(np.float32), masks


def dice(found: NDArray[np.uint8], truth: NDArray[np.uint8]) -> list[float]:
    """Of classes 1 and 2 over all images."""
    table = overlap_table(found, truth, ("1", "2"))
    return [patient_dice(*(table[f"{column}_{k}"] for column in ("intersection", "predicted", "truth"))) for k in "12"]


def test_nothing_anywhere_is_worth_nothing() -> None:
    _, truth = discs(6, 1)
    found = background_masks(truth.shape)
    assert found.shape == truth.shape and found.dtype == np.uint8
    assert dice(found, truth) == [0.0, 0.0]


@pytest.mark.parametrize("sides", [(24, 24), (10, 16, 16)], ids=["images", "volumes"])
def test_bright_and_dark_balls_are_found_the_same_each_time(sides: tuple[int, ...]) -> None:
    train, (unseen, truth) = discs(12, 1, sides), discs(9, 2, sides)
    found = pixel_masks(train, unseen, 3, 5)
    assert found.shape == truth.shape and found.dtype == np.uint8
    assert min(dice(found, truth)) > 0.7
    np.testing.assert_array_equal(pixel_masks(train, unseen, 3, 5), found)


def two_classes() -> tuple[Pair, NDArray[np.float32]]:
    (images, masks), (unseen, _) = discs(12, 1), discs(9, 2)
    return (images, np.minimum(masks, 1)), unseen


def test_on_all_pixels_it_is_scikit_learns_logistic_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many pixels to draw as there are, nothing is balanced and there is nothing to correct."""
    (images, masks), unseen = two_classes()
    monkeypatch.setattr(segmentation_baselines, "SAMPLED", 2 * masks.size)
    x = np.concatenate([described_pixels(image) for image in images])
    centre, spread = x.mean(0), x.std(0)
    plain = LogisticRegression(max_iter=5000, tol=1e-8).fit((x - centre) / spread, masks.reshape(-1))
    rows = np.concatenate([described_pixels(image) for image in unseen])
    expected = plain.predict((rows - centre) / spread)
    found = pixel_masks((images, masks), unseen, 2, 0).reshape(-1)
    assert 0.02 < expected.mean() < 0.2
    assert (found == expected).mean() > 0.9995


def test_balanced_pixels_get_the_classes_shares_as_priors(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a rare class is found about as often as it is there, not as often as it was drawn."""
    (images, masks), unseen = two_classes()
    corrected = pixel_masks((images, masks), unseen, 2, 0)
    monkeypatch.setattr(segmentation_baselines, "SAMPLED", 2 * masks.size)
    everything = pixel_masks((images, masks), unseen, 2, 0)
    assert (corrected == everything).mean() > 0.97
    assert 0.7 < corrected.mean() / everything.mean() < 1.3


def test_only_so_many_pixels_are_drawn_as_many_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segmentation_baselines, "SAMPLED", 90)
    _, masks = discs(12, 1)
    chosen, values, present = segmentation_baselines._sample(masks, 4, 0)
    assert np.bincount(values).tolist() == [30, 30, 30]
    assert present.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(masks.reshape(-1)[chosen], values)
    assert len(set(chosen)) == 90


def test_places_alone_tell_an_organ_that_is_always_in_the_middle() -> None:
    rng = numpy_generator(1, "noise")
    images = rng.uniform(0, 1, (8, 1, 20, 20)).astype(np.float32)
    masks = np.zeros((8, 20, 20), dtype=np.uint8)
    masks[:, 6:14, 6:14] = 1
    found = pixel_masks((images[:6], masks[:6]), images[6:], 2, 0)
    assert dice(found, masks[6:])[0] > 0.8


def test_the_place_of_a_pixel_by_hand() -> None:
    rows = described_pixels(np.zeros((1, 2, 4), dtype=np.float32))
    assert rows.shape == (8, 3 + 4)  # intensity and two blurs; down, across and their squares
    np.testing.assert_allclose(rows[0, 3:], [-0.5, -0.75, 0.25, 0.5625])
    np.testing.assert_allclose(rows[-1, 3:], [0.5, 0.75, 0.25, 0.5625])


def test_a_class_that_no_training_image_has_is_never_found() -> None:
    (images, masks), (unseen, truth) = discs(12, 1), discs(9, 2)
    found = pixel_masks((images, np.where(masks == 1, 0, masks).astype(np.uint8)), unseen, 3, 0)
    assert set(np.unique(found)) == {0, 2}
    everywhere = pixel_masks((images, np.zeros_like(masks)), unseen, 3, 0)
    np.testing.assert_array_equal(everywhere, background_masks(truth.shape))
