"""What may leave of a site's labels: sums and figures of the agreed form, of enough patients, where policy permits."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from client.outgoing.answers import check_words
from client.outgoing.metrics import rounded
from client.policy import Policy
from evaluation.statistics.intervals import MIN_PATIENTS_PER_CLASS
from federation.federated_evaluation import Statistics
from federation.records import WithheldError, all_finite, same_form
from federation.study import Study


def checked_statistics(
    study: Study, answer: Statistics, expected: Mapping[str, Tensor], policy: Policy, site: str
) -> Statistics:
    """``answer`` as it may be sent; WithheldError when it holds anything that is not on the list.

    Figures go to six digits. Gradients go whole: rounded, they would not add up to the common minimum.
    """
    check_words(study, answer, site)
    if study.federated_evaluation is None or not policy.allow_label_statistics:
        raise WithheldError("statistics of labels are not permitted here, or not part of the study")
    if answer.step == "histogram" and not (policy.allow_score_histogram and study.federated_evaluation.histogram):
        raise WithheldError("a histogram of scores is not permitted here, or not part of the study")
    tensors = answer.tensors
    if not same_form(tensors, expected) or not all(map(all_finite, tensors.values())):
        raise WithheldError(f"an answer about labels ({answer.step}) is not of the agreed form")
    if not _of_enough(answer, policy.smallest_count):
        raise WithheldError(f"an answer about labels ({answer.step}) tells of fewer than {policy.smallest_count}")
    if answer.step != "figures":
        return answer
    table = [[rounded(value) for value in row] for row in tensors["figures"].tolist()]
    return replace(answer, tensors={**tensors, "figures": torch.tensor(table, dtype=torch.float64)})


def _of_enough(answer: Statistics, fewest: int) -> bool:
    """Counts that can be seen in the answer itself; those behind a gradient: client/labels/labelled_images.py."""
    tensors = answer.tensors
    if answer.step == "moments":
        return float(tensors["count"]) >= fewest
    if answer.step == "figures":
        return _enough_patients(tensors, fewest)
    return answer.step == "gradient" or all(_merged(tensors[side], fewest) for side in ("positive", "negative"))


def _enough_patients(tensors: Mapping[str, Tensor], fewest: int) -> bool:
    patients, rarest = float(tensors["patients"]), float(tensors["fewest"])
    whole = patients.is_integer() and rarest.is_integer() and rarest <= MIN_PATIENTS_PER_CLASS
    return whole and patients >= fewest and rarest >= min(fewest, MIN_PATIENTS_PER_CLASS)


def _merged(counts: Tensor, fewest: int) -> bool:
    return bool(((counts == 0) | (counts >= fewest)).all())
