"""Which methods fit, what speaks for and against each, and their order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from advisor.candidates import CANDIDATES, Candidate
from advisor.evidence import CELLS, FINDINGS, WEIGHTS, Finding
from advisor.setting import Setting

SHOWN = 3
"""Candidates in an answer."""
EXTRAPOLATED = 0.5
"""Factor on a finding for each step by which it is carried over to what it was not made for."""


@dataclass(frozen=True)
class Reason:
    """One finding as it bears on one candidate.

    sign: 1 for, -1 against, 0 measured and not shown. carried: each step by which it is carried over ("classification
    to regression"); none where it was made for this.
    """

    finding: Finding
    sign: int
    text: str
    carried: tuple[str, ...] = ()

    @property
    def points(self) -> float:
        """What it adds to the candidate's."""
        return self.sign * WEIGHTS[self.finding.grade] * EXTRAPOLATED ** len(self.carried)

    def line(self) -> str:
        """What it says, with citation, grade and steps in brackets."""
        steps = f"; no evidence here: extrapolated, {', and '.join(self.carried)}" if self.carried else ""
        return f"{self.text} [{self.finding.citation}; {self.finding.grade}{steps}]"


@dataclass(frozen=True)
class Ranked:
    """A candidate with its reasons, the weightiest first."""

    candidate: Candidate
    reasons: tuple[Reason, ...]

    @property
    def points(self) -> float:
        """Sum over the reasons."""
        return sum(reason.points for reason in self.reasons)


def why_not(setting: Setting, candidate: Candidate) -> str:
    """Why the candidate cannot be used here; "" where it can."""
    declared = candidate.declared
    if setting.dimensions not in declared.dimensions:
        return f"does not take {'volumes' if setting.volumes else '2-D images'}"
    if setting.privacy and not declared.per_sample:
        return "couples images, which patient-level privacy forbids"
    if setting.patients < declared.fewest_patients:
        return f"needs {declared.fewest_patients} patients at every site"
    if candidate.needs and setting.images < 2:
        return f"needs {candidate.needs}"
    return ""


def left_out(setting: Setting) -> dict[str, list[str]]:
    """Names of the candidates that cannot be used, by the reason."""
    found: dict[str, list[str]] = {}
    for candidate in CANDIDATES:
        if reason := why_not(setting, candidate):
            found.setdefault(reason, []).append(candidate.name)
    return found


def rank(setting: Setting) -> list[Ranked]:
    """All candidates that fit, best first: most points, then the weightiest single reason for it, then the table."""
    fitting = [candidate for candidate in CANDIDATES if not why_not(setting, candidate)]
    ranked = [Ranked(candidate, _reasons(setting, candidate)) for candidate in fitting]
    return sorted(ranked, key=lambda each: (-each.points, -max((r.points for r in each.reasons), default=0.0)))


def best(setting: Setting, usable: Callable[[Candidate], bool] = lambda candidate: True) -> list[Ranked]:
    """The answer: the best of each family, then, where families are few, the next best; none with more against it.

    usable: what else is known of the images.
    """
    whole = [each for each in rank(setting) if usable(each.candidate)]
    first: dict[str, Ranked] = {}
    for each in whole:
        first.setdefault(each.candidate.family, each)
    others = [each for each in whole if each not in first.values()]
    chosen = [*first.values(), *others][:SHOWN]
    kept = [each for each in chosen if each.points >= 0] or chosen[:1]
    return [each for each in whole if each in kept]


def _reasons(setting: Setting, candidate: Candidate) -> tuple[Reason, ...]:
    found = list(_measured(setting, candidate))
    for finding in FINDINGS.values():
        rows = [row for row in finding.rows if row.holds(setting) and row.methods & candidate.groups]
        found += [Reason(finding, row.sign, finding.says, row.carried) for row in rows[:1]]
    return tuple(sorted(found, key=lambda reason: -abs(reason.points)))


def _measured(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    """Our own cells: those of this modality and task if there are any, else those of the same dimensions."""
    cells = [cell for cell in CELLS if (cell.method, cell.dimensions) == (candidate.method, setting.dimensions)]
    here = [cell for cell in cells if setting.task == "classification" and cell.modality == setting.modality]
    said = {1: "gained", 0: "no gain shown", -1: "ended below random"}
    for cell in here or cells:
        carried = () if here else (f"{cell.modality} classification to {setting.modality} {setting.task}",)
        yield Reason(FINDINGS["own"], cell.sign, f"{said[cell.sign]}: {cell.line()}", carried)
