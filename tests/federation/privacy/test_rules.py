"""What does not go with privacy or with secure sums is refused when the study is loaded, with reason and remedy."""

import copy
from typing import Any

import pytest

from federation.study import study_from
from foundation.errors import StudyError

PATIENT = {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 36, "patients_per_step": 8}
SITE = {"unit": "site", "epsilon": 8, "delta": 1e-3, "sites": 40, "clip": 0.5}
SECURE = {"largest_value": 1.0}
RESNET = {"encoder": {"name": "resnet10t"}, "method": {"name": "rotation"}}
GROUPED = RESNET | {"encoder": {"name": "resnet10t", "norm": "group"}}
TRAINING = {"epochs": None, "steps": 50, "batch": 4, "precision": "float32"}
EVALUATED = {"label": "label", "classes": ["no", "yes"]}


def raw_with(raw_study: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """The small study without its simulation, with sections replaced; ``training`` and ``rounds`` are changed only."""
    raw = {key: value for key, value in copy.deepcopy(raw_study).items() if key != "simulation"}
    training = TRAINING | sections.pop("training", {})
    return raw | {"training": training} | sections


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": (
        {"privacy": PATIENT, "training": {"epochs": 1.0, "steps": None}},
        "training.epochs: a private study does a fixed number of steps a round, as passes over a site's own images "
        "would tell how many it has: set training.epochs: null and training.steps",
    ),
    "epochs by site": (
        {"privacy": SITE, "training": {"epochs": 1.0, "steps": None}},
        "set training.epochs: null and training.steps",
    ),
    "sums over labels": (
        {"privacy": PATIENT, "federated_evaluation": EVALUATED},
        "federated_evaluation: sums over labels are outside what `privacy` promises: leave it out of a private study",
    ),
    "accumulation": (
        {"privacy": PATIENT, "training": {"accumulate": 2}},
        "training.accumulate 2: with privacy by patient a step has privacy.patients_per_step patients, in pieces of "
        "training.batch; set it to 1",
    ),
    "another clip": (
        {"privacy": PATIENT, "training": {"clip": 3.0}},
        "training.clip 3.0: with privacy by patient gradients are shortened patient by patient, by privacy.clip; set "
        "it to null",
    ),
    "compilation": (
        {"privacy": PATIENT, "training": {"compile": True}},
        "training.compile True: with privacy by patient each patient's gradient is looked at; set it to false",
    ),
    "half precision": (
        {"privacy": PATIENT, "training": {"precision": "bf16"}},
        "training.precision bf16: privacy by patient is computed in float32; set auto or float32",
    ),
    "more images than a batch": (
        {"privacy": PATIENT | {"images_per_patient": 5}},
        "privacy.images_per_patient 5: a patient's images are computed at once, and training.batch is 4: raise it, "
        "or take fewer images of a patient",
    ),
    "more patients a step than there are": (
        {"privacy": PATIENT | {"patients_per_step": 37}},
        "patients_per_step 37: at most `patients`, which is 36: a step cannot expect more patients than a site has",
    ),
    "a loose delta": (
        {"privacy": PATIENT | {"delta": 0.005}},
        "delta 0.005 with 36 patients: at most 1 / (10 x patients), 2.8e-03, or giving one patient's data away whole "
        "would be within the promise",
    ),
    "a loose delta by site": (
        {"privacy": SITE | {"delta": 0.005}},
        "delta 0.005 with 40 sites: at most 1 / (10 x sites), 2.5e-03",
    ),
    "BatchNorm by patient": (
        {"privacy": PATIENT, **RESNET},
        "encoder 'resnet10t' has BatchNorm, which mixes the images of a batch: with privacy by patient set "
        "encoder.norm: group, or choose vit_tiny_patch16_224 or another plain ViT",
    ),
    "BatchNorm by site": (
        {"privacy": SITE, **RESNET},
        "encoder 'resnet10t' has BatchNorm, and site-level privacy noises no running statistics, without which the "
        "encoder is worth nothing: set encoder.norm: group, or choose an encoder without BatchNorm",
    ),
    "GroupNorm of a ViT": (
        {"encoder": {"name": "vit_tiny_patch16_224", "norm": "group"}},
        "encoder.norm group: 'vit_tiny_patch16_224' has no BatchNorm that GroupNorm could replace; leave norm out",
    ),
    "an algorithm of single updates, by site": (
        {"privacy": SITE, "algorithm": {"name": "fedmedian"}},
        "algorithm 'fedmedian' looks at single updates, and site-level privacy noises only their sum: choose fedavg or "
        "fedprox or ",
    ),
    "an algorithm of single updates, by patient and under masks": (
        {"privacy": PATIENT, "secure_aggregation": SECURE, "algorithm": {"name": "fedmedian"}},
        "algorithm 'fedmedian' looks at single updates, and secure aggregation shows only their sum: choose ",
    ),
    "an algorithm of single updates, under masks": (
        {"secure_aggregation": SECURE, "algorithm": {"name": "fedmedian"}},
        "algorithm 'fedmedian' looks at single updates, and secure aggregation shows only their sum: choose fedavg or "
        "fedprox or ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(raw_study: dict[str, Any], case: str) -> None:
    sections, message = REFUSED[case]
    with pytest.raises(StudyError) as caught:
        study_from(raw_with(raw_study, **sections), "test")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "sections",
    [
        {"privacy": PATIENT},
        {"privacy": PATIENT | {"images_per_patient": 4}},
        {"privacy": SITE},
        {"privacy": PATIENT, **GROUPED},
        {"privacy": SITE, **GROUPED},
    ],
    ids=["patient", "several images", "site", "GroupNorm by patient", "GroupNorm by site"],
)
def test_the_study_itself_is_accepted(raw_study: dict[str, Any], sections: dict[str, Any]) -> None:
    """Else the refusals above could be about something else."""
    assert study_from(raw_with(raw_study, **sections), "test").privacy is not None
