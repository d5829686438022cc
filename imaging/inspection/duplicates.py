"""Pictures that are there twice: the same file, the same pixels, or the same picture saved again.

Twice within a patient a picture counts twice; in two patients it may be trained on and tested on.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from imaging.inspection.examine import Look
from imaging.inspection.finding import Finding, counted, with_examples
from imaging.inspection.prints import Prints, near_copies
from imaging.listing.clusters import join


def duplicate_findings(looks: Sequence[Look], patients_known: bool) -> list[Finding]:
    """What is there twice; blank and unreadable pictures are no copies of each other."""
    usable = [look for look in looks if look.readable and not look.blank]
    exact = _exact(usable)
    within = [group for group in exact if len({look.patient for look in group}) == 1]
    across = [group for group in exact if len({look.patient for look in group}) > 1]
    near = _near(usable)
    found = []
    if within:
        found.append(_copies(within))
    for kind, groups in (("copies across patients", across), ("near-copies across patients", near)):
        if groups:
            found.append(_leak(kind, groups, patients_known))
    return found


def _copies(groups: list[list[Look]]) -> Finding:
    extra = sum(len(group) - 1 for group in groups)
    return with_examples(
        ("warning", "pictures", "copies"),
        f"{counted(extra, 'picture is', 'pictures are')} an exact copy of another of the same patient",
        "keep one of each, as copies count twice in training",
        [_alike(group) for group in groups],
    )


def _leak(kind: str, groups: list[list[Look]], patients_known: bool) -> Finding:
    count = sum(len(group) for group in groups)
    pictures = counted(count, "picture")
    near = kind.startswith("near")
    what = "are nearly the same (saved again, resized or in other grey values)" if near else "are exactly the same"
    if patients_known:
        text = f"{pictures} of different patients {what}"
        remedy = "correct the patient or remove the copy: it could be trained on and tested on"
    else:
        text = f"{pictures} {what}, and no patient ids are known"
        remedy = "remove copies, or give a manifest with patients: a copy could be trained on and tested on"
    return with_examples(("warning", "pictures", kind), text, remedy, [_alike(group) for group in groups])


def _alike(group: list[Look]) -> str:
    return " = ".join(look.file for look in group[:4]) + (f" and {len(group) - 4} more" if len(group) > 4 else "")


def _exact(looks: Sequence[Look]) -> list[list[Look]]:
    """Groups of the same pixels, which the same files have too."""
    groups: dict[str, list[Look]] = defaultdict(list)
    for look in looks:
        groups[look.pixel_digest].append(look)
    return [group for group in groups.values() if len(group) > 1]


def _near(looks: Sequence[Look]) -> list[list[Look]]:
    """Groups of two patients or more whose pictures are nearly, but not exactly, the same."""
    single = list({look.pixel_digest: look for look in looks}.values())
    if len(single) < 2:
        return []
    digests = np.asarray([look.pixel_digest for look in single], dtype=np.str_)
    hashes = np.asarray([look.hash for look in single], dtype=np.uint64)
    everyone = np.arange(len(single), dtype=np.int64)
    prints = Prints(digests, hashes, np.stack([look.thumbnail for look in single]))
    pairs = near_copies(prints, everyone, everyone)
    names = np.unique([look.patient for look in single], return_inverse=True)[1]
    pairs = pairs[names[pairs[:, 0]] != names[pairs[:, 1]]]
    if not len(pairs):
        return []
    roots = join(len(single), pairs)
    return [[single[index] for index in np.flatnonzero(roots == root)] for root in _shared(roots)]


def _shared(roots: npt.NDArray[np.int64]) -> Iterable[int]:
    """The roots that more than one has."""
    values, counts = np.unique(roots, return_counts=True)
    return [int(value) for value in values[counts > 1]]
