"""Provisioning, by the study lead: make a federation's keys and kits, enrol sites, renew and revoke.

Each function does what the command of its name does, and returns the lines to print. No key is ever overwritten unless
its command says so, and what fails leaves nothing behind.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from federation.keys.certificates import (
    CredentialError,
    PrivateKey,
    ca_certificate,
    certificate_pem,
    fingerprint,
    is_fingerprint,
    key_of,
    key_openssh,
    key_pem,
    new_key,
    public_pem,
    read_key,
    read_request,
    server_certificate,
    site_certificate,
)
from federation.keys.kit import CA, STUDY, Kit, host_and_port, write_kit
from federation.keys.secret_files import private_folder, read_secret, write_secret
from federation.study_hash import training_hash_of
from foundation.configuration.yaml_files import read_yaml
from foundation.files import write_text
from server.enrolment.federation_folder import (
    FEDERATION,
    SERVER,
    SERVERS,
    SITES,
    FederationFile,
    SiteRecord,
    changing,
    known_site,
    load_ca,
    load_federation,
    read_records,
    record_path,
    write_section,
)
from server.enrolment.provision_checks import check_acceptable, check_free, check_names, check_settings
from server.enrolment.registry import Registry, standing

CA_KEY = "ca.key"
_LOCAL = ("localhost", "127.0.0.1", "::1")
_LARGEST_REQUEST = 65536  # bytes; a request has about 700


def provision(
    study_path: Path,
    overrides: Sequence[str] = (),
    *,
    server: str,
    sites: Sequence[str],
    out: Path = Path("kits"),
    days: int = 365,
    ca_days: int = 3650,
    passphrase: bytes | None = None,
) -> list[str]:
    """Make a federation for a study: ``out/server``, which stays here, and a kit for each site.

    The CA's key is protected by ``passphrase`` where there is one. Server and site certificates hold for ``days``.
    """
    check_names(sites, ())
    check_settings(server, days, ca_days)
    check_free(out)
    from federation.study import load_study  # with torch: a second that other commands and wrong options need not wait

    study = load_study(study_path, tuple(overrides)).model_copy(update={"simulation": None})
    federation = FederationFile(name=study.name, server=server, study=study.training_hash(), days=days)
    now = _now()
    with _built(out) as folder:
        private_folder(folder / SERVER)
        ca_key = new_key()
        ca = ca_certificate(ca_key, study.name, now, ca_days)
        # OpenSSH's form: its passphrase costs half a second a guess, PKCS8's almost nothing.
        write_secret(folder / SERVER / CA_KEY, key_openssh(ca_key, passphrase))
        write_text(folder / SERVER / CA, certificate_pem(ca))
        write_text(folder / SERVER / STUDY, study.to_yaml())
        write_section(folder / SERVER / FEDERATION, federation)
        _certify_server(folder / SERVER, federation, ca, ca_key, now, new=True)
        private_folder(folder / SERVER / SITES)
        for site in sites:
            write_section(record_path(folder / SERVER, site), SiteRecord(site=site, status="invited", invited=now))
            _make_kit(folder / SERVER, federation, site, folder / f"kit-{site}")
    return _provisioned(out, sites, ca, protected=passphrase is not None)


def add_site(federation: Path, name: str, out: Path | None = None, *, again: bool = False) -> list[str]:
    """Invite one more site: its record, and its kit in ``out`` (default: beside the federation folder).

    ``again`` invites a site that was revoked: under the same name, never with a key that it had before.
    """
    about = load_federation(federation)
    kit = (out or federation.resolve().parent) / f"kit-{name}"
    with changing(federation):
        records = read_records(federation)
        before = records.get(name)
        if again and (before is None or before.status != "revoked"):
            raise CredentialError(f"site {name!r} was not revoked; leave out --again")
        check_names([name], [site for site in records if not again or site != name])
        if kit.exists():
            raise CredentialError(f"{kit}: is there already; move it away, or give another --out")
        retired = before.retired if before else ()
        record = SiteRecord(site=name, status="invited", invited=_now(), retired=retired)
        with _built(kit) as folder:
            _make_kit(federation, about, name, folder)
        try:
            write_section(record_path(federation, name), record)
        except BaseException:
            shutil.rmtree(kit)
            raise
    return [f"{kit}: send it to site {name}; it holds no secret", *_ca_lines(load_ca(federation))]


def accept(
    federation: Path,
    request: Path,
    expected_fingerprint: str | None = None,
    ca_passphrase: bytes | None = None,
    *,
    replace: bool = False,
) -> list[str]:
    """Enrol the invited site whose request this is; the same request again renews its certificate.

    ``expected_fingerprint`` is what the site said by telephone. ``replace`` lets an enrolled site change its key.
    """
    about = load_federation(federation)
    site, public = read_request(_request_bytes(request), str(request))
    shown = fingerprint(public)
    if expected_fingerprint is not None and not is_fingerprint(expected_fingerprint, public):
        raise CredentialError(
            f"{request}: its fingerprint is {shown}, not the expected one; ask the site to read its own out again"
        )
    with changing(federation):
        records = read_records(federation)
        record = known_site(records, site)
        check_acceptable(record, records, shown, replace=replace)
        now, renewal = _now(), record.fingerprint == shown
        ca = load_ca(federation)
        certificate = site_certificate(ca, _ca_key(federation, ca, ca_passphrase), public, site, now, about.days)
        former = (record.fingerprint,) if record.fingerprint and not renewal else ()
        accepted = record.model_copy(
            update={
                "status": "enrolled",
                "enrolled": record.enrolled if renewal else now,
                "fingerprint": shown,
                "public_key": public_pem(public),
                "certificate": certificate_pem(certificate),
                "retired": (*record.retired, *former),
            }
        )
        write_section(record_path(federation, site), accepted)
    lines = [f"site {site} is enrolled until {_until(certificate)}; fingerprint of its key:", f"  {shown}"]
    if expected_fingerprint is None and not renewal:
        lines.append("Telephone the site and compare all of it. If it differs:")
        lines.append(f"  fedpretext revoke {federation} {site} --reason 'another key'")
    return lines


def revoke(federation: Path, site: str, reason: str) -> list[str]:
    """Exclude a site, for a reason of one line; its key is never accepted again, from anybody."""
    load_federation(federation)
    if not 1 <= len(reason) <= 200 or not reason.isprintable():
        raise CredentialError(f"reason {reason!r}: write one line of 1 to 200 characters")
    with changing(federation):
        record = known_site(read_records(federation), site)
        if record.status == "revoked":
            raise CredentialError(f"site {site} was revoked on {record.revoked:%Y-%m-%d} already ({record.reason})")
        former = (record.fingerprint,) if record.fingerprint else ()
        update = {"status": "revoked", "revoked": _now(), "reason": reason, "retired": (*record.retired, *former)}
        write_section(record_path(federation, site), record.model_copy(update=update))
    return [f"site {site} is revoked; invite it again with fedpretext add-site {federation} {site} --again"]


def renew(
    federation: Path, what: str, ca_passphrase: bytes | None = None, *, new_server_keys: bool = False
) -> list[str]:
    """Certificates anew, valid from today: of the server (``what`` is "server") or of one site, for the key it has.

    ``new_server_keys``: the server's own keys anew as well. Cut off between key and certificate, it is run again.
    """
    about, now = load_federation(federation), _now()
    if what != SERVER and new_server_keys:
        raise CredentialError(f"site {what}: a site makes its keys itself; accept its new request with --replace")
    with changing(federation):
        ca = load_ca(federation)
        if what == SERVER:
            ca_key = _ca_key(federation, ca, ca_passphrase)
            certificate = _certify_server(federation, about, ca, ca_key, now, new=new_server_keys)
            return [f"the server's certificates hold until {_until(certificate)}; restart fedpretext server"]
        record = known_site(read_records(federation), what)
        former, fault = standing(record, ca)
        if former is None or fault:
            raise CredentialError(f"site {what} {fault}; there is nothing to renew")
        certificate = site_certificate(
            ca, _ca_key(federation, ca, ca_passphrase), key_of(former), what, now, about.days
        )
        write_section(
            record_path(federation, what), record.model_copy(update={"certificate": certificate_pem(certificate)})
        )
    return [f"site {what} is enrolled until {_until(certificate)}; its key is the same, and it has nothing to do"]


def expiry(federation: Path) -> list[str]:
    """A line for each certificate of a federation folder, with the days it has left."""
    return Registry(federation).expiry(_now())


def _now() -> datetime:
    return datetime.now(UTC)


def _until(certificate: x509.Certificate) -> str:
    return f"{certificate.not_valid_after_utc:%Y-%m-%d}"


@contextmanager
def _built(path: Path) -> Iterator[Path]:
    """A private folder that takes the place of ``path`` when the block ends well, and else leaves nothing."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent))  # mode 0700
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _make_kit(federation: Path, about: FederationFile, site: str, folder: Path) -> None:
    if training_hash_of(read_yaml(federation / STUDY)) != about.study:
        raise CredentialError(f"{federation / STUDY}: is not the study that was provisioned; restore the file")
    kit = Kit(site=site, federation=about.name, server=about.server, study=about.study)
    write_kit(folder, kit, (federation / STUDY).read_text(), load_ca(federation))


