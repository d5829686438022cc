"""What the figures say, in words: the answer and the comparisons, by one rule whichever way they fall.

A difference is above zero, below it, or around it: its 95 % interval decides, never its value alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from evaluation.report.role_words import baseline_wording
from evaluation.report.run_folder import RunFolder
from evaluation.report.sentences import NAMES, SENTENCES, Verdict
from evaluation.report.tables.equal_budgets import equal_in, trained_arms
from evaluation.statistics.metric_values import (
    LESS_IS_BETTER,
    MetricQuery,
    MetricValue,
    arm_figures,
    digits_for,
    figure_of,
    metric_title,
    number,
)
from evaluation.statistics.results_schema import ALL, LEADS, Role


@dataclass(frozen=True)
class Contrast:
    """One encoder minus another at one site (``all``: every test site of the federation).

    own: an encoder in question; of two such the one that is ahead. kind: ``baseline`` is what ``own`` started from,
    ``rival`` another in question, else the kind of the other arm. p: two-sided, NaN without an interval.
    """

    own: str
    other: str
    title: str
    kind: str
    figure: MetricValue
    verdict: Verdict
    sentence: str
    p: float


BASELINE, RIVAL = "baseline", "rival"
_CONTRAST_ORDER = (
    BASELINE,
    RIVAL,
    "pretrained-init",
    "random",
    "pixels",
    "position",
    "local-only",
    "centralised",
    "supervised",
    "majority",
    "other",
)


def verdict_of(figure: MetricValue, less_is_better: bool = False) -> Verdict:
    """Better or worse when the whole interval lies on one side of zero; a bound that prints as zero is zero."""
    if figure.interval is None:
        return Verdict.NO_INTERVAL
    low, high = (round(bound, 3) for bound in figure.interval)
    if low <= 0 <= high:
        return Verdict.UNCLEAR
    return Verdict.BETTER if (low > 0) != less_is_better else Verdict.WORSE


def contrasts(folder: RunFolder, query: MetricQuery, site: str = ALL) -> list[Contrast]:
    """The paired differences of one question at one site: what training started from, rivals, pixels, then the rest."""
    rows = folder.comparisons
    asked = {"task": query.task, "protocol": query.protocol, "metric": query.metric}
    for column, value in {**asked, "label_fraction": query.fraction, "site": site}.items():
        rows = rows[rows[column] == value]
    figures, leads = arm_figures(folder, query, site), folder.leads
    found: list[Contrast] = []
    for (own, other), group in rows.groupby(["encoder_a", "encoder_b"], sort=False):
        figure = figure_of(group)
        if figure is not None and own in leads:
            pair = (str(own), str(other), figure)
            pair = _ahead_first(*pair, query) if other in leads else pair
            found.append(_contrast(folder, query, *pair, figures, float(group["p"].iloc[0])))
    return sorted(found, key=lambda item: (_contrast_rank(item.kind), item.own, item.other))


def _ahead_first(own: str, other: str, figure: MetricValue, query: MetricQuery) -> tuple[str, str, MetricValue]:
    """The same difference told from the side of the encoder that is ahead."""
    if (figure.value < 0) == (query.metric.lower() in LESS_IS_BETTER):
        return own, other, figure
    low, high = (None, None) if figure.interval is None else (-figure.interval[1], -figure.interval[0])
    seeds = tuple(-value for value in figure.seeds)
    return other, own, replace(figure, value=-figure.value, low=low, high=high, seeds=seeds)


def outside_sentences(folder: RunFolder, query: MetricQuery, site: str) -> list[str]:
    """Whether pretraining helped at a site that took no part in it; [] without a comparison there."""
    where = "which took no part in training" if folder.about_one else "left out of training"
    found = [item for item in contrasts(folder, query, site) if item.kind == BASELINE]
    return [f"At {site}, {where}, {_lowered(item.sentence)}" for item in found]


def _lowered(sentence: str) -> str:
    """Within another sentence; what starts with an encoder's name stays as it is."""
    return sentence[0].lower() + sentence[1:] if sentence.startswith(("We ", "Pretraining ")) else sentence


def _contrast_rank(kind: str) -> int:
    return _CONTRAST_ORDER.index(kind if kind in _CONTRAST_ORDER else "other")


