"""Stage 1: a site's two secrets in shares, sealed and committed to, and what a holder makes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from federation.secure_aggregation.identity import Directory
from federation.secure_aggregation.keys import KeyPair, seal, seed_commitment, share_commitment, unseal
from federation.secure_aggregation.messages import (
    Advertisement,
    Context,
    SealedShares,
    SecureAggregationError,
    group_digest,
)
from federation.secure_aggregation.shamir import SHARE_BYTES, share
from federation.secure_aggregation.thresholds import threshold

Shares = tuple[bytes, bytes]
"""One holder's share of a dealer's self-mask seed and of its mask key."""


@dataclass(frozen=True)
class Dealing:
    """One site among those that share with each other. sealing: its pair for shares, whose public key is advertised."""

    context: Context
    site: str
    sealing: KeyPair
    group: Mapping[str, Advertisement]

    def deal(self, seed: bytes, mask_private: bytes, sign: Callable[[bytes], bytes]) -> tuple[SealedShares, Shares]:
        """The message for all others, and the shares that the site keeps itself. Share number x is the x-th name's."""
        names, count = sorted(self.group), len(self.group)
        seeds, keys = (share(secret, threshold(count), count) for secret in (seed, mask_private))
        shares = dict(zip(names, zip(seeds, keys, strict=True), strict=True))
        blank = SealedShares(
            self.site,
            {name: self._sealed(name, shares[name]) for name in names if name != self.site},
            {name: commitments(self.context, self.site, name, shares[name]) for name in names},
            seed_commitment(self.context, self.site, seed),
        )
        signature = sign(blank.signed(self.context, group_digest(self.group.values())))
        return replace(blank, signature=signature), shares[self.site]

    def receive(self, dealt: SealedShares, directory: Directory) -> Shares:
        """This site's shares of a dealer; SecureAggregationError, by name, when they are not what it committed to."""
        check_dealt(self.context, self.group, dealt, directory)
        try:
            private, public, sealed = self.sealing.private, self.group[dealt.site].seal_key, dealt.sealed[self.site]
            opened = unseal(self.context, private, public, dealt.site, self.site, sealed)
        except (ValueError, KeyError) as error:
            raise SecureAggregationError("sent shares that do not open", dealt.site) from error
        shares = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
        if commitments(self.context, dealt.site, self.site, shares) != dealt.commitments[self.site]:
            raise SecureAggregationError("sent other shares than it committed to", dealt.site)
        return shares

    def _sealed(self, holder: str, shares: Shares) -> bytes:
        private, public = self.sealing.private, self.group[holder].seal_key
        try:
            return seal(self.context, private, public, self.site, holder, b"".join(shares))
        except ValueError as error:
            raise SecureAggregationError("advertises a key that is none", holder) from error


def commitments(context: Context, dealer: str, holder: str, shares: Shares) -> tuple[bytes, bytes]:
    """The two digests that a dealer publishes of a holder's shares."""
    seed, key = shares
    return (
        share_commitment(context, dealer, holder, "seed", seed),
        share_commitment(context, dealer, holder, "key", key),
    )


def check_advertised(context: Context, one: Advertisement, directory: Directory) -> None:
    """SecureAggregationError unless the site itself signed these keys for this attempt."""
    fault = directory.verify(one.site, one.signed(context), one.signature, one.certificate)
    if fault:
        raise SecureAggregationError(fault, one.site)


def check_dealt(
    context: Context, group: Mapping[str, Advertisement], dealt: SealedShares, directory: Directory
) -> None:
    """SecureAggregationError unless the site itself signed these commitments, to all of the group and to no others."""
    if dealt.site not in group:
        raise SecureAggregationError("sent shares and has advertised no keys", dealt.site)
    if dealt.commitments.keys() != group.keys():
        raise SecureAggregationError("shares its secrets with other sites than were advertised", dealt.site)
    signed = dealt.signed(context, group_digest(group.values()))
    fault = directory.verify(dealt.site, signed, dealt.signature, group[dealt.site].certificate)
    if fault:
        raise SecureAggregationError(fault, dealt.site)
