"""Fundus photographs of both eyes of 14 children, with the vessels as two graders drew them."""

import re
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field

from foundation.configuration.section import Section
from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from simulation.datasets.dataset import Dataset, needed_root

IMAGE = re.compile(r"Image_(\d{2})([LR])\.jpg")
ORDINALS = {1: "1st", 2: "2nd"}


class ChaseOptions(Section):
    """Whose drawing of the vessels is the truth."""

    grader: Literal[1, 2] = Field(default=1, description="1 or 2: the human observer whose masks are used.")


def list_chase_db1(root: Path | None, workspace: Path, seed: int, options: ChaseOptions) -> Manifest:
    """``root``/Image_01L.jpg ... Image_14R.jpg; mask = the vessels; series = the eye, L or R; no site column.

    The graders do not agree everywhere: what one scores against the other is a ceiling for what a model can be said
    to have learnt.
    """
    folder = needed_root(root, "chase_db1", "Image_01L.jpg and the other published files")
    found = [(path, match) for path in sorted(folder.iterdir()) if (match := IMAGE.fullmatch(path.name))]
    if not found:
        raise DataError(f"{folder}: holds no Image_01L.jpg; point simulation.root to the folder of 'chase_db1'")
    rows: list[dict[str, Any]] = []
    for path, match in found:
        mask = f"{path.stem}_{ORDINALS[options.grader]}HO.png"
        if not (folder / mask).is_file():
            raise DataError(f"{folder / mask}: is missing; restore the published file")
        rows.append({"image": path.name, "patient": match[1], "series": match[2], "mask": mask})
    return Manifest(pd.DataFrame(rows), folder)


CHASE_DB1 = Dataset(
    name="chase_db1",
    summary="Fundus photographs, 14 children, both eyes; masks of the vessels by two graders (option: grader).",
    source="CHASE_DB1, Fraz et al. 2012, Kingston University; CC BY 4.0",
    options=ChaseOptions,
    listing=list_chase_db1,
)
