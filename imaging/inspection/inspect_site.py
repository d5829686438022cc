"""All images of a site, looked at one by one: what they are, and what is wrong with them."""

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from foundation.wording import counted
from imaging.config import ImageConfig
from imaging.inspection.burnt_in_text import FALSE_ALARMS, FINDS
from imaging.inspection.duplicates import duplicate_findings
from imaging.inspection.examine import InspectedFile
from imaging.inspection.finding import Finding, Table, with_examples
from imaging.inspection.identifiers import Person, shared_ids, split_persons, tag_groups, telling_names
from imaging.listing.manifest import Manifest
from imaging.store import BROKEN_SHARE

HEADERS_STAY = "headers never leave the site, only weights do"
_ODD_SIZE = 4.0  # times larger or smaller than the median
_XRAY = dict.fromkeys(("CR", "DX", "DR", "RG", "RF", "MG", "PX"), "x-ray")
_LIGHT = {"SM": "histopathology", "OP": "fundus", "ES": "endoscopy", "DMS": "dermoscopy", "GM": "microscopy"}
_MODALITIES = {"MR": "mri", "CT": "ct", "US": "ultrasound", "IVUS": "ultrasound", **_XRAY, **_LIGHT}


def image_findings(
    inspected_files: Sequence[InspectedFile], image: ImageConfig | None = None, patients_known: bool = True
) -> list[Finding]:
    """Everything that these looks tell, errors first.

    image: what the study asks for. patients_known: whether the patients of the looks are patients.
    """
    readable = [inspected for inspected in inspected_files if inspected.readable]
    parts: list[Iterator[Finding]] = [
        _unusable(inspected_files),
        _dimensions(readable, image),
        _uniform(readable, image),
        _sizes(readable, image),
        _blank(readable),
        iter(duplicate_findings(inspected_files, patients_known)),
        _persons(inspected_files),
        _headers(inspected_files),
        _text(readable),
    ]
    found = [finding for part in parts for finding in part]
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _unusable(inspected_files: Sequence[InspectedFile]) -> Iterator[Finding]:
    """Broken files, and images that the study does not take; too many of both and the tensor store refuses."""
    bad = [inspected for inspected in inspected_files if inspected.problem]
    share = len(bad) / len(inspected_files) if inspected_files else 0.0
    too_many = share > BROKEN_SHARE
    limit = f" ({share * 100:.0f} % unusable in all, and a study allows {BROKEN_SHARE * 100:.0f} %)" if too_many else ""
    for kind, readable, what in (
        ("broken", False, "cannot be read"),
        ("not for this study", True, "can be read, but not used in this study"),
    ):
        group = [inspected for inspected in bad if inspected.readable == readable]
        if group:
            yield with_examples(
                ("error" if too_many else "warning", "images", kind),
                f"{len(group):,} of {counted(len(inspected_files), 'image')} {what}{limit}",
                "export them again or take them out; a study leaves them out",
                [f"{inspected.file}: {inspected.problem}" for inspected in group],
            )


def _dimensions(inspected_files: Sequence[InspectedFile], image: ImageConfig | None) -> Iterator[Finding]:
    """Volumes among images, or images among volumes."""
    if image is not None and image.depth is not None:
        return  # a flat image cannot be read as a volume, and is told of with the broken ones
    volumes = [inspected for inspected in inspected_files if inspected.slices > 1 and not inspected.sliced]
    flat = [inspected for inspected in inspected_files if inspected.slices == 1 or inspected.sliced]
    if image is None and len(volumes) > len(flat):
        odd, text = flat, f"{counted(len(flat), 'single image')} among {counted(len(volumes), 'volume')}"
    else:
        odd, text = volumes, f"{counted(len(volumes), 'volume')} among {counted(len(flat), 'single image')}"
    if odd:
        yield with_examples(
            ("warning", "images", "mixed dimensions"),
            text,
            "sort them out, or list their slices in a manifest: of a volume a 2-D study takes only the middle slice",
            [
                f"{inspected.file}: {counted(inspected.slices, 'slice')} of {inspected.height} x {inspected.width}"
                for inspected in odd
            ],
        )


