"""What a finished (or half-finished) run folder holds, read once and typed, for the report and the console summary.

Only ``results.csv`` has to be there. Everything else may be missing: the field is then empty and the reader says so.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from foundation import events
from foundation.errors import RunError
from foundation.files import read_json, read_jsonl

RESULT_COLUMNS = (
    "task", "dataset", "encoder", "protocol", "label_fraction", "site", "seed", "metric",
    "value", "ci_low", "ci_high", "n", "note",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "protocol", "metric", "site", "encoder_a", "encoder_b", "value", "ci_low", "ci_high", "n", "note", "label_fraction",
)  # fmt: skip
SPLIT_COLUMNS = ("image", "patient", "site", "label", "fold", "role")
CURVE_COLUMNS = ("arm", "fold", "seed", "round", "site", "loss", "learning_rate", "pictures", "seconds")

_CURVES = "arms/*/fold-*/seed-*/metrics.jsonl"

OVERALL = "all"
_OVERALL_NAMES = {"", "all", "overall"}


@dataclass(frozen=True)
class Arm:
    """One way of getting an encoder, and what it cost. ``kind`` says which: see ``arm_kind``."""

    name: str
    title: str
    kind: str
    pictures: int | None = None
    optimiser_steps: int | None = None
    sequential_steps: int | None = None
    seconds: float | None = None
    folds: int | None = None
    seeds: int | None = None

    @property
    def short(self) -> str:
        """The title up to its first colon or comma: ``Federated`` of ``Federated: all sites together``."""
        return re.split("[:,]", self.title, maxsplit=1)[0].strip() or self.title

    @property
    def detail(self) -> str:
        """What the title says after that, "" if nothing."""
        return self.title[len(self.short) :].lstrip(":, ")


@dataclass(frozen=True)
class LeftOut:
    """A site whose update was not used in a round, and why."""

    arm: str
    round: int
    site: str
    reason: str


@dataclass(frozen=True)
class RunFolder:
    """The records of one run. Frames keep the columns named above; empty where the file is missing."""

    path: Path
    results: pd.DataFrame
    comparisons: pd.DataFrame
    info: Mapping[str, Any] = field(default_factory=dict)
    study: str = ""
    arms: tuple[Arm, ...] = ()
    splits: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(SPLIT_COLUMNS)))
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(CURVE_COLUMNS)))
    left_out: tuple[LeftOut, ...] = ()
    collapsing: frozenset[tuple[str, str]] = frozenset()
    skipped: Mapping[str, int] = field(default_factory=dict)
    pretrained_elsewhere: bool = False
    missing: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; one made from the name alone when the run did not describe it."""
        described = next((arm for arm in self.arms if arm.name == name), None)
        return described or Arm(name, title_of(name, self.baseline), arm_kind(name))

    @property
    def baseline(self) -> str:
        """The kind of arm that pretraining started from: ``natural`` where weights were given, else ``random``."""
        kinds = {arm.kind for arm in self.arms} | {arm_kind(str(name)) for name in self.results["encoder"].unique()}
        return "natural" if "natural" in kinds else "random"

    @property
    def demonstration(self) -> bool:
        return self.info.get("demonstration") is True

    @property
    def cluster_units(self) -> bool:
        """True when some figure counts picture clusters instead of patients."""
        notes = pd.concat([self.results["note"], self.comparisons["note"]])
        return bool(notes.str.contains("picture cluster", regex=False).any())

    @property
    def unit(self) -> str:
        return "picture clusters" if self.cluster_units else "patients"


_KINDS = {
    "federated": ("federated", "fedavg", "fedprox", "fedadam", "fedmedian"),
    "random": ("random", "initialisation"),
    "alone": ("alone", "local", "single"),
    "pooled": ("pooled", "central"),
    "supervised": ("supervised", "scratch"),
    "natural": ("natural", "imagenet"),
    "pixels": ("pixel",),
    "majority": ("majority",),
}
_TITLES = {
    "federated": "Federated",
    "random": "Random initialisation: no pretraining",
    "pooled": "Pooled pictures",
    "supervised": "Supervised from scratch: the same labels, no pretraining",
    "natural": "Starting weights as they are: no pretraining",
    "pixels": "Raw pixels: logistic regression, nothing pretrained",
    "majority": "Majority class: no picture is looked at",
}


def arm_kind(name: str, stated: str = "") -> str:
    """One of federated, random, alone, pooled, supervised, natural, pixels, majority; else ``other``.

    What the run states comes first, the arm's name second: a run may state a coarser word (``floor``, ``trained``).
    """
    for text in (stated.lower(), name.lower()):
        for kind, words in _KINDS.items():
            if any(word in text for word in words):
                return kind
    return "other"


_SUPERVISED_FROM_WEIGHTS = "Supervised from the starting weights: the same labels, no pretraining"


def title_of(name: str, baseline: str = "random") -> str:
    """A readable title for an arm that the run did not describe; ``baseline`` is what all arms started from."""
    kind = arm_kind(name)
    if kind == "supervised" and baseline == "natural":
        return _SUPERVISED_FROM_WEIGHTS
    if kind == "alone":
        site = next(
            (part for part in name.replace(":", "-").replace("_", "-").split("-") if arm_kind(part) != "alone"),
            "",
        )
        return f"{site} alone" if site else "One site alone"
    return _TITLES.get(kind, name)


