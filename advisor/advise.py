"""The advisor's ranking for a program: what ``fedpretext advise`` prints, as data."""

from advisor.ranking import Ranked, best
from advisor.setting import Setting
from evaluation.config import TaskKind
from foundation.errors import StudyError
from imaging.config import Modality


def advise(
    *,
    modality: Modality,
    task: TaskKind,
    labels: int,
    sites: int,
    patients_per_site: int,
    images_per_patient: int = 1,
    volumes: bool = False,
    privacy: bool = False,
    pretrained_weights: bool = False,
    different_sites: bool = False,
) -> list[Ranked]:
    """The pretext tasks to try, the best first, each with the findings for and against it and their sources.

    labels: labelled images of all sites together. patients_per_site: of the smallest site. A candidate's ``section`` is
    a study's section ``method``. StudyError where a value is out of range or no method fits.
    """
    counts = (labels, sites, patients_per_site, images_per_patient)
    setting = Setting(modality, task, *counts, volumes, privacy, pretrained_weights, different_sites)
    ranked = best(setting)
    if not ranked:
        raise StudyError(f"{setting.line()}: no method fits all of this; leave privacy or volumes out")
    return ranked
