"""What is asked of images, for every kind of task, and the one line where it cannot be."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation.config import DEFAULT_PROTOCOLS, PROTOCOLS_OF, EvaluationConfig
from evaluation.protocols.table import PROTOCOLS
from evaluation.tasks.targets import label_images
from foundation.errors import DataError

ROLES = ("train", "train", "validation", "test", "test", "left-out")


def table(**columns: list[Any]) -> pd.DataFrame:
    """Six patients of one image, the last at a site that is left out."""
    plain = {"image": [f"{i}.png" for i in range(6)], "patient": [f"p{i}" for i in range(6)]}
    return pd.DataFrame({**plain, "site": ["A"] * 5 + ["B"], **columns})


def splits(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[["image", "patient", "site"]].assign(fold="0", role=[ROLES[int(p[1:])] for p in rows["patient"]])


def labelled(rows: pd.DataFrame, **settings: Any) -> Any:
    return label_images(rows, splits(rows), EvaluationConfig.model_validate(settings))


def test_every_protocol_serves_the_kinds_that_the_settings_say() -> None:
    assert {name for names in PROTOCOLS_OF.values() for name in names} == set(PROTOCOLS)
    for kind, names in PROTOCOLS_OF.items():
        assert set(names) == {name for name, protocol in PROTOCOLS.items() if kind in protocol.predict}
        assert set(DEFAULT_PROTOCOLS[kind]) <= set(names)
        assert EvaluationConfig(kind=kind).protocols == DEFAULT_PROTOCOLS[kind]


def test_findings_are_columns_of_nought_and_one() -> None:
    rows = table(label=["mass|effusion", "none", "mass", "effusion", None, "none"])
    found = labelled(rows, kind="multilabel")
    assert found.classes == ("effusion", "mass")
    assert found.codes.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0], [0, 0]]
    assert found.label.tolist() == ["effusion|mass", "none", "mass", "effusion", "none"]
    assert found.patient.tolist() == ["p0", "p1", "p2", "p3", "p5"]


def test_numbers_stay_numbers() -> None:
    found = labelled(table(age=["1.5", "2", "3", "4", "5", "6"]), kind="regression", label="age")
    assert found.numbers.tolist() == [1.5, 2, 3, 4, 5, 6]
    assert found.classes == ()


def test_masks_and_boxes_are_taken_from_their_columns() -> None:
    masks = table(mask=["m0.png", None, "m2.png", "m3.png", None, "m5.png"])
    assert labelled(masks, kind="segmentation").patient.tolist() == ["p0", "p2", "p3", "p5"]
    all_of_them = labelled(masks, kind="segmentation", empty_mask="background", classes=["tumour"])
    assert (len(all_of_them.rows), all_of_them.classes) == (6, ("tumour",))
    boxes = table(boxes=['[[0, 0, 2, 2, "RBC"]]', "[]", "[]", '[[1, 1, 3, 3, "WBC"]]', None, "[]"])
    found = labelled(boxes, kind="detection")
    assert (len(found.rows), found.classes) == (5, ("RBC", "WBC"))


def test_stated_classes_keep_their_order() -> None:
    rows = table(label=["b", "a", "b", "a", "b", "a"])
    assert labelled(rows, classes=["b", "a", "c"]).classes == ("b", "a")
    assert labelled(rows).classes == ("a", "b")


def test_a_label_of_the_patient_may_not_vary() -> None:
    rows = pd.concat(
        [table(label=list("ababab")), table(label=list("bbabab")).assign(image=[f"{i}b" for i in range(6)])]
    )
    with pytest.raises(DataError, match="aggregate mean: 1 patients have images of several classes of 'label', 'p0'"):
        labelled(rows.reset_index(drop=True), aggregate="mean")


BAD: list[tuple[dict[str, list[Any]], dict[str, Any], str]] = [
    ({"label": list("abcabc")}, {"classes": ["a", "b"]}, r"has 'c' \(2 images\), but the task's classes are a, b"),
    ({"label": list("aaaaaa")}, {}, "all 6 labelled images have label 'a'; two classes are needed"),
    ({"label": ["a", "b", "a", None, None, None]}, {}, "fold 0 has no labelled test image"),
    ({"label": ["a", "b", None, "a", "b", "a"]}, {}, "fold 0 has no labelled validation image"),
    ({"label": ["a", "a", "b", "a", "b", "a"]}, {}, "fold 0: training images have one label only"),
    ({"labell": list("ababab")}, {}, "label 'label' is no column of the manifest; .*did you mean 'labell'"),
    ({"age": ["1", "x", "3", "4", "5", "6"]}, {"kind": "regression", "label": "age"}, "1 values that are no numbers"),
    ({"label": ["none"] * 6}, {"kind": "multilabel"}, "no image has a finding in 'label'"),
    ({"label": list("ababab")}, {"kind": "segmentation"}, "label 'mask' is no column of the manifest"),
    ({"boxes": ["[]"] * 6}, {"kind": "detection"}, "no image has a box"),
    ({"boxes": ["{}"] * 6}, {"kind": "detection"}, "row 0: boxes '{}' are no list"),
]  # fmt: skip


@pytest.mark.parametrize(("columns", "settings", "answer"), BAD, ids=range(len(BAD)))
def test_bad_labels_are_one_line(columns: dict[str, list[Any]], settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(DataError, match=answer) as caught:
        labelled(table(**columns), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ({"kind": "regression", "protocols": ["svm"]}, "protocol svm does nothing for regression"),
        ({"kind": "detection", "aggregate": "mean"}, "aggregate does nothing for detection"),
        ({"kind": "regression", "classes": ["a"]}, "classes does nothing for regression"),
        ({"kind": "multilabel", "shots": [5]}, "shots does nothing for multilabel"),
        ({"empty_mask": "background"}, "empty_mask does nothing for classification"),
        ({"protocols": ["attention"]}, "protocol attention scores patients, not images"),
    ],
)
def test_settings_that_would_do_nothing_are_refused(settings: dict[str, Any], answer: str) -> None:
    with pytest.raises(ValueError, match=answer):
        EvaluationConfig.model_validate(settings)


def test_places_without_a_role_are_held_no_longer() -> None:
    found = labelled(table(label=list("ababab")))
    fewer = found.without_roles(0, np.array([3]))
    assert found.where(0, "test").tolist() == [3, 4]
    assert fewer.where(0, "test").tolist() == [4]
