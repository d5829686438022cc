"""Who is admitted: only who the CA says, whatever somebody writes into a record; read anew when a file changes."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from federation.keys.certificates import (
    CredentialError,
    PrivateKey,
    ca_certificate,
    certificate_pem,
    fingerprint,
    key_pem,
    new_key,
    public_pem,
    server_certificate,
    site_certificate,
)
from foundation.errors import FedpretextError
from server.enrolment import registry as subject
from server.enrolment.federation_folder import (
    FederationFile,
    SiteRecord,
    load_federation,
    read_record,
    record_path,
    write_section,
)
from server.enrolment.registry import Registry, check_server_keys

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
CA_KEY = new_key()
OWN_CA = ca_certificate(CA_KEY, "tiny", NOW - 30 * DAY, 3650)
KEYS = {"north": new_key(), "south": new_key()}


def enrolled(site: str, key: PrivateKey, **changes: Any) -> SiteRecord:
    """The record that ``accept`` writes, with changes."""
    public = key.public_key()
    certificate = changes.pop("certified", None) or site_certificate(OWN_CA, CA_KEY, public, site, NOW, 365)
    values = {
        "site": site,
        "status": "enrolled",
        "invited": NOW - 2 * DAY,
        "enrolled": NOW,
        "fingerprint": fingerprint(public),
        "public_key": public_pem(public),
        "certificate": certificate_pem(certificate),
    }
    return SiteRecord.model_validate(values | changes)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A federation folder with the enrolled sites north and south, and west, which is invited."""
    about = FederationFile(name="tiny", server="localhost:8443", study="0" * 64, days=365)
    write_section(tmp_path / "federation.yaml", about)
    (tmp_path / "ca.crt").write_text(certificate_pem(OWN_CA))
    for site, key in KEYS.items():
        write_section(record_path(tmp_path, site), enrolled(site, key))
    write_section(record_path(tmp_path, "west"), SiteRecord(site="west", status="invited", invited=NOW))
    return tmp_path


def test_who_is_admitted(folder: Path) -> None:
    registry = Registry(folder)
    assert set(registry.sites()) == {"north", "south", "west"}
    assert set(registry.admitted(NOW)) == {"north", "south"}
    assert registry.refused(NOW) == {"west": "site west is invited; its request has not been accepted"}
    assert registry.sites()["north"].public_key == public_pem(KEYS["north"].public_key())


def test_only_while_its_certificate_holds(folder: Path) -> None:
    registry = Registry(folder)
    assert "north" in registry.admitted(NOW + 365 * DAY)
    late = registry.refused(NOW + 365 * DAY + timedelta(seconds=1))
    assert late["north"] == "site north has a certificate that expired on 2028-02-29 12:00 UTC"
    early = registry.refused(NOW - timedelta(minutes=6))
    assert early["north"] == "site north has a certificate that is not valid before 2027-03-01 11:55 UTC"


