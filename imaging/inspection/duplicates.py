"""Images that are there twice: the same file, the same pixels, or the same image saved again.

Twice within a patient an image counts twice; in two patients it may be trained on and tested on.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from foundation.wording import counted
from imaging.inspection.examine import InspectedFile
from imaging.inspection.finding import Finding, with_examples
from imaging.inspection.prints import Prints, near_copies
from imaging.listing.clusters import join


def duplicate_findings(inspected_files: Sequence[InspectedFile], patients_known: bool) -> list[Finding]:
    """What is there twice; blank and unreadable images are no copies of each other."""
    usable = [inspected for inspected in inspected_files if inspected.readable and not inspected.blank]
    exact = _exact(usable)
    within = [group for group in exact if len({inspected.patient for inspected in group}) == 1]
    across = [group for group in exact if len({inspected.patient for inspected in group}) > 1]
    near = _near(usable)
    found = []
    if within:
        found.append(_copies(within))
    for kind, groups in (("copies across patients", across), ("near-copies across patients", near)):
        if groups:
            found.append(_leak(kind, groups, patients_known))
    return found


def _copies(groups: list[list[InspectedFile]]) -> Finding:
    extra = sum(len(group) - 1 for group in groups)
    return with_examples(
        ("warning", "images", "copies"),
        f"{counted(extra, 'image is', 'images are')} an exact copy of another of the same patient",
        "keep one of each, as copies count twice in training",
        [_alike(group) for group in groups],
    )


def _leak(kind: str, groups: list[list[InspectedFile]], patients_known: bool) -> Finding:
    count = sum(len(group) for group in groups)
    images = counted(count, "image")
    near = kind.startswith("near")
    what = "are nearly the same (saved again, resized or in other grey values)" if near else "are exactly the same"
    if patients_known:
        text = f"{images} of different patients {what}"
        remedy = "correct the patient or remove the copy: it could be trained on and tested on"
    else:
        text = f"{images} {what}, and no patient ids are known"
        remedy = "remove copies, or give a manifest with patients: a copy could be trained on and tested on"
    return with_examples(("warning", "images", kind), text, remedy, [_alike(group) for group in groups])


def _alike(group: list[InspectedFile]) -> str:
    more = f" and {len(group) - 4} more" if len(group) > 4 else ""
    return " = ".join(inspected.file for inspected in group[:4]) + more


def _exact(inspected_files: Sequence[InspectedFile]) -> list[list[InspectedFile]]:
    """Groups of the same pixels, which the same files have too."""
    groups: dict[str, list[InspectedFile]] = defaultdict(list)
    for inspected in inspected_files:
        groups[inspected.pixel_digest].append(inspected)
    return [group for group in groups.values() if len(group) > 1]


def _near(inspected_files: Sequence[InspectedFile]) -> list[list[InspectedFile]]:
    """Groups of two patients or more whose images are nearly, but not exactly, the same."""
    single = list({inspected.pixel_digest: inspected for inspected in inspected_files}.values())
    if len(single) < 2:
        return []
    digests = np.asarray([inspected.pixel_digest for inspected in single], dtype=np.str_)
    hashes = np.asarray([inspected.hash for inspected in single], dtype=np.uint64)
    everyone = np.arange(len(single), dtype=np.int64)
    prints = Prints(digests, hashes, np.stack([inspected.thumbnail for inspected in single]))
    pairs = near_copies(prints, everyone, everyone)
    names = np.unique([inspected.patient for inspected in single], return_inverse=True)[1]
    pairs = pairs[names[pairs[:, 0]] != names[pairs[:, 1]]]
    if not len(pairs):
        return []
    roots = join(len(single), pairs)
    values, counts = np.unique(roots, return_counts=True)
    return [[single[index] for index in np.flatnonzero(roots == root)] for root in values[counts > 1]]
