"""Average precision: by hand, against MONAI and a slow independent count, and what holds for any detections."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.protocols.detection_types import Detected
from evaluation.statistics.intervals import FloatArray
from evaluation.tasks.average_precision import (
    THRESHOLDS,
    average_precision,
    matches,
    overlaps,
    read_table,
    thresholds_of,
)
from imaging.annotations.boxes import Boxes

CLASSES = ("cell", "nucleus")
Found = tuple[float, float, float, float, int, float]


def true(*boxes: tuple[float, float, float, float, int]) -> Boxes:
    kinds = np.array([box[4] for box in boxes], dtype=np.int64)
    return Boxes(np.array([box[:4] for box in boxes], dtype=np.float32).reshape(-1, 4), kinds)


def found(*boxes: Found) -> Detected:
    order = sorted(boxes, key=lambda box: -box[5])
    places = np.array([box[:4] for box in order], dtype=np.float32).reshape(-1, 4)
    kinds, scores = np.array([box[4] for box in order], dtype=np.int64), np.array([box[5] for box in order])
    return Detected(places, kinds, scores.astype(np.float64))


def test_overlaps_by_hand() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 5, 5]], dtype=np.float32)
    np.testing.assert_allclose(overlaps(boxes, boxes[:2]), [[1, 1 / 7], [1 / 7, 1], [0, 0]])


def test_one_class_by_hand() -> None:
    """Hit, miss, hit of 3 true boxes: precision 1 to recall 1/3, 2/3 to 2/3, then 0; 34 and 33 of 101 recalls."""
    truth = true((0, 0, 10, 10, 0), (20, 0, 30, 10, 0), (40, 0, 50, 10, 0))
    shown = found((0, 0, 10, 10, 0, 0.9), (60, 0, 70, 10, 0, 0.8), (20, 0, 30, 10, 0, 0.7))
    expected = (34 * 1 + 33 * 2 / 3) / 101
    assert average_precision(matches([shown], [truth], 2), CLASSES, (0.5,)) == pytest.approx(expected)
    # Alike at every threshold, as overlaps are 0 and 1.
    assert average_precision(matches([shown], [truth], 2), CLASSES, thresholds_of()) == pytest.approx(expected)


def test_thresholds_by_hand() -> None:
    """An overlap of .7 is a hit at .5, .55, .6, .65 and .7, half of the ten thresholds."""
    table = matches([found((0, 0, 10, 7, 0, 0.9))], [true((0, 0, 10, 10, 0))], 2)
    assert thresholds_of() == (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
    assert average_precision(table, CLASSES, thresholds_of()) == pytest.approx(0.5)
    assert average_precision(table, CLASSES, (0.7,)) == 1.0 and average_precision(table, CLASSES, (0.75,)) == 0.0
    with pytest.raises(ValueError):
        average_precision(table, CLASSES, (0.3,))


def test_the_surest_takes_the_box_it_overlaps_most() -> None:
    """The surer one (.6 and .8) takes the second box, the other is then left with the first (.55): both hit at .5, and
    a third finds nothing free."""
    truth = true((0, 0, 10, 10, 0), (0, 4, 10, 12, 0))
    shown = found((0, 2, 10, 12, 0, 0.9), (0, 0, 10, 5.5, 0, 0.8), (0, 0, 10, 10, 0, 0.7))
    table = read_table(matches([shown], [truth], 1)[0])
    assert table.hits[:, 0].tolist() == [True, True, False]
    assert table.hits[:, THRESHOLDS.index(0.75)].tolist() == [True, False, True]


def test_a_class_without_truth_does_not_count_and_false_alarms_do() -> None:
    shown = found((0, 0, 10, 10, 0, 0.6), (0, 0, 10, 10, 1, 0.9), (50, 50, 60, 60, 0, 0.7))
    assert average_precision(matches([shown], [true((0, 0, 10, 10, 0))], 2), CLASSES, (0.5,)) == pytest.approx(0.5)
    assert np.isnan(average_precision(matches([shown], [true()], 2), CLASSES, (0.5,)))
    assert np.isnan(average_precision([], CLASSES, (0.5,)))
    assert average_precision(matches([found()], [true((0, 0, 1, 1, 1))], 2), CLASSES, (0.5,)) == 0.0


def test_equal_scores_come_in_together() -> None:
    """A hit and a false alarm of the same score, in either order of their images: precision .5 at once."""
    pair = [found((0, 0, 10, 10, 0, 0.5)), found((0, 0, 10, 10, 0, 0.5))]
    tables = matches(pair, [true((0, 0, 10, 10, 0)), true()], 1)
    for order in (tables, tables[::-1]):
        assert average_precision(order, ("cell",), (0.5,)) == pytest.approx(0.5)


def test_the_text_keeps_all_that_matters_and_no_place() -> None:
    shown = found((0, 0, 10, 7, 1, 0.1234567), (20, 20, 30, 30, 0, 0.9))
    text = matches([shown], [true((0, 0, 10, 10, 1), (0, 0, 5, 5, 1))], 2)[0]
    assert text == '{"truth":[0,2],"kinds":[0,1],"scores":[0.9,0.1234567],"hits":[0,31]}'
    assert read_table(text).written() == text


def drawn(seed: int, images: int) -> tuple[list[Detected], list[Boxes]]:
    """Boxes on a coarse grid so that many overlap, and detections near some of them; all scores differ."""
    draw = np.random.default_rng(seed)
    scores = draw.permutation(10_000) / 10_000 + 5e-5
    shown, truth = [], []
    for _ in range(images):
        corners = draw.integers(0, 40, (draw.integers(0, 7), 2)).astype(np.float32)
        boxes = np.hstack([corners, corners + draw.integers(4, 25, corners.shape)]).astype(np.float32)
        truth.append(Boxes(boxes, draw.integers(0, 2, len(boxes))))
        near = np.repeat(boxes, 2, axis=0) + draw.normal(0, 1.5, (2 * len(boxes), 4)).astype(np.float32)
        chance = draw.integers(0, 40, (3, 2)).astype(np.float32)
        near = np.vstack([near, np.hstack([chance, chance + 9])]).astype(np.float32)
        kinds = np.append(np.repeat(truth[-1].kinds, 2), draw.integers(0, 2, 3))
        sure, scores = np.sort(scores[: len(near)])[::-1], scores[len(near) :]
        shown.append(Detected(near[draw.permutation(len(near))], kinds, sure))
    return shown, truth


def slow(shown: list[Detected], truth: list[Boxes], threshold: float) -> float:
    """The definition, a detection and a recall at a time."""
    values = []
    for kind in range(2):
        boxes = {(i, j): box for i, t in enumerate(truth) for j, box in enumerate(t.boxes) if t.kinds[j] == kind}
        if not boxes:
            continue
        called = [
            (s, i, box)
            for i, d in enumerate(shown)
            for box, k, s in zip(d.boxes, d.kinds, d.scores, strict=True)
            if k == kind
        ]
        outcome, taken = [], set()
        for _, image, box in sorted(called, key=lambda each: -each[0]):
            options = [(shared(box, other), key) for key, other in boxes.items() if key[0] == image]
            options = [(value, key) for value, key in options if value >= threshold and key not in taken]
            taken |= {max(options)[1]} if options else set()
            outcome.append(bool(options))
        curve = [(sum(outcome[: n + 1]) / len(boxes), sum(outcome[: n + 1]) / (n + 1)) for n in range(len(outcome))]
        steps = [max([p for r, p in curve if r >= step], default=0.0) for step in np.linspace(0, 1, 101)]
        values.append(sum(steps) / 101)
    return sum(values) / len(values) if values else float("nan")


def shared(box: FloatArray, other: FloatArray) -> float:
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    inside = float(max(width, 0)) * float(max(height, 0))
    return inside / (
        float((box[2] - box[0]) * (box[3] - box[1]) + (other[2] - other[0]) * (other[3] - other[1])) - inside
    )


@given(seed=st.integers(0, 10_000), images=st.integers(1, 6), threshold=st.sampled_from(THRESHOLDS))
def test_agrees_with_a_slow_count(seed: int, images: int, threshold: float) -> None:
    shown, truth = drawn(seed, images)
    value = average_precision(matches(shown, truth, 2), CLASSES, (threshold,))
    np.testing.assert_allclose(value, slow(shown, truth, threshold), atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_agrees_with_monai(seed: int) -> None:
    from monai.apps.detection.metrics.coco import COCOMetric
    from monai.apps.detection.metrics.matching import matching_batch

    shown, truth = drawn(seed, 12)
    metric = COCOMetric(CLASSES, iou_list=(0.5,), iou_range=(0.5, 0.95, 0.05), max_detection=(100,), verbose=False)
    parts = ([getattr(one, name) for one in shown] for name in ("boxes", "kinds", "scores"))
    results = matching_batch(
        overlaps, metric.iou_thresholds, *parts, [t.boxes for t in truth], [t.kinds for t in truth]
    )
    expected = metric(results)[0]
    tables = matches(shown, truth, 2)
    np.testing.assert_allclose(
        average_precision(tables, CLASSES, (0.5,)), expected["AP_IoU_0.50_MaxDet_100"], atol=1e-6
    )
    whole = expected["mAP_IoU_0.50_0.95_0.05_MaxDet_100"]
    np.testing.assert_allclose(average_precision(tables, CLASSES, thresholds_of()), whole, atol=1e-6)


@given(seed=st.integers(0, 10_000), images=st.integers(1, 6))
def test_bounded_and_the_same_in_any_order_of_images(seed: int, images: int) -> None:
    tables = matches(*drawn(seed, images), 2)
    value = average_precision(tables, CLASSES, thresholds_of())
    again = average_precision(tables[::-1], CLASSES, thresholds_of())
    assert np.isnan(value) or 0.0 <= value <= 1.0
    np.testing.assert_equal(again, value)


@given(seed=st.integers(0, 10_000), images=st.integers(1, 6))
def test_the_truth_is_1_and_one_more_false_alarm_never_helps(seed: int, images: int) -> None:
    shown, truth = drawn(seed, images)
    answer = [Detected(t.boxes, t.kinds, np.linspace(0.9, 0.8, len(t.kinds))) for t in truth]
    perfect = average_precision(matches(answer, truth, 2), CLASSES, thresholds_of())
    assert perfect == 1.0 or not any(len(t.kinds) for t in truth)
    before = average_precision(matches(shown, truth, 2), CLASSES, (0.5,))
    nothing, alarm = true(), found((0, 0, 1, 1, 0, 0.99999))
    after = average_precision(matches([*shown, alarm], [*truth, nothing], 2), CLASSES, (0.5,))
    assert np.isnan(before) or after <= before