def _contrast(
    folder: RunFolder,
    query: MetricQuery,
    own: str,
    other: str,
    figure: MetricValue,
    figures: dict[str, MetricValue],
    p: float,
) -> Contrast:
    arm, who = folder.arm(other), folder.arm(own).short
    kind = BASELINE if folder.is_base(own, other) else RIVAL if other in folder.leads else arm.kind
    verdict = verdict_of(figure, query.metric.lower() in LESS_IS_BETTER)
    reported, there = figures.get(own), figures.get(other)
    wording = SENTENCES.get(kind, SENTENCES["other"]) if folder.about_one else SENTENCES["named"]
    sentence = wording[verdict].format(
        units=folder.unit,
        metric=metric_title(query.metric),
        own=number(reported.value) if reported else "not on record",
        there=number(there.value) if there else "a figure that is not on record",
        who=who,
        title=_name(folder, arm.kind, arm.short),
        baseline=baseline_wording(Role.POSITION if kind == Role.POSITION else Role.PIXELS, folder.kind),
        base=NAMES[folder.baseline] if folder.about_one else _name(folder, arm.kind, arm.short),
        apart=_apart(figure),
        bracket=_bracket(figure, verdict),
        why=figure.why_no_interval,
    )
    title = arm.short if folder.about_one else f"{who} − {arm.short}"
    return Contrast(own, other, title, kind, figure, verdict, sentence, p)


def _name(folder: RunFolder, role: Role, title: str) -> str:
    """The other arm within a sentence."""
    if role in (Role.PIXELS, Role.POSITION, Role.MAJORITY):
        return baseline_wording(role, folder.kind)
    if not folder.about_one:
        return title if role in (*LEADS, Role.OTHER) else title[0].lower() + title[1:]
    if role is Role.SUPERVISED and folder.baseline is Role.PRETRAINED_INIT:
        return "supervised training from the same starting weights with the same labels"
    return NAMES.get(role, title)


def _apart(figure: MetricValue) -> str:
    """``0.05 above``, ``0.05 below``, or ``level with`` where the difference prints as zero."""
    apart = number(abs(figure.value), digits=digits_for(figure))
    if float(apart) == 0:
        return "level with"
    return f"{apart} {'above' if figure.value > 0 else 'below'}"


def _bracket(figure: MetricValue, verdict: Verdict) -> str:
    """The interval of the difference, with what it means where it lies around zero."""
    if figure.interval is None:
        return ""
    digits = digits_for(figure)
    low, high = (number(bound, digits=digits) for bound in figure.interval)
    of = " of the difference" if figure.interval[0] < 0 else ""
    meaning = ""
    if verdict is Verdict.UNCLEAR:
        found = number(detectable(*figure.interval), digits=digits)
        meaning = f", so there may be none; one of {found} would be found four times in five"
    return f" (95 % interval{of} {low} to {high}{meaning})"


def detectable(low: float, high: float) -> float:
    """The difference that such a comparison finds with a power of .8: its 95 % interval leaves 0 out that often.

    (z .975 + z .8) standard errors, the error being the interval's half width over z .975.
    """
    return (high - low) / 2 * (1 + 0.8416 / 1.96)


def answer(found: list[Contrast], folder: RunFolder, query: MetricQuery) -> list[str]:
    """The first lines of the report: whether pretraining helped, whether training together did, and against pixels.

    Pretraining is held against what it started from; without that comparison the answer says that there is none. Of
    several encoders: how each stands to what it started from, and how they stand to each other.
    """
    if len(folder.leads) > 1:
        return [line for line in (_against_bases(found, folder), _among_each_other(found, folder)) if line]
    by_kind = {contrast.kind: contrast for contrast in reversed(found)}
    lines = [by_kind[BASELINE].sentence if BASELINE in by_kind else _no_answer(folder, query)]
    if together := tally(found, equal_in(trained_arms(folder.arms))):
        lines.append(together)
    return lines + [by_kind[kind].sentence for kind in ("pixels", "position") if kind in by_kind]


def _no_answer(folder: RunFolder, query: MetricQuery) -> str:
    own = next((f for name, f in arm_figures(folder, query).items() if name in folder.leads), None)
    reached = f" Its {metric_title(query.metric)} on unseen {folder.unit} is {number(own.value)}." if own else ""
    which = "the federated encoder" if folder.about_one else "the encoder"
    return (
        f"We cannot say whether pretraining helped: this run holds no comparison of {which} "
        f"with {NAMES[folder.baseline]}.{reached}"
    )


