"""The site file: what stays private to one hospital."""

from pathlib import Path

from pydantic import Field

from client.policy import Policy
from federation.keys.key_source import KeySource
from federation.site_names import SITE_NAME
from foundation.configuration.section import Section
from foundation.configuration.yaml_files import checked, read_yaml
from foundation.machine import DeviceName


class SiteFile(Section):
    """Where a site's images are, where it keeps state, and on what it computes. Never leaves the site."""

    site: str = Field(pattern=SITE_NAME, description="The site's name in the federation.")
    data: Path = Field(description="Manifest (CSV or Parquet) or a folder of images.")
    state: Path = Field(description="Folder for jobs, momentum encoders, optimizer state and the site's log.")
    cache: Path = Field(description="Folder for decoded images.")
    device: DeviceName = Field(default="auto", description="auto, cpu, cuda or mps.")
    key: KeySource | None = Field(
        default=None, description="Where the key lies that encrypts what the state folder holds; null: not encrypted."
    )
    ledger: Path | None = Field(
        default=None,
        description="The one book of what was spent on these patients; every site file over the same patients names "
        "the same file. Needed for studies with `privacy`; null: none is trained.",
    )
    policy: Policy = Field(default=Policy(), description="What this hospital permits, whatever the server asks for.")


SITE_FILE, AUDIT, CLIENT_LOCK = "site.yaml", "audit.jsonl", "client.lock"


def find_site_file(path: Path) -> Path:
    """The site file that a path names: itself, or that of the kit."""
    return path / SITE_FILE if path.is_dir() else path


def audit_log_at(path: Path) -> Path:
    """The audit log that a path names: itself, a federation folder's, or that of a site file or kit."""
    if path.suffix == ".jsonl":
        return path
    if path.is_dir() and (path / AUDIT).exists():
        return path / AUDIT
    return load_site_file(find_site_file(path)).state / AUDIT


def load_site_file(path: Path) -> SiteFile:
    """Read a site file; relative paths in it count from its folder."""
    site = checked(SiteFile, read_yaml(path), str(path))
    here = path.resolve().parent
    places: dict[str, Path] = {name: here / getattr(site, name) for name in ("data", "state", "cache")}
    places |= {"ledger": here / site.ledger} if site.ledger else {}
    return site.model_copy(update=places | {"key": site.key and site.key.counted_from(here)})
