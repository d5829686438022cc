"""A round's mean under masks: the stages of federation/secure_aggregation, their deadlines, and what a restart needs.

No single update is seen here, so that none can be judged: sites refuse to send one that is too long, and there is no
``update_norm`` and no divergence. A stage ends when all have answered or its share of ``rounds.deadline_minutes`` is
over; who has not answered has dropped out of the attempt.

``secure-rounds.json`` in the federation's folder has, by round, the number of attempts begun and the list of survivors
that sites were asked to sign, written down before they were: another attempt at that round has these sites and no
others, as sites sign one list a round. A masked vector, a signature or a share is not kept: a server that was killed
begins another attempt, with fresh keys and the updates that lie at the sites.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cryptography import x509

from federation.algorithms.algorithm import Weights
from federation.flower.secure_records import Answered, Asked, SecureAnswer, SecureRequest, Stage
from federation.keys.kit import kit_ca
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.records import weights_digest
from federation.secure_aggregation.encoding import decode
from federation.secure_aggregation.identity import CertifiedDirectory
from federation.secure_aggregation.messages import (
    Advertisement,
    Context,
    ListSignature,
    MaskedUpdate,
    SealedShares,
    SecureAggregationError,
    Unmasking,
)
from federation.secure_aggregation.server_session import ServerSession, Total
from federation.secure_aggregation.statistics import after_sum, summed_numbers
from federation.secure_aggregation.thresholds import FEWEST
from federation.secure_aggregation.update import fewest_survivors, fixed_point, grid_of
from federation.study import Study
from foundation.errors import FedpretextError, QuorumError
from foundation.files import read_json, write_json
from server.enrolment.federation_folder import load_ca
from server.enrolment.registry import Registry
from ssl_methods import build_method

STATE_NAME = "secure-rounds.json"
_SHARE = 1 / 20
LEAST_STAGE_S = 120.0
_Kind = TypeVar("_Kind", Advertisement, SealedShares, MaskedUpdate, ListSignature, Unmasking)
Take = Callable[[SecureAnswer], None]
Announce = Callable[[tuple[str, ...]], None]


class SecureSiteChannel(Protocol):
    """The way to the sites for the stages of a sum."""

    def ask_stage(self, requests: Mapping[str, SecureRequest], patience_s: float, take: Take) -> Mapping[str, str]:
        """Ask each site; ``take`` judges each answer as it comes. Why the others have none, by site."""
        ...


@dataclass(frozen=True)
class SiteCertificates:
    """The CA, and the certificate (PEM) of each site as it stands now; "" for a site without one."""

    ca: x509.Certificate
    of: Callable[[str], str]


def certificates_in(folder: Path) -> SiteCertificates:
    """Those of a simulation's site folders."""
    return SiteCertificates(kit_ca(folder), lambda site: (folder / f"{site}.crt").read_text())


def certificates_of(registry: Registry) -> SiteCertificates:
    """Those that the study lead has issued: records may change while the server runs."""

    def of(site: str) -> str:
        record = registry.sites().get(site)
        return "" if record is None else record.certificate

    return SiteCertificates(load_ca(registry.folder), of)


class StageFailedError(FedpretextError):
    """An attempt at a sum did not come to its end. reasons: by site, where sites are the cause."""

    def __init__(self, text: str, reasons: Mapping[str, str]) -> None:
        super().__init__(text)
        self.reasons = dict(reasons)


@dataclass(frozen=True)
class Mean:
    """The mean weights of a round, the sites whose updates are in them, and why others are not."""

    weights: Weights
    sites: tuple[str, ...]
    left_out: dict[str, str]


