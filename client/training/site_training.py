"""A site's training: one round is trained once from the same weights, and what it leaves is shaped for leaving."""

from dataclasses import replace

from torch import Tensor

from client.outgoing.answers import hide_count
from client.outgoing.metrics import rounded
from client.policy import check_trained, wait_for_quiet_hours
from client.privacy.training import train_private_round
from client.privacy.update import released
from client.site_images import SiteImages
from client.site_study import SiteStudy
from client.training.round import RoundOutcome, TrainingContext, train_round
from client.training.secure_round import SecureRounds, Trained, to_mask
from client.training.stored_rounds import Kept, StoredRounds
from federation.algorithms import build_algorithm
from federation.algorithms.statistics import exchanges, only_estimates
from federation.privacy.config import PatientPrivacyConfig
from federation.records import TrainInstruction, TrainReply
from federation.secure_aggregation.statistics import check_encodable
from foundation.errors import RunError, StudyError
from foundation.files import append_jsonl
from foundation.machine import choose_device
from ssl_methods.encoders.statistics import estimate_over

SEEN = "private.jsonl"
"""In a state folder: metrics of rounds that do not leave."""


class SiteTraining:
    """Trains the rounds of one study."""

    def __init__(self, here: SiteStudy, images: SiteImages, rounds: StoredRounds, secure: SecureRounds | None) -> None:
        self._here, self._images, self._rounds, self._secure = here, images, rounds, secure

    def trained_or_stored(self, instruction: TrainInstruction) -> tuple[TrainReply, bool]:
        """Train one round, or give back its stored update: one (study, round) is trained once from the same weights.

        The exchange after the last round trains nothing: it estimates the encoder's statistics.

        Returns the update, and whether it was stored before.

        Other weights for a round (a server that starts the study anew, or went back to an older checkpoint) are a new
        job: the stored update would belong to another history. A second instruction for a round in work waits for it.
        A round is not started in quiet hours, nor is anything done for a study that the site does not permit now.
        RunError when the disk is full or state is damaged, StudyError for another study or one not permitted,
        TrainingError when the loss is not finite (nothing is stored then). In a private study also BudgetSpentError,
        and LedgerNotContinuedError where the ledger does not go on from the head in the instruction; each training is
        written into the ledger before it begins, and a stored update that is sent again costs nothing.
        """
        here = self._here
        if instruction.study_hash != here.hash:
            raise StudyError(f"site {here.name}: was asked to train a study that is not the one on this site's disk")
        here.permit()
        self._check(instruction)
        self._images.store()  # too few images for the policy: then nothing stored is sent either
        if here.ledger is not None:
            here.ledger.extension(instruction.ledger)  # a ledger that lost rows is told before more is spent
        with self._rounds.locked(instruction.round):
            received = instruction.digest
            stored = self._rounds.reply_of(instruction.round, received)
            if self._secure is not None:
                self._secure.forget_before(instruction.round)
            reply = stored or self._train(instruction, received)
        return self._leaving(reply, instruction), stored is not None

    def to_sum(self, round_: int) -> Trained:
        """What the round's training left to be masked; its images never count as fewer than the policy tells."""
        here, stored = self._here, self._rounds.reply_of(round_, None)
        if stored is None:
            raise RunError(f"site {here.name}: was asked for an update of round {round_}, which it has not trained")
        images = 1 if here.private else max(stored.images, here.policy.smallest_count)
        return Trained(images, stored.weights)

    def _leaving(self, reply: TrainReply, instruction: TrainInstruction) -> TrainReply:
        """The update without what stays: under masks all of it, and what tells how few images there are."""
        here = self._here
        if self._secure is not None:
            reply = replace(reply, images=1, weights={}, metrics={})
        if here.ledger is not None:
            return replace(reply, ledger=here.ledger.extension(instruction.ledger))
        return reply if self._secure is not None else hide_count(reply, instruction.weights, here.policy)

    def _check(self, instruction: TrainInstruction) -> None:
        """StudyError for an instruction that the study does not have: other rounds, or tensors that stay here."""
        here = self._here
        if not 1 <= instruction.round <= exchanges(here.study, here.shared_like()):
            raise StudyError(
                f"site {here.name}: was asked for round {instruction.round} of a study of {here.study.rounds.count}"
            )
        if instruction.weights.keys() != here.shared_like().keys():
            raise StudyError(f"site {here.name}: was sent other tensors than those that the study shares")

    def _train(self, instruction: TrainInstruction, received: str) -> TrainReply:
        here, study, round_ = self._here, self._here.study, instruction.round
        store, device = self._images.store(), choose_device(here.file.device)
        wait_for_quiet_hours(here.policy)
        here.permit()  # an approval may have been withdrawn while it waited
        before, algorithm, sent = self._rounds.before(round_), build_algorithm(study.algorithm), instruction.weights
        last = only_estimates(study, round_)
        method = here.model(before.local, sent if last else algorithm.start(round_, sent, before.algorithm))
        context = TrainingContext(study, method, algorithm, store, here.name, device)
        if last:
            estimate_over(method.encoder, store, study.image, device, f"{here.name}, statistics")
            outcome = RoundOutcome({}, before.optimiser)
        else:
            if not before.local or not algorithm.goes_on(round_, before.algorithm):
                method.start_local_parts()
            self._rounds.count_one(lambda trained: self._permit_one(round_, trained))
            train = train_private_round if isinstance(study.privacy, PatientPrivacyConfig) else train_round
            outcome = train(context, round_, before.optimiser)
        shared = {name: value.detach().to("cpu", copy=True) for name, value in method.shared_state().items()}
        if last and self._secure is not None:
            check_encodable(shared, sent)
        metrics = {name: rounded(value) for name, value in outcome.metrics.items()}
        reply = TrainReply(here.hash, round_, here.name, len(store), shared, metrics)
        if here.private:
            reply = self._private_reply(instruction, shared, metrics)
        elif self._secure is not None:
            append_jsonl(here.folder / SEEN, {"round": round_, **metrics})
        if self._secure is not None:
            reply = replace(reply, weights=to_mask(study, reply.weights, sent), metrics={})
        moments = outcome.optimiser if study.training.optimiser_state == "keep" else {}
        state = {} if last else algorithm.keep(round_, sent, shared, before.algorithm)
        self._rounds.keep(reply, received, Kept(method.local_state(), moments, state))
        return reply

    def _permit_one(self, round_: int, trained: int) -> None:
        """StudyError where the policy permits no more rounds than ``trained``.

        What a private study's round will have spent is written down first, so that a budget is never passed.
        """
        check_trained(self._here.policy, self._here.study, trained)
        if self._here.ledger is not None:
            self._here.ledger.charge(round_)

    def _private_reply(
        self, instruction: TrainInstruction, shared: dict[str, Tensor], metrics: dict[str, float]
    ) -> TrainReply:
        """The reply of a private study; what was seen goes into ``private.jsonl``, which stays here."""
        here = self._here
        append_jsonl(here.folder / SEEN, {"round": instruction.round, **metrics})
        weights = released(here.study, shared, instruction.weights)
        return TrainReply(here.hash, instruction.round, here.name, 1, weights)
