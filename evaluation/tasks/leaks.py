"""What is on both sides of a split: patients, copies and near-copies of images. Looked for in every evaluation."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from evaluation.statistics.intervals import IntArray
from foundation.errors import DataError
from foundation.files import digest, read_json, write_json
from foundation.wording import counted
from imaging.config import ImageConfig
from imaging.inspection.prints import CORRELATION, LIT, SURE, Prints, near_copies, store_prints
from imaging.listing.clusters import DISTANCE
from imaging.listing.manifest import Manifest
from imaging.listing.splits import HELD
from imaging.store import TensorStore

MOST_NEAR = 0.2
"""A test set of which a larger share is nearly in the training set is no test set."""
NAMED = 3
FITTED = ("train", "validation")
RULE = {"hash_bits": DISTANCE, "correlation": CORRELATION, "sure": SURE, "lit_correlation": LIT, "most": MOST_NEAR}
RECORD = Path("evaluation") / "leaks.json"
SEEN = Path("evaluation") / "seen" / "manifest.csv"
"""Images that encoders from elsewhere were trained on, where they are known."""


@dataclass(frozen=True, eq=False)
class Shown:
    """Images to be compared: ``[N]`` prints and names."""

    prints: Prints
    images: npt.NDArray[np.str_]

    @staticmethod
    def of(store: TensorStore, *, progress: bool = True) -> "Shown":
        """The images of a store."""
        names = store.table["image"].astype(str)
        if "slice" in store.table:
            names = names + store.table["slice"].map(lambda number: f"#{number}", na_action="ignore").fillna("")
        return Shown(store_prints(store, progress=progress), names.to_numpy(dtype=np.str_))

    def together(self, other: "Shown") -> "Shown":
        """These images, then the other ones."""
        one, two = self.prints, other.prints
        prints = Prints(
            np.concatenate([one.digest, two.digest]),
            np.concatenate([one.hash, two.hash]),
            np.concatenate([one.thumbnail, two.thumbnail]),
        )
        return Shown(prints, np.concatenate([self.images, other.images]))


@dataclass(frozen=True)
class Pair:
    """Places of a tested image and of one trained on."""

    tested: int
    trained: int


@dataclass(frozen=True)
class Leaks:
    """Exact copies, and near-copies: of each tested image the one trained on that is most alike."""

    exact: tuple[Pair, ...]
    near: tuple[Pair, ...]


@dataclass(frozen=True)
class Screen:
    """What was found: the manifest's rows to leave out of each fold's test, lines about them, and what is kept."""

    left_out: Mapping[int, IntArray]
    lines: tuple[str, ...]
    record: Mapping[str, Any]


def patient_leak(tested: Collection[str], trained: Mapping[str, Collection[str]]) -> None:
    """DataError where a test patient is among those whom a run trained on. trained: patients by the run's name."""
    for run, patients in trained.items():
        both = sorted(set(tested) & set(patients))
        if both:
            named = ", ".join(map(repr, both[:NAMED])) + (f" and {len(both) - NAMED} more" if both[NAMED:] else "")
            raise DataError(
                f"{run} trained on {counted(len(both), 'patient')} of the test set ({named}); give them the role "
                "train, or leave its encoders out"
            )


def find_leaks(shown: Shown, tested: IntArray, trained: IntArray) -> Leaks:
    """Copies and near-copies of the images at ``tested`` among those at ``trained``; blank ones are none."""
    digests = shown.prints.digest
    first: dict[str, int] = {}
    for place in trained.tolist():
        first.setdefault(str(digests[place]), place)
    first.pop("", None)
    exact = [Pair(place, first[str(digests[place])]) for place in tested.tolist() if str(digests[place]) in first]
    pairs = near_copies(shown.prints, tested, trained)
    sides = [shown.prints.thumbnail[pairs[:, side]].astype(np.float32) for side in (0, 1)]
    order = np.argsort((sides[0] * sides[1]).sum(1), kind="stable")
    best = {int(pairs[index, 0]): int(pairs[index, 1]) for index in order}
    return Leaks(tuple(exact), tuple(Pair(place, copy) for place, copy in sorted(best.items())))


def write_seen(place: Path, runs: Mapping[str, Manifest]) -> None:
    """Note in an evaluation folder which images runs trained on, so that test images are compared with them too."""
    tables = []
    for name, manifest in runs.items():
        table = manifest.table.reindex(columns=["image", "slice", "patient"])
        table["image"] = [str(path.resolve()) for path in manifest.paths()]
        tables.append(table.assign(run=name))
    whole = pd.concat(tables, ignore_index=True).drop_duplicates(["image", "slice"])
    Manifest(whole.dropna(axis="columns", how="all"), place / SEEN.parent).write(place / SEEN)