class SecureMean:
    """A study's means under masks. ledger: where a study that is private by site is charged at the server."""

    def __init__(
        self, study: Study, folder: Path, channel: SecureSiteChannel, certificates: SiteCertificates, ledger: Path
    ) -> None:
        self._study, self._channel, self._certificates, self._ledger = study, channel, certificates, ledger
        self._hash, self._path = study.training_hash(), folder / STATE_NAME
        self._fixed = fixed_point(study)
        self.fewest = fewest_survivors(study)
        """Updates that a round has at least, whatever its quorum; the protocol wants floor(2n/3) + 1 of n beside."""
        self._untrained = build_method(study.method, study.encoder, study.image, study.seed).untrained()

    def mean(self, round_: int, weights: Weights, sites: Sequence[str], quorum: int) -> Mean:
        """One attempt among ``sites``, which have trained the round from ``weights``.

        quorum: survivors that the study wants, beside what the protocol and the noise want; the most holds.
        StageFailedError where the attempt comes to nothing.
        """
        state = self._begin(round_, weights)
        signed = state["survivors"]
        if signed is not None and not set(signed) <= set(sites):
            missing = ", ".join(sorted(set(signed) - set(sites)))
            raise StageFailedError(f"sites have signed a list with {missing}, which the round needs now", {})
        names = sorted(sites if signed is None else signed)
        context = Context(self._hash, round_, state["attempts"] - 1)
        directory = CertifiedDirectory(self._certificates.ca)
        session = ServerSession(context, directory, summed_numbers(self._study, weights), self._fixed)
        run = _Attempt(self._study, self._channel, self._certificates, session)

        def announce(survivors: tuple[str, ...]) -> None:
            self._write(round_, self._known()[str(round_)] | {"survivors": list(survivors)})

        try:
            total = run.total(names, max(quorum, self.fewest), signed, announce)
        except QuorumError as error:
            raise StageFailedError(str(error), run.reasons) from error
        except SecureAggregationError as error:
            raise StageFailedError(
                str(error), run.reasons | ({error.site: str(error)} if error.site else {})
            ) from error
        mean = decode(total.sums, total.count, self._fixed, total.sites)
        lost = {site: reason for site, reason in run.reasons.items() if site not in total.survivors}
        return Mean(after_sum(self._study, weights, mean, self._untrained), total.survivors, lost)

    def _begin(self, round_: int, weights: Weights) -> dict[str, Any]:
        """Count an attempt, before any message of it; charge a study that is private by site, once a training."""
        known = self._known()
        state = known.get(str(round_), {"attempts": 0, "survivors": None, "charged": []})
        start = weights_digest(weights)
        if grid_of(self._study) is not None and start not in state["charged"]:
            plan = plan_of(self._study)
            assert plan is not None
            Ledger(self._ledger).charge(self._hash, round_, plan.per_round, None, unit="site")
            state["charged"].append(start)
        state["attempts"] += 1
        self._write(round_, state)
        return dict(state)

    def _known(self) -> dict[str, Any]:
        return dict(read_json(self._path)) if self._path.exists() else {}

    def _write(self, round_: int, state: dict[str, Any]) -> None:
        write_json(self._path, self._known() | {str(round_): state})


class _Attempt:
    """The stages of one attempt, in their order."""

    def __init__(
        self, study: Study, channel: SecureSiteChannel, certificates: SiteCertificates, session: ServerSession
    ) -> None:
        self._channel, self._certificates, self._session = channel, certificates, session
        self._patience = max(LEAST_STAGE_S, 60 * study.rounds.deadline_minutes * _SHARE)
        self.reasons: dict[str, str] = {}

    def total(self, sites: Sequence[str], fewest: int, signed: Sequence[str] | None, announce: Announce) -> Total:
        """The sum; errors as ``ServerSession``. announce: writes the list down, before a site is asked to sign it."""
        session = self._session
        if len(sites) < max(FEWEST, fewest):
            raise QuorumError(f"{len(sites)} sites have trained; a sum has at least {max(FEWEST, fewest)}")
        certificates = {site: self._certificates.of(site) for site in sites}
        self._ask("advertise", certificates, lambda one: session.add_advertisement(_with(one, certificates)))
        advertised = tuple(session.advertisements())
        everyone = [one.site for one in advertised]
        self._ask("share", dict.fromkeys(everyone, advertised), lambda one: session.add_shares(_as(SealedShares, one)))
        forwards = {site: tuple(shares) for site, shares in session.forwards().items()}
        self._ask("masked", forwards, lambda one: session.add_masked(_as(MaskedUpdate, one)))
        survivors = session.survivors()
        if len(survivors) < fewest:
            raise QuorumError(f"{len(survivors)} sites sent their updates; at least {fewest} are needed")
        if signed is not None and list(survivors) != sorted(signed):
            raise QuorumError(f"sites have signed the list {', '.join(signed)}, and not all of these are there")
        announce(survivors)
        asked = dict.fromkeys(survivors, survivors)
        self._ask("sign", asked, lambda one: session.add_signature(_as(ListSignature, one)))
        request = session.unmask_request()
        self._ask("unmask", dict.fromkeys(survivors, request), lambda one: session.add_unmasking(_as(Unmasking, one)))
        return session.total()

    def _ask(self, stage: Stage, asked: Mapping[str, Asked], take: Callable[[Answered], None]) -> None:
        context = self._session.context
        requests = {
            site: SecureRequest(context.study_hash, context.round, context.attempt, stage, one)
            for site, one in asked.items()
        }
        missing = self._channel.ask_stage(requests, self._patience, lambda answer: take(answer.answered))
        self.reasons |= {site: f"secure sum, {stage}: {reason}" for site, reason in missing.items()}


def _as(kind: type[_Kind], answered: Answered) -> _Kind:
    if not isinstance(answered, kind):
        raise SecureAggregationError("answers another stage", answered.site)
    return answered


def _with(answered: Answered, certificates: Mapping[str, str]) -> Advertisement:
    """The keys with the certificate that the server has of the site."""
    return replace(_as(Advertisement, answered), certificate=certificates[answered.site])
