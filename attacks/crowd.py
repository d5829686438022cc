"""Who is attacked: patients whom the pretraining saw, and patients of the same sites whom it never saw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import pandas as pd

from attacks.figures import FEWEST
from attacks.settings import AttackSettings
from evaluation.statistics.intervals import FloatArray
from foundation.errors import RunError
from foundation.randomness import numpy_generator
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from simulation.arms import Arm

HELD_ROLES = ("test", "validation")
"""Roles of patients at the sites whose images no pretraining reads."""


@dataclass(frozen=True)
class Patient:
    """A patient by what an attack needs: the images' places in the store, and the site."""

    images: tuple[int, ...]
    site: str


@dataclass(frozen=True)
class Crowd:
    """Patients in a random order. store: the run's images, of which those of other patients are never read."""

    store: TensorStore
    members: tuple[Patient, ...]
    others: tuple[Patient, ...]

    @property
    def everyone(self) -> tuple[Patient, ...]:
        """Members, then the others."""
        return self.members + self.others


def crowd_of(arm: Arm, images: Manifest, splits: pd.DataFrame, store: TensorStore, settings: AttackSettings) -> Crowd:
    """The arm's patients and those held out at the same sites; RunError where there are too few of either.

    Sites without held-out patients are left out, or scores that only tell sites apart would pass for scores that tell
    members.
    """
    assert arm.sites is not None
    table = store.table
    trained = set(arm.sites.table["patient"])
    fold = splits[(splits["fold"] == arm.fold) & splits["role"].isin(HELD_ROLES)]
    held = set(fold["patient"]) - trained
    sites = {role: set(table["site"][table["patient"].isin(who)]) for role, who in (("in", trained), ("out", held))}
    both = sorted(sites["in"] & sites["out"])
    found = [
        _patients(table[table["site"].isin(both)], who, role, settings)
        for role, who in (("members", trained), ("others", held))
    ]
    if min(map(len, found)) < FEWEST:
        raise RunError(
            f"arm {arm.name} has {len(found[0])} patients who trained and {len(found[1])} held out at the same sites; "
            f"attacks need {FEWEST} of each: raise simulation.splits.test_share, or take a data set with more patients"
        )
    return Crowd(store, *found)


def _patients(table: pd.DataFrame, who: set[str], role: str, settings: AttackSettings) -> tuple[Patient, ...]:
    """At most ``settings.patients`` patients with at most ``settings.images`` images each, drawn by the seed."""
    draw = numpy_generator(settings.seed, "crowd", role)
    found = []
    for _, own in table[table["patient"].isin(who)].groupby("patient", sort=True):
        places = draw.permutation(own.index.to_numpy())[: settings.images]
        found.append(Patient(tuple(int(place) for place in places), str(own["site"].iloc[0])))
    return tuple(found[place] for place in draw.permutation(len(found))[: settings.patients])


def halves(patients: Sequence[Patient], most: int) -> tuple[list[Patient], list[Patient]]:
    """Two groups of equally many patients, at most ``most`` each, with as many of a site in one as in the other."""
    by_site: dict[str, list[Patient]] = {}
    for patient in patients:
        by_site.setdefault(patient.site, []).append(patient)
    pairs = [[own[start : start + 2] for start in range(0, len(own) - 1, 2)] for own in by_site.values()]
    # Sites in turn, so that a cut at `most` leaves all of them in.
    in_turn = [pair for turn in zip_longest(*pairs) for pair in turn if pair is not None]
    return [one for one, _ in in_turn[:most]], [other for _, other in in_turn[:most]]


def by_patient(scores: Mapping[int, float], patients: Sequence[Patient]) -> FloatArray:
    """``[P]``: the mean of each patient's scores, by image, less the median of the site's patients.

    The median is taken without looking at who is a member. It takes out what only tells sites apart, and puts the
    threshold 0 where half of a site's patients lie above it.
    """
    own = np.array([np.mean([scores[place] for place in patient.images]) for patient in patients])
    sites = np.array([patient.site for patient in patients])
    for site in np.unique(sites):
        own[sites == site] -= np.median(own[sites == site])
    return own


def places_of(patients: Sequence[Patient]) -> list[int]:
    """The images of the patients, one patient after another."""
    return [place for patient in patients for place in patient.images]
