"""What a site does in a round of a simulated study, for budgets: of a private study what it is expected to do."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from client.privacy.rules import work_of_round
from federation.study import Study


@dataclass(frozen=True)
class RoundWork:
    """Optimiser steps of a round and the images that they see together, repeats counted."""

    steps: int
    images: int


def round_work(study: Study, patients: Iterable[object]) -> RoundWork:
    """The work of a site whose images are of these ``patients``, one entry an image.

    With privacy by patient the images are an expectation: in each step a patient takes part with probability ``rate``
    and gives so many images as ``images_per_patient`` says, or all there are. How many were drawn nobody writes
    down; ``training.batch`` is then only how many are computed at once.
    """
    steps, images = work_of_round(study, Counter(patients).values())
    return RoundWork(steps, round(images))
