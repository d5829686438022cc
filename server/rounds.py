"""The round loop: send, reply store, judge, aggregate, checkpoint. Flower's has no checkpoint, quorum or deadline."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from federation.algorithms import build_algorithm
from federation.algorithms.algorithm import State, Weights
from federation.algorithms.mean import MeanAlgorithm, mean_of
from federation.algorithms.statistics import exchanges, merged, only_estimates
from federation.audit.log import AuditLog
from federation.privacy.config import SitePrivacyConfig
from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply, weights_digest
from federation.secure_aggregation.thresholds import check_sites as check_secure_sites
from federation.site_names import SITE_NAME
from federation.study import Study
from foundation import events
from foundation.errors import QuorumError, RunError, StudyError
from foundation.files import write_text
from foundation.messages import logger
from foundation.progress import bar
from foundation.vault import PLAIN, Vault
from server.checkpoint import Checkpoint, latest_checkpoint, write_checkpoint, write_snapshot
from server.judge import UpdateScreening, judge_clipped, judge_statistics, judge_together
from server.monitoring.divergence import divergence, layers_of
from server.monitoring.journal import Journal
from server.quorum import needed_replies
from server.reply_store import Content, ReplyStore, StoredReply
from server.secure_round import SecureMean, StageFailedError
from server.site_noise import LEDGER_NAME, TOLERANCE, site_noise

COLLAPSING = (
    "site {site}: the features of its images are becoming all alike (collapse); what is trained on will be worth "
    "little. Lower training.learning_rate, raise training.batch, or choose another method"
)
_OFFLINE = "offline"
_RESEND_S = 5.0


class SiteChannel(Protocol):
    """The way to the sites; Flower stays behind it."""

    def sites(self) -> list[SiteInfo]:
        """All sites of the study, once enough of them are there; asked before each round."""
        ...

    def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
        """Send one instruction to these sites."""
        ...

    def collect(self) -> list[TrainReply | Failure]:
        """Answers that have come since the last call; waits a little when there are none."""
        ...


@dataclass(frozen=True)
class _Aggregated:
    """What a round made of its replies; left_out: why some of them are not in it."""

    weights: Weights
    state: State
    accepted: list[StoredReply]
    left_out: dict[str, str]


@dataclass(frozen=True)
class RunRecords:
    """Where a federation is written down: its folder, the server's audit log, and what seals files."""

    folder: Path
    audit: AuditLog
    vault: Vault = PLAIN


