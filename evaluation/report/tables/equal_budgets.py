"""In what the pretraining of the arms that are compared was equal."""

from collections.abc import Collection, Iterable
from typing import Literal

from evaluation.report.run_folder import Arm

_TRAINED_KINDS = ("federated", "centralised", "local-only")
# Batches do not divide every site's images evenly. Images seen are made equal to half a batch a round; of passes each
# site loses up to a batch in each, which is a quarter of them where a site has four batches.
_SAME_IMAGES, _SAME_PASSES = 0.02, 0.25


def trained_arms(arms: Iterable[Arm]) -> list[Arm]:
    """The arms whose pretraining is compared, and who say how many images they saw."""
    return [arm for arm in arms if arm.kind in _TRAINED_KINDS and arm.images]


def equal_in(arms: Collection[Arm]) -> Literal["images", "passes", ""]:
    """What was equal for all of these: images seen, else how often each was seen, else nothing or not on record."""
    if _within(_SAME_IMAGES, [arm.images for arm in arms]):
        return "images"
    return "passes" if _within(_SAME_PASSES, [arm.passes for arm in arms]) else ""


def _within(share: float, values: Iterable[float | None]) -> bool:
    """True where all are known and the lowest is below the highest by no more than this share of it."""
    known = [value or 0.0 for value in values]
    return bool(known) and min(known) > 0 and max(known) - min(known) <= share * max(known)
