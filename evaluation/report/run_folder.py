"""What a finished (or half-finished) run folder holds, read once and typed, for the report and the console summary.

Only ``results.csv`` has to be there. Everything else may be missing: the field is then empty and the reader says so.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.report.role_words import title_of
from evaluation.statistics.results_schema import COMPARISONS, LEADS, RESULTS, Role, Table, Unit
from foundation import events
from foundation.errors import RunError
from foundation.files import read_json, read_jsonl

SPLIT_COLUMNS = ("image", "patient", "site", "label", "fold", "role")
CURVE_COLUMNS = ("arm", "fold", "seed", "round", "site", "loss", "learning_rate", "images", "seconds")

_CURVES = "arms/*/fold-*/seed-*/metrics.jsonl"


@dataclass(frozen=True)
class Arm:
    """One way of getting an encoder, and what it cost. ``kind`` says which.

    passes: how often an image was seen on average. base: the arm that its training started from, "" where the run
    does not say.
    """

    name: str
    title: str
    kind: Role
    images: int | None = None
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
    """The records of one run. Tables are typed (``results_schema``); empty where the file is missing.

    task: kind and classes, as results.json has them. federated: what sites measured themselves, as rows of results.
    supervised: by its name there, the arm that supervised training without pretraining started from.
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
    federated: pd.DataFrame = field(default_factory=RESULTS.frame)
    supervised: Mapping[str, str] = field(default_factory=dict)
    leaks: Mapping[str, Any] = field(default_factory=dict)
    gathered: bool = False
    privacy: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def arm(self, name: str) -> Arm:
        """The arm called ``name``; one made from the name alone when the run did not describe it."""
        described = next((arm for arm in self.arms if arm.name == name), None)
        role = self.roles.get(name, Role.OTHER)
        return described or Arm(name, title_of(name, role, self._started_from(name), self.kind), role)

    def _started_from(self, name: str) -> str:
        """What supervised training started from: the role of that arm, its name where there are several such."""
        base = str(self.supervised.get(name, ""))
        if len(self.supervised) > 1:
            return base
        return self.roles.get(base, self.baseline)

    @cached_property
    def roles(self) -> Mapping[str, Role]:
        """What every encoder is, as the run states it."""
        found: dict[str, Role] = {}
        for table, name, role in (
            (self.comparisons, "encoder_b", "role_b"),
            (self.comparisons, "encoder_a", "role_a"),
            (self.results, "encoder", "role"),
        ):
            once = table[[name, role]].drop_duplicates()
            found |= {str(arm): Role(stated) for arm, stated in zip(once[name], once[role], strict=True)}
        return found | {arm.name: arm.kind for arm in self.arms}

    @property
    def leads(self) -> tuple[str, ...]:
        """The encoders in question: federated ones, and those that were brought from elsewhere."""
        there = {str(name) for name in self.results["encoder"].unique()}
        return tuple(sorted(name for name in there if self.roles[name] in LEADS))

    @property
    def about_one(self) -> bool:
        """True where a federated encoder is the only one in question: the page then speaks of "it"."""
        return [self.roles[name] for name in self.leads] in ([], [Role.FEDERATED])

    def is_base(self, own: str, other: str) -> bool:
        """Whether the training of ``own`` started from ``other``."""
        stated = self.arm(own).base
        return other == stated if stated else self.roles.get(other) is self.baseline

    @property
    def kind(self) -> str:
        """What is asked of an image (``evaluation.config.TaskKind``), "" where the run does not say."""
        return str(self.task.get("kind", ""))

    @property
    def baseline(self) -> Role:
        """What pretraining started from: ``natural`` where weights were given, else ``random``."""
        return Role.PRETRAINED_INIT if Role.PRETRAINED_INIT in self.roles.values() else Role.RANDOM

    @property
    def demonstration(self) -> bool:
        return self.info.get("demonstration") is True

    @property
    def cluster_units(self) -> bool:
        """True when some figure counts image clusters instead of patients."""
        return Unit.CLUSTER in {*self.results["unit"], *self.comparisons["unit"]}

    @property
    def unit(self) -> str:
        return "image clusters" if self.cluster_units else "patients"


def read_run(run: Path) -> RunFolder:
    """Read a run folder. RunError when it has no ``results.csv`` or a table is not as this version writes it."""
    if not (run / "results.csv").exists():
        raise RunError(
            f"{run / 'results.csv'}: is missing, so there is nothing to report; run `fedpretext evaluate` on this run "
            "first"
        )
    results = RESULTS.read(run / "results.csv")
    comparisons = _table(run / "comparisons.csv", COMPARISONS)
    splits = _splits(run / "evaluation" / "splits.csv")
    curves, left_out, collapsing = _read_curves(run)
    gathered = (run / "evaluation" / "gathered.json").exists()
    study = run / ("task.yaml" if gathered else "study.yaml")
    info = facts_in(run / "run.json")
    answer = facts_in(run / "results.json")
    arms = _read_arms(run / "arms.json", answer)
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
        pretrained_elsewhere=facts_in(run / "evaluation" / "config.json").get("pretrained_elsewhere") is True,
        task={key: answer[key] for key in ("kind", "classes") if key in answer},
        federated=_table(run / "evaluation" / "federated.csv", RESULTS),
        supervised=answer.get("supervised", {}),
        leaks=facts_in(run / "evaluation" / "leaks.json"),
        gathered=gathered,
        privacy=facts_in(run / "privacy.json"),
        missing=tuple(name for name, there in expected.items() if not there),
    )


def _table(path: Path, table: Table) -> pd.DataFrame:
    return table.read(path) if path.exists() else table.frame()


def _splits(path: Path) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=list(SPLIT_COLUMNS))
    return pd.read_csv(path, dtype=str, keep_default_na=False)[list(SPLIT_COLUMNS)]


def facts_in(path: Path) -> Mapping[str, Any]:
    """The mapping in a JSON file; empty where there is none."""
    return dict(read_json(path)) if path.exists() else {}


def _read_arms(path: Path, answer: Mapping[str, Any]) -> tuple[Arm, ...]:
    if not path.exists():
        return ()
    bases = {str(each["arm"]): str(each.get("base", "")) for each in answer.get("encoders", [])}
    rows = read_json(path)
    titles = {str(row["arm"]): str(row["title"]) for row in rows}
    shorts = Counter(_short(title) for title in titles.values())
    return tuple(
        Arm(
            name=name,
            title=title if shorts[_short(title)] == 1 else f"{_short(title)} ({name}){title[len(_short(title)) :]}",
            kind=Role(row["kind"]),
            **{key: row.get(key) for key in ("images", "optimiser_steps", "sequential_steps", "passes", "seconds")},
            folds=len(row["folds"]),
            seeds=len(row["seeds"]),
            base=bases.get(name, ""),
        )
        for (name, title), row in zip(titles.items(), rows, strict=True)
    )


def _short(title: str) -> str:
    return re.split("[:,]", title, maxsplit=1)[0].strip() or title


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
    """Unreadable images per site. Several stores of a run may list the same image: it counts once."""
    # A site's own manifest may name an image by another path than the split does: folder and name decide.
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
