"""The table of a run's arms: what each cost, over all its folds and seeds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foundation.files import read_json, write_json

DESCRIPTION_NAME = "encoder.json"
WEIGHTS_NAME = "encoder.safetensors"
_FACTS = ("arm", "title", "kind", "images", "optimiser_steps", "sequential_steps", "passes")


def write_arms(run: Path, places: Sequence[Path]) -> None:
    """Write ``arms.json``: a row an arm, for the report's budget table, of the encoders in these folders of the run."""
    rows: dict[str, dict[str, Any]] = {}
    for place in places:
        facts = read_json(run / place / DESCRIPTION_NAME)
        row = rows.setdefault(
            facts["arm"], {key: facts.get(key) for key in _FACTS} | {"folds": [], "seeds": [], "seconds": 0.0}
        )
        row["folds"] = sorted({*row["folds"], facts["fold"]})
        row["seeds"] = sorted({*row["seeds"], facts["seed"]})
        both = (row["seconds"], facts.get("seconds"))
        row["seconds"] = None if None in both else round(sum(both), 1)
    write_json(run / "arms.json", list(rows.values()))
