"""What a pilot leaves: lines for the console, a JSON record, and the study of its winner."""

import io
import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from federation.study import Study, study_from
from foundation.files import read_json, write_json, write_text
from foundation.wording import span
from simulation.advisor.pilot_plan import JUDGED_BY, Plan, Trained
from simulation.advisor.verdict import RULE, Agreement, Figure, Findings

WIDTH = 80
RECORD = "pilot.json"
_SAID: dict[Agreement, str] = {
    "agrees": "The pilot agrees with the literature",
    "cannot tell": "The pilot cannot tell",
    "disagrees": "The pilot disagrees with the literature",
}


def winners_study(plan: Plan, findings: Findings) -> Study:
    """The study as it was given, with the winner's method, and the pilot's encoder where its own does not suit."""
    chosen = plan.arms[findings.winner].study
    raw = plan.study.model_dump(mode="json")
    raw |= {name: getattr(chosen, name).model_dump(mode="json") for name in ("method", "encoder")}
    return study_from(raw, plan.study.name)


def write_winner(path: Path, plan: Plan, findings: Findings, command: str) -> None:
    """The winner's study file, with the reason on top."""
    reasons = [
        f"Written by: {command}",
        f"{_SAID[findings.agreement]}: {_why(findings)}",
        f"Rule: {RULE}.",
        f"Record: {plan.folder / RECORD}",
    ]
    comments = [line for reason in reasons for line in _wrapped(reason, "# ", "# ", 110)]
    write_text(path, "\n".join(comments) + "\n" + winners_study(plan, findings).to_yaml())


def write_record(plan: Plan, trained: dict[str, Trained], findings: Findings, passes: int, seconds: float) -> None:
    """``pilot.json``: what was asked, done and found."""
    write_json(
        plan.folder / RECORD,
        {
            "setting": plan.setting.line(),
            "study_hash": plan.study.whole_hash(),
            "passes": passes,
            "rule": RULE,
            "protocol": JUDGED_BY[plan.study.evaluation.kind],
            "metric": findings.metric,
            "unit": plan.pictures.unit,
            "patients_judged": findings.patients,
            "patients_not_opened": plan.spared,
            "encoder": next(iter(plan.arms.values())).study.encoder.model_dump(mode="json"),
            "agreement": findings.agreement,
            "winner": findings.winner,
            "seconds": round(seconds, 1),
            "run": read_json(plan.folder / "run.json"),
            "candidates": [_record(plan, trained, findings, each.candidate.name) for each in plan.ranked],
        },
    )


def _record(plan: Plan, trained: dict[str, Trained], findings: Findings, name: str) -> dict[str, Any]:
    arm, ranked = plan.arms[name], next(each for each in plan.ranked if each.candidate.name == name)
    budget = arm.budget()
    return {
        "name": name,
        "method": arm.study.method.model_dump(mode="json"),
        "points": ranked.points,
        "reasons": [f"{reason.text} {reason.source()}" for reason in ranked.reasons],
        "rounds": arm.study.rounds.count,
        "pictures": budget.pictures,
        "optimiser_steps": budget.optimiser_steps,
        "seconds": round(trained[name].seconds, 1),
        "failed": trained[name].failed,
        "figure": _numbers(findings.own.get(name)),
        "minus_no_pretraining": _numbers(findings.gain.get(name)),
        "first_minus_it": _numbers(findings.against.get(name)),
    }


def _numbers(figure: Figure | None) -> list[float | None] | None:
    """Value and interval, None where there is none."""
    return None if figure is None else [None if math.isnan(n) else round(n, 6) for n in vars(figure).values()]


def lines(plan: Plan, trained: dict[str, Trained], findings: Findings, passes: int, seconds: float) -> Iterator[str]:
    """The ranked answer in lines of at most 80 columns."""
    yield from _wrapped(f"Pilot for: {plan.setting.line()}")
    yield ""
    yield from _wrapped(_budget(plan, findings, passes))
    yield ""
    yield from _table(plan, trained, findings)
    for name, each in trained.items():
        if each.failed:
            yield from _wrapped(f"{name} could not be trained: {each.failed}", "- ", "  ")
    yield ""
    yield f"The literature's first ({findings.first}) minus each other, paired:"
    for name, figure in findings.against.items():
        yield f"- minus {name}: {_shown(figure, signed=True)}"
    if plan.pictures.unit != "patient":
        yield "  unit: picture cluster, intervals optimistic"
    yield ""
    yield from _wrapped(f"{_SAID[findings.agreement]}: {_why(findings)}")
    if not any(figure.low > 0 for figure in findings.gain.values()):
        yield from _wrapped(
            "No candidate was shown to be better than no pretraining, so that their order says little: give more "
            "--passes, or judge by a study of full length."
        )
    yield from _wrapped(f"Rule, fixed beforehand: {RULE}. {len(findings.against)} comparisons, without correction.")
    yield from _wrapped(f"Took {span(seconds)}. A pilot is small: what it cannot tell, a study of full length may.")


def _budget(plan: Plan, findings: Findings, passes: int) -> str:
    encoder = next(iter(plan.arms.values())).study.encoder.name
    protocol, unit = JUDGED_BY[plan.study.evaluation.kind], plan.pictures.unit
    return (
        f"Budget: {passes:,} encoder passes for each of {len(plan.arms)} candidates, all over {encoder}; one seed. "
        f"Judged by {protocol} on {findings.patients} {unit}s of the study's training and validation part. "
        f"{plan.spared} {unit}s whom the study tests or leaves out were not opened."
    )


def _why(findings: Findings) -> str:
    if findings.agreement == "disagrees":
        return (
            f"{findings.winner} was better than the literature's first, {findings.first}; {findings.winner} is taken."
        )
    if findings.agreement == "agrees":
        return f"{findings.first}, the literature's first, was better than every other; it is taken."
    return f"no other candidate was shown to be better than {findings.first}, the literature's first; it is taken."


def _table(plan: Plan, trained: dict[str, Trained], findings: Findings) -> list[str]:
    place = {each.candidate.name: number for number, each in enumerate(plan.ranked, start=1)}
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="", pad_edge=False)
    for heading in ("pilot", "method", "literature", f"{findings.metric} (95 %)", "minus no pretraining", "took"):
        table.add_column(heading)
    for number, name in enumerate(findings.ranked(), start=1):
        cells = [f"{number}.", name, f"{place[name]}.", _shown(findings.own[name])]
        cells += [_shown(findings.gain[name], signed=True), span(trained[name].seconds)]
        table.add_row(*(Text(cell) for cell in cells))
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    console.print(table)
    written = console.file
    assert isinstance(written, io.StringIO)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def _shown(figure: Figure, signed: bool = False) -> str:
    form = "{:+.2f}" if signed else "{:.2f}"
    if math.isnan(figure.value):
        return "not defined"
    if math.isnan(figure.low):
        return f"{form.format(figure.value)} (no interval)"
    return f"{form.format(figure.value)} ({form.format(figure.low)} to {form.format(figure.high)})"


def _wrapped(text: str, first: str = "", then: str = "", width: int = WIDTH) -> list[str]:
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
