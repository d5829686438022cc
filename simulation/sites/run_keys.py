"""Keys of simulated sites and the CA of their run: what secure aggregation needs at each, as a kit has it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from client.kit_keys import KEY
from federation.keys.certificates import ca_certificate, certificate_pem, key_openssh, new_key, site_certificate
from federation.keys.kit import CA
from federation.keys.secret_files import write_secret
from foundation.files import write_text

_DAYS = 3650


def write_run_keys(sites: Path, places: Mapping[str, Path]) -> None:
    """Put ``site.key`` and ``ca.crt`` into every site's folder; certificates and ``ca.crt`` into that of all sites.

    Where all are there already, as in a run that is resumed, they stay. The CA's key is kept nowhere.
    """
    needed = [sites / CA, *(sites / f"{site}.crt" for site in places)]
    needed += [place / name for place in places.values() for name in (KEY, CA)]
    if all(path.exists() for path in needed):
        return
    now, ca_key = datetime.now(UTC), new_key()
    ca = ca_certificate(ca_key, "run", now, _DAYS)
    for site, place in places.items():
        key = new_key()
        write_secret(place / KEY, key_openssh(key), replace=True)
        issued = site_certificate(ca, ca_key, key.public_key(), site, now, _DAYS)
        write_text(sites / f"{site}.crt", certificate_pem(issued))
        write_text(place / CA, certificate_pem(ca))
    write_text(sites / CA, certificate_pem(ca))
