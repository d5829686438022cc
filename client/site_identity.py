"""The key by which other sites know this one, and the CA that says who they are, for secure aggregation."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from client.kit_keys import load_site_key
from federation.keys.certificates import PrivateKey, not_certified, not_now, read_certificate
from federation.keys.kit import kit_ca
from federation.secure_aggregation.identity import KeyIdentity
from federation.secure_aggregation.messages import SecureAggregationError


@dataclass(frozen=True)
class SiteKeys:
    """A site's unlocked key and its federation's CA."""

    key: PrivateKey
    ca: x509.Certificate

    def identity(self, site: str, certificate: str) -> KeyIdentity:
        """The site with the certificate that the server has of it: a hospital's kit has none.

        SecureAggregationError where it is not this site's, or not valid now: other sites would not accept it.
        """
        read = read_certificate(certificate, "the certificate that the server sent")
        fault = not_certified(read, self.ca, self.key.public_key(), site) or not_now(read, datetime.now(UTC))
        if fault:
            raise SecureAggregationError(f"as the server has it {fault}", site)
        return KeyIdentity(site, self.key, certificate)


_handed: dict[Path, SiteKeys] = {}


def hand_over(kit: Path, keys: SiteKeys) -> None:
    """Give this process the key of a kit, which ``fedpretext client`` has unlocked; it is written nowhere."""
    _handed[kit.resolve()] = keys


def keys_of(folder: Path) -> SiteKeys:
    """What was handed over, or the key and CA beside the site file, as in a simulation; CredentialError for neither."""
    return _handed.get(folder.resolve()) or SiteKeys(load_site_key(folder), kit_ca(folder))
