"""What labels may turn out to be: classes that no task named, sites of one class, nobody to test. One line each."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from foundation.errors import DataError, nearest
from foundation.wording import counted
from imaging.listing.splits import HELD

NAMED = 3
"""So many unknown classes are told with their counts; of more, how many there are."""


def unknown_classes(labels: Sequence[str], classes: Collection[str], column: str) -> None:
    """DataError where a label is none of the classes that the task states; ``labels``: one for each image's."""
    counts = Counter(label for label in labels if label not in classes)
    if not counts:
        return
    shown = [f"{name!r} ({counted(count, 'image')})" for name, count in counts.most_common(NAMED)]
    more = [f"{len(counts) - NAMED} more"] if len(counts) > NAMED else []
    *most, last = [*shown, *more]
    hint = nearest(counts.most_common(1)[0][0], classes)
    raise DataError(
        f"{column!r} has {' and '.join(filter(None, [', '.join(most), last]))}, but the task's classes are "
        f"{', '.join(classes)}{f'{hint} Correct' if hint else '; correct'} the labels, or name them in classes"
    )


def one_class_sites(sites: Sequence[str], labels: Sequence[str]) -> list[str]:
    """A line for each site whose held images are all of one class, in order of name; sites, labels: ``[N]``."""
    found: dict[str, Counter[str]] = {}
    for site, label in zip(sites, labels, strict=True):
        found.setdefault(site, Counter())[label] += 1
    return [
        f"site {site!r} has one class only, {next(iter(own))!r} ({counted(own.total(), 'image')}): no AUROC there"
        for site, own in sorted(found.items())
        if len(own) == 1
    ]


def no_test_images(fold: int, column: str, roles: Mapping[str, str]) -> DataError:
    """The error for a fold without a labelled test image; ``roles``: of every patient of the fold."""
    held = sum(role in HELD for role in roles.values())
    if held:
        what = f"{held} patients are tested, but none has a {column!r}; label images of theirs"
    else:
        what = f"none of {len(roles)} patients has the role test or left-out; give some of them one"
    return DataError(f"fold {fold} has no labelled test image: {what}")
