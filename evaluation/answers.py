"""What the figures say, in words: the answer and the comparisons, by one rule whichever way they fall.

A difference is above nought, below it, or around it: its 95 % interval decides, never its value alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from evaluation.figures import (
    LESS_IS_BETTER,
    Figure,
    Question,
    arm_figures,
    digits_for,
    figure_of,
    metric_title,
    number,
)
from evaluation.run_folder import OVERALL, RunFolder


class Verdict(StrEnum):
    """How the federated encoder stands to another."""

    BETTER = "better"
    WORSE = "worse"
    UNCLEAR = "cannot say"
    NO_INTERVAL = "too few to say"


@dataclass(frozen=True)
class Contrast:
    """Federated minus another encoder at one site (``all``: every test site of the federation)."""

    other: str
    title: str
    kind: str
    figure: Figure
    verdict: Verdict
    sentence: str


_CONTRAST_KINDS = ("natural", "random", "pixels", "alone", "pooled", "supervised", "majority", "other")

# "baseline" is for what pretraining started from, random initialisation ({base}) or the weights that were given.
# {metric}, {own}: the federated encoder’s figure; {there}: the other's; {units}: patients or picture clusters;
# {apart}: "0.05 above", "0.05 below"; {bracket}: " (95 % interval 0.02 to 0.09)"; {why}: why there is none.
_LEAD = "on unseen {units} the federated encoder’s {metric} is {own}, {apart} {base}"
_SENTENCES: Mapping[str, Mapping[Verdict, str]] = {
    "baseline": {
        Verdict.BETTER: "Pretraining helped: " + _LEAD + "{bracket}.",
        Verdict.WORSE: "Pretraining made it worse: " + _LEAD + "{bracket}.",
        Verdict.UNCLEAR: "We cannot say whether pretraining helped: " + _LEAD + "{bracket}.",
        Verdict.NO_INTERVAL: "We cannot say whether pretraining helped: " + _LEAD + ", with {why}.",
    },
    "pixels": {
        Verdict.BETTER: "It does better than simple pixels: a logistic regression on raw pixels, with no pretraining "
        "at all, reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.WORSE: "Simple pixels do better: a logistic regression on raw pixels, with no pretraining at all, "
        "reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.UNCLEAR: "Simple pixels may do as well: a logistic regression on raw pixels, with no pretraining at "
        "all, reaches {there}; the encoder is {apart} that{bracket}.",
        Verdict.NO_INTERVAL: "Simple pixels may do as well: a logistic regression on raw pixels, with no pretraining "
        "at all, reaches {there}; the encoder is {apart} that, with {why}.",
    },
    "pooled": {
        Verdict.BETTER: "It did better than pooling all pictures in one place: {apart} {there}{bracket}.",
        Verdict.WORSE: "Pooling all pictures in one place did better: the federated encoder is {apart} "
        "{there}{bracket}.",
        Verdict.UNCLEAR: "We cannot tell it from pooling all pictures in one place: {apart} {there}{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell it from pooling all pictures in one place: {apart} {there}, with {why}.",
    },
    "other": {
        Verdict.BETTER: "Better than {title}: {apart} {there}{bracket}.",
        Verdict.WORSE: "Worse than {title}: {apart} {there}{bracket}.",
        Verdict.UNCLEAR: "We cannot tell it from {title}: {apart} {there}{bracket}.",
        Verdict.NO_INTERVAL: "We cannot tell it from {title}: {apart} {there}, with {why}.",
    },
}


_NAMES = {
    "random": "random initialisation",
    "natural": "the weights it started from",
    "supervised": "supervised training from scratch with the same labels",
    "majority": "always answering the majority class",
}


def verdict_of(figure: Figure, less_is_better: bool = False) -> Verdict:
    """Better or worse when the whole interval lies on one side of nought; a bound that prints as nought is nought."""
    if figure.interval is None:
        return Verdict.NO_INTERVAL
    low, high = (round(bound, 3) for bound in figure.interval)
    if low <= 0 <= high:
        return Verdict.UNCLEAR
    return Verdict.BETTER if (low > 0) != less_is_better else Verdict.WORSE


def contrasts(folder: RunFolder, question: Question, site: str = OVERALL) -> list[Contrast]:
    """The paired differences of one question at one site: random initialisation, pixels, sites alone, then the rest."""
    rows = folder.comparisons
    rows = rows[rows["label_fraction"].isin(["", question.fraction])]
    rows = rows[(rows["protocol"] == question.protocol) & (rows["metric"] == question.metric) & (rows["site"] == site)]
    figures = arm_figures(folder, question, site)
    found: list[Contrast] = []
    for (own, other), group in rows.groupby(["encoder_a", "encoder_b"], sort=False):
        figure = figure_of(group)
        if figure is not None and folder.arm(str(own)).kind == "federated":
            found.append(
                _contrast(folder, question, figure, figures.get(str(own)), str(other), figures.get(str(other)))
            )
    return sorted(found, key=lambda item: (_contrast_rank(item.kind), item.other))


def outside_sentence(folder: RunFolder, question: Question, site: str) -> str:
    """Whether pretraining helped at a site that took no part in it; "" without a comparison there."""
    found = [item for item in contrasts(folder, question, site) if item.kind == folder.baseline]
    return f"At {site}, which took no part in training, {_lowered(found[0].sentence)}" if found else ""


def _lowered(sentence: str) -> str:
    return sentence[0].lower() + sentence[1:]


def _contrast_rank(kind: str) -> int:
    return _CONTRAST_KINDS.index(kind if kind in _CONTRAST_KINDS else "other")


def _contrast(
    folder: RunFolder,
    question: Question,
    figure: Figure,
    own: Figure | None,
    other: str,
    there: Figure | None,
) -> Contrast:
    arm = folder.arm(other)
    verdict = verdict_of(figure, question.metric.lower() in LESS_IS_BETTER)
    sentence = _SENTENCES.get(_sentence_kind(folder, arm.kind), _SENTENCES["other"])[verdict].format(
        units=folder.unit,
        metric=metric_title(question.metric),
        own=number(own.value) if own else "not known",
        there=number(there.value) if there else "a figure that is not known",
        title=_name(folder, arm.kind, arm.short),
        base=_NAMES[folder.baseline],
        apart=_apart(figure),
        bracket=_bracket(figure, verdict),
        why=figure.why_no_interval,
    )
    return Contrast(other, arm.short, arm.kind, figure, verdict, sentence)


def _sentence_kind(folder: RunFolder, kind: str) -> str:
    return "baseline" if kind == folder.baseline else kind


def _name(folder: RunFolder, kind: str, title: str) -> str:
    if kind == "supervised" and folder.baseline == "natural":
        return "supervised training from the same starting weights with the same labels"
    return _NAMES.get(kind, title)


def _apart(figure: Figure) -> str:
    """``0.05 above`` or ``0.05 below``."""
    if figure.value == 0:
        return "level with"
    return f"{number(abs(figure.value), digits=digits_for(figure))} {'above' if figure.value > 0 else 'below'}"


def _bracket(figure: Figure, verdict: Verdict) -> str:
    """The interval of the difference, with what it means where it lies around nought."""
    if figure.interval is None:
        return ""
    digits = digits_for(figure)
    low, high = (number(bound, digits=digits) for bound in figure.interval)
    of = " of the difference" if figure.interval[0] < 0 else ""
    meaning = ", so there may be none" if verdict is Verdict.UNCLEAR else ""
    return f" (95 % interval{of} {low} to {high}{meaning})"


def answer(found: list[Contrast], folder: RunFolder, question: Question) -> list[str]:
    """The first lines of the report: whether pretraining helped, whether doing it together did, and against pixels.

    Pretraining is held against what it started from; without that comparison the answer says that there is none.
    """
    by_kind = {contrast.kind: contrast for contrast in reversed(found)}
    if folder.baseline in by_kind:
        lines = [by_kind[folder.baseline].sentence]
    else:
        own = next(
            (f for name, f in arm_figures(folder, question).items() if folder.arm(name).kind == "federated"),
            None,
        )
        reached = f" Its {metric_title(question.metric)} on unseen {folder.unit} is {number(own.value)}." if own else ""
        lines = [
            "We cannot say whether pretraining helped: this run holds no comparison of the federated encoder "
            f"with {_NAMES[folder.baseline]}.{reached}"
        ]
    if together := tally(found):
        lines.append(together)
    if "pixels" in by_kind:
        lines.append(by_kind["pixels"].sentence)
    return lines


def worth_telling(found: list[Contrast]) -> list[Contrast]:
    """All comparisons but the one with the majority class where it went as anybody would expect."""
    return [item for item in found if item.kind != "majority" or item.verdict is not Verdict.BETTER]


def tally(found: list[Contrast]) -> str:
    """Whether doing it together paid: the federated encoder against each site alone; "" without such arms."""
    alone = [contrast for contrast in found if contrast.kind == "alone"]
    if not alone:
        return ""
    parts = [
        (Verdict.BETTER, "better than {}"),
        (Verdict.WORSE, "worse than {}"),
        (Verdict.UNCLEAR, "not to be told apart from {}"),
        (Verdict.NO_INTERVAL, "measured on too few to compare with {}"),
    ]
    said = []
    for verdict, words in parts:
        titles = [contrast.title for contrast in alone if contrast.verdict is verdict]
        if titles:
            said.append(words.format(_listed(titles)))
    verdicts = {contrast.verdict for contrast in alone}
    if Verdict.WORSE in verdicts:
        lead = "Doing it together did not pay here"
    elif verdicts == {Verdict.BETTER}:
        lead = "Doing it together paid"
    else:
        lead = "Whether doing it together paid is not clear"
    return f"{lead}: against each site on its own, at the same budget, the federated encoder is {'; '.join(said)}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
