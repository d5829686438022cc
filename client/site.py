"""One site's part in a study: idempotent training, with everything that must survive on the site's disk.

``state/<study>/round-00003/`` holds a finished round: ``update.safetensors`` (what is sent, with the metrics), and what
the next round starts from, ``local.safetensors`` (parts that stay here) and ``optimiser.safetensors``. The folder is
renamed into place when whole: a round either was trained or was not.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from client.site_file import SiteFile
from client.training import check_site, train_round
from federation.algorithms import build_algorithm
from federation.records import SiteInfo, TrainInstruction, TrainReply, weights_digest
from federation.study import Study
from foundation.errors import RunError, StudyError
from foundation.files import load_tensors, replace_folder, save_tensors
from foundation.machine import choose_device
from foundation.progress import say
from imaging.manifest import Manifest
from imaging.store import TensorStore
from ssl_methods import build_method
from ssl_methods.method import Method


class Site:
    """A hospital that has one study on its disk and answers instructions for it."""

    def __init__(self, site_file: SiteFile, study: Study) -> None:
        self.name = site_file.site
        self._file = site_file
        self._study = study
        self._hash = study.training_hash()
        self._folder = site_file.state / self._hash[:16]
        self._store: TensorStore | None = None

    def describe(self) -> SiteInfo:
        """Name, study and number of usable pictures; decodes them the first time."""
        return SiteInfo(self.name, self._hash, len(self.store()))

    def store(self) -> TensorStore:
        """The site's decoded pictures, checked against the study."""
        if self._store is None:
            store = TensorStore.build(Manifest.open(self._file.data), self._study.image, self._file.cache)
            check_site(self._study, store)
            self._store = store
        return self._store

    def train(self, instruction: TrainInstruction) -> TrainReply:
        """Train one round, or give back its stored update: one (study, round) is trained once from the same weights.

        Other weights for a round (a server that starts the study anew, or went back to an older checkpoint) are a new
        job: the stored update would belong to another history. A second instruction for a round in work waits for it.
        RunError when the disk is full or state is damaged, StudyError for another study, TrainingError when the loss is
        not finite (nothing is stored then).
        """
        if instruction.study_hash != self._hash:
            raise StudyError(f"site {self.name}: was asked to train a study that is not the one on this site's disk")
        with self._job(instruction.round):
            received = weights_digest(instruction.weights)
            stored = self._stored(instruction.round, received)
            return stored or self._train(instruction, received)

    def _train(self, instruction: TrainInstruction, received: str) -> TrainReply:
        store, device = self.store(), choose_device(self._file.device)
        method, pristine = _workbench(self._study)
        local, optimiser = self._before(instruction.round)
        method.load_state_dict({**pristine, **local, **instruction.weights})
        if not local:
            method.start_local_parts()
        outcome = train_round(
            self._study, method, build_algorithm(self._study.algorithm), store, self.name, instruction.round,
            optimiser, device,
        )  # fmt: skip
        shared = {name: value.detach().to("cpu", copy=True) for name, value in method.shared_state().items()}
        reply = TrainReply(self._hash, instruction.round, self.name, len(store), shared, _rounded(outcome.metrics))
        kept = outcome.optimiser if self._study.training.optimiser_state == "keep" else {}
        self._keep(reply, received, method.local_state(), kept)
        return reply

    def _round_folder(self, round_: int) -> Path:
        return self._folder / f"round-{round_:05d}"

    def _stored(self, round_: int, received: str) -> TrainReply | None:
        folder = self._round_folder(round_)
        if not folder.exists():
            return None
        try:
            weights, metadata = load_tensors(folder / "update.safetensors")
            load_tensors(folder / "local.safetensors")
            load_tensors(folder / "optimiser.safetensors")
            if metadata["received"] != received:
                say(f"site {self.name}: round {round_} is asked for from other weights and is trained again")
                return None
            return TrainReply(
                self._hash,
                round_,
                self.name,
                int(metadata["pictures"]),
                weights,
                json.loads(metadata["metrics"]),
            )
        except (RunError, KeyError, ValueError):
            say(f"site {self.name}: the stored round {round_} is damaged and is trained again")
            shutil.rmtree(folder)
            return None

    def _before(self, round_: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Local tensors and optimiser state of the last round before this one that this site finished."""
        for folder in sorted(self._folder.glob("round-[0-9]*"), key=_number, reverse=True):
            if _number(folder) < round_:
                try:
                    return load_tensors(folder / "local.safetensors")[0], load_tensors(
                        folder / "optimiser.safetensors"
                    )[0]
                except RunError as error:
                    say(f"site {self.name}: {error}; an older round's state is used")
        return {}, {}

    def _keep(self, reply: TrainReply, received: str, local: dict[str, Tensor], optimiser: dict[str, Tensor]) -> None:
        folder = self._round_folder(reply.round)
        temporary = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process's; the lock keeps any other out
        try:
            save_tensors(temporary / "local.safetensors", local)
            save_tensors(temporary / "optimiser.safetensors", optimiser)
            metadata = {
                "pictures": str(reply.pictures),
                "metrics": json.dumps(reply.metrics),
                "received": received,
            }
            save_tensors(temporary / "update.safetensors", reply.weights, metadata)
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


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    # Six digits: enough for a curve, too few to carry a picture.
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}
