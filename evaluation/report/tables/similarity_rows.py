"""The report's table of how alike encoders are: every two arms with one in question, and rounds with the last one."""

from dataclasses import dataclass

import pandas as pd

from evaluation.explain.model_similarity import arm_similarity, round_similarity
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.metric_values import number
from evaluation.statistics.results_schema import ALL
from foundation.errors import FedpretextError


@dataclass(frozen=True)
class AlikeRow:
    """Two encoders and their CKA at ``sites`` (the first: all of them), as printed."""

    own: str
    other: str
    sites: tuple[str, ...]
    cells: tuple[str, ...]


def alike_rows(folder: RunFolder) -> list[AlikeRow]:
    """[] where evaluation kept no features, or images and weights are no longer in their place."""
    if not any((folder.path / "evaluation" / "features").glob("*.npy")):
        return []
    try:
        arms, rounds = arm_similarity(folder.path), round_similarity(folder.path)
    except FedpretextError:
        return []
    arms = arms[arms["arm_a"].isin(folder.leads) | arms["arm_b"].isin(folder.leads)]
    sites = tuple(dict.fromkeys([ALL, *sorted(set(arms["site"]) | set(rounds["site"]))]))
    rows = []
    for (first, second), own in arms.groupby(["arm_a", "arm_b"], sort=False):
        pair = (first, second) if first in folder.leads else (second, first)
        titles = [folder.arm(str(name)).short for name in pair]
        rows.append(AlikeRow(titles[0], titles[1], sites, _cells(own, sites)))
    for (arm, round_), own in rounds.groupby(["arm", "round"], sort=False):
        title = folder.arm(str(arm)).short
        rows.append(AlikeRow(title, f"itself after round {round_}", sites, _cells(own, sites)))
    return rows


def _cells(own: pd.DataFrame, sites: tuple[str, ...]) -> tuple[str, ...]:
    found = dict(zip(own["site"], own["cka"], strict=True))
    return tuple(number(float(found.get(site, float("nan")))) for site in sites)
