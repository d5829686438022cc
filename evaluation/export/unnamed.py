"""A run's records with its sites numbered: a card goes where the weights go, and names no hospital."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd

from evaluation.report.run_folder import Arm, RunFolder
from evaluation.statistics.held_scores import LEFT_OUT
from evaluation.statistics.results_schema import ALL

_NO_SITES = {ALL, LEFT_OUT}
_LOCAL_ONLY = "local-only-"
_SOME = "a site"


def without_site_names(folder: RunFolder) -> tuple[RunFolder, Mapping[str, str]]:
    """The same records, every site called S1, S2, ... in the order of their names; and the new names of arms."""
    federated = {arm.name for arm in folder.arms if arm.kind == "federated"}
    curves = folder.curves[folder.curves["arm"].isin(federated)]  # those of other arms name what is no site
    frames = (folder.results, folder.comparisons, folder.federated, folder.splits, curves)
    found = {str(site) for frame in frames for site in frame["site"].unique()} - _NO_SITES
    names = {site: f"S{number}" for number, site in enumerate(sorted(found), start=1)}
    arms = {f"{_LOCAL_ONLY}{site}": f"{_LOCAL_ONLY}{name}" for site, name in names.items()}
    unnamed = replace(
        folder,
        results=_renamed(folder.results, names, arms, ("encoder",)),
        comparisons=_renamed(folder.comparisons, names, arms, ("encoder_a", "encoder_b")),
        federated=_renamed(folder.federated, names, arms, ("encoder",)),
        splits=_renamed(folder.splits, names, arms, ()),
        curves=_renamed(folder.curves, names, arms, ("arm",)),
        arms=tuple(_arm(arm, names, arms) for arm in folder.arms),
        left_out=tuple(
            replace(event, arm=arms.get(event.arm, event.arm), site=names.get(event.site, _SOME), reason="")
            for event in folder.left_out
        ),
        collapsing=frozenset((arms.get(arm, arm), names.get(site, _SOME)) for arm, site in folder.collapsing),
        skipped={names.get(site, _SOME): count for site, count in folder.skipped.items()},
    )
    return unnamed, arms


def _renamed(
    frame: pd.DataFrame, names: Mapping[str, str], arms: Mapping[str, str], columns: tuple[str, ...]
) -> pd.DataFrame:
    changed = {"site": [names.get(site, site) for site in frame["site"]]}
    changed |= {column: [arms.get(arm, arm) for arm in frame[column]] for column in columns}
    return frame.assign(**changed)


def _arm(arm: Arm, names: Mapping[str, str], arms: Mapping[str, str]) -> Arm:
    """A local-only arm has its name in the title, too."""
    if arm.name not in arms:
        return arm
    site = arm.name.removeprefix(_LOCAL_ONLY)
    rest = arm.title.removeprefix(site) if arm.title.startswith(site) else " local-only"
    return replace(arm, name=arms[arm.name], title=f"{names[site]}{rest}")
