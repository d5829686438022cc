"""Who trains, who validates, who is tested: drawn once, by patient, before any training."""

import math
from typing import Self

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from foundation.configuration.section import Section
from foundation.errors import DataError, nearest
from foundation.randomness import numpy_generator
from imaging.listing.manifest import Manifest

ROLES = ("train", "validation", "test", "left-out")
HELD = ("test", "left-out")
"""Roles of patients whom no training sees."""
COLUMNS = ("image", "patient", "site", "label", "fold", "role")


class SplitConfig(Section):
    """How patients are divided, within each site."""

    folds: int = Field(
        default=1,
        ge=1,
        le=20,
        description="1 draws one split; more test every patient exactly once, in turn.",
    )
    test_share: float = Field(
        default=0.2,
        gt=0.0,
        lt=1.0,
        description="Share of a site's patients tested; with folds > 1 it is 1 / folds.",
    )
    validation_share: float = Field(
        default=0.15,
        ge=0.0,
        lt=1.0,
        description="Share of a site's patients on which settings may be chosen.",
    )
    left_out: tuple[str, ...] = Field(
        default=(), description="Sites that take no part in training and are tested whole."
    )
    min_test_patients: int = Field(
        default=5, ge=3, description="All patients of a site with fewer than this train: it gets no test set."
    )

    @model_validator(mode="before")
    @classmethod
    def _folds_test_in_turn(cls, values: object) -> object:
        """The share that folds imply is written out, so that a resolved study says it, and can be read back."""
        folds = values.get("folds") if isinstance(values, dict) else None
        if isinstance(values, dict) and isinstance(folds, int) and folds > 1 and "test_share" not in values:
            return {**values, "test_share": 1.0 / folds}
        return values

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.folds > 1 and abs(self.test_share * self.folds - 1) > 1e-3:
            raise ValueError(
                f"test_share {self.test_share} does nothing with folds {self.folds}, where a fold tests"
                f" 1/{self.folds} of the patients; remove it"
            )
        test = 1.0 / self.folds if self.folds > 1 else self.test_share
        if test + self.validation_share >= 1.0:
            raise ValueError(
                f"test share {test:.2f} and validation_share {self.validation_share:.2f} leave nobody to"
                " train on; make their sum less than 1"
            )
        return self


def draw_splits(manifest: Manifest, config: SplitConfig, seed: int) -> pd.DataFrame:
    """A row per image and fold (from 0) with the columns image, patient, site, label, fold, role.

    Role is train, validation, test or left-out and is the same for all images of a patient in a fold.
    Patients are drawn within each site, stratified: sorted by their mean label (of two textual classes the
    second one's share; of more the commonest class, then its share), cut into equal runs, one patient drawn
    from each. The draw depends on ``seed``, the site's name and its patients, not on the order of rows nor on
    other sites. Without a column site all is one site "". DataError for a left-out site that is not there, or
    when no site is left to train.
    """
    table = manifest.table.reindex(columns=["image", "slice", "patient", "site", "label"])
    table = table.sort_values(["image", "slice"], ignore_index=True)
    table["site"] = table["site"].astype(object).where(table["site"].notna(), "").astype(str)
    sites = sorted(table["site"].unique())
    for name in config.left_out:
        if name not in sites:
            raise DataError(
                f"left_out site {name!r} has no images; there are: {', '.join(sites)}{nearest(name, sites)}"
            )
    if set(sites) <= set(config.left_out):
        raise DataError(f"left_out names every site ({', '.join(sites)}); leave at least one to train")
    scores = _scores(table)
    parts = []
    for site in sites:
        images = table[table["site"] == site]
        roles = _site_roles(site, sorted(images["patient"].unique()), scores, config, seed)
        for fold, role_of in enumerate(roles):
            parts.append(images.assign(fold=fold, role=images["patient"].map(role_of)))
    drawn = pd.concat(parts).sort_values(["fold", "site", "patient", "image"], kind="stable", ignore_index=True)
    check_splits(drawn)
    whole: pd.DataFrame = drawn.reindex(columns=list(COLUMNS))
    return whole


