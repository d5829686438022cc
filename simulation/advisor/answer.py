"""The advisor's answer in words: ranked candidates with reasons, advice, what would change it, what nobody knows."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import get_args

from evaluation.config import TaskKind
from foundation.errors import StudyError
from simulation.advisor.evidence import FINDINGS, UNKNOWN
from simulation.advisor.ranking import Ranked, best, left_out, measured
from simulation.advisor.setting import FEW_LABELS, FEW_PATIENTS, Setting
from simulation.advisor.sweep_evidence import NATURAL_WEIGHTS_GAIN
from ssl_methods import METHODS

WIDTH = 80
_MARKS = {1: "+ ", -1: "- ", 0: "? "}


def answer(setting: Setting) -> list[str]:
    """The whole answer in lines of at most 80 columns; StudyError where no method fits."""
    ranked = best(setting)
    if not ranked:
        raise StudyError(f"{setting.line()}: no method fits all of this; leave --privacy or --volumes out")
    lines = [*_wrapped(setting.line()), "", *_wrapped(published(setting)), ""]
    for number, each in enumerate(ranked, start=1):
        lines += [*_candidate_lines(number, each), ""]
    lines += ["Left out", *_items(f"{', '.join(names)}: {why}" for why, names in left_out(setting).items()), ""]
    lines += ["Whatever the method", *_items(advice(setting)), ""]
    lines += ["What would change the answer", *_items(changes(setting)), ""]
    return [*lines, "What nobody knows", *_items(unknown(setting))]


def published(setting: Setting) -> str:
    """What was published for this modality and task, and what the answer is carried over from where nothing was."""
    by_task = FINDINGS["dense" if setting.dense else "whole picture"]
    task = f"The task is covered by the {by_task.citation} ({by_task.compared})."
    if setting.task == "regression":
        task = f"Nothing there is on regression: carried over from classification ({by_task.citation})."
    key = {"histopathology": "tissue", "ultrasound": "ultrasound"}.get(setting.modality)
    own = sorted({cell.dataset for cell in measured(setting)})
    ours = f" Our own sweep measured it: {', '.join(own)}." if own else ""
    if key is None:
        nothing = f"No published comparison of pretext tasks on {setting.modality} is in the evidence table"
        return f"{nothing}, so none for this pair. {task}{ours}"
    known = f"{setting.modality} is covered by {FINDINGS[key].citation} ({FINDINGS[key].grade})."
    return f"{known} {task} No published comparison of just this pair is in the evidence table.{ours}"


def advice(setting: Setting) -> Iterator[str]:
    """What holds for every candidate."""
    if setting.labels == 0:
        yield "Without labels nothing can be evaluated: pretraining runs, and its worth stays unknown."
    elif setting.labels < FEW_LABELS:
        yield _cited("few labels", f"{setting.labels} labels are few (below {FEW_LABELS}, ours)")
    else:
        yield f"{setting.labels} labels: compare fine-tuning with a probe of frozen features; the study file does both."
    if setting.natural_weights:
        gain, low, high = NATURAL_WEIGHTS_GAIN
        yield _cited("natural weights", "start from the natural-image weights")
        yield _cited("own weights", f"AUROC {gain:+.3f} ({low:+.3f} to {high:+.3f})")
    if setting.different_sites:
        yield (
            "Plain averaging stays: no finding in the evidence table says that another algorithm of this program helps "
            "where sites differ."
        )
    if setting.pictures > 1 and any("positives" in type(each.candidate.config).model_fields for each in best(setting)):
        yield _cited("positives", "several pictures of each patient, method.positives")
    if setting.dense:
        yield _cited("erased", "small lesions")
    if setting.privacy:
        yield (
            "Patient-level privacy: the study file keeps to a per-sample loss and an encoder without batch "
            "normalisation, which would couple pictures whatever the loss; it adds no noise by itself."
        )


def _cited(finding: str, why: str) -> str:
    found = FINDINGS[finding]
    return f"{why}: {found.says} [{found.citation}; {found.grade}]"


def changes(setting: Setting) -> Iterator[str]:
    """Other settings, each asked in the same way, under which another candidate comes first."""
    first = best(setting)[0].candidate.name
    none = True
    for said, other in _variants(setting):
        then = best(other)
        if then and then[0].candidate.name != first:
            none = False
            yield f"{said}: {then[0].candidate.name} first"
    if setting.labels < FEW_LABELS:
        yield (
            f"with {FEW_LABELS} labels or more: not the method, as no finding chooses one by the number of labels, but "
            "a probe of frozen features is worth comparing with fine-tuning"
        )
    if none:
        yield f"none of the other settings that the advisor knows: {first} stays first"
    yield "a pilot on your own pictures: fedpretext advise STUDY --pilot"


def _variants(setting: Setting) -> Iterator[tuple[str, Setting]]:
    yield ("without --privacy" if setting.privacy else "with --privacy"), setting.but(privacy=not setting.privacy)
    alike = "if sites look alike" if setting.different_sites else "if sites look strongly different"
    yield alike, setting.but(different_sites=not setting.different_sites)
    yield ("for 2-D pictures" if setting.volumes else "for volumes"), setting.but(volumes=not setting.volumes)
    if setting.patients >= FEW_PATIENTS:
        few = setting.but(patients=FEW_PATIENTS - 1)
        yield f"with fewer than {FEW_PATIENTS} patients at the smallest site", few
    else:
        yield f"with {FEW_PATIENTS} patients or more at every site", setting.but(patients=FEW_PATIENTS)
    for task in get_args(TaskKind):
        if task != setting.task:
            yield f"for {task}", setting.but(task=task)


def unknown(setting: Setting) -> Iterator[str]:
    """What no source says."""
    if setting.modality in ("histopathology", "ultrasound"):
        yield f"Whether what was found for {setting.modality} in one place holds in a federation."
    if setting.volumes:
        yield "Which method suits volumes: the table has our own four on one set of adrenal glands."
    if setting.task == "regression":
        yield "Which pretext task suits regression: the table has nothing on it."
    if setting.privacy:
        yield "What patient-level privacy costs each method in accuracy."
    yield from UNKNOWN


def _candidate_lines(number: int, ranked: Ranked) -> Iterator[str]:
    method = METHODS[ranked.candidate.method]
    head = f"{number}. {ranked.candidate.name}: {method.summary} ({method.paper}); {ranked.points:g} points"
    yield from _wrapped(head, "", "   ")
    for reason in ranked.reasons:
        yield from _wrapped(f"{reason.text} {reason.source()}", f"   {_MARKS[reason.sign]}", "     ")
    if ranked.candidate.needs:
        yield from _wrapped(f"needs {ranked.candidate.needs}", "     ", "     ")
    if not ranked.reasons:
        yield "   no evidence for or against it"


def _items(texts: Iterator[str]) -> Sequence[str]:
    lines = [line for text in texts for line in _wrapped(text, "- ", "  ")]
    return lines or ["- nothing"]


def _wrapped(text: str, first: str = "", then: str = "") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=then, break_on_hyphens=False)
