"""Certified sites and a server that pass plain values to each other in one process; no test here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from federation.keys.certificates import ca_certificate, certificate_pem, key_of, new_key, site_certificate
from federation.secure_aggregation.encoding import FixedPoint
from federation.secure_aggregation.identity import CertifiedDirectory, KeyIdentity
from federation.secure_aggregation.messages import (
    Advertisement,
    Context,
    MaskedUpdate,
    SealedShares,
    UnmaskRequest,
)
from federation.secure_aggregation.server_session import ServerSession, Total
from federation.secure_aggregation.site_session import SiteSession

NOW = datetime.now(UTC)
CA_KEY = new_key()
CA = ca_certificate(CA_KEY, "federation", NOW, 30)
DIRECTORY = CertifiedDirectory(CA)
CONTEXT = Context("5" * 64, 4, 0)
FIXED = FixedPoint(largest_value=1.0, largest_count=1000)
NUMBERS = 33_000  # more than one block of the masks


def certified(site: str) -> KeyIdentity:
    key = new_key()
    certificate = site_certificate(CA, CA_KEY, key.public_key(), site, NOW, 30)
    assert key_of(certificate) == key.public_key()
    return KeyIdentity(site, key, certificate_pem(certificate))


IDENTITIES = {name: certified(name) for name in [f"site-{letter}" for letter in "abcdefgh"]}


class MemoryStore:
    """A store that outlives a session, as a disk would."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int, str], bytes] = {}

    def get(self, study_hash: str, round_: int, kind: str) -> bytes | None:
        return self.kept.get((study_hash, round_, kind))

    def put(self, study_hash: str, round_: int, kind: str, data: bytes) -> None:
        self.kept[study_hash, round_, kind] = data

    def drop(self, study_hash: str, round_: int, kind: str) -> None:
        self.kept.pop((study_hash, round_, kind), None)


def updates_of(names: Sequence[str], numbers: int = NUMBERS) -> dict[str, NDArray[np.float32]]:
    draw = np.random.default_rng(7)
    return {name: draw.uniform(-1, 1, numbers).astype(np.float32) for name in names}


def counts_of(names: Sequence[str]) -> dict[str, int]:
    """From 150 images up; from 1,000 on sites count alike."""
    return {name: 150 * 2**number for number, name in enumerate(names)}


@dataclass
class Sites:
    """The first ``count`` sites in one attempt, with their updates; the server's side is scripted by the test."""

    count: int
    context: Context = CONTEXT
    numbers: int = NUMBERS
    stores: dict[str, MemoryStore] = field(default_factory=lambda: {name: MemoryStore() for name in IDENTITIES})
    sessions: dict[str, SiteSession] = field(init=False)

    def __post_init__(self) -> None:
        self.names = sorted(IDENTITIES)[: self.count]
        self.updates, self.counts = updates_of(self.names, self.numbers), counts_of(self.names)
        self.sessions = {
            name: SiteSession(self.context, IDENTITIES[name], DIRECTORY, self.stores[name]) for name in self.names
        }

    def advertise(self) -> list[Advertisement]:
        return [self.sessions[name].advertise() for name in self.names]

    def share(self, advertisements: Sequence[Advertisement]) -> dict[str, SealedShares]:
        return {name: self.sessions[name].share(advertisements) for name in self.names}

    def mask(self, name: str, dealt: dict[str, SealedShares], members: Sequence[str] | None = None) -> MaskedUpdate:
        others = [other for other in members or self.names if other != name]
        forwarded = [dealt[other].only_for(name) for other in others]
        return self.sessions[name].masked(forwarded, self.updates[name], self.counts[name], FIXED)

    def mask_with(self, name: str, dealt: dict[str, SealedShares], other: SealedShares) -> MaskedUpdate:
        """As ``mask``, with one dealer's message as ``other`` has it, already for this holder where it says so."""
        forwarded = [one.only_for(name) for one in dealt.values() if one.site not in (name, other.site)] + [other]
        return self.sessions[name].masked(forwarded, self.updates[name], self.counts[name], FIXED)

    def masked(self) -> dict[str, MaskedUpdate]:
        """All sites up to stage 2, nobody missing."""
        dealt = self.share(self.advertise())
        return {name: self.mask(name, dealt) for name in self.names}

    def signatures(self, survivors: Sequence[str], signers: Sequence[str]) -> dict[str, bytes]:
        return {name: self.sessions[name].sign(survivors).signature for name in signers}

    def server(self, fixed: FixedPoint = FIXED) -> ServerSession:
        return ServerSession(self.context, DIRECTORY, self.numbers, fixed)

    def restart(self, name: str) -> None:
        session = SiteSession.resume(self.context, IDENTITIES[name], DIRECTORY, self.stores[name])
        assert session is not None
        self.sessions[name] = session


def plain_mean(sites: Sites, names: Sequence[str]) -> NDArray[np.float64]:
    """The weighted mean in float64, by its definition."""
    weights = {name: min(sites.counts[name], FIXED.largest_count) for name in names}
    total = sum(weights[name] * sites.updates[name].astype(np.float64) for name in names)
    return np.asarray(total / sum(weights.values()))


def run_honestly(sites: Sites, lost: dict[int, Sequence[str]]) -> Total:
    """The whole attempt by the server's rules. lost: by stage, the sites that do not answer from then on."""
    server = sites.server()
    present = [name for name in sites.names if name not in lost.get(0, ())]
    for name in present:
        server.add_advertisement(sites.sessions[name].advertise())
    advertisements = server.advertisements()
    present = [name for name in present if name not in lost.get(1, ())]
    for name in present:
        server.add_shares(sites.sessions[name].share(advertisements))
    forwards = server.forwards()
    present = [name for name in present if name not in lost.get(2, ())]
    for name in present:
        session = sites.sessions[name]
        server.add_masked(session.masked(forwards[name], sites.updates[name], sites.counts[name], FIXED))
    survivors = server.survivors()
    present = [name for name in present if name not in lost.get(3, ())]
    for name in present:
        server.add_signature(sites.sessions[name].sign(survivors))
    request = server.unmask_request()
    present = [name for name in present if name not in lost.get(4, ())]
    for name in present:
        server.add_unmasking(sites.sessions[name].unmask(request))
    return server.total()


def requested(survivors: Sequence[str], signatures: dict[str, bytes]) -> UnmaskRequest:
    return UnmaskRequest(tuple(survivors), signatures)