class RoundLoop:
    """One federation from its last checkpoint to its end, in the folder of its records."""

    def __init__(
        self,
        study: Study,
        records: RunRecords,
        channel: SiteChannel,
        initial: Weights,
        secure: SecureMean | None = None,
    ) -> None:
        """secure: how updates are summed in a study with ``secure_aggregation``; None in every other."""
        folder, audit, vault = records.folder, records.audit, records.vault
        self._study, self._folder, self._channel = study, folder, channel
        self._audit, self._vault = audit, vault
        self._hash = study.training_hash()
        self._algorithm = build_algorithm(study.algorithm)
        found = latest_checkpoint(folder / "checkpoints", self._hash, vault=vault)
        self._checkpoint = found or Checkpoint(self._hash, 0, initial)
        self._journal = Journal(folder, after_round=self._checkpoint.round)
        self._noise = site_noise(study, audit.path.with_name(LEDGER_NAME))
        self._secure = secure
        self._warned: set[str] = set()
        self._layers: dict[str, str] = {}

    def run(self) -> Weights:
        """Go on to the last round, have the encoder's statistics estimated, and return the global weights."""
        count = exchanges(self._study, self._checkpoint.weights)
        with bar(f"study {self._study.name}: rounds", count) as line, self._journal:
            line.advance(self._checkpoint.round)
            while self._checkpoint.round < count:
                self._one_round(self._known_sites())
                line.advance(1)
        return self._checkpoint.weights

    def _known_sites(self) -> list[str]:
        infos = self._channel.sites()
        names = sorted(info.site for info in infos)
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise StudyError(f"two sites call themselves {min(twice)!r}; each site needs a name of its own")
        for info in infos:
            if not re.fullmatch(SITE_NAME, info.site):
                raise StudyError(
                    f"a site calls itself {info.site[:50]!r}; a name is letters, digits, dot, dash, underscore"
                )
            if info.study_hash != self._hash:
                raise StudyError(f"site {info.site}: has another study on its disk; give all sites this study file")
        if isinstance(self._study.privacy, SitePrivacyConfig) and len(names) > self._study.privacy.sites:
            raise StudyError(
                f"there are {len(names)} sites; privacy.sites says {self._study.privacy.sites}, and privacy.delta is "
                "judged by it: set it to the number of sites"
            )
        if self._secure is not None:
            check_secure_sites(len(names))
        if len(names) < self._algorithm.fewest_replies:
            raise StudyError(
                f"algorithm {self._study.algorithm.name!r} needs at least {self._algorithm.fewest_replies} sites; "
                f"there are {len(names)}"
            )
        return names

    def _one_round(self, sites: list[str]) -> None:
        number = self._checkpoint.round + 1
        content: Content = (
            "masked" if self._secure is not None else "private" if self._study.privacy is not None else "plain"
        )
        store = ReplyStore(self._folder / "replies", self._hash, number, self._checkpoint.weights, self._vault, content)
        needed = needed_replies(self._study, len(sites))
        if self._secure is not None:
            needed = max(needed, self._secure.fewest)
        reasons: dict[str, str] = {}
        failed = ""
        for attempt in range(1, self._study.rounds.attempts + 1):
            reasons = self._gather(number, sites, store)
            replies = store.replies()
            verdict = self._judge(replies)
            reasons |= verdict.left_out
            accepted = [reply for reply in replies if reply.site not in verdict.left_out]
            why = f"{len(accepted)} of {needed} updates, attempt {attempt}"
            if len(accepted) >= needed:
                try:
                    aggregated = self._aggregate(number, accepted, needed)
                except StageFailedError as error:
                    reasons |= error.reasons
                    failed = f"; the last sum: {error}"
                    why = f"{error}, attempt {attempt}"
                else:
                    self._finish(number, store, aggregated, verdict.norms, reasons | aggregated.left_out)
                    return
            self._journal.event(number, "round retried", None, why)
            self._audit.append("round retried", study=self._hash, round=number, reason=why)
        for site, reason in sorted(reasons.items()):
            self._journal.event(number, "no usable update", site, reason)
        why = "; ".join(f"{site}: {reason}" for site, reason in sorted(reasons.items()))
        raise QuorumError(
            f"round {number}: fewer than {needed} of {len(sites)} sites gave a usable update in "
            f"{self._study.rounds.attempts} attempts ({why}{failed}); mend those sites, then go on"
        )

    def _judge(self, replies: list[StoredReply]) -> UpdateScreening:
        weights, privacy = self._checkpoint.weights, self._study.privacy
        if self._secure is not None:  # sites refuse to send what this would leave out
            return UpdateScreening({}, {})
        if isinstance(privacy, SitePrivacyConfig):
            return judge_clipped(replies, weights, privacy.clip * (1 + TOLERANCE))
        if only_estimates(self._study, self._checkpoint.round + 1):
            return judge_statistics(replies, weights, self._study)
        return judge_together(replies, weights, self._study, self._checkpoint.norms)

    def _gather(self, number: int, sites: list[str], store: ReplyStore) -> dict[str, str]:
        """Fill the reply store until every site has answered or the deadline has passed; why each missing one is."""
        instruction = TrainInstruction(self._hash, number, self._checkpoint.weights)
        waiting = set(sites) - {reply.site for reply in store.replies()}
        reasons: dict[str, str] = {}
        offline: set[str] = set()
        deadline = time.monotonic() + 60 * self._study.rounds.deadline_minutes
        resend_at = 0.0
        self._channel.instruct(instruction, sorted(waiting))
        while waiting and time.monotonic() < deadline:
            for answer in self._channel.collect():
                if answer.site not in waiting or answer.round != number:
                    continue
                if isinstance(answer, Failure) and answer.category == _OFFLINE:
                    offline.add(answer.site)
                    continue
                waiting.discard(answer.site)
                reason = answer.category if isinstance(answer, Failure) else self._store_reply(store, answer)
                if reason:
                    reasons[answer.site] = reason
            if offline and time.monotonic() >= resend_at:
                self._channel.instruct(instruction, sorted(offline & waiting))
                resend_at = time.monotonic() + _RESEND_S
                offline.clear()
        return reasons | dict.fromkeys(waiting, "no answer before the deadline")

    @staticmethod
    def _store_reply(store: ReplyStore, reply: TrainReply) -> str | None:
        try:
            store.write(reply)
        except RunError as error:
            if error.__cause__ is not None:  # the server's own disk, not the reply
                raise
            return str(error)
        return None

    def _finish(
        self,
        number: int,
        store: ReplyStore,
        aggregated: "_Aggregated",
        norms: dict[str, float],
        reasons: dict[str, str],
    ) -> None:
        weights, accepted = aggregated.weights, aggregated.accepted
        for site, reason in sorted(reasons.items()):
            logger.warning(f"round {number}: site {site} was left out ({reason})")
            self._journal.event(number, events.LEFT_OUT, site, reason)
            self._audit.append("site left out", study=self._hash, round=number, site=site, reason=reason)
        if only_estimates(self._study, number):
            self._journal.event(number, events.STATISTICS, None, f"of the images of {len(accepted)} sites")
        else:
            self._tell(number, accepted, norms)
        self._checkpoint = Checkpoint(self._hash, number, weights, aggregated.state, norms)
        if len(accepted) + len(reasons) > 1:  # a site alone is no federation: nobody asks how far it had come
            snapshots = self._folder / events.SNAPSHOTS
            write_snapshot(snapshots, self._checkpoint, self._study.rounds.count, vault=self._vault)
        kept = self._study.rounds.keep_checkpoints
        write_checkpoint(self._folder / "checkpoints", self._checkpoint, kept, vault=self._vault)
        sites = ", ".join(reply.site for reply in accepted)
        self._audit.note(
            "round aggregated", study=self._hash, round=number, sites=sites, weights=weights_digest(weights)
        )
        store.remove()

    def _aggregate(self, number: int, accepted: list[StoredReply], needed: int) -> "_Aggregated":
        """The next weights and state; a mean is noised before anything is made of it, where the study has that.

        What comes after a mean under masks or with noise is made of the mean alone (``MeanAlgorithm.after_mean``).
        StageFailedError where a sum under masks came to nothing.
        """
        before, state, left_out = self._checkpoint.weights, self._checkpoint.algorithm, dict[str, str]()
        if self._secure is None and self._noise is None:
            if only_estimates(self._study, number):
                return _Aggregated(before | merged(before, accepted), state, accepted, {})
            weights, state = self._algorithm.aggregate(before, accepted, state)
            return _Aggregated(weights, state, accepted, {})
        if self._secure is not None:
            summed = self._secure.mean(number, before, [reply.site for reply in accepted], needed)
            mean, left_out = summed.weights, summed.left_out
            accepted = [reply for reply in accepted if reply.site in summed.sites]
        else:
            assert self._noise is not None
            mean = self._noise.noised(mean_of(before, accepted), before, len(accepted), number)
        if not only_estimates(self._study, number):
            assert isinstance(self._algorithm, MeanAlgorithm)  # federation/privacy/rules.py
            mean, state = self._algorithm.after_mean(before, mean, state)
        return _Aggregated(mean, state, accepted, left_out)

    def _tell(self, number: int, accepted: list[StoredReply], norms: dict[str, float]) -> None:
        """Write down the sites' figures, and what the server sees of their updates; of what no noise covers, nothing.

        Updates that a site has noised are public. Those that the server is to noise are not, and with no figure of them
        there is neither ``update_norm`` nor divergence; a study with privacy has no counts and no metrics either, and
        neither has one whose updates are summed under masks, of which the server sees none.
        """
        for reply in accepted:
            seen = {"update_norm": norms[reply.site]} if reply.site in norms else {}
            counted = None if self._study.privacy is not None or self._secure is not None else reply.images
            self._journal.metrics(number, reply.site, counted, reply.metrics | seen)
            if self._journal.is_collapsing(reply.site):
                if reply.site not in self._warned:
                    logger.warning(f"round {number}: {COLLAPSING.format(site=reply.site)}")
                self._warned.add(reply.site)
                self._journal.event(number, events.COLLAPSING, reply.site, "features lose their spread")
        if norms and len(accepted) > 1:  # of a single site there is nothing to compare
            self._layers = self._layers or layers_of(self._study.encoder, self._study.image)
            for site, layers in divergence(accepted, self._checkpoint.weights, self._layers).items():
                self._journal.divergence(number, site, layers)


def write_study(folder: Path, study: Study) -> Path:
    """Put the study that an arm trains into its folder; both apps read it there."""
    path = folder / "study.yaml"
    write_text(path, study.to_yaml())
    return path
