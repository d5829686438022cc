"""AUC over pairs of one patient, and of one position, against counting the pairs one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.statistics.intervals import Scored, auc
from evaluation.statistics.matched_auc import NEAR, auc_at_position, auc_within_patients


def drawn(seed: int, images: int = 60, patients: int = 8, classes: int = 2) -> tuple[Scored, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, images)
    scores = rng.integers(0, 6, (images, classes)) / 6.0  # ties
    names = np.array([f"p{n}" for n in rng.integers(0, patients, images)])
    return Scored(labels, scores, names, np.array(["0/A"] * images)), rng.uniform(size=images)


def counted(data: Scored, allowed: np.ndarray) -> float:
    won = pairs = 0.0
    for i in np.flatnonzero(data.labels == 1):
        for j in np.flatnonzero(data.labels == 0):
            if allowed[i, j]:
                high, low = data.scores[i, 1], data.scores[j, 1]
                won += 1.0 if high > low else 0.5 if high == low else 0.0
                pairs += 1
    return won / pairs if pairs else float("nan")


@given(st.integers(0, 10**6))
def test_pairs_at_one_position_are_counted(seed: int) -> None:
    data, position = drawn(seed)
    near = np.abs(position[:, None] - position[None, :]) <= NEAR
    estimate = auc_at_position(data, position)
    assert estimate.value == pytest.approx(counted(data, near))
    for number, patient in enumerate(estimate.patients):  # the influence is that of leaving the patient out
        kept = data.patients != patient
        without = counted(data.where(kept), near[np.ix_(kept, kept)])
        share = (len(estimate.patients) - 1) / len(estimate.patients)
        assert estimate.influence[number] == pytest.approx((estimate.value - without) * share, abs=1e-12)


@given(st.integers(0, 10**6))
def test_within_patients_is_the_mean_of_each_ones_own(seed: int) -> None:
    data, _ = drawn(seed)
    own = [counted(data.where(data.patients == p), np.ones((60, 60), bool)) for p in np.unique(data.patients)]
    assert auc_within_patients(data).value == pytest.approx(np.nanmean(own))


def test_what_is_told_by_position_alone_is_told_at_no_position() -> None:
    rng = np.random.default_rng(0)
    position = rng.uniform(size=600)
    labels = (rng.uniform(size=600) < position).astype(np.int64)  # likelier the higher
    names = np.array([f"p{n}" for n in rng.integers(0, 30, 600)])
    data = Scored(labels, np.stack([1 - position, position], axis=1), names, np.array(["0/A"] * 600))
    assert auc(data).value > 0.8
    assert auc_at_position(data, position).value == pytest.approx(0.55, abs=0.04)  # what is left within a tenth


def test_without_positions_or_second_classes_there_is_no_figure() -> None:
    data, _ = drawn(1)
    assert np.isnan(auc_at_position(data, np.full(60, np.nan)).value)
    one_each = Scored(np.array([0, 1]), np.eye(2), np.array(["a", "b"]), np.array(["0/A", "0/A"]))
    assert np.isnan(auc_within_patients(one_each).value)


def test_of_three_classes_it_is_the_mean_of_one_versus_rest() -> None:
    data, position = drawn(5, images=90, classes=3)
    parts = []
    for k in range(3):
        score = data.scores[:, k]
        two = Scored(
            (data.labels == k).astype(np.int64), np.stack([1 - score, score], axis=1), data.patients, data.strata
        )
        parts.append(auc_at_position(two, position).value)
    assert auc_at_position(data, position).value == pytest.approx(np.mean(parts))
