"""All pictures of a site, looked at one by one: what they are, and what is wrong with them."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence

from imaging.config import ImageConfig
from imaging.inspection.burnt_in_text import FALSE_ALARMS, FINDS
from imaging.inspection.duplicates import duplicate_findings
from imaging.inspection.examine import Look
from imaging.inspection.finding import Finding, Table, counted, with_examples
from imaging.inspection.identifiers import Person, shared_ids, split_persons, tag_groups, telling_names
from imaging.listing.manifest import Manifest
from imaging.store import BROKEN_SHARE

HEADERS_STAY = "headers never leave the site, only weights do"
_ODD_SIZE = 4.0  # times larger or smaller than the median
_XRAY = dict.fromkeys(("CR", "DX", "DR", "RG", "RF", "MG", "PX"), "x-ray")
_LIGHT = {"SM": "histopathology", "OP": "fundus", "ES": "endoscopy", "DMS": "dermoscopy", "GM": "microscopy"}
_MODALITIES = {"MR": "mri", "CT": "ct", "US": "ultrasound", "IVUS": "ultrasound", **_XRAY, **_LIGHT}


def picture_findings(
    looks: Sequence[Look], image: ImageConfig | None = None, patients_known: bool = True
) -> list[Finding]:
    """Everything that these looks tell, errors first.

    image: what the study asks for. patients_known: whether the patients of the looks are patients.
    """
    readable = [look for look in looks if look.readable]
    parts: list[Iterator[Finding]] = [
        _unusable(looks),
        _dimensions(readable, image),
        _uniform(readable, image),
        _sizes(readable, image),
        _blank(readable),
        iter(duplicate_findings(looks, patients_known)),
        _persons(looks),
        _headers(looks),
        _text(readable),
    ]
    found = [finding for part in parts for finding in part]
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _unusable(looks: Sequence[Look]) -> Iterator[Finding]:
    """Broken files, and pictures that the study does not take; too many of both and the tensor store refuses."""
    bad = [look for look in looks if look.problem]
    share = len(bad) / len(looks) if looks else 0.0
    too_many = share > BROKEN_SHARE
    limit = f" ({share * 100:.0f} % unusable in all, and a study allows {BROKEN_SHARE * 100:.0f} %)" if too_many else ""
    for kind, readable, what in (
        ("broken", False, "cannot be read"),
        ("not for this study", True, "can be read, but not used in this study"),
    ):
        group = [look for look in bad if look.readable == readable]
        if group:
            yield with_examples(
                ("error" if too_many else "warning", "pictures", kind),
                f"{len(group):,} of {counted(len(looks), 'picture')} {what}{limit}",
                "export them again or take them out; a study leaves them out",
                [f"{look.file}: {look.problem}" for look in group],
            )


def _dimensions(looks: Sequence[Look], image: ImageConfig | None) -> Iterator[Finding]:
    """Volumes among pictures, or pictures among volumes."""
    if image is not None and image.depth is not None:
        return  # a flat picture cannot be read as a volume, and is told of with the broken ones
    volumes = [look for look in looks if look.slices > 1 and not look.sliced]
    flat = [look for look in looks if look.slices == 1 or look.sliced]
    if image is None and len(volumes) > len(flat):
        odd, text = flat, f"{counted(len(flat), 'single picture')} among {counted(len(volumes), 'volume')}"
    else:
        odd, text = volumes, f"{counted(len(volumes), 'volume')} among {counted(len(flat), 'single picture')}"
    if odd:
        yield with_examples(
            ("warning", "pictures", "mixed dimensions"),
            text,
            "sort them out, or list their slices in a manifest: of a volume a 2-D study takes only the middle slice",
            [f"{look.file}: {counted(look.slices, 'slice')} of {look.height} x {look.width}" for look in odd],
        )


def _uniform(looks: Sequence[Look], image: ImageConfig | None) -> Iterator[Finding]:
    """More than one number of channels or modality, and a modality that is not the study's."""
    if image is None:
        yield from _mixed(looks, "channels", lambda look: counted(look.channels, "channel"), "channel counts")
    yield from _mixed(looks, "modalities", _modality, "DICOM modalities")
    if image is None:
        return
    other = [look for look in looks if _MODALITIES.get(_modality(look), image.modality) != image.modality]
    if other:
        yield with_examples(
            ("warning", "pictures", "other modality"),
            f"{counted(len(other), 'picture')} say in the header that they are not {image.modality}",
            "check the folder and the study: intensities are treated by modality",
            [f"{look.file}: {_modality(look)}" for look in other],
        )


