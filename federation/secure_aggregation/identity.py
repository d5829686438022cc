"""Who a site is to the other sites: the key that its certificate certifies, whatever the server says."""

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from federation.keys.certificates import CredentialError, PrivateKey, key_of, not_certified, not_now, read_certificate

_SCHEME = ec.ECDSA(hashes.SHA384())


class Identity(Protocol):
    """A site that signs."""

    @property
    def site(self) -> str:
        """Its name."""
        ...

    @property
    def certificate(self) -> str:
        """The certificate (PEM) of its key."""
        ...

    def sign(self, message: bytes) -> bytes:
        """Its signature under the message."""
        ...


class Directory(Protocol):
    """Knows whose signature is whose."""

    def verify(self, site: str, message: bytes, signature: bytes, certificate: str) -> str:
        """Why the signature under the message is not the site's, as a verb phrase; empty where it is."""
        ...


@dataclass(frozen=True)
class KeyIdentity:
    """A site by its private key (EC P-384; ECDSA with SHA-384) and the key's certificate in PEM."""

    site: str
    key: PrivateKey
    certificate: str

    def sign(self, message: bytes) -> bytes:
        """The signature, in DER."""
        return self.key.sign(message, _SCHEME)


@dataclass(frozen=True)
class CertifiedDirectory:
    """Sites are whom the federation's CA certifies, now, under their names.

    Whoever holds the CA's key can certify sites that do not exist, and a server with it can surround a site with them:
    the key is kept away from the server.
    """

    ca: x509.Certificate

    def verify(self, site: str, message: bytes, signature: bytes, certificate: str) -> str:
        """As ``Directory.verify``."""
        try:
            read, fault = _judged(self.ca, site, certificate)
            fault = fault or not_now(read, datetime.now(UTC))
            if not fault:
                key_of(read).verify(signature, message, _SCHEME)
        except CredentialError:
            return "has a certificate that cannot be read"
        except InvalidSignature:
            return "has a signature that does not fit"
        return fault


@lru_cache(maxsize=1024)
def _judged(ca: x509.Certificate, site: str, certificate: str) -> tuple[x509.Certificate, str]:
    """The certificate, and why it is not the site's, whatever the time: three messages a round come with each."""
    read = read_certificate(certificate, "the site's certificate")
    return read, not_certified(read, ca, key_of(read), site)
