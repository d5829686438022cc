"""A server's messages bear its signature, because Flower lets any admitted node write to any other.

Signed is a digest of all that a message says, with its kind, its round and the site that it is for. The key is that of
the server's TLS certificate, which goes along: a site knows the federation's CA and the server's address, and needs
nothing new when the server's key is renewed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from federation.keys.certificates import (
    CredentialError,
    PrivateKey,
    key_of,
    not_now,
    not_servers,
    read_certificate,
    read_key,
)
from federation.keys.secret_files import read_secret

_CONTEXT = b"fedpretext message 1\n"  # a signature is worth nothing for any other purpose of the key
_SCHEME = ec.ECDSA(hashes.SHA384())


@dataclass(frozen=True)
class Signature:
    """The server's certificate (PEM) and its signature (hex) under a message's digest."""

    certificate: str
    value: str


class Signer:
    """Signs for the server whose key and certificate lie in a federation folder."""

    def __init__(self, key: PrivateKey, certificate: str) -> None:
        self._key, self._certificate = key, certificate

    @staticmethod
    def of(folder: Path) -> "Signer":
        """The server's; CredentialError when its key cannot be read or is open to others."""
        path = folder / "proxy.key"
        return Signer(read_key(read_secret(path), None, str(path)), (folder / "proxy.crt").read_text())

    def sign(self, digest: str) -> Signature:
        """The signature under the digest of a message."""
        return Signature(self._certificate, self._key.sign(_CONTEXT + digest.encode(), _SCHEME).hex())


@dataclass(frozen=True)
class Authority:
    """Whose signature a site accepts: a server of that host, certified by that CA."""

    ca: x509.Certificate
    host: str

    def fault(self, digest: str, signature: Signature | None) -> str:
        """Why a message is not the server's, as a verb phrase; empty where it is."""
        if signature is None:
            return "is not signed"
        try:
            certificate = read_certificate(signature.certificate, "the message's certificate")
            fault = not_servers(certificate, self.ca, self.host) or not_now(certificate, datetime.now(UTC))
            if not fault:
                key_of(certificate).verify(bytes.fromhex(signature.value), _CONTEXT + digest.encode(), _SCHEME)
        except (CredentialError, InvalidSignature, ValueError):
            return "has a signature that does not fit"
        return fault