OTHER = new_key()
OTHER_PUBLIC = OTHER.public_key()
FALSE_CA = ca_certificate(OTHER, "tiny", NOW, 3650)
SOUTH_CERTIFICATE = site_certificate(OWN_CA, CA_KEY, KEYS["south"].public_key(), "south", NOW, 365)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (
            {"public_key": public_pem(OTHER_PUBLIC), "fingerprint": fingerprint(OTHER_PUBLIC)},
            "has a key that its certificate does not certify",
        ),
        ({"public_key": public_pem(OTHER_PUBLIC)}, "has a fingerprint that is not its key's"),
        ({"public_key": public_pem(KEYS["north"].public_key()) + "\n"}, "has a key that was edited by hand"),
        ({"certificate": certificate_pem(SOUTH_CERTIFICATE)}, "has a certificate of another name"),
        (
            {
                "certificate": certificate_pem(SOUTH_CERTIFICATE),
                "public_key": public_pem(KEYS["south"].public_key()),
                "fingerprint": fingerprint(KEYS["south"].public_key()),
            },
            "has a certificate of another name",
        ),
        (
            {"certified": site_certificate(FALSE_CA, OTHER, KEYS["north"].public_key(), "north", NOW, 365)},
            "has a certificate that is not signed by this federation's CA",
        ),
        (
            {"certified": server_certificate(OWN_CA, CA_KEY, KEYS["north"].public_key(), ["h"], NOW, 365)},
            "has a certificate of another name",
        ),
        ({"retired": (fingerprint(KEYS["north"].public_key()),)}, "has a key that was retired"),
        ({"certificate": "none"}, "has a damaged record (certificate: holds no certificate that can be read"),
        ({"public_key": "none"}, "has a damaged record (public_key: holds no public key that can be read"),
        ({"status": "invited"}, "is invited; its request has not been accepted"),
    ],
)
def test_a_record_that_was_edited_by_hand_admits_nobody(folder: Path, changes: dict[str, Any], why: str) -> None:
    """And the others are not touched by it."""
    registry = Registry(folder)
    assert "north" in registry.admitted(NOW)
    write_section(record_path(folder, "north"), enrolled("north", KEYS["north"], **changes))
    assert set(registry.admitted(NOW)) == {"south"}
    assert registry.refused(NOW)["north"].startswith(f"site north {why}")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds NoneType instead of 'key: value' lines"),
        ("site: north\nstatus: enrolled\n", "key 'invited' is missing"),
        ("site: north\nstatus: enrolled\ninvited: 2027-03-01T12:00:00Z\n", "an enrolled site has a date, fingerprint"),
        ("site: north\nstatus: revoked\ninvited: 2027-03-01T12:00:00Z\n", "the date 'revoked' stands where"),
        ("site: west\nstatus: invited\ninvited: 2027-03-01T12:00:00Z\n", "is the record of site west"),
        ("site: north\nstatus: trusted\ninvited: 2027-03-01T12:00:00Z\n", "status: Input should be"),
        ("site: [north\n", "is not valid YAML"),
    ],
)
def test_a_damaged_record_is_named_and_passed_over(folder: Path, text: str, why: str) -> None:
    record_path(folder, "north").write_text(text)
    registry = Registry(folder)
    assert set(registry.sites()) == {"south", "west"}
    assert set(registry.admitted(NOW)) == {"south"}
    said = registry.refused(NOW)["north"]
    assert said.startswith("site north has a damaged record (")
    assert why in said
    assert "\n" not in said


def test_a_copied_record_admits_nobody_under_another_name(folder: Path) -> None:
    raw = yaml.safe_load(record_path(folder, "north").read_text())
    record_path(folder, "east").write_text(yaml.safe_dump(raw | {"site": "east"}))
    assert Registry(folder).refused(NOW)["east"] == "site east has a certificate of another name"


def test_changes_are_seen_and_nothing_else_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: Path) -> SiteRecord:
        read.append(path.stem)
        return read_record(path)

    monkeypatch.setattr(subject, "read_record", count)
    registry = Registry(folder)
    assert set(registry.admitted(NOW)) == {"north", "south"}
    assert read == ["north", "south", "west"]
    for _ in range(3):
        registry.admitted(NOW)
        registry.refused(NOW)
    assert read == ["north", "south", "west"]

    revoked = read_record(record_path(folder, "north")).model_copy(
        update={"status": "revoked", "revoked": NOW, "reason": "lost"}
    )
    write_section(record_path(folder, "north"), revoked)
    assert set(registry.admitted(NOW)) == {"south"}
    record_path(folder, "west").unlink()
    write_section(record_path(folder, "east"), enrolled("east", OTHER))
    assert set(registry.admitted(NOW)) == {"south", "east"}
    assert set(registry.sites()) == {"north", "south", "east"}
    assert read == ["north", "south", "west", "north", "east"]