def check_leaks(
    run: Path,
    store: TensorStore,
    roles: Mapping[int, Mapping[str, str]],
    scored: IntArray,
    *,
    progress: bool = True,
) -> Screen:
    """Compare each fold's test images with all its training and validation images; kept in evaluation/leaks.json.

    Also with those that encoders from elsewhere were trained on, as far as they are known (``write_seen``) and still
    there. store: in the frame of evaluation/image.json. roles: of each fold's patients. scored: rows of the manifest
    whose labels are there. DataError, one line, for an exact copy, or where more than MOST_NEAR of a fold's test
    images are near-copies; fewer are to be left out.
    """
    seen = _seen(run, progress)
    texts = [f"{fold} {sorted(role_of.items())}" for fold, role_of in sorted(roles.items())]
    names = [store.folder.name, seen.folder.name if seen else "", str(sorted(RULE.items()))]
    key = digest(*names, *texts, scored.tobytes())
    path = run / RECORD
    if path.is_file() and (kept := read_json(path))["key"] == key:
        return _screen(kept)
    shown = Shown.of(store, progress=progress)
    if seen is not None:
        other = Shown.of(seen, progress=progress)
        named = [f"{image} of {name}" for image, name in zip(other.images, seen.table["run"], strict=True)]
        shown = shown.together(Shown(other.prints, np.array(named, dtype=np.str_)))
    folds = [_fold(fold, role_of, shown, store, scored) for fold, role_of in sorted(roles.items())]
    record = {"key": key, "rule": RULE, "images": len(shown.images), "folds": folds}
    write_json(path, record)
    return _screen(record)


def _seen(run: Path, progress: bool) -> TensorStore | None:
    """Images that encoders from elsewhere were trained on, those that are still there."""
    if not (run / SEEN).is_file():
        return None
    manifest = Manifest.read(run / SEEN)
    there = np.array([path.exists() for path in manifest.paths()], dtype=np.bool_)
    if not there.any():
        return None
    image = ImageConfig.model_validate(read_json(run / "evaluation" / "image.json"))
    return TensorStore.build(manifest.where(there), image, run / "store", progress=progress)


def _fold(fold: int, role_of: Mapping[str, str], shown: Shown, store: TensorStore, scored: IntArray) -> dict[str, Any]:
    """What is kept of a fold; DataError where it cannot be tested."""
    role = np.array([role_of.get(patient, "") for patient in store.table["patient"].astype(str)], dtype=np.str_)
    role = np.concatenate([role, np.full(len(shown.images) - len(role), FITTED[0])])
    tested = np.flatnonzero(np.isin(role[: len(store)], HELD) & np.isin(store.slots, scored)).astype(np.int64)
    leaks = find_leaks(shown, tested, np.flatnonzero(np.isin(role, FITTED)).astype(np.int64))
    if leaks.exact:
        copy, original = _names(shown, leaks.exact[0])
        raise DataError(
            f"fold {fold}: {copy} is tested and {original} trained on, but they are the same image "
            f"({counted(len(leaks.exact), 'such test image')}); remove one of them, or give both to one patient"
        )
    if len(leaks.near) > MOST_NEAR * len(tested):
        copy, original = _names(shown, leaks.near[0])
        raise DataError(
            f"fold {fold}: {_share(len(leaks.near), len(tested))} are nearly the same as images trained on ({copy} "
            f"and {original}, for one), more than the {MOST_NEAR:.0%} that can be left out; give images that belong "
            "together, of a patient or a video, to one patient"
        )
    found = [(*_names(shown, pair), int(store.slots[pair.tested])) for pair in leaks.near]
    left_out = [{"tested": copy, "trained": original, "row": row} for copy, original, row in found]
    return {"fold": fold, "tested": len(tested), "left_out": left_out}


def _names(shown: Shown, pair: Pair) -> tuple[str, str]:
    return str(shown.images[pair.tested]), str(shown.images[pair.trained])


def _share(near: int, tested: int) -> str:
    return f"{near:,} of {counted(tested, 'test image')} ({near / max(tested, 1):.0%})"


def _screen(record: Mapping[str, Any]) -> Screen:
    """A line for each fold of which test images are left out, with an example."""
    lines = []
    for fold in record["folds"]:
        if left_out := fold["left_out"]:
            where = f" of fold {fold['fold']}" if len(record["folds"]) > 1 else ""
            lines.append(
                f"{_share(len(left_out), fold['tested'])}{where} left out: nearly the same as images trained on "
                f"({left_out[0]['tested']} and {left_out[0]['trained']}, for one)"
            )
    rows = {
        int(fold["fold"]): np.array([each["row"] for each in fold["left_out"]], np.int64) for fold in record["folds"]
    }
    return Screen(rows, tuple(lines), record)


def leak_caution(record: Mapping[str, Any]) -> tuple[str, str] | None:
    """Heading and text for the report where test images were left out, without the name of an image."""
    near, tested = _counts(record)
    if not near:
        return None
    were = "was" if near == 1 else "were"
    return (
        "Near-copies were left out of the test.",
        f"{_share(near, tested)} {were} nearly the same as an image trained on (saved again, resized, in other grey "
        f"values, or the next frame) and {were} not tested on. Images that are alike in subtler ways are not found.",
    )


def leak_sentence(record: Mapping[str, Any]) -> str:
    """What was compared and found, for the report, without the name of an image."""
    near, tested = _counts(record)
    found = f"{_share(near, tested)} nearly the same, left out" if near else "none the same or nearly the same"
    return f"Test images were compared with all images trained on, pixel by pixel and by their looks: {found}."


def _counts(record: Mapping[str, Any]) -> tuple[int, int]:
    return sum(len(fold["left_out"]) for fold in record["folds"]), sum(fold["tested"] for fold in record["folds"])
