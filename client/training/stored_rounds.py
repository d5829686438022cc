"""A study's rounds on a site's disk.

``state/<study>/round-00003/`` holds a finished round: ``update.safetensors`` (what is sent, with the metrics), and what
the next round starts from: ``local.safetensors`` (parts that stay here), ``optimiser.safetensors`` and
``algorithm.safetensors`` (what the federated algorithm keeps at a site). The folder is renamed into place when whole: a
round either was trained or was not.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from torch import Tensor

from client.site_study import SiteStudy
from federation.records import TrainReply
from foundation.errors import RunError
from foundation.files import replace_folder, write_text
from foundation.messages import logger
from foundation.vault import LockedError, Vault


@dataclass(frozen=True)
class Kept:
    """What a round leaves for the site's next one: tensors by name, each field in a file of its name."""

    local: dict[str, Tensor] = field(default_factory=dict)
    optimiser: dict[str, Tensor] = field(default_factory=dict)
    algorithm: dict[str, Tensor] = field(default_factory=dict)


OLDEST = 5
"""Rounds after which local parts and moments are of another time: the shared weights have moved on without them."""


class StoredRounds:
    """Keeps finished rounds, the last two of them, and how many were begun; ``alone`` keeps other processes out."""

    def __init__(self, here: SiteStudy) -> None:
        self._here, self._folder = here, here.folder

    @contextmanager
    def locked(self, round_: int) -> Iterator[None]:
        """Hold the lock of this study; the system frees it when a process dies, so that none stays behind."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            handle.write(f"{os.getpid()} round {round_}\n")
            handle.flush()
            yield

    def count_one(self, check: Callable[[int], None]) -> None:
        """Count a round that is about to be trained, unless ``check`` of how many were before raises."""
        path = self._folder / "trained"
        try:
            trained = int(path.read_text()) if path.exists() else 0
        except ValueError as error:
            raise RunError(f"{path}: is damaged; write into it how many rounds this site has trained") from error
        check(trained)
        write_text(path, f"{trained + 1}\n")

    def reply_of(self, round_: int, received: str | None) -> TrainReply | None:
        """The round as it was trained from the weights with the digest ``received``; None: from whichever."""
        folder = self._round_folder(round_)
        if not folder.exists():
            return None
        here = self._here
        try:
            vault = here.vault.at(str(round_))
            weights, metadata = vault.load_tensors(folder / "update.safetensors")
            _load(vault, folder)
            if received is not None and metadata["received"] != received:
                logger.warning(f"site {here.name}: round {round_} is asked for from other weights and is trained again")
                return None
            images, metrics = int(metadata["images"]), json.loads(metadata["metrics"])
            return TrainReply(here.hash, round_, here.name, images, weights, metrics)
        except LockedError:
            raise
        except (RunError, KeyError, ValueError):
            logger.warning(f"site {here.name}: the stored round {round_} is damaged and is trained again")
            shutil.rmtree(folder)
            return None

    def before(self, round_: int) -> Kept:
        """What the last round before this one that this site finished has left; empty where there is none.

        Empty too, as for a new site, where that was more than ``OLDEST`` rounds ago.
        """
        for folder in sorted(self._folder.glob("round-[0-9]*"), key=_number, reverse=True):
            if _number(folder) < round_:
                if round_ - _number(folder) > OLDEST:
                    logger.info(
                        f"site {self._here.name}: its last round was {_number(folder)}; parts that stay here and the "
                        f"optimiser's moments, over {OLDEST} rounds old, start anew in round {round_}"
                    )
                    break
                vault = self._here.vault.at(str(_number(folder)))
                try:
                    return _load(vault, folder)
                except LockedError:
                    raise
                except RunError as error:
                    logger.warning(f"site {self._here.name}: {error}; an older round's state is used")
        return Kept()

    def keep(self, reply: TrainReply, received: str, kept: Kept) -> None:
        """Store a finished round, trained from weights with the digest ``received``, and drop those long over."""
        folder = self._round_folder(reply.round)
        temporary = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)  # a killed process's; the lock keeps any other out
        vault = self._here.vault.at(str(reply.round))
        try:
            for each in fields(kept):
                vault.save_tensors(_file(temporary, each.name), getattr(kept, each.name))
            metadata = {
                "images": str(reply.images),
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

    def _round_folder(self, round_: int) -> Path:
        return self._folder / f"round-{round_:05d}"


def _file(round_folder: Path, name: str) -> Path:
    return round_folder / f"{name}.safetensors"


def _load(vault: Vault, round_folder: Path) -> Kept:
    return Kept(*(vault.load_tensors(_file(round_folder, each.name))[0] for each in fields(Kept)))


def _number(round_folder: Path) -> int:
    return int(round_folder.name.removeprefix("round-"))
