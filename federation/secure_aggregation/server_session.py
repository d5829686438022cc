"""The server's half of a secure sum (see site_session.py): it forwards, sums, and removes the masks that are left.

Memory is one vector of 4 bytes a number, whatever the number of sites: a masked update is added and let go.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation.dealing import check_advertised, check_dealt
from federation.secure_aggregation.encoding import FixedPoint
from federation.secure_aggregation.identity import Directory
from federation.secure_aggregation.keys import (
    pair_mask_key,
    public_of,
    seed_commitment,
    self_mask_key,
    share_commitment,
)
from federation.secure_aggregation.messages import (
    Advertisement,
    Context,
    ListSignature,
    MaskedUpdate,
    SealedShares,
    SecureAggregationError,
    Unmasking,
    UnmaskRequest,
    group_digest,
    list_signed,
)
from federation.secure_aggregation.shamir import combine
from federation.secure_aggregation.streams import NUMBER, add_streams
from federation.secure_aggregation.thresholds import FEWEST, threshold
from foundation.errors import QuorumError


@dataclass(frozen=True)
class Total:
    """A round's sum. sums: int32 [numbers], for encoding.decode; count: the survivors' images, capped, together."""

    sums: NDArray[np.int32]
    count: int
    sites: int
    survivors: tuple[str, ...]


class ServerSession:
    """One attempt. ``add_*`` judges a site's message: SecureAggregationError names the site, and it is not taken.

    The methods between close a stage: who has not answered by then has dropped out; QuorumError when too few have.
    Closing again gives the same. numbers: in an update, without its count.
    """

    def __init__(self, context: Context, directory: Directory, numbers: int, fixed: FixedPoint) -> None:
        self.context, self._directory, self._fixed = context, directory, fixed
        self._advertisements: dict[str, Advertisement] = {}
        self._closed = False
        self._dealt: dict[str, SealedShares] = {}
        self._members: tuple[str, ...] | None = None
        self._sum = np.zeros(numbers + 1, dtype=NUMBER)
        self._arrived: set[str] = set()
        self._survivors: tuple[str, ...] | None = None
        self._signatures: dict[str, bytes] = {}
        self._shares: dict[str, Unmasking] = {}
        self._unmasked = False

    @property
    def needed(self) -> int:
        """t, once the advertisements are closed."""
        return threshold(len(self._advertisements))

    def add_advertisement(self, one: Advertisement) -> None:
        """Stage 0."""
        self._open(not self._closed, one.site)
        self._once(one.site, self._advertisements)
        check_advertised(self.context, one, self._directory)
        self._advertisements[one.site] = one

    def advertisements(self) -> list[Advertisement]:
        """Close stage 0: what goes to every site that advertised."""
        if len(self._advertisements) < FEWEST:
            raise QuorumError(f"{len(self._advertisements)} sites began a secure sum; at least {FEWEST} are needed")
        self._fixed.scale_for(len(self._advertisements))
        self._closed = True
        return [self._advertisements[name] for name in sorted(self._advertisements)]

    def add_shares(self, dealt: SealedShares) -> None:
        """Stage 1."""
        self._open(self._closed and self._members is None, dealt.site)
        self._once(dealt.site, self._dealt)
        check_dealt(self.context, self._advertisements, dealt, self._directory)
        if dealt.sealed.keys() != self._advertisements.keys() - {dealt.site}:
            raise SecureAggregationError("sent shares for other sites than were advertised", dealt.site)
        self._dealt[dealt.site] = dealt

    def forwards(self) -> dict[str, list[SealedShares]]:
        """Close stage 1: for each site that shared, what it gets of the others'."""
        self._enough(len(self._dealt), "shared their secrets")
        self._members = tuple(sorted(self._dealt))
        return {
            holder: [self._dealt[dealer].only_for(holder) for dealer in self._members if dealer != holder]
            for holder in self._members
        }

    def add_masked(self, masked: MaskedUpdate) -> None:
        """Stage 2. The array may be reused afterwards."""
        self._open(self._members is not None and self._survivors is None, masked.site)
        if masked.site not in (self._members or ()):
            raise SecureAggregationError("sent a masked update and has not shared its secrets", masked.site)
        self._once(masked.site, self._arrived)
        if masked.values.dtype != NUMBER or masked.values.shape != self._sum.shape:
            raise SecureAggregationError(f"sent a vector that is not uint32 [{len(self._sum)}]", masked.site)
        self._sum += masked.values
        self._arrived.add(masked.site)

    def survivors(self) -> tuple[str, ...]:
        """Close stage 2: the list that every survivor is asked to sign."""
        self._enough(len(self._arrived), "sent their updates")
        self._survivors = tuple(sorted(self._arrived))
        return self._survivors

    def add_signature(self, signed: ListSignature) -> None:
        """Stage 3."""
        survivors = self._among_survivors(signed.site)
        message = list_signed(self.context, group_digest(self._advertisements.values()), self._members or (), survivors)
        certificate = self._advertisements[signed.site].certificate
        fault = self._directory.verify(signed.site, message, signed.signature, certificate)
        if fault:
            raise SecureAggregationError(fault, signed.site)
        self._signatures[signed.site] = signed.signature

    def unmask_request(self) -> UnmaskRequest:
        """Close stage 3: what goes to every survivor."""
        self._enough(len(self._signatures), "signed the list of survivors")
        signers = sorted(self._signatures)[: self.needed]
        return UnmaskRequest(self._survivors or (), {site: self._signatures[site] for site in signers})

    def add_unmasking(self, unmasking: Unmasking) -> None:
        """Stage 4: each share is held against what its dealer committed to; a wrong one names the site that sent it."""
        survivors = self._among_survivors(unmasking.site)
        if unmasking.seeds.keys() != set(survivors) or unmasking.keys.keys() != self._missing():
            raise SecureAggregationError("released shares of other sites than it was asked for", unmasking.site)
        for kind, place, shares in (("seed", 0, unmasking.seeds), ("key", 1, unmasking.keys)):
            for dealer, share in shares.items():
                found = share_commitment(self.context, dealer, unmasking.site, kind, share)
                if found != self._dealt[dealer].commitments[unmasking.site][place]:
                    raise SecureAggregationError(f"released a wrong share of site {dealer!r}", unmasking.site)
        self._shares[unmasking.site] = unmasking

    def total(self) -> Total:
        """Close stage 4: remove the masks.

        SecureAggregationError names a site whose secrets its own shares do not give, or says that the numbers cannot be
        a sum of updates.
        """
        self._enough(len(self._shares), "released shares")
        if not self._unmasked:
            add_streams(self._sum, *self._streams())
            self._unmasked = True
        whole, survivors = self._sum.view("<i4"), self._survivors or ()
        count = int(whole[-1])
        if not len(survivors) <= count <= len(survivors) * self._fixed.largest_count:
            raise SecureAggregationError(
                "the masks did not cancel or a site sent something else than an update; try the round again"
            )
        return Total(whole[:-1], count, len(self._advertisements), survivors)

    def _streams(self) -> tuple[list[bytes], list[bytes]]:
        """Keys of the streams that undo what is left in the sum: those to add, and those to subtract."""
        plus: list[bytes] = []
        minus = [self_mask_key(self.context, self._seed(site), site) for site in self._survivors or ()]
        for lost in sorted(self._missing()):
            private = self._mask_key(lost)
            for site in self._survivors or ():
                public = self._advertisements[site].mask_key
                key = pair_mask_key(self.context, private, public, site, lost)
                (minus if site < lost else plus).append(key)  # the survivor added it where its name comes first
        return plus, minus

    def _seed(self, site: str) -> bytes:
        seed = self._combined(site, {holder: one.seeds[site] for holder, one in self._shares.items()})
        if seed_commitment(self.context, site, seed) != self._dealt[site].seed_commitment:
            raise SecureAggregationError("dealt shares that do not give its secret", site)
        return seed

    def _mask_key(self, site: str) -> bytes:
        private = self._combined(site, {holder: one.keys[site] for holder, one in self._shares.items()})
        if public_of(private) != self._advertisements[site].mask_key:
            raise SecureAggregationError("dealt shares that do not give its secret", site)
        return private

    def _combined(self, site: str, shares: dict[str, bytes]) -> bytes:
        names = sorted(self._advertisements)
        holders = sorted(shares)[: self.needed]
        try:
            return combine({names.index(holder) + 1: shares[holder] for holder in holders})
        except ValueError as error:
            raise SecureAggregationError("dealt shares that do not give its secret", site) from error

    def _missing(self) -> set[str]:
        return set(self._members or ()) - set(self._survivors or ())

    def _among_survivors(self, site: str) -> tuple[str, ...]:
        self._open(self._survivors is not None, site)
        if site not in (self._survivors or ()):
            raise SecureAggregationError("is not among the survivors", site)
        return self._survivors or ()

    def _open(self, now: bool, site: str) -> None:
        if not now:
            raise SecureAggregationError("answers a stage that is not open", site)

    def _once(self, site: str, known: dict[str, SealedShares] | dict[str, Advertisement] | set[str]) -> None:
        if site in known:
            raise SecureAggregationError("has answered this stage already", site)

    def _enough(self, count: int, what: str) -> None:
        if count < self.needed:
            raise QuorumError(
                f"{count} of {len(self._advertisements)} sites {what}; {self.needed} are needed for a secure sum"
            )
