"""What a run's attacks found, in words and rows, for the console and for the report beside the promised epsilon."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evaluation.report.run_folder import facts_in

ATTACKS_NAME = "attacks.json"
NAMES = {
    "membership-loss": "Membership, by loss",
    "membership-features": "Membership, by features",
    "membership-shadows": "Membership, with shadows",
    "inversion": "Image from an update",
    "site": "Site from updates",
}
ATTACKERS = {
    "membership-loss": "The final weights, all parts that are shared, and the images of a patient.",
    "membership-features": "The final encoder, and the images of a patient.",
    "membership-shadows": "As by loss, and models of the same study trained on other patients.",
    "inversion": "A site’s update of one step on one image, the weights before it, and its crop and mask.",
    "site": "Each site’s update of one step, and an image of which one of them trained on.",
}
_TOO_WEAK = "too weak here"


@dataclass(frozen=True)
class AttackSection:
    """The report's section: who was attacked, what was promised, a row an attack."""

    who: str
    promise: str
    rows: list["AttackRow"]


@dataclass(frozen=True)
class AttackRow:
    """One attack, as text. permitted: the most that the promise permits, "–" where it says nothing of this figure."""

    name: str
    attacker: str
    advantage: str
    control: str
    permitted: str
    reading: str


def attack_section(run: Path) -> AttackSection | None:
    """The section of a run that was attacked; None for the others."""
    answer = facts_in(run / ATTACKS_NAME)
    return AttackSection(who_text(answer), promise_text(answer), attack_rows(answer)) if answer else None


def who_text(answer: Mapping[str, Any]) -> str:
    """Who was attacked, in a sentence."""
    return (
        f"Arm {answer['arm']}: {answer['members']} patients who trained, {answer['others']} held out at the same sites."
    )


def attack_rows(answer: Mapping[str, Any]) -> list[AttackRow]:
    """A row an attack. A figure that reassures is not shown where the attack failed on the overfitted model too."""
    rows = []
    for each in answer.get("attacks", []):
        shown = each["verdict"] != _TOO_WEAK
        rows.append(
            AttackRow(
                NAMES[each["attack"]],
                ATTACKERS[each["attack"]],
                figure_text(each["figure"]) if shown else "–",
                figure_text(each["control"]),
                "–" if each["permitted"] is None else f"{each['permitted']:.2f}",
                each["reading"],
            )
        )
    return rows


def figure_text(figure: Mapping[str, Any] | None) -> str:
    """``0.25 (0.10 to 0.40)``."""
    if figure is None:
        return "–"
    return f"{figure['value']:.2f} ({figure['low']:.2f} to {figure['high']:.2f})".replace("-", "−")


def promise_text(answer: Mapping[str, Any]) -> str:
    """What the study promises, in a sentence."""
    promise = answer["promise"]
    if promise is None:
        return "No promise was made: the study has no privacy section, and nothing bounds what its weights may tell."
    return (
        f"Promised by {promise['unit']}: epsilon {promise['epsilon']:g} at delta {promise['delta']:g}, which permits "
        f"an advantage of at most {promise['largest_advantage']:.2f} in telling whether a patient took part"
        + ("." if promise["unit"] == "patient" else ", as exchanging a site’s images costs epsilon twice.")
    )
