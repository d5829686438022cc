"""One line each: unknown classes, a site of one class, nobody to test."""

import pytest

from evaluation.tasks.label_checks import no_test_images, one_class_sites, unknown_classes
from foundation.errors import DataError


def test_known_classes_pass() -> None:
    unknown_classes(["benign", "malignant", "benign"], ("benign", "malignant", "normal"), "label")
    unknown_classes([], ("benign", "malignant"), "label")


def test_an_unknown_class_is_named_counted_and_likened() -> None:
    labels = ["benign"] * 5 + ["malignent"] * 12 + ["Benign"]
    with pytest.raises(DataError) as caught:
        unknown_classes(labels, ("benign", "malignant"), "finding")
    assert str(caught.value) == (
        "'finding' has 'malignent' (12 images) and 'Benign' (1 image), but the task's classes are benign, "
        "malignant; did you mean 'malignant'? Correct the labels, or name them in classes"
    )


def test_many_unknown_classes_are_cut_short() -> None:
    with pytest.raises(DataError) as caught:
        unknown_classes(["7"] * 3 + list("45689"), ("a", "b"), "grade")
    assert str(caught.value) == (
        "'grade' has '7' (3 images), '4' (1 image), '5' (1 image) and 3 more, but the task's classes are a, b; "
        "correct the labels, or name them in classes"
    )


def test_sites_of_one_class() -> None:
    sites = ["south"] * 3 + ["north"] * 2 + ["east"]
    labels = ["tumour"] * 3 + ["tumour", "none"] + ["none"]
    assert one_class_sites(sites, labels) == [
        "site 'east' has one class only, 'none' (1 image): no AUROC there",
        "site 'south' has one class only, 'tumour' (3 images): no AUROC there",
    ]
    assert one_class_sites([], []) == []


def test_nobody_to_test() -> None:
    roles = {"a": "train", "b": "validation", "c": "test", "d": "left-out"}
    assert str(no_test_images(2, "mask", roles)) == (
        "fold 2 has no labelled test image: 2 patients are tested, but none has a 'mask'; label images of theirs"
    )
    assert str(no_test_images(0, "label", {"a": "train", "b": "train"})) == (
        "fold 0 has no labelled test image: none of 2 patients has the role test or left-out; give some of them one"
    )