def test_a_change_is_seen_also_where_size_and_time_are_the_old_ones(folder: Path) -> None:
    """As a restored backup has them."""
    path = record_path(folder, "north")
    registry = Registry(folder)
    assert "north" in registry.admitted(NOW)
    about = path.stat()
    text = path.read_text()
    time.sleep(0.02)  # the clock of the file system
    path.write_text(text.replace("status: enrolled", "status: invitedx").replace("invitedx", "enrolle?"))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (about.st_size, about.st_mtime_ns)
    assert "north" not in registry.admitted(NOW)


def test_another_ca_makes_all_records_void(folder: Path) -> None:
    registry = Registry(folder)
    assert len(registry.admitted(NOW)) == 2
    (folder / "ca.crt").write_text(certificate_pem(FALSE_CA))
    assert registry.admitted(NOW) == {}
    assert registry.refused(NOW)["south"] == "site south has a certificate that is not signed by this federation's CA"
    (folder / "ca.crt").unlink()
    for _ in range(2):
        with pytest.raises(CredentialError, match=r"ca\.crt: cannot be read; restore the file"):
            registry.admitted(NOW)
    (folder / "ca.crt").write_text(certificate_pem(OWN_CA))
    assert len(registry.admitted(NOW)) == 2


def test_a_record_is_read_as_it_was_written(folder: Path) -> None:
    record = enrolled("north", KEYS["north"], reason='Grüße: "x" # no comment', retired=("ab cd",))
    write_section(record_path(folder, "north"), record)
    assert read_record(record_path(folder, "north")) == record
    assert "public_key: |\n  -----BEGIN PUBLIC KEY-----\n" in record_path(folder, "north").read_text()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("days: 365", "days: 0", "days: Input should be greater than or equal to 1"),
        ("localhost:8443", "localhost", "server: 'localhost' is no HOST:PORT"),
        ("days:", "dais:", "key 'dais' is not known; did you mean 'days'?"),
    ],
)
def test_a_federation_file_that_is_wrong(folder: Path, old: str, new: str, said: str) -> None:
    path = folder / "federation.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(FedpretextError) as caught:
        Registry(folder)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)


def test_a_key_file_counts_from_the_federation_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "federation.yaml"
    path.write_text(path.read_text().replace("key: null", "key: {file: ../secrets/key}"))
    monkeypatch.chdir(folder)
    key = Registry(Path()).federation.key
    assert key is not None
    assert key.file == folder.resolve() / "../secrets/key"


def test_a_folder_that_is_no_federation(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"is no federation folder \(there is no federation\.yaml\); give"):
        load_federation(tmp_path)


@pytest.fixture
def keys(folder: Path) -> Callable[[PrivateKey], None]:
    """Writes ``superlink.key``; the certificates of both servers are for another key than OTHER."""
    key = new_key()
    for name in ("proxy", "superlink"):
        certificate = server_certificate(OWN_CA, CA_KEY, key.public_key(), ["localhost"], NOW, 365)
        (folder / f"{name}.crt").write_text(certificate_pem(certificate))
        (folder / f"{name}.key").write_bytes(key_pem(key))
        (folder / f"{name}.key").chmod(0o600)

    def write(other: PrivateKey) -> None:
        (folder / "superlink.key").write_bytes(key_pem(other))

    return write


def test_server_keys_are_private_and_fit(folder: Path, keys: Callable[[PrivateKey], None]) -> None:
    check_server_keys(folder)
    (folder / "proxy.key").chmod(0o604)
    with pytest.raises(CredentialError, match=r"proxy\.key: is open to other users \(mode 0604\)"):
        check_server_keys(folder)
    (folder / "proxy.key").chmod(0o600)
    keys(OTHER)
    with pytest.raises(CredentialError, match=r"superlink\.key: is not the key of superlink\.crt; make both: fedpre"):
        check_server_keys(folder)
