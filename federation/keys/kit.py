"""The kit: what a hospital gets from the study lead to join a federation. It holds no secret."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

import yaml
from cryptography import x509
from pydantic import AfterValidator, Field

from federation.keys.certificates import CredentialError, certificate_pem, read_certificate
from federation.site_names import SITE_NAME
from federation.study_hash import training_hash_of
from foundation.configuration.section import Section
from foundation.configuration.yaml_files import checked, read_yaml
from foundation.files import write_text

KIT, CA, STUDY, README = "kit.yaml", "ca.crt", "study.yaml", "README.txt"
_ADDRESS = re.compile(r"(?:\[([0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)\]|([^\[\]:]+)):([0-9]{1,5})", re.ASCII)
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = re.compile(rf"(?:{_LABEL}\.)*(?![0-9]+$){_LABEL}")


def host_and_port(address: str) -> tuple[str, int]:
    """Host (DNS name, IPv4, or IPv6 without its brackets) and port of ``HOST:PORT``; ValueError when it is none."""
    found = _ADDRESS.fullmatch(address)
    host, port = (found[1] or found[2], int(found[3])) if found else ("", 0)
    number = _ip_address(host)
    named = len(host) <= 253 and _DNS_NAME.fullmatch(host) is not None
    if found is None or not 1 <= port <= 65535 or (number is None and not named):
        raise ValueError(f"{address!r} is no HOST:PORT; write for example fl.example.org:8443 or [2001:db8::7]:8443")
    if number is not None and number.is_unspecified:
        raise ValueError(f"{address!r} stands for every interface; write the address by which sites reach the server")
    return host, port


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _reachable(address: str) -> str:
    host_and_port(address)
    return address


ServerAddress = Annotated[str, AfterValidator(_reachable)]
StudyHash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Kit(Section):
    """Which site this is, which server it is to join, and for which study."""

    site: str = Field(pattern=SITE_NAME, description="The site's name in the federation.")
    federation: str = Field(min_length=1, description="The federation's name.")
    server: ServerAddress = Field(description="HOST:PORT by which sites reach the server.")
    study: StudyHash = Field(description="Hash over what would be trained; a site approves it.")


def read_kit(folder: Path) -> Kit:
    """The kit in ``folder``; CredentialError when it is no kit, or not whole, or its study is not the one it names."""
    if not (folder / KIT).is_file():
        raise CredentialError(f"{folder}: is no kit (there is no {KIT}); give the folder that the study lead sent")
    kit = checked(Kit, read_yaml(folder / KIT), str(folder / KIT))
    kit_ca(folder)
    study = folder / STUDY
    if not study.is_file():
        raise CredentialError(f"{study}: is missing; ask the study lead for the kit again")
    if training_hash_of(read_yaml(study)) != kit.study:  # checked whole when it is approved
        raise CredentialError(f"{study}: is not the study that {KIT} names; ask the study lead for the kit again")
    return kit


def kit_ca(folder: Path) -> x509.Certificate:
    """The certificate by which the site knows the server."""
    return read_certificate(_text(folder / CA), str(folder / CA))


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialError(f"{path}: cannot be read; ask the study lead for the kit again") from error


def write_kit(folder: Path, kit: Kit, study_yaml: str, ca: x509.Certificate) -> None:
    """Write a kit's files into ``folder``."""
    write_text(folder / KIT, yaml.safe_dump(kit.model_dump(mode="json"), sort_keys=False))
    write_text(folder / STUDY, study_yaml)
    write_text(folder / CA, certificate_pem(ca))
    write_text(folder / README, _README.format(**kit.model_dump()))


_README = """\
Kit of site {site} for the federation {federation}, server {server}.

It holds nothing secret. What is made here (site.key above all) is secret and
stays here.

1. Make this site's key:         fedpretext site init . --data IMAGES
   It prints two fingerprints. Telephone the study lead and compare all of both.
2. Send site.csr to the study lead. It holds the public key and the site's name,
   nothing else.
3. Look at your images:        fedpretext site check
4. Read and approve the study:   fedpretext site approve study.yaml
5. Join:                         fedpretext client .
"""
