"""What the parties of a secure sum say to each other, as plain values, and what their signatures are over.

Every digest, key and signature is bound to study, round and attempt, so that nothing of one round serves in another.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from foundation.errors import FedpretextError
from foundation.files import digest

_PURPOSE = b"fedpretext secure aggregation 1\n"  # a site's signature is worth nothing for another use of its key


class SecureAggregationError(FedpretextError):
    """A party's message breaks the protocol. site: whose message it is, where one site is to blame, else empty."""

    def __init__(self, text: str, site: str = "") -> None:
        super().__init__(f"site {site!r} {text}" if site else text)
        self.site = site


@dataclass(frozen=True)
class Context:
    """Which sum: study (its hash), round, and attempt at the round."""

    study_hash: str
    round: int
    attempt: int

    def bind(self, kind: str, *parts: bytes | str) -> bytes:
        """Bytes that stand for the parts, as that kind of thing of this sum and of no other; collision-resistant."""
        return _PURPOSE + digest(kind, self.study_hash, str(self.round), str(self.attempt), *parts).encode()


@dataclass(frozen=True)
class Advertisement:
    """Stage 0: a site's public keys (X25519, 32 bytes) for masks and for shares, signed with its certified key."""

    site: str
    mask_key: bytes
    seal_key: bytes
    certificate: str
    signature: bytes = b""

    def signed(self, context: Context) -> bytes:
        """What the signature is over."""
        return context.bind("advertisement", self.site, self.mask_key, self.seal_key)


@dataclass(frozen=True)
class SealedShares:
    """Stage 1: one site's shares of its two secrets, sealed for each other site, with commitments and a signature.

    commitments: by holder, digests of its share of the self-mask seed and of its share of the mask key;
    seed_commitment: digest of the seed itself. All are signed together.
    """

    site: str
    sealed: dict[str, bytes]
    commitments: dict[str, tuple[bytes, bytes]]
    seed_commitment: bytes
    signature: bytes = b""

    def signed(self, context: Context, group: bytes) -> bytes:
        """What the signature is over; the sealed shares are authenticated by their cipher."""
        parts = [part for holder in sorted(self.commitments) for part in (holder, *self.commitments[holder])]
        return context.bind("shares", group, self.site, self.seed_commitment, *parts)

    def only_for(self, holder: str) -> "SealedShares":
        """What the server forwards to one holder."""
        return replace(self, sealed={holder: self.sealed[holder]})


@dataclass(frozen=True)
class MaskedUpdate:
    """Stage 2: the encoded update under all its masks, uint32 [numbers + 1]."""

    site: str
    values: NDArray[np.uint32]


@dataclass(frozen=True)
class ListSignature:
    """Stage 3: a site's signature under the list of survivors."""

    site: str
    signature: bytes


@dataclass(frozen=True)
class UnmaskRequest:
    """Stage 4: the list of survivors and the signatures under it, by site."""

    survivors: tuple[str, ...]
    signatures: dict[str, bytes]


@dataclass(frozen=True)
class Unmasking:
    """Stage 4: a site's shares, of the survivors' self-mask seeds and of the missing sites' mask keys, by site."""

    site: str
    seeds: dict[str, bytes]
    keys: dict[str, bytes]


def group_digest(advertisements: Iterable[Advertisement]) -> bytes:
    """Digest of all names and public keys, in the order of the names: who shares with whom."""
    ordered = sorted(advertisements, key=lambda one: one.site)
    return digest(*(part for one in ordered for part in (one.site, one.mask_key, one.seal_key))).encode()


def list_signed(context: Context, group: bytes, members: Iterable[str], survivors: Iterable[str]) -> bytes:
    """What the signatures under a list of survivors are over: also all keys, and who had shared (``members``)."""
    return context.bind("survivors", group, digest(*sorted(members)), digest(*sorted(survivors)))
