"""What a pilot leaves: lines for the console, a JSON record, and the study of its winner."""

import math
from pathlib import Path

from advisor.pilot_plan import Plan, Trained
from advisor.text import COMMENT, filled, wrapped
from advisor.verdict import RULE, Findings, PilotEstimate
from federation.study import study_from
from foundation.files import read_json, write_json, write_text
from foundation.wording import one_line, span

RECORD = "pilot.json"


def verdict(findings: Findings) -> str:
    """What the pilot found, in a sentence."""
    first, winner = f"the literature's first, {findings.first},", findings.winner
    return {
        "agrees": f"The pilot agrees with the literature: {first} was better than every other; it is taken.",
        "cannot tell": f"The pilot cannot tell: no other candidate was shown to be better than {first} which is taken.",
        "disagrees": f"The pilot disagrees with the literature: {winner} was better than {first} and is taken.",
    }[findings.agreement]


def write_winner(path: Path, plan: Plan, findings: Findings, command: str) -> None:
    """The study as it was given, with the winner's method, the pilot's encoder where its own does not suit, and why."""
    chosen = plan.arms[findings.winner].study
    raw = plan.study.model_dump(mode="json")
    raw |= {name: getattr(chosen, name).model_dump(mode="json") for name in ("method", "encoder", "training")}
    reasons = [f"Written by: {command}", verdict(findings), f"Rule: {RULE}.", f"Record: {plan.folder / RECORD}"]
    comments = [f"{line}\n" for reason in reasons for line in wrapped(f"# {one_line(reason)}", COMMENT, 110)]
    write_text(path, "".join(comments) + study_from(raw, plan.study.name).to_yaml())


def write_record(plan: Plan, trained: dict[str, Trained], findings: Findings, passes: int, seconds: float) -> None:
    """``pilot.json``: what was asked, done and found."""
    facts = {
        "setting": plan.setting.line(),
        "study_hash": plan.study.whole_hash(),
        "passes": passes,
        "rule": RULE,
        "protocol": plan.judge,
        "metric": findings.metric,
        "unit": plan.images.unit,
        "patients_judged": findings.patients,
        "patients_not_opened": plan.spared,
        "encoder": plan.base.study.encoder.model_dump(mode="json"),
        "agreement": findings.agreement,
        "winner": findings.winner,
        "seconds": round(seconds, 1),
        "run": read_json(plan.folder / "run.json"),
    }
    candidates = []
    for each in plan.ranked:
        name = each.candidate.name
        arm = plan.arms[name]
        candidates.append(
            {
                "name": name,
                "method": arm.study.method.model_dump(mode="json"),
                "points": each.points,
                "reasons": [reason.line() for reason in each.reasons],
                "rounds": arm.study.rounds.count,
                "images": arm.budget().images,
                "optimiser_steps": arm.budget().optimiser_steps,
                "seconds": round(trained[name].seconds, 1),
                "failed": trained[name].failed,
                "figure": _numbers(findings.own.get(name)),
                "minus_no_pretraining": _numbers(findings.gain.get(name)),
                "first_minus_it": _numbers(findings.against.get(name)),
            }
        )
    write_json(plan.folder / RECORD, facts | {"candidates": candidates})


def _numbers(figure: PilotEstimate | None) -> list[float | None] | None:
    """Value and interval, None where there is none."""
    return None if figure is None else [None if math.isnan(n) else round(n, 6) for n in vars(figure).values()]


def lines(plan: Plan, trained: dict[str, Trained], findings: Findings, passes: int, seconds: float) -> list[str]:
    """The ranked answer in lines of at most 80 columns."""
    figures = {"plan": plan, "trained": trained, "findings": findings, "passes": passes, "seconds": seconds}
    said = {"verdict": verdict(findings), "rule": RULE, "places": list(plan.arms), "shown": shown, "span": span}
    gained = any(figure.low > 0 for figure in findings.gain.values())
    return wrapped(filled("pilot.txt", **figures, **said, gained=gained))


def shown(figure: PilotEstimate, signed: bool = False) -> str:
    """A figure with its interval, or why there is none."""
    if math.isnan(figure.value):
        return "not defined"
    value, low, high = (f"{number:{'+' if signed else ''}.2f}" for number in vars(figure).values())
    return f"{value} ({'no interval' if math.isnan(figure.low) else f'{low} to {high}'})"