def _uniform(inspected_files: Sequence[InspectedFile], image: ImageConfig | None) -> Iterator[Finding]:
    """More than one number of channels or modality, and a modality that is not the study's."""
    if image is None:
        yield from _mixed(
            inspected_files, "channels", lambda inspected: counted(inspected.channels, "channel"), "channel counts"
        )
    yield from _mixed(inspected_files, "modalities", _modality, "DICOM modalities")
    if image is None:
        return
    other = [
        inspected
        for inspected in inspected_files
        if _MODALITIES.get(_modality(inspected), image.modality) != image.modality
    ]
    if other:
        yield with_examples(
            ("warning", "images", "other modality"),
            f"{counted(len(other), 'image')} say in the header that they are not {image.modality}",
            "check the folder and the study: intensities are treated by modality",
            [f"{inspected.file}: {_modality(inspected)}" for inspected in other],
        )


def _modality(inspected: InspectedFile) -> str:
    return inspected.header.modality if inspected.header else ""


def _mixed(
    inspected_files: Sequence[InspectedFile], kind: str, value: Callable[[InspectedFile], str], what: str
) -> Iterator[Finding]:
    counts = Counter(text for inspected in inspected_files if (text := value(inspected)))
    if len(counts) > 1:
        commonest = counts.most_common(1)[0][0]
        shares = ", ".join(f"{text} {count:,}" for text, count in counts.most_common())
        yield with_examples(
            ("warning", "images", f"mixed {kind}"),
            f"the images have different {what} ({shares})",
            "a study takes one kind: sort the others out",
            [
                f"{inspected.file}: {value(inspected)}"
                for inspected in inspected_files
                if value(inspected) not in ("", commonest)
            ],
        )


def _sizes(inspected_files: Sequence[InspectedFile], image: ImageConfig | None) -> Iterator[Finding]:
    if not inspected_files:
        return
    middle = (
        statistics.median(inspected.height for inspected in inspected_files),
        statistics.median(inspected.width for inspected in inspected_files),
    )

    def odd(inspected: InspectedFile) -> bool:
        ratios = inspected.height / middle[0], inspected.width / middle[1]
        return max(ratios) > _ODD_SIZE or min(ratios) < 1 / _ODD_SIZE

    far = [inspected for inspected in inspected_files if odd(inspected)]
    if far:
        yield with_examples(
            ("warning", "images", "odd sizes"),
            f"{counted(len(far), 'image is', 'images are')} over {_ODD_SIZE:g} times larger or smaller than "
            f"the median of {middle[0]:.0f} x {middle[1]:.0f}",
            "look whether these are what the others are (thumbnails, screenshots, scout views)",
            [f"{inspected.file}: {inspected.height} x {inspected.width}" for inspected in far],
        )
    small = [
        inspected
        for inspected in inspected_files
        if image is not None and max(inspected.height, inspected.width) < image.size / 2
    ]
    if small and image is not None:
        yield with_examples(
            ("note", "images", "small"),
            f"{counted(len(small), 'image is', 'images are')} less than half as large as the study's {image.size}"
            " pixels",
            "they are enlarged, which adds no detail; give the originals if there are any",
            [f"{inspected.file}: {inspected.height} x {inspected.width}" for inspected in small],
        )


def _blank(inspected_files: Sequence[InspectedFile]) -> Iterator[Finding]:
    blank = [inspected.file for inspected in inspected_files if inspected.blank]
    if blank:
        yield with_examples(
            ("warning", "images", "blank"),
            f"{counted(len(blank), 'image shows', 'images show')} nothing (one value in 99.9 % of the pixels)",
            "take them out: there is nothing to learn from",
            blank,
        )


def _persons(inspected_files: Sequence[InspectedFile]) -> Iterator[Finding]:
    people = [
        Person(inspected.patient, inspected.header, inspected.file)
        for inspected in inspected_files
        if inspected.header is not None
    ]
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


