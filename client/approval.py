"""A site's consent to one study, exactly as it was read: asked for, recorded, withdrawn.

``state/approvals/<first 16 digits of the training hash>.yaml`` holds who approved what and when, and the resolved study
itself. A record whose study no longer has the hash it was approved under counts for nothing.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import yaml
from pydantic import Field

from client.approval_page import page
from client.approved import check_record, record_path, record_paths
from client.policy import check_study
from client.site_file import AUDIT, SiteFile
from federation.audit.log import AuditLog
from federation.study import Study, load_study
from foundation.configuration.section import Section
from foundation.configuration.yaml_files import checked, read_yaml
from foundation.errors import StudyError
from foundation.files import write_text
from foundation.messages import logger

_FEWEST_DIGITS = 12


class Approval(Section):
    """One recorded approval."""

    training_hash: str = Field(pattern=r"^[0-9a-f]{64}$", description="Of the study that was read: Study.training_hash")
    by: str = Field(pattern=r"^[^\x00-\x1f\x7f]{1,200}$", description="Who approved it; stays at the site.")
    when: datetime = Field(description="When, with the offset from UTC.")
    study: Study = Field(description="The study with every default written out, without its simulation section.")


def approve(study_path: Path, site_file: SiteFile, by: str, confirm: Callable[[str], bool]) -> list[str]:
    """Show what an approval would permit, ask ``confirm`` with that text, record it if the answer is yes.

    by: a person's name, kept at the site. Returns the text line by line with what was done. StudyError, before anything
    is asked, where the site's own policy refuses the study whatever is approved; RunError when it cannot be written.
    """
    study = load_study(study_path).model_copy(update={"simulation": None})
    check_study(site_file.policy, study, {study.training_hash()})
    lines = page(study, site_file)
    if not confirm("\n".join(lines)):
        return [*lines, "not approved; nothing was recorded"]
    approval = checked(
        Approval, {"training_hash": study.training_hash(), "by": by, "when": datetime.now(UTC), "study": study}, "--by"
    )
    text = yaml.safe_dump(approval.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)
    path = record_path(site_file, study.training_hash())
    write_text(path, text)
    AuditLog(site_file.state / AUDIT, site_file.site).append("study approved", study=study.training_hash(), who=by)
    return [*lines, f"approved by {by}; recorded in {path}"]


def withdraw(site_file: SiteFile, training_hash: str) -> str:
    """Delete the approval of the study with this hash (12 digits of it or more); its name and the hash's first digits.

    It counts from the next instruction on; what was sent cannot be called back. A damaged record goes too. StudyError
    when there is no such approval.
    """
    there = {path.stem: path for path in record_paths(site_file)}
    path = there.get(training_hash[:16]) if len(training_hash) >= 16 else None
    found = [path] if path else [each for stem, each in there.items() if stem.startswith(training_hash)]
    if len(training_hash) < _FEWEST_DIGITS or len(found) != 1:
        raise StudyError(
            f"{training_hash!r} names none of this site's approvals: give the study file, or at least "
            f"{_FEWEST_DIGITS} digits of one of: {', '.join(there) or '(there are none)'}"
        )
    try:
        name = _read(found[0]).study.name
    except StudyError:
        name = "(damaged record)"
    found[0].unlink()
    AuditLog(site_file.state / AUDIT, site_file.site).append("approval withdrawn", study=found[0].stem)
    return f"{name} {found[0].stem}"


def approvals(site_file: SiteFile) -> list[Approval]:
    """Every approval in force, by study name; a damaged one is reported on the screen and left out."""
    whole = []
    for path in record_paths(site_file):
        try:
            whole.append(_read(path))
        except StudyError as error:
            logger.warning(f"{error}")
    return sorted(whole, key=lambda approval: (approval.study.name, approval.training_hash))


def approved_study(site_file: SiteFile, training_hash: str) -> Study | None:
    """The recorded study with this hash, None where there is no approval; StudyError where the record was changed."""
    path = record_path(site_file, training_hash)
    if not path.exists():
        return None
    approval = _read(path)
    return approval.study if approval.training_hash == training_hash else None


def _read(path: Path) -> Approval:
    approval = checked(Approval, read_yaml(path), str(path))
    own = approval.study.training_hash()
    check_record(path, own, approval.training_hash, approval.study.simulation is None)
    return approval
