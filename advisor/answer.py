"""The advisor's answer in words: ranked candidates with reasons, advice, what would change it, what nobody knows."""

from collections.abc import Iterator
from dataclasses import replace
from typing import get_args

from advisor.evidence import FINDINGS, NOTES, UNKNOWN
from advisor.ranking import best, left_out
from advisor.setting import FEW_PATIENTS, Setting
from advisor.text import filled, wrapped
from evaluation.config import TaskKind
from foundation.errors import StudyError
from ssl_methods import METHODS


def answer(setting: Setting) -> list[str]:
    """The whole answer in lines of at most 80 columns; StudyError where no method fits."""
    ranked = best(setting)
    if not ranked:
        raise StudyError(f"{setting.line()}: no method fits all of this; leave --privacy or --volumes out")
    sections = {
        "Left out": [f"{', '.join(names)}: {why}" for why, names in left_out(setting).items()],
        "Whatever the method": advice(setting),
        "What would change the answer": changes(setting, ranked[0].candidate.name),
        "What nobody knows": (note.says for note in UNKNOWN if note.holds(setting)),
    }
    facts = {"setting": setting, "compared": compared(setting), "ranked": ranked, "methods": METHODS}
    return wrapped(filled("answer.txt", **facts, sections=sections))


def compared(setting: Setting) -> str:
    """Whether pretext tasks were compared on such images, by a publication."""
    direct = [each for each in FINDINGS.values() if each.grade == "direct comparison"]
    if any(setting.modality in row.when["modality"] for each in direct for row in each.rows):
        return f"The evidence table has a published comparison of pretext tasks on {setting.modality}, for no one task."
    return f"The evidence table has no published comparison of pretext tasks on {setting.modality}."


def advice(setting: Setting) -> Iterator[str]:
    """What holds for every candidate."""
    for note in NOTES:
        if note.holds(setting):
            yield note.says
    for finding in FINDINGS.values():
        if finding.when and finding.holds(setting):
            yield f"{finding.says} [{finding.citation}; {finding.grade}]"


def changes(setting: Setting, first: str) -> Iterator[str]:
    """Other settings, each asked in the same way, under which another candidate comes first."""
    fewer = FEW_PATIENTS if setting.few_patients else FEW_PATIENTS - 1
    others = {
        f"{'without' if setting.privacy else 'with'} --privacy": replace(setting, privacy=not setting.privacy),
        f"if sites look {'alike' if setting.different_sites else 'strongly different'}": replace(
            setting, different_sites=not setting.different_sites
        ),
        f"for {'2-D images' if setting.volumes else 'volumes'}": replace(setting, volumes=not setting.volumes),
        f"with {fewer} patients at the smallest site": replace(setting, patients=fewer),
        **{f"for {task}": replace(setting, task=task) for task in get_args(TaskKind)},
    }
    for said, other in others.items():
        then = best(other)
        if then and then[0].candidate.name != first:
            yield f"{said}: {then[0].candidate.name} first"
    yield "a pilot on your own images: fedpretext advise STUDY --pilot"
