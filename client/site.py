"""One site's part in a study: idempotent training, with everything that must survive on the site's disk.

``state/<study>/round-00003/`` holds a finished round: ``update.safetensors`` (what is sent, with the metrics), and what
the next round starts from, ``local.safetensors`` (parts that stay here) and ``optimiser.safetensors``. The folder is
renamed into place when whole: a round either was trained or was not.
"""

import fcntl
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from client.approval import approved_study
from client.approval_page import patients_in
from client.held_out import HeldOut, codes_of, kept_held_out
from client.labelled import LabelledPictures
from client.outgoing import Answer, checked_reply, hide_count
from client.outgoing_metrics import rounded
from client.outgoing_statistics import checked_statistics
from client.policy import (
    check_label_statistics,
    check_pictures,
    check_study,
    check_trained,
    check_work,
    wait_for_quiet_hours,
)
from client.private_rules import check_patients, fewer_patients
from client.private_training import train_private_round
from client.private_update import released
from client.secure_round import SecureRounds, Trained, to_mask
from client.site_file import SiteFile
from client.site_identity import SiteKeys
from client.site_ledger import SiteLedger
from client.training import check_site, train_round
from federation.algorithms import build_algorithm
from federation.federated_evaluation import Question, Statistics, answer_like
from federation.privacy.config import PatientPrivacyConfig
from federation.records import SiteInfo, TrainInstruction, TrainReply, weights_digest
from federation.secure_aggregation.update import numbers_of
from federation.secure_flower import SecureAnswer, SecureRequest
from federation.study import Study
from foundation.errors import RunError, StudyError
from foundation.files import append_jsonl, replace_folder, write_json, write_text
from foundation.machine import choose_device
from foundation.progress import say
from foundation.tensor_files import load_tensors, save_tensors
from foundation.vault import PLAIN, LockedError, Vault
from imaging.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods import build_method
from ssl_methods.encoder_outputs import feature_dim
from ssl_methods.encoders import timm_line
from ssl_methods.method import Method

_ENCODER = "encoder."
SEEN = "private.jsonl"
"""In a state folder: metrics of rounds that do not leave."""


