"""Keys and certificates of simulated hospitals, for secure sums: a CA of the arm's own, whose key is thrown away."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from client.kit_keys import KEY
from federation.certificates import ca_certificate, certificate_pem, key_openssh, new_key, site_certificate
from federation.kit import CA
from federation.secret_files import write_secret
from foundation.files import write_json, write_text
from server.secure_sum import CERTIFICATES

_DAYS = 365


def make_site_keys(folder: Path, places: Mapping[str, Path]) -> None:
    """Give each site of an arm a key beside its site file, and the arm's server the certificates; once an arm."""
    if (folder / CERTIFICATES).exists():
        return
    ca_key, now = new_key(), datetime.now(UTC)
    ca = ca_certificate(ca_key, "simulation", now, _DAYS)
    certificates = {}
    for site, place in places.items():
        key = new_key()
        write_secret(place / KEY, key_openssh(key), replace=True)
        write_text(place / CA, certificate_pem(ca))
        certificates[site] = certificate_pem(site_certificate(ca, ca_key, key.public_key(), site, now, _DAYS))
    write_text(folder / CA, certificate_pem(ca))
    write_json(folder / CERTIFICATES, certificates)
