"""The baselines of detection: nothing, and blobs on either side of a threshold."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.protocols.detection_baselines import blobs, blobs_found, nothing_found, otsu
from evaluation.tasks.average_precision import average_precision, matches
from imaging.annotations.boxes import Boxes, read_boxes
from imaging.config import ImageConfig
from imaging.reading.readers import prepare
from simulation.datasets.bccd import CLASSES as CELLS
from simulation.datasets.bccd import list_bccd
from simulation.datasets.dataset import NoOptions

CLASSES = ("bright", "dark")


def scene(seed: int, count: int) -> tuple[np.ndarray, list[Boxes]]:
    """Large bright and small dark rectangles on grey; a third of another grey is no object."""
    draw = np.random.default_rng(seed)
    shown, truth = np.full((count, 1, 32, 32), 0.4, dtype=np.float32), []
    for image in shown[:, 0]:
        x, y = draw.integers(0, 6, 2)
        image[y : y + 9, x : x + 8] = 0.9
        image[y + 18 : y + 22, x + 16 : x + 20] = 0.85
        truth.append(Boxes(np.array([[x, y, x + 8, y + 9]], dtype=np.float32), np.array([0])))
    return shown, truth


def test_nothing_is_worth_nothing() -> None:
    shown, truth = scene(1, 3)
    assert average_precision(matches(nothing_found(3), truth, 2), CLASSES, (0.5,)) == 0.0
    assert len(shown) == len(nothing_found(3))


def test_blobs_of_the_class_are_found_and_others_are_less_sure() -> None:
    shown, truth = scene(1, 20)
    unseen, expected = scene(2, 6)
    found = blobs_found((shown, truth), unseen, 2)
    assert average_precision(matches(found, expected, 2), CLASSES, (0.5,)) == 1.0
    for one, true in zip(found, expected, strict=True):
        assert len(one.scores) == 3  # the two rectangles, and the grey round them
        np.testing.assert_array_equal(one.boxes[0], true.boxes[0])
        assert one.kinds[0] == 0 and one.scores[0] > 0.9 and (one.scores[1:] < 0.1).all()
        assert ((one.scores > 0) & (one.scores < 1)).all() and (np.diff(one.scores) <= 0).all()


def test_dark_objects_of_another_class_are_told_apart() -> None:
    shown, truth = scene(1, 20)
    dark = 0.8 - shown
    both = np.concatenate([shown, dark.clip(0, 1)])
    found = blobs_found((both, [*truth, *(Boxes(one.boxes, one.kinds + 1) for one in truth)]), both[[0, 20]], 2)
    assert [one.kinds[0] for one in found] == [0, 1]


def test_black_bars_beside_a_image_are_no_part_of_it() -> None:
    """A wide image: rows 0 to 7 and 24 to 31 are empty. With them, all of the image would be one bright blob."""
    image = np.zeros((1, 32, 32), dtype=np.float32)
    image[0, 8:24] = 0.6
    image[0, 10:14, 5:12] = 0.3
    boxes, rows = blobs(image)
    assert boxes.tolist() == [[5, 10, 12, 14], [0, 8, 32, 24]]
    np.testing.assert_allclose(rows[0], [0, np.log(28 / 1024), np.log(28 / 1024), np.log(7 / 4), 1, 0.3], rtol=1e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_images_of_one_value_have_no_blob_but_themselves(value: float) -> None:
    boxes, rows = blobs(np.full((3, 16, 16), value, dtype=np.float32))
    assert len(boxes) == len(rows) <= 1 and rows.shape[1] == 8


def test_one_kind_of_blob_in_training_is_all_that_is_known() -> None:
    shown, truth = scene(1, 4)
    nothing = [Boxes(one.boxes[:0], one.kinds[:0]) for one in truth]
    for one in blobs_found((shown, nothing), shown, 2):
        assert len(one.scores) == 3 and (one.scores < 1e-6).all()


def test_repeats_itself() -> None:
    one, other = (blobs_found(scene(1, 9), scene(2, 3)[0], 2) for _ in range(2))
    for a, b in zip(one, other, strict=True):
        assert np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)


@given(values=st.lists(st.integers(0, 255), min_size=2, max_size=40))
def test_threshold_leaves_the_least_spread_on_both_sides(values: list[int]) -> None:
    """Otsu's criterion said the other way round, tried at every place. Values are middles of the histogram's bins."""
    grey = (np.array(values) + 0.5) / 256

    def spread(threshold: float) -> float:
        return sum(side.var() * len(side) for side in (grey[grey > threshold], grey[grey <= threshold]) if len(side))

    assert spread(otsu(grey)) == pytest.approx(min(spread(step / 256) for step in range(1, 256)), abs=1e-12)


@pytest.mark.slow
def test_white_cells_of_real_smears_are_found(shared: Path, tmp_path: Path) -> None:
    """They are darkest, so that the threshold parts most of them; red cells touch each other."""
    image = ImageConfig(modality="microscopy", size=96, channels=3)
    manifest = list_bccd(shared / "data" / "bccd", tmp_path, 0, NoOptions())
    shown = np.stack([prepare(path, image) for path in manifest.paths()[:60]])
    truth = read_boxes(manifest.table.iloc[:60], manifest.root, image, CELLS)
    found = blobs_found((shown[:40], truth[:40]), shown[40:], 3)
    white = [Boxes(one.boxes[one.kinds == 2], one.kinds[one.kinds == 2]) for one in truth[40:]]
    assert 0.5 < average_precision(matches(found, white, 3), CELLS, (0.5,)) < 0.9