def _headers(inspected_files: Sequence[InspectedFile]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for inspected in inspected_files:
        if inspected.header is not None:
            for group in {tag_groups()[tag] for tag in inspected.header.identifiers}:
                groups[group].append(inspected.file)
    if groups:
        kinds = ", ".join(f"{group} {len(files):,}" for group, files in sorted(groups.items()))
        count = len({file for files in groups.values() for file in files})
        text = f"{counted(count, 'file holds', 'files hold')} identifiers in the DICOM header ({kinds})"
        remedy = f"{HEADERS_STAY}; follow your site's own rules on what may lie on this machine"
        yield Finding("warning" if "person" in groups else "note", "persons", "header identifiers", text, remedy)
    if marked := [
        inspected.file for inspected in inspected_files if inspected.header is not None and inspected.header.burnt_in
    ]:
        yield with_examples(
            ("warning", "persons", "BurnedInAnnotation"),
            f"{counted(len(marked), 'file says', 'files say')} BurnedInAnnotation = YES: text is part of the image",
            "cover the text or take the files out: a model can learn what is in the pixels",
            marked,
        )
    for kind, files in telling_names(inspected.file for inspected in inspected_files).items():
        yield with_examples(
            ("note", "persons", f"names like a {kind}"),
            f"{counted(len(files), 'file or folder name looks', 'file or folder names look')} like a {kind}",
            "names and paths never leave the site; rename if your rules ask for it",
            files,
        )


def _text(inspected_files: Sequence[InspectedFile]) -> Iterator[Finding]:
    found = [
        (inspected, inspected.text)
        for inspected in inspected_files
        if inspected.text is not None and not inspected.blank
    ]
    if found:
        yield with_examples(
            ("warning", "persons", "burnt-in text"),
            f"{len(found):,} of {counted(len(inspected_files), 'image')} may hold burnt-in text ({how_good()})",
            "look at them; cover the text or take them out: a model can learn what is in the pixels",
            [f"{inspected.file}: {line.letters} letters at x {line.x}, y {line.y}" for inspected, line in found],
        )


def how_good() -> str:
    """How far the detector of burnt-in text can be trusted, as measured."""
    return (
        f"the detector finds about {FINDS * 100:.0f} % of bright labels of 10 pixels and more, fewer of others, with "
        f"about {FALSE_ALARMS * 100:.0f} % false alarms"
    )


def image_tables(inspected_files: Sequence[InspectedFile], manifest: Manifest) -> list[Table]:
    """Counts, formats, sizes, channels, depths, modalities, and identifiers by tag."""
    readable = [inspected for inspected in inspected_files if inspected.readable]
    rows = [("images looked at", f"{len(inspected_files):,}"), ("readable", f"{len(readable):,}")]
    known = manifest.unit == "patient"
    rows += [("patients", f"{manifest.table['patient'].nunique():,}" if known else "not known for all images")]
    for column, name in (("study", "studies"), ("series", "series")):
        if column in manifest.table:
            stated = manifest.table[manifest.table[column].notna()]
            rows += [(name, f"{len(stated[['patient', column]].drop_duplicates()):,}")]
    rows += [
        ("formats", _shares(inspected.format for inspected in inspected_files)),
        ("channels", _shares(str(inspected.channels) for inspected in readable)),
        ("stored values", _shares(inspected.depth for inspected in readable)),
        ("modality", _shares(_modality(inspected) or "unknown" for inspected in readable)),
    ]
    if readable:
        for name, sides in (
            ("height", [inspected.height for inspected in readable]),
            ("width", [inspected.width for inspected in readable]),
            ("slices in a file", [inspected.slices for inspected in readable]),
        ):
            if name != "slices in a file" or max(sides) > 1:
                rows.append((name, f"{min(sides):,} to {max(sides):,}, median {statistics.median(sides):,.0f}"))
    return [Table("Images", "images", ("", ""), tuple(rows)), *_tag_table(inspected_files)]


def _shares(values: Iterable[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in Counter(values).most_common()) or "–"


def _tag_table(inspected_files: Sequence[InspectedFile]) -> Iterator[Table]:
    headers = [inspected.header for inspected in inspected_files if inspected.header is not None]
    counts = Counter(tag for header in headers for tag in header.identifiers)
    rows = [(tag, tag_groups()[tag], f"{count:,}") for tag, count in counts.most_common()]
    if private := sum(header.private > 0 for header in headers):
        rows.append(("private tags", "unknown", f"{private:,}"))
    if rows:
        yield Table("Identifiers in DICOM headers, by tag", "persons", ("Tag", "Tells", "Files"), tuple(rows))
