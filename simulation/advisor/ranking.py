"""Which methods fit, what speaks for and against each, and their order."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simulation.advisor.candidates import CANDIDATES, Candidate
from simulation.advisor.cell import Cell
from simulation.advisor.evidence import EXTRAPOLATED, FINDINGS, POINTS, Grade
from simulation.advisor.setting import FEW_PATIENTS, Setting
from simulation.advisor.sweep_evidence import CELLS

SHOWN = 3
"""Candidates in an answer."""
TWO_VIEWS = 2.0
"""Passes of a method that compares two views: what costs more is said to."""


@dataclass(frozen=True)
class Reason:
    """One finding as it bears on one candidate.

    sign: 1 for, -1 against, 0 looked at and not shown. carried: each step by which it is carried over ("classification
    to regression"); none where it was made for this.
    """

    finding: str
    sign: int
    text: str
    carried: tuple[str, ...] = ()

    @property
    def grade(self) -> Grade:
        """The finding's."""
        return FINDINGS[self.finding].grade

    @property
    def points(self) -> float:
        """What it adds to the candidate's."""
        return self.sign * POINTS[self.grade] * EXTRAPOLATED ** len(self.carried)

    def source(self) -> str:
        """Citation and grade, in brackets."""
        steps = f"; no evidence here: extrapolated, {', and '.join(self.carried)}" if self.carried else ""
        return f"[{FINDINGS[self.finding].citation}; {self.grade}{steps}]"


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
        return f"does not take {'volumes' if setting.volumes else '2-D pictures'}"
    if setting.privacy and not declared.per_sample:
        return "couples pictures, which patient-level privacy forbids"
    if setting.patients < declared.fewest_patients:
        return f"needs {declared.fewest_patients} patients at every site"
    if candidate.needs and setting.pictures < 2:
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

    usable: what else is known of the pictures.
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
    found = [reason for rule in RULES for reason in rule(setting, candidate)]
    return tuple(sorted(found, key=lambda reason: -abs(reason.points)))


def _modality(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    """The only direct comparisons: tissue and ultrasound."""
    if setting.modality == "histopathology" and "joint embedding" in candidate.traits:
        text = "joint embedding represents spatially localised signal best"
        kind = () if candidate.method == "dino" else ("DINO to another of its kind",)
        yield Reason("tissue", 1, text, (*kind, *(("slides to volumes",) if setting.volumes else ())))
    if setting.modality == "ultrasound" and "ijepa" in candidate.members:
        text = "I-JEPA represents globally structured anatomy best"
        yield Reason("ultrasound", 1, text, _of_a_sum(candidate))


def _of_a_sum(candidate: Candidate) -> tuple[str, ...]:
    return ("one method to a sum with it",) if len(candidate.members) > 1 else ()


def _task(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    """The review by downstream task."""
    finding, wanted, text = (
        ("dense", {"masked", "spatial prediction"}, f"masked or spatial prediction suits {setting.task}")
        if setting.dense
        else ("whole picture", {"joint embedding"}, "contrastive methods and joint embedding suit classification")
    )
    if wanted & candidate.traits:
        part = ("one part of the method to the whole",) if candidate.traits - wanted - {"combined"} else ()
        yield Reason(finding, 1, text, (*part, *_to_regression(setting)))
    elif setting.dense and candidate.method == "models_genesis":
        yield Reason(finding, 1, text, ("masking to restoring, of which in-painting is a part",))


def _to_regression(setting: Setting) -> tuple[str, ...]:
    return ("classification to regression",) if setting.task == "regression" else ()


def _combined(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    if "combined" in candidate.traits:
        text = "combined strategies tend to win, though the review notes publication bias"
        dense = (f"classification to {setting.task}",) if setting.dense else ()
        yield Reason("combined", 1, text, ("combined strategies to this one", *_to_regression(setting), *dense))


def _sites(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    if not setting.different_sites:
        return
    if candidate.method == "simsiam":
        yield Reason("different sites", -1, "loses more than MAE where sites differ strongly")
    elif "masked" in candidate.traits:
        text = "masked modelling loses less than SimSiam where sites differ strongly"
        carried = () if candidate.method == "mae" else ("MAE to another masked method",)
        yield Reason("different sites", 1, text, carried)


def _privacy(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    if setting.privacy and {"mae", "ijepa"} & set(candidate.members):
        text = "MAE and I-JEPA are the two to try under patient-level privacy"
        yield Reason("per-sample", 1, text, _of_a_sum(candidate))


def _negatives(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    if candidate.declared.fewest_patients > 1 and setting.patients < FEW_PATIENTS:
        text = f"{setting.patients} patients at the smallest site leave few negatives (few: below {FEW_PATIENTS}, ours)"
        yield Reason("negatives", -1, text)


def _cost(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    if candidate.passes > TWO_VIEWS:
        yield Reason("cost", -1, f"{candidate.passes:.1f} encoder passes a picture; two views take {TWO_VIEWS:.0f}")


def measured(setting: Setting) -> list[Cell]:
    """Our own cells of just this modality and task."""
    same = [cell for cell in CELLS if (cell.modality, cell.dimensions) == (setting.modality, setting.dimensions)]
    return same if setting.task == "classification" else []


def _own(setting: Setting, candidate: Candidate) -> Iterator[Reason]:
    """Our own cells: those of this modality and task if there are any, else those of the same dimensions."""
    here = [cell for cell in measured(setting) if cell.method == candidate.method]
    others = [cell for cell in CELLS if cell.method == candidate.method and cell.dimensions == setting.dimensions]
    for cell in here or others:
        carried = () if here else (f"{cell.modality} classification to {setting.modality} {setting.task}",)
        yield Reason("own", cell.sign, f"{_VERDICTS[cell.sign]}: {cell.line()}{_aside(cell)}", carried)


_VERDICTS = {1: "gained", 0: "no gain shown", -1: "ended below random"}


def _aside(cell: Cell) -> str:
    """What the record says beside the figure."""
    if cell.method == "ijepa":
        return "; prediction of features needed more than its 700 small steps"
    return "; not a verdict on segmentation, for which its paper fine-tunes" if cell.method == "models_genesis" else ""


RULES: tuple[Callable[[Setting, Candidate], Iterator[Reason]], ...] = (
    _modality, _task, _combined, _sites, _privacy, _negatives, _cost, _own,
)  # fmt: skip
