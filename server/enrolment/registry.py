"""Who may take part now: the records of a federation folder, held against its CA."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509

from federation.keys.certificates import (
    CredentialError,
    fingerprint,
    key_of,
    not_certified,
    not_now,
    public_pem,
    read_certificate,
    read_key,
    read_public_key,
)
from federation.keys.kit import CA
from federation.keys.secret_files import read_secret
from foundation.errors import FedpretextError
from server.enrolment.federation_folder import (
    SERVERS,
    SiteRecord,
    load_ca,
    load_certificate,
    load_federation,
    read_record,
    record_files,
)

_Stamp = tuple[int, int, int, int]
_SOON = timedelta(days=30)  # time for a hospital to find its engineer


@dataclass(frozen=True)
class _Judged:
    """A record file as it was read: its record, its certificate where all fits, and else why not."""

    record: SiteRecord | None
    certificate: x509.Certificate | None
    fault: str


@dataclass(frozen=True)
class _Certified:
    """Whose certificate it is, when it ends, and what to do about that."""

    end: datetime
    who: str
    remedy: str


class Registry:
    """The sites of a federation folder, as they stand now. Reads a file again only when it has changed.

    A damaged record is passed over, for the others' sake, and named by ``refused``; a damaged CA certificate is an
    error, and nobody is admitted.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.federation = folder, load_federation(folder)
        self._ca, self._ca_stamp = load_ca(folder), _stamp(folder / CA)
        self._files: dict[str, tuple[_Stamp | None, _Judged]] = {}

    def sites(self) -> dict[str, SiteRecord]:
        """Every readable record, by site."""
        return {site: judged.record for site, judged in self._judged().items() if judged.record is not None}

    def admitted(self, now: datetime) -> dict[str, SiteRecord]:
        """The sites that may take part at ``now`` (with a time zone)."""
        judged = self._judged().items()
        return {site: one.record for site, one in judged if one.record is not None and not self._fault(one, now)}

    def refused(self, now: datetime) -> dict[str, str]:
        """Every other site, with the reason in one line."""
        faults = {site: self._fault(judged, now) for site, judged in self._judged().items()}
        return {site: " ".join(f"site {site} {fault}".split()) for site, fault in faults.items() if fault}

    def expiry(self, now: datetime) -> list[str]:
        """A line for each certificate of CA, servers and enrolled sites, the first to expire first."""
        return [_line(certified, now) for certified in self._certified()]

    def warnings(self, now: datetime) -> list[str]:
        """The lines of those that expire within 30 days, or have expired: to be shown whenever the server starts."""
        return [_line(certified, now) for certified in self._certified() if _is_soon(certified.end, now)]

    def _certified(self) -> list[_Certified]:
        judged = self._judged().items()
        found = [_Certified(self._ca.not_valid_after_utc, "CA", "provision the federation again, with new kits")]
        for name in SERVERS:
            end = load_certificate(self.folder / f"{name}.crt").not_valid_after_utc
            found.append(_Certified(end, name, f"fedpretext renew {self.folder} server"))
        for site, one in judged:
            if one.certificate is not None and not one.fault:
                end = one.certificate.not_valid_after_utc
                found.append(_Certified(end, f"site {site}", f"fedpretext renew {self.folder} {site}"))
        return sorted(found, key=lambda certified: (certified.end, certified.who))

    def _fault(self, judged: _Judged, now: datetime) -> str:
        if judged.certificate is None:
            return judged.fault
        return judged.fault or not_now(judged.certificate, now)  # no certificate outlives the CA's

    def _judged(self) -> dict[str, _Judged]:
        """What each record file says, by the file's name. Read anew where the file, or the CA, is not the one seen."""
        ca = _stamp(self.folder / CA)
        if ca != self._ca_stamp or ca is None:
            self._ca, self._ca_stamp, self._files = load_ca(self.folder), ca, {}
        before, self._files = self._files, {}
        for path in record_files(self.folder):
            stamp, known = _stamp(path), before.get(path.stem)
            self._files[path.stem] = known if known and known[0] == stamp else (stamp, self._judge(path))
        return {site: judged for site, (_, judged) in self._files.items()}

    def _judge(self, path: Path) -> _Judged:
        record = None
        try:
            record = read_record(path)
            return _Judged(record, *standing(record, self._ca))
        except FedpretextError as error:
            return _Judged(record, None, f"has a damaged record ({error})")


def check_server_keys(folder: Path) -> None:
    """That each server key is there, private, and the one that its certificate names; else CredentialError."""
    for name in SERVERS:
        path = folder / f"{name}.key"
        key = read_key(read_secret(path), None, str(path))
        if key.public_key() != key_of(load_certificate(folder / f"{name}.crt")):
            raise CredentialError(
                f"{path}: is not the key of {name}.crt; make both: fedpretext renew {folder} server --new-keys"
            )


def standing(record: SiteRecord, ca: x509.Certificate) -> tuple[x509.Certificate | None, str]:
    """The certificate of an enrolled site, and why it is not admitted whatever the time: a verb phrase, or empty."""
    if record.status == "revoked":
        return None, f"was revoked on {record.revoked:%Y-%m-%d}: {record.reason}"
    if record.status == "invited":
        return None, "is invited; its request has not been accepted"
    public = read_public_key(record.public_key, "public_key")
    certificate = read_certificate(record.certificate, "certificate")
    if record.public_key != public_pem(public):
        return None, "has a key that was edited by hand"  # Flower compares its text
    if record.fingerprint != fingerprint(public):
        return None, "has a fingerprint that is not its key's"
    if record.fingerprint in record.retired:
        return None, "has a key that was retired"
    return certificate, not_certified(certificate, ca, public, record.site)


def _is_soon(end: datetime, now: datetime) -> bool:
    return end - now < _SOON


def _line(certified: _Certified, now: datetime) -> str:
    end = certified.end
    left = f"expired on {end:%Y-%m-%d}" if end < now else f"{(end - now).days} days left, until {end:%Y-%m-%d}"
    return f"{certified.who}: {left}" + (f"; {certified.remedy}" if _is_soon(end, now) else "")


def _stamp(path: Path) -> _Stamp | None:
    """What changes when a file is written, moved or restored; None when there is none."""
    try:
        about = path.stat()
    except FileNotFoundError:
        return None
    return about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino
