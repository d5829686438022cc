"""Which encoders of a run see held images alike: the arms among each other, and the federated one over its rounds."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.features import features_of
from evaluation.inputs import Encoder, Inputs, read_inputs
from evaluation.statistics.intervals import FloatArray, IntArray
from evaluation.statistics.results_schema import ALL
from evaluation.statistics.similarity import linear_cka
from foundation import events
from foundation.files import digest
from foundation.vault import PLAIN, LockedError
from imaging.listing.splits import HELD

ARM_COLUMNS = ("arm_a", "arm_b", "site", "cka", "n")
ROUND_COLUMNS = ("arm", "round", "site", "cka", "n")


def arm_similarity(run: Path) -> pd.DataFrame:
    """CKA of every two arms on held images, a row a site and one over all (``all``): ``ARM_COLUMNS``.

    Both encoders are of one fold and seed, so that neither has seen the images; means over these. n: images. NaN of
    a site with too few. Errors as ``read_inputs``.
    """
    inputs = read_inputs(Path(run), show=False)
    rows = []
    for first, second in combinations(inputs.encoders, 2):
        if (first.fold, first.seed) == (second.fold, second.seed):
            pair = features_of(inputs, first), features_of(inputs, second)
            rows += [{"arm_a": first.arm, "arm_b": second.arm, **row} for row in _by_site(inputs, first.fold, *pair)]
    return _means(rows, ARM_COLUMNS)


def round_similarity(run: Path) -> pd.DataFrame:
    """CKA of the federated encoder after some of its rounds with the final one: ``ROUND_COLUMNS``, as the arms' rows.

    Empty where there are no snapshots, or only encrypted ones. Errors as ``read_inputs``.
    """
    inputs = read_inputs(Path(run), show=False)
    rows = []
    for encoder in inputs.encoders:
        for round_, earlier in _snapshots(encoder):
            pair = features_of(inputs, earlier), features_of(inputs, encoder)
            rows += [{"arm": encoder.arm, "round": round_, **row} for row in _by_site(inputs, encoder.fold, *pair)]
    return _means(rows, ROUND_COLUMNS)


def _snapshots(encoder: Encoder) -> Iterator[tuple[int, Encoder]]:
    """Rounds and the encoder after them, in the rounds' order."""
    for path in sorted(encoder.weights.with_name(events.SNAPSHOTS).glob("round-*.safetensors")):
        try:
            PLAIN.load_tensors(path)
        except LockedError:
            continue
        round_ = int(path.stem.removeprefix("round-"))
        yield round_, replace(encoder, weights=path, key=digest(path.read_bytes(), encoder.key))


def _by_site(inputs: Inputs, fold: int, first: FloatArray, second: FloatArray) -> list[dict[str, Any]]:
    """CKA over all of a fold's held images and at each site."""
    held = inputs.images.where(fold, *HELD)
    site = inputs.images.site[held]
    places: dict[str, IntArray] = {ALL: held} | {str(name): held[site == name] for name in sorted(set(site.tolist()))}
    return [{"site": name, "cka": linear_cka(first[at], second[at]), "n": len(at)} for name, at in places.items()]


def _means(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> pd.DataFrame:
    """One row for all folds and seeds: the mean CKA, and all images."""
    frame = pd.DataFrame(rows, columns=list(columns))
    keys = [name for name in columns if name not in ("cka", "n")]
    mean: Callable[[pd.Series], float] = pd.Series.mean
    return frame.groupby(keys, sort=False, as_index=False).agg({"cka": mean, "n": "sum"})[list(columns)]
