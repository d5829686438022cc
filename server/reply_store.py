"""The reply store: one file a reply, so that a killed server aggregates what it already had."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from federation.algorithms.algorithm import Weights
from federation.records import TrainReply, check_reply, weights_digest
from foundation.errors import RunError
from foundation.tensor_files import TensorFile
from foundation.vault import PLAIN, LockedError, Vault
from server.judge import check_private

Content = Literal["plain", "private", "masked"]
"""private: by the rules of studies with privacy; masked: no tensors, only that a site has trained."""


@dataclass(frozen=True)
class StoredReply:
    """One accepted reply on disk; tensors are read one at a time. A ``Contribution`` for algorithms."""

    site: str
    images: int
    metrics: dict[str, float]
    file: TensorFile = field(compare=False)

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor."""
        return self.file.tensor(name)

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Read a part of one tensor, flattened."""
        return self.file.piece(name, start, stop)


class ReplyStore:
    """The replies of one round in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        study_hash: str,
        round_: int,
        expected: Weights,
        vault: Vault = PLAIN,
        content: Content = "plain",
    ) -> None:
        """expected: the round's weights; vault: what seals the files."""
        self._folder = folder / f"round-{round_:05d}"
        self._study_hash, self._round = study_hash, round_
        self._expected: Weights = {} if content == "masked" else expected
        self._private = content != "plain"
        self._start = weights_digest(expected)
        self._vault = vault.at("replies", study_hash, str(round_))
        self._written: dict[Path, StoredReply] = {}

    def write(self, reply: TrainReply) -> None:
        """Keep a reply that is as the study agreed on; RunError says what is wrong with another."""
        self._check(reply)
        metadata = {
            "study": reply.study_hash,
            "round": str(reply.round),
            "site": reply.site,
            "images": str(reply.images),
            "metrics": json.dumps(reply.metrics),
            "start": self._start,
        }
        path = self._folder / f"{reply.site}.safetensors"
        self._vault.save_tensors(path, reply.weights, metadata)
        self._written[path] = StoredReply(reply.site, reply.images, reply.metrics, self._vault.tensor_file(path))

    def replies(self) -> list[StoredReply]:
        """What is there and whole, in site-name order. What this object wrote was judged then.

        A damaged file is deleted, so that its site is asked again; so is one that answers other starting weights, which
        a server finds when it had to go back to an older checkpoint. LockedError where the key is not this file's.
        """
        found = []
        for path in sorted(self._folder.glob("*.safetensors")):
            if path in self._written:
                found.append(self._written[path])
                continue
            try:
                weights, metadata = self._vault.load_tensors(path)
                round_, images = int(metadata["round"]), int(metadata["images"])
                metrics = json.loads(metadata["metrics"])
                reply = TrainReply(metadata["study"], round_, metadata["site"], images, weights, metrics)
                self._check(reply)
                if metadata["start"] != self._start:
                    raise RunError(f"{path}: was trained from other weights")
                found.append(StoredReply(reply.site, reply.images, reply.metrics, self._vault.tensor_file(path)))
            except LockedError:
                raise
            except (RunError, KeyError, ValueError):
                path.unlink()
        return sorted(found, key=lambda stored: stored.site)

    def _check(self, reply: TrainReply) -> None:
        check_reply(reply, self._expected, self._study_hash, self._round)
        if self._private:
            check_private(reply, self._expected)

    def remove(self) -> None:
        """Delete the round's replies, after its checkpoint is written."""
        for path in self._folder.glob("*"):
            path.unlink()
        if self._folder.exists():
            self._folder.rmdir()
