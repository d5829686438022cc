"""A site's part in secure sums: one attempt at a time, its secrets in memory and, from the masked update on, on disk.

The update that was trained lies in the round's folder, with its noise where sites add that: whatever the attempt, the
same numbers are masked, so that noise is drawn, and charged, once a training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from client.policy import Policy
from client.site_identity import SiteKeys
from federation.flower.secure_records import Answered, SecureAnswer, SecureRequest
from federation.privacy import noise
from federation.secure_aggregation.identity import CertifiedDirectory
from federation.secure_aggregation.messages import (
    Advertisement,
    Context,
    MaskedUpdate,
    SealedShares,
    SecureAggregationError,
    UnmaskRequest,
)
from federation.secure_aggregation.site_session import SiteSession
from federation.secure_aggregation.site_state import SiteState
from federation.secure_aggregation.statistics import summed_vector
from federation.secure_aggregation.store import VaultStore
from federation.secure_aggregation.update import check_difference, fewest_survivors, fixed_point, grid_of, numbers_of
from federation.study import Study
from foundation.errors import RunError
from foundation.vault import Vault

UPDATE, NOISE = "update", "noise"


@dataclass(frozen=True)
class Trained:
    """What a round's training left to be masked. tensors: of ``to_mask``; images: that it counts for."""

    images: int
    tensors: dict[str, Tensor]


def to_mask(study: Study, shared: dict[str, Tensor], received: dict[str, Tensor]) -> dict[str, Tensor]:
    """The update as one vector and, where sites add the noise, its noise: whole numbers in units of the study's grid.

    TrainingError for an update that may not be sent; not in a study that is private by site, whose updates are clipped:
    there, whether one is sent must tell nothing of it.
    """
    update, grid = summed_vector(study, shared, received), grid_of(study)
    if grid is not None:
        return {UPDATE: update, NOISE: torch.from_numpy(noise.discrete_gaussian(len(update), grid.deviation))}
    check_difference(update[: numbers_of(received)], fixed_point(study).largest_value, study.rounds.norm_bound)
    return {UPDATE: update}


class SecureRounds:
    """Answers the stages of a study's secure sums.

    SecureAggregationError for a request that breaks the protocol or this site's policy; nothing is answered then.
    """

    def __init__(self, study: Study, site: str, folder: Path, vault: Vault, policy: Policy) -> None:
        self._study, self._site, self._folder, self._policy = study, site, folder, policy
        self._hash = study.training_hash()
        self._last = study.rounds.count + 1  # the exchange of statistics, where the study has one
        self._store = VaultStore(folder, vault)
        self._context: Context | None = None
        self._session: SiteSession | None = None

    def answer(self, request: SecureRequest, keys: SiteKeys, trained: Callable[[], Trained]) -> SecureAnswer:
        """What this site says to one stage. trained: reads what the round's training left."""
        context = Context(self._hash, request.round, request.attempt)
        if request.study_hash != self._hash or not 1 <= request.round <= self._last:
            raise SecureAggregationError("a secure sum of another study or round is asked for")
        if request.attempt < 0:
            raise SecureAggregationError("an attempt below 0 is asked for")
        self._folder.mkdir(parents=True, exist_ok=True)
        session = self._session_for(context, request, keys)
        answered = self._stage(session, request, trained)
        return SecureAnswer(self._hash, request.round, request.attempt, request.stage, self._site, answered)

    def forget_before(self, round_: int) -> None:
        """Drop the secrets of the round before, which is over when the next one is asked for; its list stays."""
        self._store.drop(self._hash, round_ - 1, "attempt")

    def _session_for(self, context: Context, request: SecureRequest, keys: SiteKeys) -> SiteSession:
        if self._session is not None and self._context == context:
            return self._session
        directory = CertifiedDirectory(keys.ca)
        if request.stage == "advertise":
            identity = keys.identity(self._site, str(request.asked))
            # An attempt that this site still has a masked update in is gone on with, not begun anew.
            session = SiteSession.resume(context, identity, directory, self._store) or SiteSession(
                context, identity, directory, self._store
            )
        else:
            certificate = self._certificate_in(context)
            resumed = certificate and SiteSession.resume(
                context, keys.identity(self._site, certificate), directory, self._store
            )
            if not resumed:
                raise SecureAggregationError("an attempt is gone on with that this site is not in; begin another")
            session = resumed
        self._context, self._session = context, session
        return session

    def _certificate_in(self, context: Context) -> str | None:
        """This site's certificate as it was advertised in an attempt that is on the disk."""
        data = self._store.get(context.study_hash, context.round, "attempt")
        state = None if data is None else SiteState.from_bytes(data)
        return None if state is None else state.advertisements[self._site].certificate

    def _stage(self, session: SiteSession, request: SecureRequest, trained: Callable[[], Trained]) -> Answered:
        asked = request.asked
        if request.stage == "advertise":
            trained()  # a site that has nothing to send takes no part
            return session.advertise()
        if request.stage == "share" and isinstance(asked, tuple):
            if len(asked) < self._policy.min_secure_sites:
                raise SecureAggregationError(
                    f"{len(asked)} sites are to add up their updates, and policy.min_secure_sites is "
                    f"{self._policy.min_secure_sites}"
                )
            return session.share([one for one in asked if isinstance(one, Advertisement)])
        if request.stage == "masked" and isinstance(asked, tuple):
            return self._masked(session, [one for one in asked if isinstance(one, SealedShares)], trained())
        if request.stage == "sign" and isinstance(asked, tuple):
            fewest = fewest_survivors(self._study)
            if len(asked) < fewest:
                raise SecureAggregationError(f"a sum of {len(asked)} updates is asked for; at least {fewest} are one")
            return session.sign([str(name) for name in asked])
        if request.stage == "unmask" and isinstance(asked, UnmaskRequest):
            return session.unmask(asked)
        raise SecureAggregationError("a stage is asked for with what belongs to another")

    def _masked(self, session: SiteSession, shares: list[SealedShares], kept: Trained) -> MaskedUpdate:
        fixed = fixed_point(self._study)
        drawn = kept.tensors[NOISE].numpy() if NOISE in kept.tensors else None
        if (drawn is None) != (grid_of(self._study) is None):
            raise RunError(f"site {self._site}: the stored update lacks its noise; it is not sent")
        return session.masked(shares, kept.tensors[UPDATE].numpy(), kept.images, fixed, drawn)
