"""Label budgets are drawn by patient, nested, and skipped where they cannot be."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.tasks.labels import LabelBudget, draw

PATIENTS = np.array([f"p{i // 4}" for i in range(120)])
LABELS = np.array([(i // 4 + i) % 2 for i in range(120)], dtype=np.int64)
NAMES = ("no", "yes")


@given(fraction=st.floats(0.17, 1.0), seed=st.integers(0, 99), repeat=st.integers(0, 5))
def test_a_patient_is_drawn_whole(fraction: float, seed: int, repeat: int) -> None:
    drawn = draw(LabelBudget(fraction=fraction), PATIENTS, LABELS, NAMES, seed, repeat, 0)
    chosen = set(PATIENTS[drawn.keep])
    assert not chosen & set(PATIENTS[~drawn.keep])
    assert len(chosen) == round(fraction * 30)


def test_draws_are_nested_differ_by_repeat_and_repeat_themselves() -> None:
    small, large = (draw(LabelBudget(fraction=f), PATIENTS, LABELS, NAMES, 1, 0, 0).keep for f in (0.2, 0.6))
    assert not (small & ~large).any()
    other = draw(LabelBudget(fraction=0.2), PATIENTS, LABELS, NAMES, 1, 1, 0).keep
    assert (small != other).any()
    assert (draw(LabelBudget(fraction=0.2), PATIENTS, LABELS, NAMES, 1, 0, 0).keep == small).all()


def test_few_shot_takes_patients_of_each_class() -> None:
    keep = draw(LabelBudget(shots=5), PATIENTS, LABELS, NAMES, 1, 0, 0).keep
    assert [len(set(PATIENTS[keep & (k == LABELS)])) for k in (0, 1)] == [5, 5]


@pytest.mark.parametrize(
    ("budget", "labels", "says"),
    [
        (LabelBudget(fraction=0.1), LABELS, "3 of 30 training patients, 5 are needed"),
        (LabelBudget(shots=31), LABELS, "class no has 30 training patients, 31 are needed"),
        (LabelBudget(fraction=0.5), LABELS * 0, "a draw has no training image of class yes"),
    ],
)
def test_what_cannot_be_drawn_is_said(budget: LabelBudget, labels: np.ndarray, says: str) -> None:
    assert draw(budget, PATIENTS, labels, NAMES, 1, 0, 0).skipped == says


def test_names_of_the_column() -> None:
    assert [LabelBudget(fraction=1.0).name, LabelBudget(fraction=0.1).name, LabelBudget(shots=5).name] == [
        "1",
        "0.1",
        "k=5",
    ]
