"""NT-Xent against a slow reference and numbers worked by hand; who counts as a negative."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ssl_methods.contrastive import simclr
from ssl_methods.contrastive.simclr import nt_xent
from ssl_methods.method import Batch, Method


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float, patients: list[int], groups: list[int]) -> float:
    """The formula, anchor by anchor, in Python numbers."""
    rows = [[x / math.hypot(*row) for x in row] for row in torch.cat([first, second]).tolist()]
    patient, group = patients * 2, groups * 2
    losses = []
    for i, anchor in enumerate(rows):
        others = [j for j in range(len(rows)) if j != i]
        score = {j: math.exp(sum(a * b for a, b in zip(anchor, rows[j], strict=True)) / temperature) for j in others}
        positives = [j for j in others if group[j] == group[i]]
        negatives = [j for j in others if patient[j] != patient[i] and j not in positives]
        if negatives:
            total = sum(score[j] for j in positives + negatives)
            losses.append(-sum(math.log(score[j] / total) for j in positives) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


@given(
    patients=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    by=st.sampled_from(["view", "patient", "series"]),
    seed=st.integers(0, 1000),
)
def test_agrees_with_the_formula(patients: list[int], by: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, len(patients), 5, generator=generator, dtype=torch.float64)
    series = [patient * 2 + place % 2 for place, patient in enumerate(patients)]
    groups = {"view": list(range(len(patients))), "patient": patients, "series": series}[by]
    given_groups = None if by == "view" else torch.tensor(groups)
    loss, _ = nt_xent(first, second, 0.3, torch.tensor(patients), given_groups)
    assert loss.item() == pytest.approx(slow_nt_xent(first, second, 0.3, patients, groups), rel=1e-10)


UNIT = torch.eye(2)[[0, 0, 1]]
"""Images 0 and 1 look alike, image 2 is at a right angle to both."""


def test_a_patient_is_not_its_own_negative_by_hand() -> None:
    loss, counted = nt_xent(UNIT, UNIT, 1.0, torch.tensor([7, 7, 9]))
    # Images 0 and 1: the other view (e^1) against the two views of image 2 (e^0 each), and not against each other;
    # image 2: its other view against all four views of the other patient.
    by_hand = (4 * (math.log(math.e + 2) - 1) + 2 * (math.log(math.e + 4) - 1)) / 6
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)
    assert counted.all()


def test_without_patients_every_other_image_is_a_negative_by_hand() -> None:
    loss, _ = nt_xent(UNIT, UNIT, 1.0)
    by_hand = (4 * (math.log(3 * math.e + 2) - 1) + 2 * (math.log(math.e + 4) - 1)) / 6
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_several_positives_by_hand() -> None:
    groups = torch.tensor([7, 7, 9])
    loss, _ = nt_xent(torch.eye(3), torch.eye(3), 1.0, groups, groups)
    # Image 0 has positives of similarity 1, 0, 0 and two negatives of 0: mean log p = 1/3 - log(e + 4).
    by_hand = (4 * (math.log(math.e + 4) - 1 / 3) + 2 * (math.log(math.e + 4) - 1)) / 6
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


def test_an_anchor_without_negatives_is_left_out_and_counted(
    build: Callable[..., Method], blobs: Callable[..., Batch]
) -> None:
    method = build("simclr")
    views = method.make_views(blobs(4, per_patient=4), torch.Generator().manual_seed(0))
    loss, metrics = method.loss(views)
    loss.backward()
    assert loss.item() == 0.0
    assert float(metrics["anchors_left_out"]) == 1.0
    gradients = [weight.grad for weight in method.parameters() if weight.grad is not None]
    assert gradients and all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("positives", "expected"), [("view", 1), ("patient", 3), ("study", 3), ("series", 1), ("neighbour", 1)]
)
def test_the_option_chooses_the_positives(
    build: Callable[..., Method], blobs: Callable[..., Batch], positives: str, expected: int
) -> None:
    method = build("simclr", positives=positives, temperature=0.5)
    views = method.make_views(blobs(6, per_patient=2), torch.Generator().manual_seed(0))
    loss, _ = method.loss(views)
    rows = method.projector(method.encoder(torch.cat([views["first"], views["second"]])))
    groups = {1: list(range(6)), 3: views["patients"].tolist()}[expected]
    first, second = rows.detach().double().chunk(2)
    reference = slow_nt_xent(first, second, 0.5, views["patients"].tolist(), groups)
    assert loss.item() == pytest.approx(reference, rel=1e-4)


def test_the_two_views_differ(build: Callable[..., Method], blobs: Callable[..., Batch]) -> None:
    views = build("simclr").make_views(blobs(4), torch.Generator().manual_seed(0))
    assert not torch.equal(views["first"], views["second"])


def test_an_anchor_that_is_its_own_candidate_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simclr._pairs

    def careless(count: int, patients: Tensor | None, groups: Tensor | None, device: torch.device) -> Any:
        positive, negative = right(count, patients, groups, device)
        return positive, negative | torch.eye(2 * count, dtype=torch.bool)

    monkeypatch.setattr(simclr, "_pairs", careless)
    with pytest.raises(AssertionError):
        test_without_patients_every_other_image_is_a_negative_by_hand()


def test_a_patient_among_its_own_negatives_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = simclr._pairs
    monkeypatch.setattr(simclr, "_pairs", lambda count, patients, groups, device: right(count, None, groups, device))
    with pytest.raises(AssertionError):
        test_a_patient_is_not_its_own_negative_by_hand()
