"""What the study lead's commands refuse, in one line each, before anything is written."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from federation.keys.certificates import CredentialError
from federation.keys.kit import host_and_port
from federation.site_names import SITE_NAME
from server.enrolment.federation_folder import SERVER, SiteRecord


def check_names(names: Sequence[str], there: Iterable[str]) -> None:
    """Names that are well formed and unlike each other and those ``there``, also where case does not count."""
    taken = {name.lower(): name for name in there}
    for name in names:
        if not re.fullmatch(SITE_NAME, name) or name.lower() == SERVER:
            raise CredentialError(
                f"site name {name!r}: take 1 to 40 of A-Z a-z 0-9 . _ - that begin with a letter or digit, not 'server'"
            )
        if name.lower() in taken:
            raise CredentialError(f"site name {name!r}: {taken[name.lower()]!r} is there already; take another name")
        taken[name.lower()] = name


def check_settings(server: str, days: int, ca_days: int) -> None:
    """An address that sites can reach, and days that follow from each other."""
    try:
        host_and_port(server)
    except ValueError as error:
        raise CredentialError(f"--server {error}") from error
    if not 1 <= days <= 3650:
        raise CredentialError(f"--days {days}: a certificate holds for 1 to 3650 days")
    if not days <= ca_days <= 36500:
        raise CredentialError(
            f"--ca-days {ca_days}: the CA holds for at least the {days} days of --days, at most 36500"
        )


def check_free(out: Path) -> None:
    """A place where nothing would be overwritten."""
    if (out / SERVER).exists():
        raise CredentialError(
            f"{out / SERVER}: is a federation already, and keys are never overwritten; "
            "invite a site with fedpretext add-site, or give another --out"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CredentialError(f"{out}: is not empty; give another --out")


def check_acceptable(record: SiteRecord, records: dict[str, SiteRecord], shown: str, *, replace: bool) -> None:
    """Whether the key with the fingerprint ``shown`` may become that of the record's site."""
    site = record.site
    if record.status == "revoked":
        raise CredentialError(f"site {site} was revoked ({record.reason}); to invite it again: add-site {site} --again")
    for other in records.values():
        if shown in other.retired:
            raise CredentialError(f"site {site}: its key was retired at site {other.site}; it has to make a new one")
        if other.site != site and shown == other.fingerprint:
            raise CredentialError(f"site {site}: its key is that of site {other.site}; each site makes its own")
    if record.fingerprint not in ("", shown) and not replace:
        raise CredentialError(
            f"site {site} is enrolled with another key; if the site says by telephone that it made a new one, "
            "accept with --replace"
        )
