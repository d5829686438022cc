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

from evaluation.arm_kinds import arm_kind, title_of
from foundation import events
from foundation.errors import RunError
from foundation.files import read_json, read_jsonl

RESULT_COLUMNS = (
    "task", "dataset", "encoder", "protocol", "label_fraction", "site", "seed", "metric",
    "value", "ci_low", "ci_high", "n", "note",
)  # fmt: skip
COMPARISON_COLUMNS = (
    "protocol", "metric", "site", "encoder_a", "encoder_b", "value", "ci_low", "ci_high", "p", "n", "note",
    "label_fraction",
)  # fmt: skip
SPLIT_COLUMNS = ("image", "patient", "site", "label", "fold", "role")
CURVE_COLUMNS = ("arm", "fold", "seed", "round", "site", "loss", "learning_rate", "pictures", "seconds")

_CURVES = "arms/*/fold-*/seed-*/metrics.jsonl"

OVERALL = "all"
_OVERALL_NAMES = {"", "all", "overall"}


@dataclass(frozen=True)
class Arm:
    """One way of getting an encoder, and what it cost. ``kind`` says which: see ``arm_kind``.

    passes: how often a picture was seen on average. base: the arm that its training started from, "" where the run
    does not say.
    """

    name: str
    title: str
    kind: str
    pictures: int | None = None
    optimiser_steps: int | None = None
    sequential_steps: int | None = None
    passes: float | None = None
    seconds: float | None = None
    folds: int | None = None
    seeds: int | None = None
    base: str = ""

    @property
    def short(self) -> str:
        """The title up to its first colon or comma: ``Federated`` of ``Federated: all sites together``."""
        return _short(self.title)

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
    """The records of one run. Frames keep the columns named above; empty where the file is missing.

    task: kind and classes, as results.json has them. federated: what sites measured themselves, as rows of results.
    leaks: what was found on both sides of the split. gathered: encoders from anywhere, put together for a task.
    privacy: what a private study promised and spent.
    """

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
    task: Mapping[str, Any] = field(default_factory=dict)
    federated: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(RESULT_COLUMNS)))
    leaks: Mapping[str, Any] = field(default_factory=dict)
    gathered: bool = False
    privacy: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; one made from the name alone when the run did not describe it."""
        described = next((arm for arm in self.arms if arm.name == name), None)
        return described or Arm(name, title_of(name, self.baseline, self.kind), arm_kind(name))

    @property
    def leads(self) -> tuple[str, ...]:
        """The encoders in question: federated ones, and those that were brought from elsewhere."""
        kinds = {str(name): self.arm(str(name)).kind for name in self.results["encoder"].unique()}
        return tuple(sorted(name for name, kind in kinds.items() if kind in ("federated", "pretrained")))

    @property
    def about_one(self) -> bool:
        """True where a federated encoder is the only one in question: the page then speaks of "it"."""
        return [self.arm(name).kind for name in self.leads] in ([], ["federated"])

    def is_base(self, own: str, other: str) -> bool:
        """Whether the training of ``own`` started from ``other``."""
        stated = self.arm(own).base
        return other == stated if stated else self.arm(other).kind == self.baseline

    @property
    def kind(self) -> str:
        """What is asked of a picture (``evaluation.config.TaskKind``), "" where the run does not say."""
        return str(self.task.get("kind", ""))

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


def read_run(run: Path) -> RunFolder:
    """Read a run folder. RunError when it has no ``results.csv`` or that file lacks a column."""
    results = _frame(run / "results.csv", RESULT_COLUMNS, required=True)
    comparisons = _frame(run / "comparisons.csv", COMPARISON_COLUMNS)
    splits = _frame(run / "evaluation" / "splits.csv", SPLIT_COLUMNS)
    curves, left_out, collapsing = _read_curves(run)
    gathered = (run / "evaluation" / "gathered.json").exists()
    study = run / ("task.yaml" if gathered else "study.yaml")
    info = _json(run / "run.json")
    told = _json(run / "results.json")
    arms = _read_arms(run / "arms.json", told)
    expected = {
        "comparisons.csv": not comparisons.empty,
        "run.json": bool(info),
        study.name: study.exists(),
        "arms.json": bool(arms),
        "evaluation/splits.csv": not splits.empty,
        _CURVES: gathered or any(run.glob(_CURVES)),
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
        pretrained_elsewhere=_json(run / "evaluation" / "config.json").get("pretrained_elsewhere") is True,
        task={key: told[key] for key in ("kind", "classes") if key in told},
        federated=_frame(run / "evaluation" / "federated.csv", RESULT_COLUMNS),
        leaks=_json(run / "evaluation" / "leaks.json"),
        gathered=gathered,
        privacy=_json(run / "privacy.json"),
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
    for name in ("value", "ci_low", "ci_high", "p", "n"):
        if name in columns:
            frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    if "site" in columns and "value" in columns:
        frame["site"] = frame["site"].where(~frame["site"].str.lower().isin(_OVERALL_NAMES), OVERALL)
    return frame


def _json(path: Path) -> Mapping[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _read_arms(path: Path, told: Mapping[str, Any]) -> tuple[Arm, ...]:
    if not path.exists():
        return ()
    bases = {str(each["arm"]): str(each.get("base", "")) for each in told.get("encoders", [])}
    rows = read_json(path)
    titles = {str(row["arm"]): str(row.get("title") or title_of(str(row["arm"]))) for row in rows}
    shorts = Counter(_short(title) for title in titles.values())
    return tuple(
        Arm(
            name=name,
            title=title if shorts[_short(title)] == 1 else f"{_short(title)} ({name}){title[len(_short(title)) :]}",
            kind=arm_kind(name, str(row.get("kind", ""))),
            **{key: row.get(key) for key in ("pictures", "optimiser_steps", "sequential_steps", "passes", "seconds")},
            folds=_count(row.get("folds")),
            seeds=_count(row.get("seeds")),
            base=bases.get(name, ""),
        )
        for (name, title), row in zip(titles.items(), rows, strict=True)
    )


def _short(title: str) -> str:
    return re.split("[:,]", title, maxsplit=1)[0].strip() or title


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
