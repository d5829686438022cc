"""What the centre-based head is taught: targets and loss by hand, and that reading them gives the boxes back."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.protocols.detection import decoded
from evaluation.protocols.detection_head import Answers
from evaluation.protocols.detection_targets import Targets, centre_loss, flipped, targets_of
from imaging.annotations.boxes import Boxes
from imaging.views.presets import Preset

SIDE = 32
GRID = SIDE // 4


def true(*boxes: tuple[float, float, float, float, int]) -> Boxes:
    kinds = np.array([box[4] for box in boxes], dtype=np.int64)
    return Boxes(np.array([box[:4] for box in boxes], dtype=np.float32).reshape(-1, 4), kinds)


def answers_of(targets: Targets, sure: float = 20.0) -> Answers:
    """What a head that has learnt everything says."""
    heat = torch.where(targets.heat == 1, sure, torch.logit(targets.heat * 0.9, eps=1e-6))
    size, offset = torch.zeros(len(heat), 2, GRID, GRID), torch.zeros(len(heat), 2, GRID, GRID)
    size[targets.image, :, targets.row, targets.column] = targets.size
    offset[targets.image, :, targets.row, targets.column] = targets.offset
    return Answers(heat, size, offset)


def test_targets_by_hand() -> None:
    """Middle (11, 22) of 8 x 16 pixels: column 2.75, row 5.5 of cells of 4 pixels, 2 x 4 cells large."""
    targets = targets_of([true(), true((7, 14, 15, 30, 1))], 2, SIDE)
    assert targets.heat.shape == (2, 2, GRID, GRID) and targets.heat.dtype == torch.float32
    assert (targets.image.tolist(), targets.row.tolist(), targets.column.tolist()) == ([1], [5], [2])
    assert targets.size.tolist() == [pytest.approx([math.log(2), math.log(4)])]
    assert targets.offset.tolist() == [pytest.approx([0.75, 0.5])]
    assert float(targets.heat[0].max()) == float(targets.heat[1, 0].max()) == 0.0
    heat = targets.heat[1, 1]
    assert float(heat[5, 2]) == 1.0
    # Deviations .09 of the sides: .18 cells across and .36 down.
    assert float(heat[6, 2]) == pytest.approx(math.exp(-0.5 / 0.36**2), rel=1e-5)
    assert float(heat[5, 3]) == pytest.approx(math.exp(-0.5 / 0.18**2), rel=1e-5)


def test_splats_of_one_class_are_joined_by_the_larger_one() -> None:
    one, other = (2.0, 2.0, 30.0, 30.0, 0), (10.0, 2.0, 31.0, 30.0, 0)
    alone = [targets_of([true(box)], 1, SIDE).heat for box in (one, other)]
    assert torch.equal(targets_of([true(one, other)], 1, SIDE).heat, torch.maximum(*alone))


def test_middles_at_the_edge_and_images_that_four_does_not_divide() -> None:
    """A box of no width at the far edge is in the last cell; 30 pixels are 8 cells of 3.75."""
    targets = targets_of([true((32, 0, 32, 32, 0))], 1, SIDE)
    assert (targets.column.tolist(), targets.row.tolist()) == ([7], [4])
    assert torch.isfinite(targets.size).all()
    odd = targets_of([true((0, 0, 30, 15, 0))], 1, 30)
    assert odd.heat.shape[-1] == 8
    assert odd.size.tolist() == [pytest.approx([math.log(8), math.log(4)])]


def test_loss_by_hand() -> None:
    """Two cells: one is the middle of a box (probability .5), the other has a splat of .2 (probability .25)."""
    heat = torch.tensor([[[[0.0, math.log(1 / 3)]]]])
    answers = Answers(heat, torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))
    place = torch.tensor([0])
    targets = Targets(
        torch.tensor([[[[1.0, 0.2]]]]), place, place, place, torch.tensor([[0.5, -1.0]]), torch.tensor([[0.25, 0.75]])
    )
    middle = 0.5**2 * math.log(2)
    elsewhere = 0.8**4 * 0.25**2 * -math.log(0.75)
    assert float(centre_loss(answers, targets)) == pytest.approx(middle + elsewhere + 1.5 + 1.0)


def test_loss_of_images_without_boxes_is_that_of_the_false_alarms() -> None:
    answers = Answers(torch.zeros(2, 1, 4, 4), torch.zeros(2, 2, 4, 4), torch.zeros(2, 2, 4, 4))
    targets = targets_of([true(), true()], 1, 16)
    assert float(centre_loss(answers, targets)) == pytest.approx(32 * 0.25 * math.log(2))


boxes_apart = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1), st.integers(1, 7), st.integers(1, 7)),
    unique_by=lambda place: place[:2], max_size=8,
)  # fmt: skip


@given(places=boxes_apart, shift=st.tuples(st.floats(-0.4, 3.4), st.floats(-0.4, 3.4)))
def test_reading_the_targets_gives_the_boxes_back(
    places: list[tuple[int, int, int, int, int]], shift: tuple[float, float]
) -> None:
    """Middles two cells apart or more: none is beside another."""
    middles = [(8 * x + 0.5 + shift[0], 8 * y + 0.5 + shift[1]) for x, y, *_ in places]
    truth = true(
        *(
            (x - w / 2, y - h / 2, x + w / 2, y + h / 2, k)
            for (x, y), (_, _, k, w, h) in zip(middles, places, strict=True)
        )
    )
    targets = targets_of([truth], 2, SIDE)
    found = decoded(answers_of(targets), SIDE, 2 * GRID**2)[0]
    sure = found.scores > 0.99
    assert sure.sum() == len(places)
    order, asked = (np.lexsort(boxes.round(2).T) for boxes in (found.boxes[sure], truth.boxes.clip(0, SIDE)))
    np.testing.assert_allclose(found.boxes[sure][order], truth.boxes.clip(0, SIDE)[asked], atol=1e-4)
    np.testing.assert_array_equal(found.kinds[sure][order], truth.kinds[asked])


def test_peaks_only_the_surest_first_and_no_more_than_asked() -> None:
    """A ridge beside a peak is none; two classes do not hide each other."""
    heat = torch.full((1, 2, GRID, GRID), -9.0)
    heat[0, 0, 2, 2], heat[0, 0, 2, 3], heat[0, 1, 2, 3], heat[0, 0, 6, 6] = 1.0, 0.5, 2.0, 0.0
    answers = Answers(heat, torch.zeros(1, 2, GRID, GRID), torch.full((1, 2, GRID, GRID), 0.5))
    found = decoded(answers, SIDE, 3)[0]
    assert found.kinds.tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.scores, torch.sigmoid(torch.tensor([2.0, 1.0, 0.0])).numpy(), rtol=1e-6)
    assert found.boxes.tolist() == [[12, 8, 16, 12], [8, 8, 12, 12], [24, 24, 28, 28]]
    assert (found.boxes.dtype, found.kinds.dtype, found.scores.dtype) == (np.float32, np.int64, np.float64)
    assert len(decoded(answers, SIDE, 1)[0].scores) == 1


def test_what_has_not_learnt_stays_within_the_image() -> None:
    answers = Answers(torch.zeros(1, 1, 2, 2), torch.full((1, 2, 2, 2), 1e4), torch.full((1, 2, 2, 2), -1e4))
    found = decoded(answers, 8, 9)[0]
    assert len(found.scores) == 4  # all alike: each is a peak
    assert np.isfinite(found.boxes).all() and found.boxes.min() >= 0 and found.boxes.max() <= 8


def marked(boxes: Boxes) -> torch.Tensor:
    """An image ``[1, S, S]`` that is bright inside its one box."""
    shown = torch.zeros(1, SIDE, SIDE)
    x0, y0, x1, y1 = (int(edge) for edge in boxes.boxes[0])
    shown[0, y0:y1, x0:x1] = 1.0
    return shown


@pytest.mark.parametrize(("across", "down"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_boxes_are_mirrored_with_their_images(across: float, down: float) -> None:
    preset = Preset("fixed", "zeros", (0.3, 1.0), horizontal_flip=across, vertical_flip=down)
    truth = [true((2, 5, 9, 30, 1)) for _ in range(40)]
    before = torch.stack([marked(one) for one in truth])
    images, boxes = flipped(before, truth, preset, torch.Generator().manual_seed(0))
    assert torch.equal(images, torch.stack([marked(one) for one in boxes]))
    moved = {tuple(one.boxes[0].tolist()) for one in boxes}
    assert len(moved) == (4 if across == 0.5 else 1)
    assert (((23, 5, 30, 30) in moved), ((2, 2, 9, 27) in moved)) == (
        across > 0 and down < 1,
        down > 0 and across < 1,
    )
    assert truth[0].boxes.tolist() == [[2, 5, 9, 30]]
