"""One page on many runs: for each task every encoder of every run, and differences where they can be had."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pandas as pd

from evaluation.config import RunEvaluation
from evaluation.report.answers import verdict_of
from evaluation.report.forest import Forest, ForestItem, forest
from evaluation.report.page import write_page
from evaluation.report.run_folder import RunFolder, read_run
from evaluation.report.tables.run import facts
from evaluation.report.tables.sites import SiteCell, site_cell
from evaluation.statistics.held_scores import Scores
from evaluation.statistics.metric_values import (
    LESS_IS_BETTER,
    MetricQuery,
    MetricValue,
    arm_figures,
    arm_order,
    figure_of,
    main_question,
    question_text,
)
from evaluation.statistics.multiple import holm_sentence
from evaluation.statistics.results import comparison_rows
from evaluation.statistics.results_schema import ALL, COMPARISONS
from evaluation.tasks.kinds import main_metric
from foundation.errors import RunError
from foundation.files import read_json

TEMPLATE = "comparison.html"
_WHOSE = ["fold", "image", "patient", "site", "role"]


@dataclass(frozen=True)
class Member:
    """One run of the page: what it is called there, its records, and its main question."""

    title: str
    folder: RunFolder
    query: MetricQuery

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What is needed to make the run again."""
        return facts(self.folder)


@dataclass(frozen=True)
class TaskPart:
    """What the page says of one task. rows: encoder, its kind, a cell a run. apart: why some differences are not."""

    task: str
    asked: str
    unit: str
    runs: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[SiteCell | None, ...]], ...]
    plot: Forest | None
    differences: Forest | None
    several: str
    apart: tuple[str, ...]


def write_comparison(runs: Sequence[Path], out: Path) -> Path:
    """Write one page on these evaluated runs to ``out``. RunError for a run twice, or not evaluated."""
    places = [run.resolve() for run in runs]
    twice = next((run for run in places if places.count(run) > 1), None)
    if twice is not None:
        raise RunError(f"{twice}: is given twice; give each run once")
    if out.is_dir():
        raise RunError(f"{out}: is a folder; give a file for the page, comparison.html say")
    names = _names(places)
    folders = [read_run(run) for run in runs]
    members = [
        Member(names[place], folder, main_question(folder)) for place, folder in zip(places, folders, strict=True)
    ]
    tasks = list(dict.fromkeys(member.query.task for member in members))
    parts = [_part(task, [member for member in members if member.query.task == task]) for task in tasks]
    write_page(out, TEMPLATE, {"title": f"{len(runs)} runs compared", "parts": parts, "members": members})
    return out


def _names(places: Sequence[Path]) -> dict[Path, str]:
    """Each run by its folder's name, with the folder above it where two have the same."""
    plain = [place.name for place in places]
    return {
        place: place.name if plain.count(place.name) == 1 else f"{place.parent.name}/{place.name}" for place in places
    }


def _part(task: str, members: Sequence[Member]) -> TaskPart:
    """Runs of one task; those that were asked another figure of it stand side by side all the same."""
    asked = sorted({question_text(member.query) for member in members})
    figures = {member.title: arm_figures(member.folder, member.query) for member in members}
    items = [
        ForestItem(f"{member.title}: {member.folder.arm(name).short}", member.folder.arm(name).kind, figure)
        for member in members
        for name, figure in figures[member.title].items()
        if name in member.folder.leads or any(member.folder.is_base(lead, name) for lead in member.folder.leads)
    ]
    found, apart = _differences(members)
    answer = [item for item, _ in found]
    return TaskPart(
        task=task,
        asked="; ".join(asked),
        unit=members[0].folder.unit,
        runs=tuple(member.title for member in members),
        rows=tuple(_rows(members, figures)),
        plot=forest(items, 0.0, "") if items and len({member.query.metric for member in members}) == 1 else None,
        differences=forest(answer, 0.0, "no difference", signed=True) if answer else None,
        several=holm_sentence([item.title for item in answer], [p for _, p in found]),
        apart=tuple(apart),
    )