def check_splits(table: pd.DataFrame) -> None:
    """DataError naming a patient who has two roles in one fold, or a role that does not exist."""
    if len(unknown := set(table["role"]) - set(ROLES)):
        raise DataError(f"role {min(map(str, unknown))!r} does not exist; there are: {', '.join(ROLES)}")
    pairs = table[["fold", "patient", "role"]].drop_duplicates().sort_values(["fold", "patient", "role"])
    twice = pairs[pairs.duplicated(["fold", "patient"], keep=False)]
    if len(twice):
        fold, patient = twice[["fold", "patient"]].iloc[0]
        roles = twice["role"][(twice["fold"] == fold) & (twice["patient"] == patient)]
        others = twice["patient"].nunique() - 1
        more = f" ({others} more such patient{'s' if others > 1 else ''})" if others else ""
        raise DataError(f"patient {patient!r} is in {' and '.join(roles)} of fold {fold}; a patient has one role{more}")


def _scores(table: pd.DataFrame) -> dict[str, tuple[float, ...]]:
    """Per patient what the strata are sorted by; exact sums, so that the order of rows cannot matter."""
    labels = table["label"]
    known = table[labels.notna()]
    classes = {value: rank for rank, value in enumerate(sorted(known["label"].unique(), key=str))}
    numeric = pd.api.types.is_numeric_dtype(labels)
    scores: dict[str, tuple[float, ...]] = dict.fromkeys(table["patient"], (-math.inf,))
    for patient, values in known.groupby("patient")["label"]:
        if numeric:
            scores[str(patient)] = (math.fsum(float(value) for value in values) / len(values),)
            continue
        counts = np.bincount([classes[value] for value in values], minlength=len(classes))
        commonest = float(counts[1] / len(values)) if len(classes) == 2 else float(counts.argmax())
        scores[str(patient)] = (commonest, float(counts.max() / len(values)))
    return scores


def _site_roles(
    site: str, patients: list[str], scores: dict[str, tuple[float, ...]], config: SplitConfig, seed: int
) -> list[dict[str, str]]:
    """Per fold the role of every patient of the site."""
    if site in config.left_out:
        return [dict.fromkeys(patients, "left-out")] * config.folds
    if len(patients) < config.min_test_patients:
        return [dict.fromkeys(patients, "train")] * config.folds
    rng = numpy_generator(seed, "split", site)
    ties = rng.permutation(len(patients))
    ordered = [patients[i] for i in sorted(range(len(patients)), key=lambda i: (scores[patients[i]], ties[i]))]
    tests = _deal(ordered, config.folds, rng) if config.folds > 1 else [_draw(ordered, _tested(ordered, config), rng)]
    roles = []
    for tested in tests:
        others = [patient for patient in ordered if patient not in tested]
        wanted = round(config.validation_share * len(patients))
        least = 1 if config.validation_share > 0 else 0
        validated = _draw(others, min(max(wanted, least), len(others) - 1), rng)
        role = dict.fromkeys(patients, "train") | dict.fromkeys(tested, "test") | dict.fromkeys(validated, "validation")
        roles.append(role)
    return roles


def _tested(patients: list[str], config: SplitConfig) -> int:
    """At least one test patient, and two left for the rest."""
    return min(max(round(config.test_share * len(patients)), 1), len(patients) - 2)


def _draw(ordered: list[str], count: int, rng: np.random.Generator) -> set[str]:
    """One patient out of each of ``count`` equal runs of the order: a stratum gets its share, less than 2 off."""
    if count == 0:
        return set()
    runs = np.array_split(np.arange(len(ordered)), count)
    return {ordered[int(rng.choice(run))] for run in runs}


def _deal(ordered: list[str], folds: int, rng: np.random.Generator) -> list[set[str]]:
    """Every run of ``folds`` patients dealt one to each fold in a fresh order; the rest to random folds."""
    hands: list[set[str]] = [set() for _ in range(folds)]
    for start in range(0, len(ordered), folds):
        for patient, fold in zip(ordered[start : start + folds], rng.permutation(folds), strict=False):
            hands[int(fold)].add(patient)
    return hands
