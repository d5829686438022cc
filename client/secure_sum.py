"""A site's part in a study's secure sums: what it holds of a round, and its answers, stage by stage."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from cryptography import x509
from torch import Tensor

from client.kit_keys import load_site_key
from federation.certificates import PrivateKey
from federation.kit import kit_ca
from federation.privacy import noise
from federation.privacy.config import SitePrivacyConfig
from federation.privacy.plan import noise_grid
from federation.secure_aggregation.identity import CertifiedDirectory, KeyIdentity
from federation.secure_aggregation.messages import Context, SecureAggregationError
from federation.secure_aggregation.site_session import SiteSession
from federation.secure_aggregation.store import VaultStore
from federation.secure_aggregation.thresholds import threshold
from federation.secure_aggregation.update import fixed_point, update_vector
from federation.secure_flower import Answered, Asked, Told, answered, request_in
from federation.study import Study
from foundation.errors import StudyError, TrainingError
from foundation.vault import Vault

HELD_NAME = "held.safetensors"
Held = Mapping[str, Tensor]


@dataclass(frozen=True)
class SiteKeys:
    """A site's private key, and the CA by which it knows the other sites."""

    key: PrivateKey
    ca: x509.Certificate


_unlocked: dict[Path, SiteKeys] = {}


def unlock(kit_folder: Path, keys: SiteKeys) -> None:
    """Keep the keys of a kit for this process: a key under a passphrase is asked for once."""
    _unlocked[kit_folder.resolve()] = keys


def keys_of(kit_folder: Path) -> SiteKeys:
    """The keys beside a site file; CredentialError when they are missing or locked."""
    place = kit_folder.resolve()
    if place not in _unlocked:
        unlock(place, SiteKeys(load_site_key(place), kit_ca(place)))
    return _unlocked[place]


def hold(study: Study, weights: Held, received: Held, count: int) -> dict[str, Tensor]:
    """What is kept of a round for its sum: the update, its count, and the noise that it is sent with, drawn once.

    The noise is drawn here, after the ledger was charged, and never again for this update: with two drawings the
    difference of two sums would tell. TrainingError for an update longer than ``rounds.norm_bound``, which nobody but
    the site can judge; one that is clipped is never refused, as that would tell of it.
    """
    update = update_vector(weights, received)
    length = float(np.linalg.norm(update.astype(np.float64)))
    if not length <= study.rounds.norm_bound and not isinstance(study.privacy, SitePrivacyConfig):
        raise TrainingError(
            f"the update's norm {length:.3g} is above rounds.norm_bound {study.rounds.norm_bound:g}; it is not sent: "
            "lower training.learning_rate, or raise the bound"
        )
    held = {"update": torch.from_numpy(update), "count": torch.tensor([count])}
    if isinstance(study.privacy, SitePrivacyConfig):
        grid = noise_grid(study, update.size)
        held["noise"] = torch.from_numpy(noise.discrete_gaussian(update.size, grid.deviation))
    return held


def load_held(vault: Vault, path: Path) -> Held:
    """What ``hold`` gave and was kept; StudyError where the round was not trained here."""
    if not path.exists():
        raise StudyError("a secure sum is asked for of a round that this site has not trained; train it first")
    return vault.load_tensors(path)[0]


class SecureSums:
    """A site's sessions, one a round and attempt; a restarted process goes on from the store."""

    def __init__(self, study: Study, site: str, keys: SiteKeys, store: VaultStore, fewest: int) -> None:
        self._study, self._site, self._keys, self._store, self._fewest = study, site, keys, store, fewest
        self._session: SiteSession | None = None
        self._context: Context | None = None

    def answer(self, asked: Asked, held: Callable[[], Held]) -> Told:
        """The answer at a stage; SecureAggregationError for what the protocol does not permit."""
        context = Context(asked.study_hash, asked.round, asked.attempt)
        if context != self._context:
            self._open(context, asked)
        session = self._session
        assert session is not None
        stages: dict[str, Callable[[], Answered]] = {
            "advertise": session.advertise,
            "share": lambda: self._share(session, asked),
            "masked": lambda: self._masked(session, asked, held()),
            "sign": lambda: self._sign(session, asked),
            "unmask": lambda: session.unmask(request_in(asked)),
        }
        said = answered(stages[asked.stage]())
        return Told(asked.study_hash, asked.round, asked.attempt, asked.stage, self._site, said)

    def _open(self, context: Context, asked: Asked) -> None:
        """The session of that attempt: a new one at its first stage, else the one that the store has."""
        directory = CertifiedDirectory(self._keys.ca)
        certificate = cast(str, request_in(asked)) if asked.stage == "advertise" else ""
        identity = KeyIdentity(self._site, self._keys.key, certificate)
        session = SiteSession.resume(context, identity, directory, self._store)
        if session is None:
            if asked.stage != "advertise":
                raise SecureAggregationError("an attempt that this site has no part in is gone on with; begin anew")
            for old in range(1, context.round):
                self._store.drop(context.study_hash, old, "attempt")
            session = SiteSession(context, identity, directory, self._store)
        self._session, self._context = session, context

    def _share(self, session: SiteSession, asked: Asked) -> Answered:
        advertisements = request_in(asked)
        if len(advertisements) < self._fewest:
            raise SecureAggregationError(
                f"{len(advertisements)} sites begin the sum, and this site's policy.fewest_in_sum is {self._fewest}"
            )
        return session.share(advertisements)

    def _masked(self, session: SiteSession, asked: Asked, held: Held) -> Answered:
        update, drawn = held["update"].numpy(), held.get("noise")
        fixed = fixed_point(self._study, update.size)
        own = None if drawn is None else drawn.numpy()
        return session.masked(request_in(asked), update, int(held["count"]), fixed, own)

    def _sign(self, session: SiteSession, asked: Asked) -> Answered:
        survivors, privacy = request_in(asked), self._study.privacy
        if isinstance(privacy, SitePrivacyConfig) and len(survivors) < threshold(privacy.sites):
            raise SecureAggregationError(
                f"{len(survivors)} sites survive, and the noise of the sum is made for {threshold(privacy.sites)}"
            )
        return session.sign(survivors)
