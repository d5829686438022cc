"""The site's half of a secure sum: Bonawitz et al. 2017, Practical secure aggregation, figure 4, malicious server.

Site u of the n advertised, its keys fresh, sends

    y_u = x_u + PRG(b_u) + sum_{v > u} PRG(s_uv) - sum_{v < u} PRG(s_uv)   mod 2**32,

x_u the encoded update, b_u its self-mask seed, s_uv agreed with site v; sites in the order of their names. Over all
survivors the pairwise masks cancel; the server removes the rest with shares: of b_u for survivors, of u's mask key for
sites that dropped out after sharing. A site releases one kind for each site, and only for the one list of survivors
that it signed and t sites signed with it.

Deviations: training comes first and keys are made right before sending, so that a site lost in hours of training costs
the others nothing. A dealer commits to every share and signs the commitments, so that a wrong share has a culprit. The
signature under the list covers all keys and the sites that shared. A site signs one list of names a round, whatever the
attempt: a round that is tried again has the same survivors or not this site.
"""

import json
import secrets
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from federation.secure_aggregation.dealing import Dealing, Shares, check_advertised
from federation.secure_aggregation.encoding import FixedPoint, encode
from federation.secure_aggregation.identity import Directory, Identity
from federation.secure_aggregation.keys import KEY_BYTES, new_pair, pair_mask_key, self_mask_key
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
from federation.secure_aggregation.site_state import SiteState
from federation.secure_aggregation.store import Store
from federation.secure_aggregation.streams import add_streams
from federation.secure_aggregation.thresholds import FEWEST, threshold
from foundation.files import digest


