"""Keys of one attempt at a sum: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439)."""

import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.secure_aggregation.messages import Context
from foundation.files import digest

KEY_BYTES = 32
_NONCE = 12


@dataclass(frozen=True)
class KeyPair:
    """A private key (32 bytes) and its public one."""

    private: bytes
    public: bytes


def new_pair() -> KeyPair:
    """A fresh pair from the operating system's secure source."""
    private = X25519PrivateKey.generate().private_bytes_raw()
    return KeyPair(private, public_of(private))


def public_of(private: bytes) -> bytes:
    """The public key of a private one."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def pair_mask_key(context: Context, private: bytes, public: bytes, one: str, other: str) -> bytes:
    """Key of the stream that one of two sites adds and the other subtracts; the same for both.

    ValueError when ``public`` is no key, or one of small order that would make the secret known to all.
    """
    return _derived(_agreed(private, public), context.bind("pair mask", *sorted((one, other))))


def self_mask_key(context: Context, seed: bytes, site: str) -> bytes:
    """Key of the stream that a site adds to its update for itself alone."""
    return _derived(seed, context.bind("self mask", site))


def seal(context: Context, private: bytes, public: bytes, sender: str, holder: str, shares: bytes) -> bytes:
    """Encrypt a holder's shares to it: nonce, ciphertext, tag. ValueError as ``pair_mask_key``."""
    nonce = os.urandom(_NONCE)
    return nonce + _cipher(context, private, public, sender, holder).encrypt(nonce, shares, None)


def unseal(context: Context, private: bytes, public: bytes, sender: str, holder: str, sealed: bytes) -> bytes:
    """What ``seal`` encrypted; ValueError when it was not sealed by ``sender`` for ``holder`` in this attempt."""
    try:
        return _cipher(context, private, public, sender, holder).decrypt(sealed[:_NONCE], sealed[_NONCE:], None)
    except InvalidTag as error:
        raise ValueError("the shares do not open") from error


def share_commitment(context: Context, dealer: str, holder: str, kind: str, share: bytes) -> bytes:
    """Digest (32 bytes) that fixes one share and, as shares are uniform over 2**256, tells nothing of it."""
    return _committed(context.bind(f"share of {kind}", dealer, holder, share))


def seed_commitment(context: Context, site: str, seed: bytes) -> bytes:
    """Digest (32 bytes) that fixes a self-mask seed."""
    return _committed(context.bind("seed", site, seed))


def _committed(bound: bytes) -> bytes:
    return bytes.fromhex(digest(bound))


def _cipher(context: Context, private: bytes, public: bytes, sender: str, holder: str) -> ChaCha20Poly1305:
    return ChaCha20Poly1305(_derived(_agreed(private, public), context.bind("seal", sender, holder)))


def _agreed(private: bytes, public: bytes) -> bytes:
    return X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))


def _derived(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=purpose).derive(secret)
