"""The study's section for labels that stay at the sites."""

from typing import Any

import pytest

from federation.federated_evaluation import STEPS, answer_like, probe_like
from federation.study import study_from
from foundation.errors import StudyError


def section(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return raw | {"federated_evaluation": {"classes": ["benign", "malignant"]} | changes}


def test_it_is_part_of_what_a_site_approves(raw_study: dict[str, Any]) -> None:
    """Unlike `evaluation`, which happens where the labels of the evaluator are."""
    plain = study_from(raw_study, "test")
    one, other = (study_from(section(raw_study, **changes), "test") for changes in ({}, {"steps": 7}))
    assert len({each.training_hash() for each in (plain, one, other)}) == 3
    assert study_from(raw_study | {"evaluation": {"seed": 3}}, "test").training_hash() == plain.training_hash()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ["a"]}, "classes"),
        ({"classes": ["a", "b", "a"]}, "federated_evaluation.classes: class 'a' is there twice; name each once"),
        ({"classes": ["a", " b"]}, "classes"),
        ({"strength": 0}, "federated_evaluation.strength"),
        ({"test_share": 1}, "federated_evaluation.test_share"),
        ({"histograms": True}, "did you mean 'histogram'"),
    ],
)
def test_what_it_cannot_be(raw_study: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StudyError) as caught:
        study_from(section(raw_study, **changes), "test")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("classes", "outputs"), [(2, 1), (3, 3)])
def test_shapes_by_the_classes(classes: int, outputs: int) -> None:
    assert probe_like(5, classes)["weights"].shape == (6, outputs)
    assert answer_like("gradient", 5, classes)["gradient"].shape == (6, outputs)
    assert answer_like("histogram", 5, classes)["positive"].shape == (outputs, 100)
    assert set(STEPS) == {"moments", "gradient", "figures", "histogram"}