class SiteSession:
    """One site in one attempt, a method a stage; a request that breaks the protocol is a SecureAggregationError.

    Every answer to the same request is the same again; another request at the same stage is refused. After a restart
    ``resume`` finishes an attempt whose masked update was made.
    """

    def __init__(self, context: Context, identity: Identity, directory: Directory, store: Store) -> None:
        self._context, self._identity, self._directory, self._store = context, identity, directory, store
        self._site = identity.site
        self._mask, self._sealing = new_pair(), new_pair()
        self._seed = secrets.token_bytes(KEY_BYTES)
        self._advertisement: Advertisement | None = None
        self._advertisements: dict[str, Advertisement] = {}
        self._dealt: SealedShares | None = None
        self._own_shares: Shares = b"", b""
        self._state: SiteState | None = None

    @classmethod
    def resume(cls, context: Context, identity: Identity, directory: Directory, store: Store) -> "SiteSession | None":
        """The session of that very attempt as the store has it; None where there is none."""
        data = store.get(context.study_hash, context.round, "attempt")
        state = SiteState.from_bytes(data) if data is not None else None
        if state is None or state.attempt != context.attempt:
            return None
        session = cls(context, identity, directory, store)
        session._state, session._advertisements = state, state.advertisements
        return session

    @property
    def sites(self) -> int:
        """n: how many sites were advertised; what the encoding's scale depends on."""
        return len(self._advertisements)

    def advertise(self) -> Advertisement:
        """Stage 0: this attempt's public keys, signed."""
        if self._advertisement is None:
            if self._state is not None:
                raise SecureAggregationError("keys are asked for again of an attempt under way; begin another")
            blank = Advertisement(self._site, self._mask.public, self._sealing.public, self._identity.certificate)
            self._advertisement = replace(blank, signature=self._identity.sign(blank.signed(self._context)))
        return self._advertisement

    def share(self, advertisements: Sequence[Advertisement]) -> SealedShares:
        """Stage 1: the secrets in shares, sealed for each of the sites advertised."""
        group = {one.site: one for one in advertisements}
        if self._dealt is not None:
            if group != self._advertisements:
                raise SecureAggregationError("shares are asked for again, of other keys; secrets are shared once")
            return self._dealt
        self._check_group(advertisements, group)
        dealing = Dealing(self._context, self._site, self._sealing, group)
        self._dealt, self._own_shares = dealing.deal(self._seed, self._mask.private, self._identity.sign)
        self._advertisements = group
        return self._dealt

    def masked(
        self,
        forwarded: Sequence[SealedShares],
        update: NDArray[np.float32],
        count: int,
        fixed: FixedPoint,
        noise: NDArray[np.int64] | None = None,
    ) -> MaskedUpdate:
        """Stage 2: the encoded update (encoding.encode) under masks with all sites whose shares arrived.

        forwarded: their shares, or empty after a restart. The attempt's secrets are stored before this returns. A
        second call with another update (noise drawn anew, say) is refused: two vectors under the same masks show how
        they differ.
        """
        if not self._advertisements:
            raise SecureAggregationError(
                "a masked update is asked for before secrets were shared; begin another attempt"
            )
        values = encode(update, count, fixed, self.sites, noise)
        encoded = digest(values.data.cast("B"))
        if self._state is None:
            state = self._received(forwarded, encoded)
            self._store.put(self._context.study_hash, self._context.round, "attempt", state.to_bytes())
            self._state = state
        state = self._state
        if state.encoded != encoded or (forwarded and {one.site for one in forwarded} != self._others(state)):
            raise SecureAggregationError("a second masked update is asked for, of other content; begin another attempt")
        add_streams(values, *self._streams(state))
        return MaskedUpdate(self._site, values)

    def sign(self, survivors: Sequence[str]) -> ListSignature:
        """Stage 3: this site's signature under the survivors, the only list of this round that it ever signs."""
        state = self._under_way()
        listed = tuple(survivors)
        self._check_survivors(listed, state)
        self._remember(listed)
        if state.survivors is None:
            signed = replace(state, survivors=listed)
            self._store.put(self._context.study_hash, self._context.round, "attempt", signed.to_bytes())
            self._state = signed
        return ListSignature(self._site, self._identity.sign(self._list(listed, state)))

    def unmask(self, request: UnmaskRequest) -> Unmasking:
        """Stage 4: for survivors shares of their seeds, for the other members shares of their mask keys."""
        state = self._under_way()
        if state.survivors is None or state.survivors != tuple(request.survivors):
            raise SecureAggregationError("shares are asked for with a list of survivors that this site did not sign")
        needed = threshold(self.sites)
        if len(request.signatures) < needed:
            raise SecureAggregationError(
                f"shares are asked for with {len(request.signatures)} signatures of survivors; {needed} are needed"
            )
        message = self._list(state.survivors, state)
        for name, signature in request.signatures.items():
            if name not in state.survivors:
                raise SecureAggregationError("signed a list of survivors that it is not in", name)
            self._verify(name, message, signature)
        missing = set(state.members) - set(state.survivors)
        return Unmasking(
            self._site,
            {name: state.shares[name][0] for name in state.survivors},
            {name: state.shares[name][1] for name in sorted(missing)},
        )

    def _under_way(self) -> SiteState:
        if self._state is None:
            raise SecureAggregationError(
                "an attempt that this site has no masked update in is gone on with; begin anew"
            )
        return self._state

    def _others(self, state: SiteState) -> set[str]:
        return set(state.members) - {self._site}

    def _list(self, survivors: Sequence[str], state: SiteState) -> bytes:
        return list_signed(self._context, group_digest(self._advertisements.values()), state.members, survivors)

    def _verify(self, name: str, message: bytes, signature: bytes) -> None:
        fault = self._directory.verify(name, message, signature, self._advertisements[name].certificate)
        if fault:
            raise SecureAggregationError(fault, name)

    def _check_group(self, advertisements: Sequence[Advertisement], group: dict[str, Advertisement]) -> None:
        if self._advertisement is None or group.get(self._site) != self._advertisement:
            raise SecureAggregationError("this site's own keys are not among those advertised as it sent them")
        if len(group) != len(advertisements):
            raise SecureAggregationError("two sites of the same name are advertised")
        if len(group) < FEWEST:
            raise SecureAggregationError(f"{len(group)} sites are advertised; a secure sum has at least {FEWEST}")
        for one in advertisements:
            check_advertised(self._context, one, self._directory)

    def _received(self, forwarded: Sequence[SealedShares], encoded: str) -> SiteState:
        """The state of an attempt in which these sites' shares arrived."""
        dealing = Dealing(self._context, self._site, self._sealing, self._advertisements)
        members = sorted({self._site, *(one.site for one in forwarded)})
        if len(members) != len(forwarded) + 1:
            raise SecureAggregationError("shares of one site are forwarded twice, or this site's own")
        if len(members) < threshold(self.sites):
            raise SecureAggregationError(
                f"{len(members)} of {self.sites} sites have shared; at least {threshold(self.sites)} are needed"
            )
        shares = {one.site: dealing.receive(one, self._directory) for one in forwarded} | {self._site: self._own_shares}
        return SiteState(
            self._context.attempt, self._mask.private, self._seed, self._advertisements, tuple(members), shares, encoded
        )

    def _streams(self, state: SiteState) -> tuple[list[bytes], list[bytes]]:
        """Keys of the streams that this site adds, and of those that it subtracts."""
        plus = [self_mask_key(self._context, state.seed, self._site)]
        minus: list[bytes] = []
        for name in sorted(self._others(state)):
            try:
                public = self._advertisements[name].mask_key
                key = pair_mask_key(self._context, state.mask_private, public, self._site, name)
            except ValueError as error:
                raise SecureAggregationError("advertises a key that is none", name) from error
            (plus if self._site < name else minus).append(key)
        return plus, minus

    def _check_survivors(self, survivors: tuple[str, ...], state: SiteState) -> None:
        needed = threshold(self.sites)
        if list(survivors) != sorted(set(survivors)):
            raise SecureAggregationError("the survivors are not listed once each, in the order of their names")
        if len(survivors) < needed:
            raise SecureAggregationError(
                f"{len(survivors)} of {self.sites} sites are listed as survivors; at least {needed} are needed"
            )
        if self._site not in survivors:
            raise SecureAggregationError("this site is not among the survivors that it is asked to sign")
        strangers = sorted(set(survivors) - set(state.members))
        if strangers:
            raise SecureAggregationError("is listed as a survivor and has not shared its secrets", strangers[0])

    def _remember(self, survivors: tuple[str, ...]) -> None:
        """Note the one list of this round before it is signed; another one is refused."""
        study, round_ = self._context.study_hash, self._context.round
        listed = json.dumps(survivors).encode()
        known = self._store.get(study, round_, "survivors")
        if known is None:
            self._store.put(study, round_, "survivors", listed)
        elif known != listed:
            raise SecureAggregationError(
                f"round {round_}: this site has signed another list of survivors, and signs one a round, as two sums "
                "would differ by single updates; finish the round with the first list"
            )