def _rows(
    members: Sequence[Member], figures: Mapping[str, Mapping[str, MetricValue]]
) -> Iterator[tuple[str, str, tuple[SiteCell | None, ...]]]:
    """A row an encoder that some run has; an encoder in question has a row of its own in each run that it is in."""
    names: dict[str, tuple[str, str, tuple[int, str]]] = {}
    for member in members:
        for name in figures[member.title]:
            arm = member.folder.arm(name)
            names.setdefault(name, (arm.short, arm.kind, arm_order(member.folder, name)))
    for name, (title, kind, _) in sorted(names.items(), key=lambda item: item[1][2]):
        yield title, kind, tuple(site_cell(figures[member.title].get(name)) for member in members)


def _differences(members: Sequence[Member]) -> tuple[list[tuple[ForestItem, float]], list[str]]:
    """Paired differences of the encoders in question of every two runs with p values, and why others have none."""
    found: list[tuple[ForestItem, float]] = []
    apart = []
    tables = {member.title: _scores(member) for member in members}
    for first, second in combinations(members, 2):
        why = _not_comparable(first, second, tables[first.title], tables[second.title])
        if why:
            apart.append(f"{first.title} and {second.title}: {why}.")
            continue
        for own in first.folder.leads:
            for other in second.folder.leads:
                found += _difference(first, own, second, other, tables)
    return found, apart


def _scores(member: Member) -> pd.DataFrame:
    """Kept scores of a run's encoders in question at its main question; empty where there are none."""
    path, query = member.folder.path / "evaluation" / "scores.csv", member.query
    if not path.is_file():
        return pd.DataFrame()
    text = ("label", "label_fraction", "patient", "site", "image", "encoder", "matches")
    table = pd.read_csv(path, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values={"value": [""]})
    kept = (table["protocol"] == query.protocol) & (table["label_fraction"] == query.fraction)
    return table[kept & table["encoder"].isin(member.folder.leads)]


def _not_comparable(first: Member, second: Member, one: pd.DataFrame, two: pd.DataFrame) -> str:
    """Why two runs' encoders are not subtracted; "" where images and labels of the test are the same."""
    if one.empty or two.empty:
        return "evaluation/scores.csv of one of them has no scores of the encoder in question"
    if first.query != second.query:
        return f"asked differently ({question_text(first.query)} and {question_text(second.query)})"
    if first.folder.task != second.folder.task:
        return "their classes differ"
    tested = [_tested(table) for table in (one, two)]
    if not tested[0][_WHOSE].equals(tested[1][_WHOSE]):
        return "not tested on the same images of the same patients"
    return "" if tested[0].equals(tested[1]) else "the same images have other labels"


def _tested(table: pd.DataFrame) -> pd.DataFrame:
    """Which images were tested, and what is true of them, once each and in order."""
    truth = [name for name in table if name == "label" or str(name).startswith("truth")]
    once = table[[*_WHOSE, *truth]].drop_duplicates(_WHOSE)
    return once.sort_values(_WHOSE, ignore_index=True)


def _difference(
    first: Member, own: str, second: Member, other: str, tables: Mapping[str, pd.DataFrame]
) -> list[tuple[ForestItem, float]]:
    """The first run's encoder minus the second's over all test sites; [] where it is not defined."""
    settings = RunEvaluation.model_validate(read_json(first.folder.path / "evaluation" / "config.json"))
    classes = tuple(map(str, first.folder.task.get("classes", ())))
    scores = [
        Scores.of(tables[member.title][tables[member.title]["encoder"] == name])
        for member, name in ((first, own), (second, other))
    ]
    roles = {"role_a": first.folder.roles[own], "role_b": second.folder.roles[other]}
    rows = comparison_rows(scores[0], scores[1], main_metric(settings, classes), settings, roles)
    frame = COMPARISONS.frame([row for row in rows if row["site"] == ALL])
    figure = figure_of(frame)
    if figure is None:
        return []
    verdict = verdict_of(figure, first.query.metric.lower() in LESS_IS_BETTER)
    sides = [_side(first, own), _side(second, other)]
    return [
        (ForestItem(" − ".join(sides), first.folder.arm(own).kind, figure, str(verdict)), float(frame["p"].iloc[0]))
    ]


def _side(member: Member, name: str) -> str:
    """A run, and its encoder where it has several in question."""
    return member.title if len(member.folder.leads) == 1 else f"{member.title}: {member.folder.arm(name).short}"
