"""`fedpretext validate` tells the plan of a private study, and warns where it leaves nothing to learn."""

from typing import Any

from federation.study import study_from
from simulation.validate import validate


def test_validate_tells_the_plan(raw_study: dict[str, Any]) -> None:
    training = {"epochs": None, "steps": 50, "batch": 4, "precision": "float32"}
    privacy = {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 36, "patients_per_step": 8}
    raw = {key: value for key, value in raw_study.items() if key != "simulation"}
    raw |= {"training": training, "rounds": raw_study["rounds"] | {"count": 4}}
    lines = validate(study_from(raw | {"privacy": privacy}, "test"))
    (plan,) = [line for line in lines if line.startswith("privacy by patient")]
    assert "noise 1.67 x the clipping bound 1, q 0.222, 200 steps in all: epsilon 7.9" in plan
    (warning,) = [line for line in lines if line.startswith("warning")]
    assert "is under 1: the encoder will very likely equal its start" in warning
    assert not any("privacy" in line or "warning" in line for line in validate(study_from(raw, "test")))
