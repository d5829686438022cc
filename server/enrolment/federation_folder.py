"""The federation folder: what the study lead keeps of the federation and of each site, one file a site."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, Self

import yaml
from cryptography import x509
from pydantic import AwareDatetime, Field, model_validator

from federation.keys.certificates import CredentialError, read_certificate
from federation.keys.key_source import KeySource
from federation.keys.kit import CA, ServerAddress, StudyHash
from federation.site_names import SITE_NAME
from foundation.configuration.section import Section
from foundation.configuration.yaml_files import checked, read_yaml
from foundation.errors import nearest
from foundation.files import write_text

FEDERATION, SITES, AUDIT = "federation.yaml", "sites", "audit.jsonl"
SERVER = "server"
"""The folder of the federation, and what stands for its servers where a site's name could stand too."""
SERVERS = ("proxy", "superlink")
"""What has a server certificate: nginx, which sites reach, and Flower's SuperLink behind it."""


class FederationFile(Section):
    """What holds for the whole federation."""

    name: str = Field(min_length=1, description="The federation's name: the study's.")
    server: ServerAddress = Field(description="HOST:PORT by which sites reach the server.")
    study: StudyHash = Field(description="Hash over what is trained, which each kit names.")
    days: int = Field(ge=1, le=3650, description="Days for which a certificate of a server or site is made.")
    key: KeySource | None = Field(
        default=None, description="Where the key lies that encrypts checkpoints and updates; null: not encrypted."
    )


class SiteRecord(Section):
    """One site: its standing, and the key by which it is known."""

    site: str = Field(pattern=SITE_NAME, description="The site's name in the federation.")
    status: Literal["invited", "enrolled", "revoked"] = Field(description="A site takes part while it is enrolled.")
    invited: AwareDatetime = Field(description="When its kit was made.")
    enrolled: AwareDatetime | None = Field(default=None, description="When its key was accepted.")
    revoked: AwareDatetime | None = Field(default=None, description="When it was excluded.")
    reason: str = Field(default="", description="Why it was excluded.")
    fingerprint: str = Field(default="", description="The key's fingerprint, as told by telephone.")
    public_key: str = Field(default="", description="The site's key (PEM).")
    certificate: str = Field(default="", description="The CA's word that it is the site's key (PEM).")
    retired: tuple[str, ...] = Field(default=(), description="Fingerprints of earlier keys, never accepted again.")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.status == "enrolled" and not all((self.enrolled, self.fingerprint, self.public_key, self.certificate)):
            raise ValueError("an enrolled site has a date, fingerprint, public_key and certificate; accept its request")
        if (self.status == "revoked") != (self.revoked is not None):
            raise ValueError("the date 'revoked' stands where the status is revoked, and nowhere else")
        return self


def load_federation(folder: Path) -> FederationFile:
    """The federation in ``folder``, a relative key file counted from there; CredentialError when there is none."""
    if not (folder / FEDERATION).is_file():
        raise CredentialError(
            f"{folder}: is no federation folder (there is no {FEDERATION}); give the one that fedpretext provision made"
        )
    about = checked(FederationFile, read_yaml(folder / FEDERATION), str(folder / FEDERATION))
    return about.model_copy(update={"key": about.key.counted_from(folder.resolve())}) if about.key else about


def load_ca(folder: Path) -> x509.Certificate:
    """The federation's CA certificate."""
    return load_certificate(folder / CA)


def load_certificate(path: Path) -> x509.Certificate:
    """The certificate in a file; CredentialError when it is missing or damaged."""
    try:
        return read_certificate(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(f"{path}: cannot be read; restore the file") from error


def write_section(path: Path, section: Section) -> None:
    """Write a model as YAML, atomically; a text of several lines as a block that people can copy."""
    values = section.model_dump(mode="json")
    write_text(path, yaml.dump(values, Dumper=_Blocks, sort_keys=False, allow_unicode=True, width=110))


class _Blocks(yaml.SafeDumper):
    """PyYAML's safe dumper, but "|" for a text of several lines."""


def _represent(dumper: _Blocks, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Blocks.add_representer(str, _represent)


def record_path(folder: Path, site: str) -> Path:
    """Where the record of ``site`` stands in a federation folder."""
    return folder / SITES / f"{site}.yaml"


def read_record(path: Path) -> SiteRecord:
    """One record; an error of one line when it is damaged, or stands under another site's name."""
    record = checked(SiteRecord, read_yaml(path), str(path))
    if path.name != f"{record.site}.yaml":
        raise CredentialError(f"{path}: is the record of site {record.site}; give the file that site's name")
    return record


def read_records(folder: Path) -> dict[str, SiteRecord]:
    """All records by site. Strict: commands that change one must know every key there is or was."""
    return {path.stem: read_record(path) for path in record_files(folder)}


def known_site(records: dict[str, SiteRecord], site: str) -> SiteRecord:
    """The record of ``site``; CredentialError when it was never invited."""
    if site not in records:
        there = ", ".join(sorted(records)) or "none"
        raise CredentialError(f"site {site!r} is not in this federation; there are: {there}{nearest(site, records)}")
    return records[site]


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Hold the federation folder for one command, so that no revocation is lost to a renewal beside it."""
    handle = os.open(folder / SITES, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def record_files(folder: Path) -> list[Path]:
    """The files of all records."""
    return sorted((folder / SITES).glob("*.yaml"))
