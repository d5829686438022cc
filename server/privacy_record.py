"""``privacy.json`` of a run: what was promised, what was spent, what is not covered; the report reads it."""

from pathlib import Path
from typing import Any

from federation.privacy.plan import plan_of
from federation.privacy.words import meaning, not_covered
from federation.study import Study
from foundation.files import write_json

RECORD_NAME = "privacy.json"
_WITHHELD = (
    "Losses, counts of images and the features' figures stay at the sites: no noise covers them. So the run has no "
    "learning curves and no watch for collapse."
)
_SINGLE_UPDATES = (
    "Of single updates, which have no noise before they are summed, nothing is recorded: no length, and no direction "
    "beside the others'."
)


def write_privacy(run: Path, study: Study, spent: dict[str, float], trainings: int = 1) -> Path | None:
    """Write the record of a private study's run; None, and no file, for any other study.

    spent: by whose ledger it is, the epsilon at the study's delta; empty where no ledger is here. trainings: folds and
    seeds that the run trained, each with ledgers of its own, as if it were the only one.
    """
    privacy, plan = study.privacy, plan_of(study)
    if privacy is None or plan is None:
        return None
    record: dict[str, Any] = {
        "unit": privacy.unit,
        "epsilon": privacy.epsilon,
        "delta": privacy.delta,
        "planned": plan.epsilon,
        "noise": plan.noise,
        "rate": plan.rate,
        "steps": plan.steps,
        "clip": privacy.clip,
        "secure_aggregation": study.secure_aggregation is not None,
        "spent": max(spent.values()) if spent else None,
        "spent_by": max(spent, key=lambda whose: spent[whose]) if spent else None,
        "ledgers": len(spent),
        "trainings": trainings,
        "meaning": list(meaning(privacy.epsilon, privacy.delta, privacy.unit)),
        "not_covered": list(not_covered(study)),
        "withheld": [_WITHHELD, *([_SINGLE_UPDATES] if privacy.unit == "site" else [])],
    }
    write_json(run / RECORD_NAME, record)
    return run / RECORD_NAME
