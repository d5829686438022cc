"""The server's part in secure sums: who has trained, the stages of a sum, and what of it outlives the server.

A sum that is cut off is begun anew with fresh keys, as the next attempt. Once a list of survivors was announced, sites
may have signed it, and they sign no other in this round: it is written down before, and the next attempt is with those
sites alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509

from federation.algorithms.algorithm import Weights
from federation.privacy.config import SitePrivacyConfig
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.records import Failure, TrainReply
from federation.secure_aggregation.identity import CertifiedDirectory
from federation.secure_aggregation.messages import Context, SecureAggregationError
from federation.secure_aggregation.server_session import ServerSession
from federation.secure_aggregation.thresholds import FEWEST, threshold
from federation.secure_aggregation.update import added, fixed_point, summed_parameters
from federation.secure_flower import Asked, Stage, Told, answer_in, requested
from federation.study import Study
from foundation.errors import QuorumError, RunError
from foundation.files import read_json, write_json

CERTIFICATES = "certificates.json"
"""A simulation's certificates of its sites, by site, in the arm's folder."""
_SHARE_OF_DEADLINE, _LEAST_S = 0.2, 60.0


@dataclass(frozen=True)
class Certified:
    """The CA of the sites, and where their certificates (PEM) are, which they are handed to show each other."""

    ca: x509.Certificate
    certificates: Callable[[], Mapping[str, str]]


class SumContact(Protocol):
    """The way to the sites' parts in a sum."""

    def sum_stage(self, asked: Mapping[str, Asked], patience_s: float) -> Mapping[str, Told | Failure]:
        """Ask each site its own; the answers that came in time, or why there is none."""
        ...


class Trained:
    """The sites whose update of a round is made and stays with them; in the place of a spool of updates."""

    def __init__(self) -> None:
        self.sites: set[str] = set()

    def write(self, reply: TrainReply) -> None:
        """Take note of a site; RunError for a reply with anything in it."""
        if not reply.held or reply.weights or reply.metrics:
            raise RunError("sent a single update, and the study has secure aggregation")
        self.sites.add(reply.site)


class SecureRound:
    """The sum of one round, over the sites that have trained it."""

    def __init__(
        self, study: Study, folder: Path, contact: SumContact, certified: Certified, round_: int, before: Weights,
        ledger: Path,
    ) -> None:  # fmt: skip
        self._study, self._contact, self._certified, self._ledger = study, contact, certified, ledger
        self._hash, self._round, self._before = study.training_hash(), round_, before
        self._numbers = sum(value.numel() for _, value in summed_parameters(before))
        self._fixed = fixed_point(study, self._numbers)
        self._path = folder / "spool" / f"sum-{round_:05d}.json"
        self._patience = max(_LEAST_S, _SHARE_OF_DEADLINE * 60 * study.rounds.deadline_minutes)
        self.reasons: dict[str, str] = {}

    def run(self, sites: set[str]) -> tuple[Weights, tuple[str, ...]]:
        """The next weights, and the sites whose updates are in them; QuorumError when too few see it through.

        ``reasons`` says why each other site is not among them.
        """
        kept: dict[str, Any] = {"attempt": 0, "survivors": None}
        if self._path.exists():
            kept = read_json(self._path)
        else:  # before the attempt is written down: a round that is tried again is charged once, and never not at all
            self._charge()
        kept["attempt"] += 1
        write_json(self._path, kept)
        announced = kept["survivors"]
        taking = sorted(sites if announced is None else sites & set(announced))
        self._enough(len(taking), "have trained")
        context = Context(self._hash, self._round, kept["attempt"])
        session = ServerSession(context, CertifiedDirectory(self._certified.ca), self._numbers, self._fixed)
        survivors = self._to_the_list(session, context, taking)
        if announced is not None and tuple(announced) != survivors:
            raise QuorumError(
                f"round {self._round}: its sum was begun with {', '.join(announced)}, who sign no other list in this "
                f"round, and only {', '.join(survivors)} are there: wait until the others are back, then go on"
            )
        write_json(self._path, kept | {"survivors": list(survivors)})
        request = dict.fromkeys(survivors, requested("sign", list(survivors)))
        self._stage(session.add_signature, context, "sign", request)
        released = dict.fromkeys(survivors, requested("unmask", session.unmask_request()))
        self._stage(session.add_unmasking, context, "unmask", released)
        return added(self._before, session.total(), self._fixed), survivors

    def _to_the_list(self, session: ServerSession, context: Context, taking: Sequence[str]) -> tuple[str, ...]:
        """From the keys to the masked updates; who has sent one."""
        certificates = self._certified.certificates()
        for site in sorted(set(taking) - set(certificates)):
            self.reasons[site] = "has no certificate"
        keys = {site: requested("advertise", certificates[site]) for site in taking if site in certificates}
        self._stage(session.add_advertisement, context, "advertise", keys)
        advertised = session.advertisements()
        self._enough(len(advertised), "gave their keys")
        shared = dict.fromkeys((one.site for one in advertised), requested("share", advertised))
        self._stage(session.add_shares, context, "share", shared)
        forwards = {site: requested("masked", shares) for site, shares in session.forwards().items()}
        self._stage(session.add_masked, context, "masked", forwards)
        survivors = session.survivors()
        self._enough(len(survivors), "sent their updates")
        return survivors

    def _stage(
        self, take: Callable[[Any], None], context: Context, stage: Stage, requests: Mapping[str, bytes]
    ) -> None:
        """Ask every site and take its answer; who gives none, or a wrong one, has dropped out."""
        asked = {site: Asked(self._hash, self._round, context.attempt, stage, said) for site, said in requests.items()}
        answers = self._contact.sum_stage(asked, self._patience)
        for site in sorted(asked):
            answer = answers[site]
            try:
                if isinstance(answer, Failure):
                    raise RunError(answer.category)
                take(answer_in(answer))
            except (RunError, SecureAggregationError) as error:
                self.reasons[site] = f"secure sum, {stage}: {error}"

    def _enough(self, count: int, what: str) -> None:
        privacy = self._study.privacy
        needed = threshold(privacy.sites) if isinstance(privacy, SitePrivacyConfig) else FEWEST
        if count < needed:
            why = "; ".join(f"{site}: {reason}" for site, reason in sorted(self.reasons.items()))
            raise QuorumError(f"{count} sites {what}; {needed} are needed for a secure sum{f' ({why})' if why else ''}")

    def forget(self) -> None:
        """The round is in a checkpoint."""
        self._path.unlink(missing_ok=True)

    def _charge(self) -> None:
        """Write down what the sum spends, where the sites noise it for privacy by site.

        A site draws its noise once for a round, so that a sum that is tried again tells no more.
        """
        plan = plan_of(self._study)
        if isinstance(self._study.privacy, SitePrivacyConfig) and plan is not None:
            Ledger(self._ledger).charge(self._hash, self._round, plan.per_round, None, unit="site")
