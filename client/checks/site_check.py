"""A hospital engineer's look at the images and the machine before joining; nothing of it leaves the site."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from client.checks.machine import machine_findings
from client.checks.server import reach
from client.checks.study import StudyCheck, study_check
from client.policy import Policy
from client.site_file import find_site_file, load_site_file
from federation.keys.kit import CA, KIT, STUDY, read_kit
from federation.study import Study, load_study
from foundation.errors import DataError, StudyError
from foundation.machine import DeviceName
from foundation.messages import logger
from foundation.wording import counted
from imaging.config import ImageConfig
from imaging.inspection.examine import InspectedFile, look_at
from imaging.inspection.finding import Finding, Level, Table, with_examples
from imaging.inspection.inspect_site import image_findings, image_tables
from imaging.listing.manifest import FILES, Manifest, visible_files
from imaging.reading.formats import is_image

_LEVELS: tuple[Level, ...] = ("error", "warning", "note")
_OTHER_IMAGES = {".mha", ".mhd", ".nrrd", ".nhdr", ".mgz", ".mgh", ".svs", ".ndpi", ".mrxs", ".webp", ".gif", ".img"}


@dataclass(frozen=True)
class SiteCheck:
    """What was found, and the facts. ``looked`` of ``listed`` images were looked at."""

    data: Path
    when: datetime
    looked: int = 0
    study: str | None = None
    findings: list[Finding] = field(default_factory=list)
    facts: list[Table] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.of("error")

    def of(self, level: Level) -> list[Finding]:
        """The findings of one level."""
        return [finding for finding in self.findings if finding.level == level]

    @property
    def verdict(self) -> str:
        """The whole in one sentence."""
        counts = [counted(len(self.of(level)), level) for level in _LEVELS if self.of(level)]
        listed = f" ({', '.join(counts)})" if counts else ""
        return f"{'Nothing stands in the way' if self.ok else 'Not ready to join'}{listed}."


def check_kit(site: Path, data: Path | None = None, study: Path | None = None, *, sample: int = 50) -> SiteCheck:
    """Check what a site file, or the kit that holds it, names; ``data`` and ``study`` go before theirs.

    Without a site file ``data`` is needed, and no server is looked for without a kit. StudyError, CredentialError where
    a file is missing or wrong.
    """
    path = find_site_file(site)
    folder = path.parent
    file = load_site_file(path) if path.is_file() else None
    if data is None and file is None:
        raise StudyError(f"{path}: there is no such site file; give one, or the images with --data")
    kit = read_kit(folder) if (folder / KIT).is_file() else None
    chosen = study if study is not None else folder / STUDY if kit is not None else None
    return check_site(
        data if data is not None else file.data if file is not None else Path(),
        None if chosen is None else load_study(chosen),
        server=None if kit is None else kit.server,
        root_certificate=None if kit is None else folder / CA,
        state=None if file is None else file.state,
        cache=None if file is None else file.cache,
        device="auto" if file is None else file.device,
        policy=None if file is None else file.policy,
        ledger=None if file is None else file.ledger,
        sample=sample,
    )


def check_site(
    data: Path,
    study: Study | None = None,
    *,
    server: str | None = None,
    root_certificate: Path | None = None,
    state: Path | None = None,
    cache: Path | None = None,
    device: DeviceName = "auto",
    policy: Policy | None = None,
    ledger: Path | None = None,
    sample: int = 50,
) -> SiteCheck:
    """Look at ``sample`` images and say so, then at the server, at all images, at the study and at the machine.

    data: a manifest or a folder of images; its faults are findings, never errors. state: where the
    site will keep its state; cache: where decoded images; both default to this folder. policy: what
    the site permits, where it has said. ledger: its privacy ledger, where it has one.
    """
    findings, facts = [], []
    if server is not None:
        reached = reach(server, root_certificate)
        findings += reached.findings
        facts.append(reached.table())
        _say(reached.findings)
    images = _images(data, study.image if study else None, sample)
    findings += images.findings
    facts = [*images.facts, *facts]
    asked: StudyCheck | None = None
    if study is not None and images.manifest is not None:
        asked = study_check(study, images.usable(), policy, device, ledger)
        findings += asked.findings
        facts.append(asked.table)
    needs = asked.needs if asked else None
    place = state or Path()
    on_machine, table = machine_findings(device, place, cache or place, study, needs)
    findings = sorted([*findings, *on_machine], key=lambda finding: _LEVELS.index(finding.level))
    name = study.name if study else None
    when = datetime.now().astimezone()
    return SiteCheck(data, when, len(images.inspected_files), name, findings, [*facts, table])


@dataclass
class _Images:
    """What was looked at, and what it told."""

    manifest: Manifest | None = None
    inspected_files: list[InspectedFile] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    facts: list[Table] = field(default_factory=list)

    def usable(self) -> Manifest:
        """The rows that can be used."""
        assert self.manifest is not None
        mask = np.zeros(len(self.manifest), dtype=np.bool_)
        mask[[inspected.row for inspected in self.inspected_files if not inspected.problem]] = True
        return self.manifest.where(mask)


def _images(data: Path, image: ImageConfig | None, sample: int) -> _Images:
    """A sample, then all of them."""
    found = _Images()
    try:
        few, listed = _sampled(data, sample)
        found.inspected_files = list(look_at(few, range(len(few)), image, "a first look"))
        _first_words(found.inspected_files, listed, image)
        found.manifest = Manifest.open(data)
        count = len(found.manifest)
        found.inspected_files = list(look_at(found.manifest, range(count), image, f"reading {counted(count, 'image')}"))
    except DataError as error:
        found.manifest, found.inspected_files = None, []
        found.findings.append(Finding("error", "images", "no images", str(error), ""))
        return found
    known = found.manifest.unit == "patient"
    found.findings = [*image_findings(found.inspected_files, image, known), *_passed_over(data)]
    found.facts = image_tables(found.inspected_files, found.manifest)
    return found


def _first_words(inspected_files: list[InspectedFile], listed: int, image: ImageConfig | None) -> None:
    """The quick verdict: what a sample shows already."""
    usable = sum(not inspected.problem for inspected in inspected_files)
    logger.info(f"first look: {counted(len(inspected_files), 'image')} of {listed:,} files, {usable:,} usable")
    _say(image_findings(inspected_files, image))


def _say(findings: Iterable[Finding]) -> None:
    for finding in findings:
        if finding.level != "note":
            logger.info(f"{finding.level}: {finding.line}")


def _sampled(data: Path, count: int) -> tuple[Manifest, int]:
    """Some images spread over all that are listed, and how many these are; no header is read of the others.

    In a folder without a manifest everything counts that could be an image by its name. The patient of a row is then a
    guess by folder or name.
    """
    if not data.is_dir() or any((data / name).is_file() for name in FILES):
        manifest = Manifest.open(data)
        mask = np.zeros(len(manifest), dtype=np.bool_)
        mask[_spread(len(manifest), count)] = True
        return manifest.where(mask), len(manifest)
    files = visible_files(data)
    chosen = [files[index] for index in _spread(len(files), 2 * count)]
    images = [path.relative_to(data) for path in chosen if is_image(path)]
    images = [images[index] for index in _spread(len(images), count)]
    if not images:
        return Manifest.from_folder(data), len(files)  # a few images among many other files, or an error that says so
    rows = [
        {"image": path.as_posix(), "patient": path.stem if len(path.parts) == 1 else path.parts[0]} for path in images
    ]
    flat = any(len(path.parts) == 1 for path in images)
    return Manifest(pd.DataFrame(rows), data, "image cluster" if flat else "patient"), len(files)


def _spread(length: int, count: int) -> list[int]:
    """At most ``count`` of the numbers below ``length``, evenly spread."""
    return sorted({round(place) for place in np.linspace(0, length - 1, min(count, length)).tolist()})


def _passed_over(data: Path) -> list[Finding]:
    """Files in a folder that no reader takes: images of other formats count more than text files."""
    if not data.is_dir() or any((data / name).is_file() for name in FILES):
        return []
    others = [path for path in visible_files(data) if not is_image(path)]
    if not others:
        return []
    kinds = Counter(path.suffix.lower() or "no suffix" for path in others)
    images = [path for path in others if path.suffix.lower() in _OTHER_IMAGES]
    shares = ", ".join(f"{name} {count:,}" for name, count in kinds.most_common(5))
    return [
        with_examples(
            ("warning" if images else "note", "images", "passed over"),
            f"passed over: {counted(len(others), 'file')} of other kinds ({shares})",
            "convert images of other formats to .nii.gz, .npy, .png or DICOM; leave the rest as it is",
            [path.relative_to(data).as_posix() for path in images or others],
        )
    ]