def _modality(look: Look) -> str:
    return look.header.modality if look.header else ""


def _mixed(looks: Sequence[Look], kind: str, value: Callable[[Look], str], what: str) -> Iterator[Finding]:
    counts = Counter(text for look in looks if (text := value(look)))
    if len(counts) > 1:
        commonest = counts.most_common(1)[0][0]
        shares = ", ".join(f"{text} {count:,}" for text, count in counts.most_common())
        yield with_examples(
            ("warning", "pictures", f"mixed {kind}"),
            f"the pictures have different {what} ({shares})",
            "a study takes one kind: sort the others out",
            [f"{look.file}: {value(look)}" for look in looks if value(look) not in ("", commonest)],
        )


def _sizes(looks: Sequence[Look], image: ImageConfig | None) -> Iterator[Finding]:
    if not looks:
        return
    middle = statistics.median(look.height for look in looks), statistics.median(look.width for look in looks)

    def odd(look: Look) -> bool:
        ratios = look.height / middle[0], look.width / middle[1]
        return max(ratios) > _ODD_SIZE or min(ratios) < 1 / _ODD_SIZE

    far = [look for look in looks if odd(look)]
    if far:
        yield with_examples(
            ("warning", "pictures", "odd sizes"),
            f"{counted(len(far), 'picture is', 'pictures are')} over {_ODD_SIZE:g} times larger or smaller than "
            f"the median of {middle[0]:.0f} x {middle[1]:.0f}",
            "look whether these are what the others are (thumbnails, screenshots, scout views)",
            [f"{look.file}: {look.height} x {look.width}" for look in far],
        )
    small = [look for look in looks if image is not None and max(look.height, look.width) < image.size / 2]
    if small and image is not None:
        yield with_examples(
            ("note", "pictures", "small"),
            f"{counted(len(small), 'picture is', 'pictures are')} less than half as large as the study's {image.size}"
            " pixels",
            "they are enlarged, which adds no detail; give the originals if there are any",
            [f"{look.file}: {look.height} x {look.width}" for look in small],
        )


def _blank(looks: Sequence[Look]) -> Iterator[Finding]:
    blank = [look.file for look in looks if look.blank]
    if blank:
        yield with_examples(
            ("warning", "pictures", "blank"),
            f"{counted(len(blank), 'picture shows', 'pictures show')} nothing (one value in 99.9 % of the pixels)",
            "take them out: there is nothing to learn from",
            blank,
        )


def _persons(looks: Sequence[Look]) -> Iterator[Finding]:
    people = [Person(look.patient, look.header, look.file) for look in looks if look.header is not None]
    if groups := shared_ids(people):
        yield with_examples(
            ("warning", "persons", "shared id"),
            f"{counted(len(groups), 'patient id stands', 'patient ids stand')} for files whose headers differ in name,"
            " birth date or sex",
            "give each person an id of their own: splits and privacy count by patient id",
            [" / ".join(group) for group in groups],
        )
    if groups := split_persons(people):
        yield with_examples(
            ("warning", "persons", "split person"),
            f"{counted(len(groups), 'person has', 'persons have')} several patient ids (same name and birth date)",
            "give them one id: the same person could be trained on and tested on",
            [" / ".join(group) for group in groups],
        )


