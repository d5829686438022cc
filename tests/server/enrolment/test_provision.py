"""Provisioning: what is made, what is refused, and that no command touches what it should not."""

import re
import shutil
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from client.kit_keys import load_site_key, site_init
from federation.keys.certificates import (
    CredentialError,
    PrivateKey,
    fingerprint,
    key_of,
    new_key,
    public_pem,
    read_key,
    request_pem,
)
from federation.keys.kit import kit_ca, read_kit
from federation.site_names import SITE_NAME
from federation.study import load_study
from foundation.errors import FedpretextError
from server.enrolment import provision as commands
from server.enrolment.federation_folder import SiteRecord, load_certificate, load_federation, read_record, record_path
from server.enrolment.provision import accept, add_site, expiry, provision, renew, revoke
from server.enrolment.provision_checks import check_names
from server.enrolment.registry import Registry, check_server_keys

NOW = datetime(2027, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
PASSPHRASE = b"correct horse battery"


class Clock:
    """The commands' clock, which a test sets."""

    def __init__(self) -> None:
        self.now = NOW


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The commands run at noon on 1 March 2027, until a test says otherwise."""
    made = Clock()
    monkeypatch.setattr(commands, "_now", lambda: made.now)
    return made


@pytest.fixture
def study(tmp_path: Path, raw_study: dict[str, Any]) -> Path:
    """A study file with a simulation section, which must not leave."""
    raw_study["simulation"] = {"dataset": "folder", "root": "/secret/place"}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(raw_study))
    return path


@pytest.fixture
def kits(study: Path, tmp_path: Path) -> Path:
    """The folder with the federation of north and south."""
    provision(study, server="fl.example.org:8443", sites=["north", "south"], out=tmp_path / "kits")
    return tmp_path / "kits"


@pytest.fixture
def federation(kits: Path) -> Path:
    """The federation folder of north and south."""
    return kits / "server"


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., Path]:
    """``request_of("north", key)``: a file with the request of a site."""

    def make(site: str, key: PrivateKey | None = None) -> Path:
        path = tmp_path / f"{site}.csr"
        path.write_bytes(request_pem(key or new_key(), site))
        return path

    return make


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def record_of(federation: Path, site: str) -> SiteRecord:
    return read_record(record_path(federation, site))


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(FedpretextError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- provision


def test_what_provision_makes(kits: Path, study: Path) -> None:
    assert sorted(path.name for path in kits.iterdir()) == ["kit-north", "kit-south", "server"]
    assert set(contents(kits / "server")) == {
        "federation.yaml", "study.yaml", "ca.crt", "ca.key", "proxy.crt", "proxy.key", "superlink.crt", "superlink.key",
        "sites/north.yaml", "sites/south.yaml",
    }  # fmt: skip
    about = load_federation(kits / "server")
    hash_ = load_study(study).training_hash()
    assert (about.name, about.server, about.study, about.days) == ("tiny", "fl.example.org:8443", hash_, 365)
    for site in ("north", "south"):
        record = record_of(kits / "server", site)
        assert record == SiteRecord(site=site, status="invited", invited=NOW)
        kit = read_kit(kits / f"kit-{site}")
        assert (kit.site, kit.server, kit.study) == (site, "fl.example.org:8443", hash_)
        assert load_study(kits / f"kit-{site}" / "study.yaml").simulation is None
        assert kit_ca(kits / f"kit-{site}") == load_certificate(kits / "server" / "ca.crt")
        assert (kits / f"kit-{site}" / "study.yaml").read_bytes() == (kits / "server" / "study.yaml").read_bytes()
    assert load_study(kits / "server" / "study.yaml").training_hash() == hash_
    check_server_keys(kits / "server")


def test_overrides_are_part_of_the_study(study: Path, tmp_path: Path) -> None:
    provision(study, ["rounds.count=7"], server="localhost:8443", sites=["a"], out=tmp_path / "kits")
    assert load_study(tmp_path / "kits" / "kit-a" / "study.yaml").rounds.count == 7
    assert read_kit(tmp_path / "kits" / "kit-a").study == load_study(study, ["rounds.count=7"]).training_hash()


def test_secrets_are_private_and_stay(kits: Path) -> None:
    secrets = {str(path.relative_to(kits)) for path in kits.rglob("*.key")}
    assert secrets == {"server/ca.key", "server/proxy.key", "server/superlink.key"}
    assert {mode(kits / path) for path in secrets} == {0o600}
    assert {mode(path) for path in (kits, kits / "server", kits / "server" / "sites")} == {0o700}
    numbers = [
        read_key((kits / path).read_bytes(), None, path).private_numbers().private_value.to_bytes(48, "big")
        for path in secrets
    ]
    for name, data in contents(kits).items():
        if name not in secrets:
            assert b"PRIVATE KEY" not in data
            assert b"/secret/place" not in data
            assert not any(number in data for number in numbers)


@pytest.mark.parametrize(("site", "other"), [("north", b"south"), ("south", b"north")])
def test_a_kit_holds_nothing_of_another_site(kits: Path, site: str, other: bytes) -> None:
    mine = contents(kits / f"kit-{site}")
    assert set(mine) == {"kit.yaml", "ca.crt", "study.yaml", "README.txt"}
    assert not any(other in data for data in mine.values())


def test_what_provision_prints(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "kits"
    lines = provision(study, server="localhost:8443", sites=["a"], out=out)
    assert lines == [
        f"{out / 'server'}: stays with you; ca.key is not protected by a passphrase; keep it off backups",
        f"{out / 'kit-a'}: send it to site a; it holds no secret",
        "Fingerprint of the CA, which a site compares with you by telephone:",
        f"  {fingerprint(key_of(load_certificate(out / 'server' / 'ca.crt')))}",
    ]
    reported = provision(study, server="localhost:8443", sites=[], out=tmp_path / "more", passphrase=PASSPHRASE)
    assert reported[0].endswith("ca.key is protected by the passphrase")


def test_dates_and_names_of_the_certificates(kits: Path) -> None:
    certificates = {name: load_certificate(kits / "server" / f"{name}.crt") for name in ("ca", "proxy", "superlink")}
    ends = {name: certificate.not_valid_after_utc for name, certificate in certificates.items()}
    assert ends == {"ca": NOW + 3650 * DAY, "proxy": NOW + 365 * DAY, "superlink": NOW + 365 * DAY}
    names = {
        name: [
            str(entry.value) for entry in found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        ]
        for name, found in certificates.items()
        if name != "ca"
    }
    assert names == {"proxy": ["fl.example.org"], "superlink": ["localhost", "127.0.0.1", "::1"]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"server": "fl.example.org"}, "--server 'fl.example.org' is no HOST:PORT; write for example"),
        ({"server": "0.0.0.0:1"}, "--server '0.0.0.0:1' stands for every interface"),
        ({"sites": ["a", "b", "a"]}, "site name 'a': 'a' is there already; take another name"),
        ({"sites": ["a", "A"]}, "site name 'A': 'a' is there already; take another name"),
        ({"sites": ["../a"]}, "site name '../a': take 1 to 40 of A-Z a-z 0-9 . _ - that begin with"),
        ({"sites": ["Server"]}, "site name 'Server': take 1 to 40 of A-Z"),
        ({"days": 0}, "--days 0: a certificate holds for 1 to 3650 days"),
        ({"days": 3651}, "--days 3651: a certificate holds for 1 to 3650 days"),
        ({"ca_days": 364}, "--ca-days 364: the CA holds for at least the 365 days of --days"),
        ({"ca_days": 36501}, "--ca-days 36501: the CA holds for at least the 365 days of --days, at most 36500"),
        ({"passphrase": b"short"}, "passphrase of 5 bytes: take 12 to 1000, or none at all"),
        ({"overrides": ["rouns.count=3"]}, "key 'rouns' is not known"),
    ],
)
def test_what_provision_refuses(study: Path, tmp_path: Path, changed: dict[str, Any], said: str) -> None:
    """In one line, and nothing is left."""
    before = sorted(tmp_path.iterdir())
    settings: dict[str, Any] = {"server": "localhost:8443", "sites": ["a"], "out": tmp_path / "kits"} | changed
    assert said in refusal(lambda: provision(study, **settings))
    assert sorted(tmp_path.iterdir()) == before


@given(st.lists(st.one_of(st.from_regex(SITE_NAME), st.text(max_size=45), st.sampled_from(["a", "A", "server"]))))
def test_names_that_pass_make_files_of_their_own(names: list[str]) -> None:
    try:
        check_names(names, ["north"])
    except CredentialError as error:
        assert "\n" not in str(error)
        unlike = {name.lower() for name in names}
        bad = [name for name in names if not re.fullmatch(SITE_NAME, name) or name.lower() in ("server", "north")]
        assert bad or len(unlike) < len(names)
    else:
        assert len({Path(f"kit-{name}").name.lower() for name in names}) == len(names)
        assert all(Path(f"kit-{name}").name == f"kit-{name}" for name in names)


def test_a_federation_is_never_overwritten(kits: Path, study: Path) -> None:
    before = contents(kits)
    said = refusal(lambda: provision(study, server="localhost:8443", sites=["a"], out=kits))
    assert said.startswith(f"{kits / 'server'}: is a federation already, and keys are never overwritten; invite")
    assert contents(kits) == before


def test_a_folder_with_something_in_it_is_refused_and_an_empty_one_taken(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "kits"
    out.mkdir()
    (out / "note.txt").write_text("mine")
    said = refusal(lambda: provision(study, server="localhost:8443", sites=["a"], out=out))
    assert said == f"{out}: is not empty; give another --out"
    (out / "note.txt").unlink()
    provision(study, server="localhost:8443", sites=["a"], out=out)
    assert (out / "kit-a" / "kit.yaml").is_file()


@pytest.mark.parametrize("step", ["write_kit", "_certify_server", "write_section", "write_secret"])
def test_a_failure_at_any_step_leaves_nothing(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(commands, step, fail)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(OSError, match="No space"):
        provision(study, server="localhost:8443", sites=["a"], out=tmp_path / "kits")
    assert sorted(tmp_path.iterdir()) == before


# ---- add-site


def test_a_site_is_added_without_touching_the_others(kits: Path, federation: Path, request_of: Any) -> None:
    accept(federation, request_of("north"))
    before = contents(kits)
    lines = add_site(federation, "west")
    after = contents(kits)
    assert {name: data for name, data in after.items() if name in before} == before
    assert {name for name in after if name not in before} == {
        "server/sites/west.yaml", *(f"kit-west/{name}" for name in ("kit.yaml", "ca.crt", "study.yaml", "README.txt"))
    }  # fmt: skip
    assert read_kit(kits / "kit-west").site == "west"
    assert record_of(federation, "west").status == "invited"
    assert lines[0] == f"{kits / 'kit-west'}: send it to site west; it holds no secret"


def test_a_kit_goes_where_it_is_wanted(federation: Path, tmp_path: Path) -> None:
    add_site(federation, "west", tmp_path / "to-send")
    assert read_kit(tmp_path / "to-send" / "kit-west").site == "west"


def test_what_add_site_refuses(kits: Path, federation: Path, tmp_path: Path) -> None:
    (kits / "kit-west").mkdir()
    before = contents(kits)
    assert "'north' is there already" in refusal(lambda: add_site(federation, "north"))
    assert "'north' is there already" in refusal(lambda: add_site(federation, "North"))
    assert "take 1 to 40" in refusal(lambda: add_site(federation, "../west"))
    assert "kit-west: is there already; move it away" in refusal(lambda: add_site(federation, "west"))
    assert "site 'north' was not revoked; leave out --again" in refusal(
        lambda: add_site(federation, "north", again=True)
    )
    assert "is no federation folder" in refusal(lambda: add_site(tmp_path, "west"))
    (federation / "study.yaml").write_text((federation / "study.yaml").read_text().replace("seed: 0", "seed: 1"))
    assert "is not the study that was provisioned" in refusal(lambda: add_site(federation, "east"))
    (federation / "study.yaml").write_text((federation / "study.yaml").read_text().replace("seed: 1", "seed: 0"))
    assert contents(kits) == before
    assert not (kits / "kit-east").exists()


def test_a_kit_without_a_record_does_not_stay(kits: Path, federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    before = sorted(kits.iterdir())
    monkeypatch.setattr(commands, "write_section", fail)
    with pytest.raises(OSError, match="No space"):
        add_site(federation, "west")
    assert sorted(kits.iterdir()) == before


# ---- accept


def test_from_kit_to_enrolment(kits: Path, federation: Path, tmp_path: Path) -> None:
    """The whole way, with what is said by telephone."""
    (tmp_path / "images").mkdir()
    said = site_init(kits / "kit-north", tmp_path / "images", passphrase=PASSPHRASE)
    key = load_site_key(kits / "kit-north", PASSPHRASE)
    reported = next(line for line in said if "this site's key" in line).partition(":")[2]
    lines = accept(federation, kits / "kit-north" / "site.csr", reported)
    assert lines == [
        "site north is enrolled until 2028-02-29; fingerprint of its key:",
        f"  {fingerprint(key.public_key())}",
    ]
    record = record_of(federation, "north")
    assert (record.status, record.enrolled) == ("enrolled", NOW)
    assert record.public_key == public_pem(key.public_key())
    assert record.fingerprint == fingerprint(key.public_key())
    registry = Registry(federation)
    assert set(registry.admitted(NOW)) == {"north"}
    assert registry.sites()["north"].public_key == public_pem(key.public_key())
    assert "-----BEGIN CERTIFICATE-----\n" in record_path(federation, "north").read_text()


def test_without_the_telephone_the_fingerprint_is_to_be_compared(federation: Path, request_of: Any) -> None:
    lines = accept(federation, request_of("north"))
    assert lines[2:] == [
        "Telephone the site and compare all of it. If it differs:",
        f"  fedpretext revoke {federation} north --reason 'another key'",
    ]


def test_what_accept_refuses(federation: Path, request_of: Any, tmp_path: Path) -> None:
    before = contents(federation)
    request = request_of("north")
    wrong = fingerprint(new_key().public_key())
    assert "its fingerprint is" in refusal(lambda: accept(federation, request, wrong))
    assert "its fingerprint is" in refusal(lambda: accept(federation, request, ""))
    said = refusal(lambda: accept(federation, request_of("nort")))
    assert said == "site 'nort' is not in this federation; there are: north, south; did you mean 'north'?"
    assert "site.csr: cannot be read" in refusal(lambda: accept(federation, tmp_path / "site.csr"))
    assert "holds no certificate request" in refusal(lambda: accept(federation, federation / "federation.yaml"))
    changed = tmp_path / "changed.csr"
    body = request_of("north").read_bytes()
    changed.write_bytes(body[:-60] + (b"A" if body[-60:-59] != b"A" else b"B") + body[-59:])
    assert str(changed) in refusal(lambda: accept(federation, changed))
    assert contents(federation) == before


def test_two_sites_cannot_have_the_same_key(federation: Path, request_of: Any) -> None:
    shared = new_key()
    accept(federation, request_of("north", shared))
    said = refusal(lambda: accept(federation, request_of("south", shared)))
    assert said == "site south: its key is that of site north; each site makes its own"


def test_the_same_request_again_renews(federation: Path, request_of: Any, clock: Clock) -> None:
    request = request_of("north")
    accept(federation, request)
    first = record_of(federation, "north")
    clock.now = NOW + 200 * DAY
    lines = accept(federation, request)
    second = record_of(federation, "north")
    assert lines[0].startswith("site north is enrolled until 2028-09-16")
    assert len(lines) == 2
    assert second == first.model_copy(update={"certificate": second.certificate})
    assert set(Registry(federation).admitted(NOW + 565 * DAY)) == {"north"}
    assert set(Registry(federation).admitted(NOW + 566 * DAY)) == set()


def test_another_key_needs_replace_and_the_old_one_never_returns(
    federation: Path, request_of: Any, clock: Clock
) -> None:
    old, new = new_key(), new_key()
    accept(federation, request_of("north", old))
    before = contents(federation)
    said = refusal(lambda: accept(federation, request_of("north", new)))
    assert said == (
        "site north is enrolled with another key; if the site says by telephone that it made a new one, "
        "accept with --replace"
    )
    assert contents(federation) == before
    clock.now = NOW + DAY
    accept(federation, request_of("north", new), replace=True)
    record = record_of(federation, "north")
    assert (record.public_key, record.enrolled) == (public_pem(new.public_key()), NOW + DAY)
    assert record.retired == (fingerprint(old.public_key()),)
    for site in ("north", "south"):
        said = refusal(lambda site=site: accept(federation, request_of(site, old), replace=True))
        assert said == f"site {site}: its key was retired at site north; it has to make a new one"


def test_the_ca_key_with_a_passphrase(study: Path, tmp_path: Path, request_of: Any) -> None:
    provision(study, server="localhost:8443", sites=["north"], out=tmp_path / "kits", passphrase=PASSPHRASE)
    federation = tmp_path / "kits" / "server"
    request, path = request_of("north"), federation / "ca.key"
    assert b"BEGIN OPENSSH PRIVATE KEY" in path.read_bytes()
    assert refusal(lambda: accept(federation, request)).startswith(f"{path}: is protected by a passphrase")
    said = refusal(lambda: accept(federation, request, ca_passphrase=b"another passphrase"))
    assert said.startswith(f"{path}: the passphrase is wrong")
    accept(federation, request, ca_passphrase=PASSPHRASE)
    renew(federation, "server", PASSPHRASE)
    renew(federation, "north", PASSPHRASE)


def test_a_ca_key_that_others_read_or_that_is_another_is_refused(
    federation: Path, request_of: Any, study: Path, tmp_path: Path
) -> None:
    path = federation / "ca.key"
    path.chmod(0o644)
    assert "is open to other users (mode 0644)" in refusal(lambda: accept(federation, request_of("north")))
    provision(study, server="localhost:8443", sites=[], out=tmp_path / "other")
    shutil.copy2(tmp_path / "other" / "server" / "ca.key", path)
    said = refusal(lambda: accept(federation, request_of("north")))
    assert said == f"{path}: is not the key of {federation / 'ca.crt'}; restore both from the same backup"


# ---- revoke


def test_a_revoked_site_is_out_and_its_key_never_returns(
    kits: Path, federation: Path, request_of: Any, clock: Clock
) -> None:
    key, other = new_key(), new_key()
    accept(federation, request_of("north", key))
    accept(federation, request_of("south", other))
    clock.now = NOW + DAY
    revoke(federation, "north", "laptop lost")
    registry = Registry(federation)
    assert set(registry.admitted(clock.now)) == {"south"}
    assert registry.refused(clock.now) == {"north": "site north was revoked on 2027-03-02: laptop lost"}
    assert registry.sites()["north"].public_key == public_pem(key.public_key())
    again = refusal(lambda: accept(federation, request_of("north", key)))
    assert again == "site north was revoked (laptop lost); to invite it again: add-site north --again"
    assert again == refusal(lambda: accept(federation, request_of("north"), replace=True))
    assert "was revoked on 2027-03-02 already (laptop lost)" in refusal(lambda: revoke(federation, "north", "twice"))
    assert "site north was revoked" in refusal(lambda: renew(federation, "north"))
    assert "'north' is there already" in refusal(lambda: add_site(federation, "north"))

    shutil.rmtree(kits / "kit-north")
    add_site(federation, "north", again=True)
    assert record_of(federation, "north").status == "invited"
    for site in ("north", "south"):
        said = refusal(lambda site=site: accept(federation, request_of(site, key), replace=True))
        assert "its key was retired at site north" in said
    assert set(Registry(federation).admitted(clock.now)) == {"south"}
    fresh = new_key()
    accept(federation, request_of("north", fresh))
    assert Registry(federation).admitted(clock.now)["north"].public_key == public_pem(fresh.public_key())
    assert record_of(federation, "north").retired == (fingerprint(key.public_key()),)


def test_an_invitation_can_be_revoked(federation: Path, request_of: Any) -> None:
    revoke(federation, "north", "kit sent to the wrong address")
    assert "was revoked" in refusal(lambda: accept(federation, request_of("north")))


@pytest.mark.parametrize("reason", ["", "two\nlines", "x" * 201, "bell\a"])
def test_a_reason_is_one_line(federation: Path, reason: str) -> None:
    before = contents(federation)
    assert "write one line of 1 to 200 characters" in refusal(lambda: revoke(federation, "north", reason))
    assert contents(federation) == before


def test_an_unknown_site_is_said(federation: Path) -> None:
    for call in (lambda: revoke(federation, "nroth", "why"), lambda: renew(federation, "nroth")):
        assert "did you mean 'north'?" in refusal(call)


def test_a_damaged_record_stops_what_could_let_a_retired_key_in(federation: Path, request_of: Any) -> None:
    record_path(federation, "south").write_text("site: south\nstatus: revoked\n")
    assert str(record_path(federation, "south")) in refusal(lambda: accept(federation, request_of("north")))


def test_no_revocation_is_lost_to_a_command_beside_it(
    federation: Path, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A renewal that has read the record, and writes it, holds the folder: the revocation comes after it."""
    accept(federation, request_of("north"))
    write = commands.write_section
    with ThreadPoolExecutor(1) as pool:
        beside: list[Any] = []

        def slow(path: Path, record: Any) -> None:
            if not beside:
                beside.append(pool.submit(revoke, federation, "north", "laptop lost"))
                with pytest.raises(TimeoutError):
                    beside[0].result(timeout=0.3)
            write(path, record)

        monkeypatch.setattr(commands, "write_section", slow)
        renew(federation, "north")
        beside[0].result(timeout=20)
    assert record_of(federation, "north").status == "revoked"


# ---- renew and expiry


def test_a_site_is_renewed_for_the_key_it_has(federation: Path, request_of: Any, clock: Clock) -> None:
    accept(federation, request_of("north"))
    before = contents(federation)
    record = record_of(federation, "north")
    clock.now = NOW + 400 * DAY  # expired by then
    assert set(Registry(federation).admitted(clock.now)) == set()
    lines = renew(federation, "north")
    assert lines == ["site north is enrolled until 2029-04-04; its key is the same, and it has nothing to do"]
    renewed = record_of(federation, "north")
    assert renewed == record.model_copy(update={"certificate": renewed.certificate})
    assert Registry(federation).admitted(clock.now) == {"north": renewed}
    changed = {name for name, data in contents(federation).items() if before[name] != data}
    assert changed == {"sites/north.yaml"}


def test_what_cannot_be_renewed(federation: Path, request_of: Any) -> None:
    assert "is invited; its request has not been accepted; there is nothing to renew" in refusal(
        lambda: renew(federation, "north")
    )
    assert "makes its keys itself" in refusal(lambda: renew(federation, "north", new_server_keys=True))
    accept(federation, request_of("north"))
    path = record_path(federation, "north")
    edited = yaml.safe_load(path.read_text())
    other = new_key().public_key()
    path.write_text(yaml.safe_dump(edited | {"public_key": public_pem(other), "fingerprint": fingerprint(other)}))
    said = refusal(lambda: renew(federation, "north"))
    assert said == "site north has a key that its certificate does not certify; there is nothing to renew"


@pytest.mark.parametrize("new_keys", [False, True])
def test_the_server_is_renewed(federation: Path, request_of: Any, clock: Clock, new_keys: bool) -> None:
    accept(federation, request_of("north"))
    before = contents(federation)
    clock.now = NOW + 300 * DAY
    lines = renew(federation, "server", new_server_keys=new_keys)
    assert lines == ["the server's certificates hold until 2028-12-25; restart fedpretext server"]
    changed = {name for name, data in contents(federation).items() if before[name] != data}
    keys = {"proxy.key", "superlink.key"} if new_keys else set()
    assert changed == {"proxy.crt", "superlink.crt"} | keys
    assert {mode(federation / name) for name in ("proxy.key", "superlink.key")} == {0o600}
    check_server_keys(federation)
    for name in ("proxy", "superlink"):
        assert load_certificate(federation / f"{name}.crt").not_valid_after_utc == clock.now + 365 * DAY


def test_nothing_outlives_the_ca(study: Path, tmp_path: Path, request_of: Any, clock: Clock) -> None:
    provision(study, server="localhost:8443", sites=["north"], out=tmp_path / "kits", ca_days=400)
    federation = tmp_path / "kits" / "server"
    clock.now = NOW + 390 * DAY
    assert accept(federation, request_of("north"))[0].startswith("site north is enrolled until 2028-04-04")
    renew(federation, "server")
    assert expiry(federation) == [
        "CA: 10 days left, until 2028-04-04; provision the federation again, with new kits",
        f"proxy: 10 days left, until 2028-04-04; fedpretext renew {federation} server",
        f"site north: 10 days left, until 2028-04-04; fedpretext renew {federation} north",
        f"superlink: 10 days left, until 2028-04-04; fedpretext renew {federation} server",
    ]
    clock.now = NOW + 401 * DAY
    for call in (lambda: renew(federation, "server"), lambda: renew(federation, "north")):
        assert refusal(call) == "the CA expired on 2028-04-04; provision the federation again"


def test_expiry_and_what_is_said_when_the_server_starts(federation: Path, request_of: Any, clock: Clock) -> None:
    clock.now = NOW + 10 * DAY
    accept(federation, request_of("north"))
    accept(federation, request_of("south"))
    revoke(federation, "south", "left")
    clock.now = NOW + 335 * DAY
    assert expiry(federation) == [
        "proxy: 30 days left, until 2028-02-29",
        "superlink: 30 days left, until 2028-02-29",
        "site north: 40 days left, until 2028-03-10",
        "CA: 3315 days left, until 2037-02-26",
    ]
    registry = Registry(federation)
    assert registry.warnings(clock.now) == []
    assert registry.warnings(clock.now + timedelta(seconds=1)) == [
        f"proxy: 29 days left, until 2028-02-29; fedpretext renew {federation} server",
        f"superlink: 29 days left, until 2028-02-29; fedpretext renew {federation} server",
    ]
    late = registry.warnings(NOW + 380 * DAY)
    assert late[-1] == f"site north: expired on 2028-03-10; fedpretext renew {federation} north"
    assert len(late) == 3


# ---- a real handshake with what was made


@pytest.fixture
def real(study: Path, tmp_path: Path, clock: Clock) -> Iterator[Path]:
    """A federation folder whose certificates hold today."""
    clock.now = datetime.now(UTC)
    provision(study, server="127.0.0.1:8443", sites=["north"], out=tmp_path / "kits")
    return tmp_path / "kits"


@pytest.mark.parametrize(
    ("name", "host", "known"),
    [("proxy", "127.0.0.1", True), ("proxy", "localhost", False), ("superlink", "localhost", True)],
)
def test_a_site_knows_the_server_by_its_kit(real: Path, name: str, host: str, known: bool) -> None:
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(real / "server" / f"{name}.crt", real / "server" / f"{name}.key")
    asking = ssl.create_default_context(cafile=real / "kit-north" / "ca.crt")
    asking.verify_flags |= ssl.VERIFY_X509_STRICT  # as Python 3.13 does
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        answer = pool.submit(_serve, listener, serving)
        with socket.create_connection(listener.getsockname(), timeout=20) as raw:
            try:
                with asking.wrap_socket(raw, server_hostname=host) as tls:
                    assert tls.recv(1) == b"!"
                    assert known
            except ssl.SSLCertVerificationError as error:
                assert "mismatch" in error.verify_message
                assert not known
        assert answer.result(timeout=20) == known


def _serve(listener: socket.socket, context: ssl.SSLContext) -> bool:
    raw, _ = listener.accept()
    with raw:
        try:
            with context.wrap_socket(raw, server_side=True) as tls:
                tls.sendall(b"!")
        except OSError:
            return False
    return True
