"""Overlap and distance of masks: against MONAI, and by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from monai.metrics import compute_hausdorff_distance
from monai.metrics.meandice import compute_dice
from numpy.typing import NDArray
from scipy import ndimage

from evaluation.tasks.overlap import edge_distance, overlap_table, patient_dice, patient_distance
from foundation.randomness import numpy_generator

from ...tiers import examples

NAN = float("nan")


def blobs(seed: int, shape: tuple[int, ...], classes: int) -> NDArray[np.uint8]:
    """Smooth noise cut into classes; each may be missing, and each may touch the image's edge."""
    noise = ndimage.gaussian_filter(numpy_generator(seed, "blobs").normal(size=shape), (0, *[2] * (len(shape) - 1)))
    return np.digitize(noise / noise.std(), np.linspace(0.3, 2.0, classes - 1)).astype(np.uint8)


def one_hot(masks: NDArray[np.uint8], classes: int) -> torch.Tensor:
    return torch.from_numpy((masks[:, None] == np.arange(classes).reshape(-1, *[1] * (masks.ndim - 1))).astype(float))


@examples(25)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(3, 16, 16), (2, 17, 23), (2, 8, 12, 12)]))
def test_counts_and_distances_are_monais(seed: int, shape: tuple[int, ...]) -> None:
    predicted, truth = blobs(seed, shape, 3), blobs(seed + 1, shape, 3)
    table = overlap_table(predicted, truth, ("low", "high"))
    dice = compute_dice(one_hot(predicted, 3), one_hot(truth, 3), ignore_empty=True).numpy()
    for value, name in ((1, "low"), (2, "high")):
        columns = (table[f"{column}_{name}"] for column in ("intersection", "predicted", "truth"))
        for image, counts in enumerate(zip(*columns, strict=True)):
            if counts[2]:  # MONAI has no figure where the truth is empty
                assert patient_dice(*(np.array([count]) for count in counts)) == pytest.approx(dice[image, value])
            if counts[1] and counts[2]:
                pair = [one_hot(mask[image : image + 1], 3)[:, [0, value]] for mask in (predicted, truth)]
                expected = compute_hausdorff_distance(*pair, percentile=95).item()
                assert table[f"hd95_{name}"][image] == pytest.approx(expected, rel=1e-5)


def square(top: int, left: int, side: int) -> NDArray[np.bool_]:
    mask = np.zeros((12, 16), dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_a_shifted_square_by_hand() -> None:
    """Two squares of side 3, three pixels apart to the right.

    Of 8 edge pixels of each, 3 lie at distance 1, 2 at 2 and 3 at 3 from the other's nearest column: the 95th
    percentile is 3.
    """
    assert edge_distance(square(2, 2, 3), square(2, 5, 3)) == 3.0
    assert edge_distance(square(2, 2, 1), square(5, 6, 1)) == 5.0
    assert edge_distance(square(2, 2, 3), square(2, 2, 3)) == 0.0


def test_the_percentile_is_interpolated_between_distances() -> None:
    """20 pixels in a row and the same with the last one moved away 10 pixels: of 20 distances 19 are 0 and one is 10.

    The 95th percentile lies at place .95 x 19 = 18.05 of the ordered distances 0 to 19: 5 % of the way from 0 to 10.
    """
    row, moved = np.zeros((3, 40), dtype=bool), np.zeros((3, 40), dtype=bool)
    row[1, :20] = True
    moved[1, :19] = moved[1, 29] = True
    assert edge_distance(row, moved) == pytest.approx(0.5)
    assert edge_distance(moved, row) == pytest.approx(0.5)


def test_a_missed_structure_costs_the_diagonal_and_nothing_to_find_has_no_distance() -> None:
    empty = np.zeros((12, 16), dtype=bool)
    assert edge_distance(empty, square(2, 2, 3)) == edge_distance(square(2, 2, 3), empty) == 20.0  # 12^2 + 16^2 = 20^2
    assert math.isnan(edge_distance(empty, empty))
    block = np.ones((2, 3, 6), dtype=bool)
    assert edge_distance(block, np.zeros((2, 3, 6), dtype=bool)) == 7.0  # 2^2 + 3^2 + 6^2 = 7^2


@given(seed=st.integers(0, 10**6))
def test_distance_is_symmetric_and_unchanged_by_a_wider_image(seed: int) -> None:
    first, second = (mask.astype(bool) for mask in blobs(seed, (2, 14, 14), 2))
    if first.any() and second.any():
        distance = edge_distance(first, second)
        assert distance == edge_distance(second, first)
        assert distance == edge_distance(np.pad(first, 5), np.pad(second, 5))


def test_the_table_by_hand() -> None:
    truth = np.array([[[1, 1, 0], [2, 0, 0]], [[0, 0, 0], [0, 0, 0]]], dtype=np.uint8)
    predicted = np.array([[[1, 0, 0], [1, 0, 0]], [[0, 0, 2], [0, 0, 0]]], dtype=np.uint8)
    table = overlap_table(predicted, truth, ("a", "b"))
    counts = {name: column.tolist() for name, column in table.items() if not name.startswith("hd95")}
    assert counts == {
        "intersection_a": [1, 0],
        "predicted_a": [2, 0],
        "truth_a": [2, 0],
        "intersection_b": [0, 0],
        "predicted_b": [0, 1],
        "truth_b": [1, 0],
    }
    np.testing.assert_allclose(table["hd95_a"], [0.95, NAN])  # distances 0 and 1: .95 of the way
    np.testing.assert_allclose(table["hd95_b"], [math.sqrt(13), math.sqrt(13)])


def test_a_patients_dice_is_over_all_images_together() -> None:
    """2 (3 + 0) / (4 + 2 + 5 + 1) = .5, where the mean of the images' 6/9 and 0/3 would be .33."""
    assert patient_dice(np.array([3, 0]), np.array([4, 2]), np.array([5, 1])) == 0.5
    assert patient_dice(np.array([0]), np.array([0]), np.array([7])) == 0.0
    assert math.isnan(patient_dice(np.zeros(2), np.zeros(2), np.zeros(2)))


def test_a_patients_distance_is_the_mean_where_there_is_one() -> None:
    assert patient_distance(np.array([3.0, NAN, 5.0])) == 4.0
    assert math.isnan(patient_distance(np.array([NAN, NAN])))