def _against_bases(found: list[Contrast], folder: RunFolder) -> str:
    """How many of several encoders did better than what their training started from, and which."""
    own = {item.own: item.verdict for item in found if item.kind == BASELINE}
    words = [
        (Verdict.BETTER, "better than without pretraining: {}"),
        (Verdict.WORSE, "worse than without pretraining: {}"),
        (Verdict.UNCLEAR, "no clear difference from no pretraining: {}"),
        (Verdict.NO_INTERVAL, "compared without an interval: {}"),
    ]
    said = _tallied([(folder.arm(name).short, verdict) for name, verdict in own.items()], words)
    without = [folder.arm(name).short for name in folder.leads if name not in own]
    said += [f"not compared with what it started from: {_listed(without)}"] if without else []
    return f"Of {len(folder.leads)} pretrained encoders, on unseen {folder.unit}, {'; '.join(said)}."


def _among_each_other(found: list[Contrast], folder: RunFolder) -> str:
    """Which of several encoders is ahead of which; no winner where an interval contains zero."""
    pairs = [item for item in found if item.kind == RIVAL]
    if not pairs:
        return ""
    ahead = [
        f"{folder.arm(item.own).short} did better than {folder.arm(item.other).short}: {_apart(item.figure)}"
        f"{_bracket(item.figure, item.verdict)}"
        for item in pairs
        if item.verdict is Verdict.BETTER
    ]
    if not ahead:
        return "Between them we cannot say which is better: no interval of a difference excludes zero."
    rest = len(pairs) - len(ahead)
    other = f" The other {f'{rest} pairs' if rest > 1 else 'pair'} cannot be told apart." if rest else ""
    return f"Between them, {'; '.join(ahead)}.{other}"


def at_single_sites(folder: RunFolder, query: MetricQuery, pair: Contrast, sites: Sequence[str]) -> str:
    """Where one of two encoders is ahead, site by site."""
    verdicts: list[tuple[str, Verdict]] = []
    for site in sites:
        for item in contrasts(folder, query, site):
            if {item.own, item.other} == {pair.own, pair.other}:
                turned = item.own != pair.own and item.verdict is Verdict.BETTER
                verdicts.append((site, Verdict.WORSE if turned else item.verdict))
    words = [
        (Verdict.BETTER, f"{folder.arm(pair.own).short} is ahead at {{}}"),
        (Verdict.WORSE, f"{folder.arm(pair.other).short} is ahead at {{}}"),
        (Verdict.UNCLEAR, "they cannot be told apart at {}"),
        (Verdict.NO_INTERVAL, "there is no interval at {}"),
    ]
    return f"Site by site: {'; '.join(_tallied(verdicts, words))}." if verdicts else ""


def _tallied(items: Sequence[tuple[str, Verdict]], words: Sequence[tuple[Verdict, str]]) -> list[str]:
    """The names that each verdict has, in its words; verdicts that nobody has are left out."""
    by_verdict = [(text, [name for name, own in items if own is verdict]) for verdict, text in words]
    return [text.format(_listed(names)) for text, names in by_verdict if names]


def worth_telling(found: list[Contrast]) -> list[Contrast]:
    """All comparisons but the one with the majority class where it went as anybody would expect."""
    return [item for item in found if item.kind != "majority" or item.verdict is not Verdict.BETTER]


def tally(found: list[Contrast], equal: Literal["images", "passes", ""]) -> str:
    """Whether training together helped: the federated encoder against each site alone; "" without such arms.

    equal: in what the pretraining of both was.
    """
    local_only = [contrast for contrast in found if contrast.kind == "local-only"]
    if not local_only:
        return ""
    parts = [
        (Verdict.BETTER, "better than {}"),
        (Verdict.WORSE, "worse than {}"),
        (Verdict.UNCLEAR, "not to be told apart from {}"),
        (Verdict.NO_INTERVAL, "compared without an interval with {}"),
    ]
    said = _tallied([(contrast.title, contrast.verdict) for contrast in local_only], parts)
    verdicts = {contrast.verdict for contrast in local_only}
    if verdicts == {Verdict.BETTER}:
        lead = "Training together helped"
    elif verdicts == {Verdict.WORSE}:
        lead = "Training together did harm"
    elif {Verdict.BETTER, Verdict.WORSE} <= verdicts:
        lead = "Training together was better than some sites and worse than others"
    elif Verdict.BETTER in verdicts or Verdict.WORSE in verdicts:
        lead = f"Training together was {'better' if Verdict.BETTER in verdicts else 'worse'} than some sites only"
    else:
        lead = "Whether training together helped is not clear"
    ways = {"images": ", with as many images seen,", "passes": ", with each image seen as often,", "": ""}
    return f"{lead}: against each site on its own{ways[equal]} the federated encoder is {'; '.join(said)}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