class Site:
    """A hospital that has one study on its disk and answers instructions for it."""

    def __init__(self, site_file: SiteFile, study: Study, vault: Vault = PLAIN) -> None:
        self.name = site_file.site
        self._file = site_file
        self._study = study
        self.study_hash = study.training_hash()
        self._folder = site_file.state / self.study_hash[:16]
        self._vault = vault.at("site", self.name, self.study_hash)
        self.private = study.privacy is not None
        self.uncounted = self.private or study.secure_aggregation is not None
        self._secure = (
            None
            if study.secure_aggregation is None
            else SecureRounds(study, self.name, self._folder / "secure", self._vault, site_file.policy)
        )
        self._ledger: SiteLedger | None = None
        self._store: TensorStore | None = None
        self._labelled: LabelledPictures | None = None

    def describe(self) -> SiteInfo:
        """Name, study and number of usable pictures; decodes them the first time.

        Few pictures are not told exactly; in a private study, and where updates are summed under masks, every site has
        1.

        StudyError, before anything is decoded, where the site does not permit the study; DataError for pictures that
        cannot be used.
        """
        self._permit()
        pictures = max(len(self.store()), self._file.policy.smallest_count)
        return SiteInfo(self.name, self.study_hash, 1 if self.uncounted else pictures)

    def store(self) -> TensorStore:
        """The decoded pictures that are trained on, checked against the study and against what the site permits."""
        if self._store is None:
            whole, policy = Manifest.open(self._file.data), self._file.policy
            config = self._study.federated_evaluation
            if config is not None and policy.allow_label_statistics:
                codes_of(whole.table, config)  # a label that no study has is told before days of training, not after
            manifest = self._held_out(whole).pretrained(whole)
            patients = patients_in(manifest)
            check_pictures(policy, len(manifest), patients)
            check_patients(self._study, patients)
            store = TensorStore.build(manifest, self._study.image, self._file.cache)
            # Pictures that cannot be read are not counted, and may have been a patient's only ones.
            counts = Counter(store.patients.tolist())
            check_pictures(policy, len(store), None if patients is None else len(counts))
            check_site(self._study, store)
            check_work(policy, self._study, counts.values())
            if said := fewer_patients(self._study, len(counts)):
                say(f"site {self.name}: {said}")
            self._store = store
        return self._store

    def _held_out(self, manifest: Manifest) -> HeldOut:
        return kept_held_out(manifest, self._study, self.name, self._folder, self._vault)

    def shared_like(self) -> dict[str, Tensor]:
        """The tensors that the study shares, as its seed draws them: the names, shapes and types of every update."""
        method, pristine = _workbench(self._study)
        return {name: value for name, value in pristine.items() if method.role_of(name) == "shared"}

    def update_like(self) -> dict[str, Tensor]:
        """The tensors of an answer to an instruction: none where the update leaves only under masks."""
        return {} if self._secure is not None else self.shared_like()

    def allowed(self, answer: Answer, round_: int = 0) -> Answer:
        """The answer as it may be sent; WithheldError when it holds anything that is not on the list."""
        expected = self.update_like() if isinstance(answer, TrainReply) else {}
        return checked_reply(self._study, answer, expected, self._file.policy, self.name, round_)

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """The update that ``trained_or_stored`` makes or finds."""
        return self.trained_or_stored(instruction)[0]

    def trained_or_stored(self, instruction: TrainInstruction) -> tuple[TrainReply, bool]:
        """Train one round, or give back its stored update: one (study, round) is trained once from the same weights.

        Returns the update, and whether it was stored before.

        Other weights for a round (a server that starts the study anew, or went back to an older checkpoint) are a new
        job: the stored update would belong to another history. A second instruction for a round in work waits for it.
        A round is not started in quiet hours, nor is anything done for a study that the site does not permit now.
        RunError when the disk is full or state is damaged, StudyError for another study or one not permitted,
        TrainingError when the loss is not finite (nothing is stored then). In a private study also BudgetSpentError,
        and LedgerNotContinuedError where the ledger does not go on from the head in the instruction; each training is
        written into the ledger before it begins, and a stored update that is sent again costs nothing.
        """
        if instruction.study_hash != self.study_hash:
            raise StudyError(f"site {self.name}: was asked to train a study that is not the one on this site's disk")
        self._permit()
        self._check(instruction)
        self.store()  # too few pictures for the policy: then nothing stored is sent either
        if self._ledger is not None:
            self._ledger.extension(instruction.ledger)  # a ledger that lost rows is told before more is spent
        with self._job(instruction.round):
            received = instruction.digest
            stored = self._stored(instruction.round, received)
            if self._secure is not None:
                self._secure.forget_before(instruction.round)
            reply = stored or self._train(instruction, received)
        if self._secure is not None:
            reply = replace(reply, pictures=1, weights={}, metrics={})
        if self._ledger is not None:
            return replace(reply, ledger=self._ledger.extension(instruction.ledger)), stored is not None
        if self._secure is not None:
            return reply, stored is not None
        return hide_count(reply, instruction.weights, self._file.policy), stored is not None

    def summed(self, request: SecureRequest, keys: SiteKeys) -> SecureAnswer:
        """This site's part in a stage of a secure sum; errors as ``SecureRounds.answer``, and RunError and StudyError.

        Nothing is told of a round that this site has not trained.
        """
        if self._secure is None or request.study_hash != self.study_hash:
            raise StudyError(f"site {self.name}: was asked for a secure sum of a study that has none here")
        self._permit()
        with self._job(request.round):
            return self._secure.answer(request, keys, lambda: self._trained(request.round))

    def masked_numbers(self) -> int:
        """Numbers in an update as it leaves under masks."""
        return numbers_of(self.shared_like())

    def _trained(self, round_: int) -> Trained:
        """What the round's training left to be masked; its pictures never count as fewer than the policy tells."""
        stored = self._stored(round_, None)
        if stored is None:
            raise RunError(f"site {self.name}: was asked for an update of round {round_}, which it has not trained")
        pictures = 1 if self.private else max(stored.pictures, self._file.policy.smallest_count)
        return Trained(pictures, stored.weights)

    def keep_final(self, weights: dict[str, Tensor]) -> str:
        """Keep the final weights as ``final.safetensors``, and the encoder alone with the line that loads it; a digest.

        StudyError when they are not the tensors that the study shares.
        """
        like = {name: (value.shape, value.dtype) for name, value in self.shared_like().items()}
        if {name: (value.shape, value.dtype) for name, value in weights.items()} != like:
            raise StudyError(f"site {self.name}: was handed weights that are not those of the study")
        save_tensors(self._folder / "final.safetensors", weights)
        if self._secure is not None:
            self._secure.forget_before(self._study.rounds.count + 1)
        encoder = {name.removeprefix(_ENCODER): value for name, value in weights.items() if name.startswith(_ENCODER)}
        save_tensors(self._folder / "encoder.safetensors", encoder)
        described = {"study": self._study.name, "load": timm_line(self._study.encoder, self._study.image)}
        write_json(self._folder / "encoder.json", described)
        return weights_digest(load_tensors(self._folder / "final.safetensors")[0])

    def told(self, question: Question) -> Statistics:
        """What is asked about this site's labelled pictures; the encoder that they are asked by comes with "moments".

        StudyError for another study or question, LabelsNotPermittedError, TooFewLabelsError, RunError as ``train``.
        """
        config = self._study.federated_evaluation
        if question.study_hash != self.study_hash or config is None:
            raise StudyError(
                f"site {self.name}: was asked about labels for a study that has no evaluation of them here"
            )
        self._permit()
        check_label_statistics(self._file.policy, question.step == "histogram")
        with self._job(self._study.rounds.count):
            if self._labelled is None:
                fewest = self._file.policy.smallest_count
                self._labelled = LabelledPictures(self._study, config, self._folder, self._vault, fewest)
            if question.step == "moments":
                self._see(question, self._labelled)
            tensors = self._labelled.answer(question)
        return Statistics(self.study_hash, self.name, question.step, question.encoder, tensors)

    def statistics_like(self, answer: Statistics) -> dict[str, Tensor]:
        """Names, shapes and types of what may be told of labels."""
        config = self._study.federated_evaluation
        assert config is not None
        return answer_like(answer.step, feature_dim(_workbench(self._study)[0].encoder), len(config.classes))

    def _see(self, question: Question, labelled: LabelledPictures) -> None:
        """Compute the features of the labelled pictures by the encoder that was sent."""
        like = {name: value for name, value in self.shared_like().items() if name.startswith(_ENCODER)}
        if question.encoder != weights_digest(question.tensors) or question.tensors.keys() != like.keys():
            raise StudyError(f"site {self.name}: was sent an encoder that is not of the study")
        wait_for_quiet_hours(self._file.policy)
        manifest = Manifest.open(self._file.data)
        tested = self._held_out(manifest).tested(manifest)
        test = TensorStore.build(tested, self._study.image, self._file.cache) if len(tested) else None
        device = choose_device(self._file.device)

        def build() -> nn.Module:
            method, pristine = _workbench(self._study)
            method.load_state_dict({**pristine, **question.tensors})
            return method.encoder

        labelled.compute(question.encoder, {"train": self.store(), "test": test}, build, device)

    def allowed_statistics(self, answer: Statistics) -> Statistics:
        """As ``allowed``, for what is told of labels."""
        return checked_statistics(self._study, answer, self.statistics_like(answer), self._file.policy, self.name)

    def _permit(self) -> None:
        """Ask policy and approvals, which may have changed since the last instruction; open a private one's ledger."""
        approved = approved_study(self._file, self.study_hash)
        check_study(self._file.policy, self._study, () if approved is None else (self.study_hash,))
        if self.private and self._ledger is None:
            self._ledger = SiteLedger(self._file, self._study)

    def _check(self, instruction: TrainInstruction) -> None:
        """StudyError for an instruction that the study does not have: other rounds, or tensors that stay here."""
        if not 1 <= instruction.round <= self._study.rounds.count:
            raise StudyError(
                f"site {self.name}: was asked for round {instruction.round} of a study of {self._study.rounds.count}"
            )
        if instruction.weights.keys() != self.shared_like().keys():
            raise StudyError(f"site {self.name}: was sent other tensors than those that the study shares")

    def _train(self, instruction: TrainInstruction, received: str) -> TrainReply:
        store, device = self.store(), choose_device(self._file.device)
        wait_for_quiet_hours(self._file.policy)
        self._permit()  # an approval may have been withdrawn while it waited
        method, pristine = _workbench(self._study)
        local, optimiser = self._before(instruction.round)
        method.load_state_dict({**pristine, **local, **instruction.weights})
        if not local:
            method.start_local_parts()
        self._count_trained(instruction.round)
        train = train_private_round if isinstance(self._study.privacy, PatientPrivacyConfig) else train_round
        outcome = train(
            self._study, method, build_algorithm(self._study.algorithm), store, self.name, instruction.round,
            optimiser, device,
        )  # fmt: skip
        shared = {name: value.detach().to("cpu", copy=True) for name, value in method.shared_state().items()}
        metrics = {name: rounded(value) for name, value in outcome.metrics.items()}
        reply = TrainReply(self.study_hash, instruction.round, self.name, len(store), shared, metrics)
        if self.private:
            reply = self._private_reply(instruction, shared, metrics)
        elif self._secure is not None:
            append_jsonl(self._folder / SEEN, {"round": instruction.round, **metrics})
        if self._secure is not None:
            reply = replace(reply, weights=to_mask(self._study, reply.weights, instruction.weights), metrics={})
        kept = outcome.optimiser if self._study.training.optimiser_state == "keep" else {}
        self._keep(reply, received, method.local_state(), kept)
        return reply

    def _private_reply(
        self, instruction: TrainInstruction, shared: dict[str, Tensor], metrics: dict[str, float]
    ) -> TrainReply:
        """The reply of a private study; what was seen goes into ``private.jsonl``, which stays here."""
        append_jsonl(self._folder / SEEN, {"round": instruction.round, **metrics})
        weights = released(self._study, shared, instruction.weights)
        return TrainReply(self.study_hash, instruction.round, self.name, 1, weights)

    def _count_trained(self, round_: int) -> None:
        """Count this round, which is about to be trained; StudyError where the policy permits no more.

        What a private study's round will have spent is written down first, so that a budget is never passed.
        """
        path = self._folder / "trained"
        try:
            trained = int(path.read_text()) if path.exists() else 0
        except ValueError as error:
            raise RunError(f"{path}: is damaged; write into it how many rounds this site has trained") from error
        check_trained(self._file.policy, self._study, trained)
        if self._ledger is not None:
            self._ledger.charge(round_)
        write_text(path, f"{trained + 1}\n")

    def _round_folder(self, round_: int) -> Path:
        return self._folder / f"round-{round_:05d}"

    def _stored(self, round_: int, received: str | None) -> TrainReply | None:
        """The round as it was trained from the weights with the digest ``received``; None: from whichever."""
        folder = self._round_folder(round_)
        if not folder.exists():
            return None
        try:
            vault = self._vault.at(str(round_))
            weights, metadata = vault.load_tensors(folder / "update.safetensors")
            vault.load_tensors(folder / "local.safetensors")
            vault.load_tensors(folder / "optimiser.safetensors")
            if received is not None and metadata["received"] != received:
                say(f"site {self.name}: round {round_} is asked for from other weights and is trained again")
                return None
            return TrainReply(
                self.study_hash,
                round_,
                self.name,
                int(metadata["pictures"]),
                weights,
                json.loads(metadata["metrics"]),
            )
        except LockedError:
            raise
        except (RunError, KeyError, ValueError):
            say(f"site {self.name}: the stored round {round_} is damaged and is trained again")
            shutil.rmtree(folder)
            return None

    def _before(self, round_: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local tensors and optimiser state of the last round before this one that this site finished."""
        for folder in sorted(self._folder.glob("round-[0-9]*"), key=_number, reverse=True):
            if _number(folder) < round_:
                vault = self._vault.at(str(_number(folder)))
                try:
                    local = vault.load_tensors(folder / "local.safetensors")[0]
                    return local, vault.load_tensors(folder / "optimiser.safetensors")[0]
                except LockedError:
                    raise
                except RunError as error:
                    say(f"site {self.name}: {error}; an older round's state is used")
        return {}, {}

    def _keep(self, reply: TrainReply, received: str, local: dict[str, Tensor], optimiser: dict[str, Tensor]) -> None:
        folder = self._round_folder(reply.round)
        temporary = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process's; the lock keeps any other out
        vault = self._vault.at(str(reply.round))
        try:
            vault.save_tensors(temporary / "local.safetensors", local)
            vault.save_tensors(temporary / "optimiser.safetensors", optimiser)
            metadata = {
                "pictures": str(reply.pictures),
                "metrics": json.dumps(reply.metrics),
                "received": received,
            }
            vault.save_tensors(temporary / "update.safetensors", reply.weights, metadata)
            replace_folder(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        # The round before is kept: the server may have crashed before it wrote down this one's result.
        for old in self._folder.glob("round-[0-9]*"):
            if _number(old) < reply.round - 1:
                shutil.rmtree(old)

    @contextmanager
    def _job(self, round_: int) -> Iterator[None]:
        """Hold the lock of this study; the system frees it when a process dies, so that none stays behind."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.write(f"{os.getpid()} round {round_}\n")
            handle.flush()
            yield


def _number(round_folder: Path) -> int:
    return int(round_folder.name.removeprefix("round-"))


_bench: dict[str, tuple[Method, dict[str, Tensor]]] = {}


def _workbench(study: Study) -> tuple[Method, dict[str, Tensor]]:
    """The study's model and its initial state, built once a process: sites in one process take turns with it."""
    key = study.training_hash()
    if key not in _bench:
        _bench.clear()
        method = build_method(study.method, study.encoder, study.image, study.seed)
        _bench[key] = method, {name: value.clone() for name, value in method.state_dict().items()}
    return _bench[key]