def _headers(looks: Sequence[Look]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for look in looks:
        if look.header is not None:
            for group in {tag_groups()[tag] for tag in look.header.identifiers}:
                groups[group].append(look.file)
    if groups:
        kinds = ", ".join(f"{group} {len(files):,}" for group, files in sorted(groups.items()))
        told = len({file for files in groups.values() for file in files})
        text = f"{counted(told, 'file holds', 'files hold')} identifiers in the DICOM header ({kinds})"
        remedy = f"{HEADERS_STAY}; follow your site's own rules on what may lie on this machine"
        yield Finding("warning" if "person" in groups else "note", "persons", "header identifiers", text, remedy)
    if marked := [look.file for look in looks if look.header is not None and look.header.burnt_in]:
        yield with_examples(
            ("warning", "persons", "BurnedInAnnotation"),
            f"{counted(len(marked), 'file says', 'files say')} BurnedInAnnotation = YES: text is part of the picture",
            "cover the text or take the files out: a model can learn what is in the pixels",
            marked,
        )
    for kind, files in telling_names(look.file for look in looks).items():
        yield with_examples(
            ("note", "persons", f"names like a {kind}"),
            f"{counted(len(files), 'file or folder name looks', 'file or folder names look')} like a {kind}",
            "names and paths never leave the site; rename if your rules ask for it",
            files,
        )


def _text(looks: Sequence[Look]) -> Iterator[Finding]:
    found = [(look, look.text) for look in looks if look.text is not None and not look.blank]
    if found:
        yield with_examples(
            ("warning", "persons", "burnt-in text"),
            f"{len(found):,} of {counted(len(looks), 'picture')} may hold burnt-in text ({how_good()})",
            "look at them; cover the text or take them out: a model can learn what is in the pixels",
            [f"{look.file}: {line.letters} letters at x {line.x}, y {line.y}" for look, line in found],
        )


def how_good() -> str:
    """How far the detector of burnt-in text can be trusted, as measured."""
    return (
        f"the detector finds about {FINDS * 100:.0f} % of bright labels of 10 pixels and more, fewer of others, with "
        f"about {FALSE_ALARMS * 100:.0f} % false alarms"
    )


def picture_tables(looks: Sequence[Look], manifest: Manifest) -> list[Table]:
    """Counts, formats, sizes, channels, depths, modalities, and identifiers by tag."""
    readable = [look for look in looks if look.readable]
    rows = [("pictures looked at", f"{len(looks):,}"), ("readable", f"{len(readable):,}")]
    known = manifest.unit == "patient"
    rows += [("patients", f"{manifest.table['patient'].nunique():,}" if known else "not known for all pictures")]
    for column, name in (("study", "studies"), ("series", "series")):
        if column in manifest.table:
            told = manifest.table[manifest.table[column].notna()]
            rows += [(name, f"{len(told[['patient', column]].drop_duplicates()):,}")]
    for name, value in (
        ("formats", lambda look: look.format),
        ("channels", lambda look: str(look.channels)),
        ("stored values", lambda look: look.depth),
        ("modality", lambda look: _modality(look) or "unknown"),
    ):
        rows.append((name, _shares(Counter(value(look) for look in (looks if name == "formats" else readable)))))
    if readable:
        for name, sides in (
            ("height", [look.height for look in readable]),
            ("width", [look.width for look in readable]),
            ("slices in a file", [look.slices for look in readable]),
        ):
            if name != "slices in a file" or max(sides) > 1:
                rows.append((name, f"{min(sides):,} to {max(sides):,}, median {statistics.median(sides):,.0f}"))
    tables = [Table("Pictures", "pictures", ("", ""), tuple(rows))]
    return [*tables, *_tag_table(looks)]


def _shares(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.most_common()) or "–"


def _tag_table(looks: Sequence[Look]) -> Iterator[Table]:
    headers = [look.header for look in looks if look.header is not None]
    counts = Counter(tag for header in headers for tag in header.identifiers)
    rows = [(tag, tag_groups()[tag], f"{count:,}") for tag, count in counts.most_common()]
    if private := sum(header.private > 0 for header in headers):
        rows.append(("private tags", "unknown", f"{private:,}"))
    if rows:
        yield Table("Identifiers in DICOM headers, by tag", "persons", ("Tag", "Tells", "Files"), tuple(rows))