def read_run(run: Path) -> RunFolder:
    """Read a run folder. RunError when it has no ``results.csv`` or that file lacks a column."""
    results = _frame(run / "results.csv", RESULT_COLUMNS, required=True)
    comparisons = _frame(run / "comparisons.csv", COMPARISON_COLUMNS)
    splits = _frame(run / "evaluation" / "splits.csv", SPLIT_COLUMNS)
    curves, left_out, collapsing = _read_curves(run)
    study = run / "study.yaml"
    info = read_json(run / "run.json") if (run / "run.json").exists() else {}
    arms = _read_arms(run / "arms.json")
    expected = {
        "comparisons.csv": not comparisons.empty,
        "run.json": bool(info),
        "study.yaml": study.exists(),
        "arms.json": bool(arms),
        "evaluation/splits.csv": not splits.empty,
        _CURVES: any(run.glob(_CURVES)),
    }
    return RunFolder(
        path=run,
        results=results,
        comparisons=comparisons,
        info=info,
        study=study.read_text() if study.exists() else "",
        arms=arms,
        splits=splits,
        curves=curves,
        left_out=left_out,
        collapsing=collapsing,
        skipped=_read_skipped(run, splits),
        pretrained_elsewhere=_pretrained_elsewhere(run / "evaluation" / "config.json"),
        missing=tuple(name for name, there in expected.items() if not there),
    )


def _frame(path: Path, columns: tuple[str, ...], required: bool = False) -> pd.DataFrame:
    """A CSV with exactly the columns this report reads: texts as text, figures as float64 with NaN for none."""
    if not path.exists():
        if required:
            raise RunError(
                f"{path}: is missing, so there is nothing to report; run `fedpretext evaluate` on this run first"
            )
        return pd.DataFrame(columns=list(columns))
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    if columns == COMPARISON_COLUMNS and "label_fraction" not in frame:
        frame = frame.assign(label_fraction="")
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise RunError(f"{path}: lacks the column {', '.join(absent)}; evaluate the run again with this version")
    frame = frame[list(columns)].copy()
    for name in ("value", "ci_low", "ci_high", "n"):
        if name in columns:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    if "site" in columns and "value" in columns:
        frame["site"] = frame["site"].where(~frame["site"].str.lower().isin(_OVERALL_NAMES), OVERALL)
    return frame


def _read_arms(path: Path) -> tuple[Arm, ...]:
    if not path.exists():
        return ()
    return tuple(
        Arm(
            name=str(row["arm"]),
            title=str(row.get("title") or title_of(str(row["arm"]))),
            kind=arm_kind(str(row["arm"]), str(row.get("kind", ""))),
            **{key: row.get(key) for key in ("pictures", "optimiser_steps", "sequential_steps", "seconds")},
            folds=_count(row.get("folds")),
            seeds=_count(row.get("seeds")),
        )
        for row in read_json(path)
    )


def _count(value: Any) -> int | None:
    """A number of folds or seeds, given as the number or as the list of them."""
    return len(value) if isinstance(value, list) else value


def _read_curves(run: Path) -> tuple[pd.DataFrame, tuple[LeftOut, ...], frozenset[tuple[str, str]]]:
    """Rows of every arm's rounds, the updates left out, and the (arm, site) whose features were collapsing."""
    rows: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    collapsing: set[tuple[str, str]] = set()
    for path in sorted(run.glob(_CURVES)):
        arm, fold, seed = path.parts[-4], path.parts[-3], path.parts[-2]
        for row in read_jsonl(path):
            if row.get("event") == events.LEFT_OUT:
                left_out.append(LeftOut(arm, int(row["round"]), str(row["site"]), str(row.get("reason", ""))))
            elif row.get("event") == events.COLLAPSING:
                collapsing.add((arm, str(row["site"])))
            elif "loss" in row and "site" in row:
                rows.append({"arm": arm, "fold": fold, "seed": seed} | {key: row.get(key) for key in CURVE_COLUMNS[3:]})
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS)), tuple(left_out), frozenset(collapsing)


def _pretrained_elsewhere(path: Path) -> bool:
    """Whether hospitals made the encoder and the evaluator's own pictures judged it."""
    return path.exists() and read_json(path).get("pretrained_elsewhere") is True


def _read_skipped(run: Path, splits: pd.DataFrame) -> dict[str, int]:
    """Unreadable pictures per site. Several stores of a run may list the same picture: it counts once."""
    # A site's own manifest may name a picture by another path than the split does: folder and name decide.
    sites = {_tail(image): str(site) for image, site in zip(splits["image"], splits["site"], strict=True)}
    found: dict[tuple[str, str], str] = {}
    for path in sorted(run.rglob("skipped.csv")):
        for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"):
            image = str(row.get("image", ""))
            found[_tail(image), str(row.get("slice", ""))] = sites.get(_tail(image), "site not known")
    counts = Counter(found.values())
    return {site: counts[site] for site in sorted(counts)}


def _tail(image: str) -> str:
    return "/".join(Path(image).parts[-2:])