def _certify_server(
    federation: Path, about: FederationFile, ca: x509.Certificate, ca_key: PrivateKey, now: datetime, *, new: bool
) -> x509.Certificate:
    """Certificates of the proxy, for the public address, and of Flower's SuperLink, for this machine; the last one."""
    for name, names in zip(SERVERS, ((host_and_port(about.server)[0],), _LOCAL), strict=True):
        path = federation / f"{name}.key"
        key = new_key() if new else read_key(read_secret(path), None, str(path))
        certificate = server_certificate(ca, ca_key, key.public_key(), names, now, about.days)
        if new:
            write_secret(path, key_pem(key), replace=True)
        write_text(federation / f"{name}.crt", certificate_pem(certificate))
    return certificate


def _ca_key(federation: Path, ca: x509.Certificate, passphrase: bytes | None) -> PrivateKey:
    path = federation / CA_KEY
    key = read_key(read_secret(path), passphrase, str(path))
    if key.public_key() != key_of(ca):
        raise CredentialError(f"{path}: is not the key of {federation / CA}; restore both from the same backup")
    return key


def _request_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LARGEST_REQUEST)
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read ({error.strerror}); give the site's site.csr") from error


def _provisioned(out: Path, sites: Sequence[str], ca: x509.Certificate, *, protected: bool) -> list[str]:
    guarded = "protected by the passphrase" if protected else "not protected by a passphrase; keep it off backups"
    return [
        f"{out / SERVER}: stays with you; {CA_KEY} is {guarded}",
        *(f"{out / f'kit-{site}'}: send it to site {site}; it holds no secret" for site in sites),
        *_ca_lines(ca),
    ]


def _ca_lines(ca: x509.Certificate) -> list[str]:
    return [
        "Fingerprint of the CA, which a site compares with you by telephone:",
        f"  {fingerprint(key_of(ca))}",
    ]
