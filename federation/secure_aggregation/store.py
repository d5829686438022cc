"""What a site remembers of a round's sum, on its disk: the list that it signed, and an attempt's secrets."""

import os
from pathlib import Path
from typing import Literal, Protocol

from foundation.vault import Vault

Kind = Literal["survivors", "attempt"]
"""survivors: the list signed, kept as long as the study; attempt: secrets, dropped when the round is over."""


class Store(Protocol):
    """Keeps bytes by study, round and kind. ``put`` returns when a loss of power would not lose them."""

    def get(self, study_hash: str, round_: int, kind: Kind) -> bytes | None:
        """What was put last, None where nothing was."""
        ...

    def put(self, study_hash: str, round_: int, kind: Kind, data: bytes) -> None:
        """Keep ``data`` in place of what was there."""
        ...

    def drop(self, study_hash: str, round_: int, kind: Kind) -> None:
        """Forget it, where there is anything."""
        ...


class VaultStore:
    """A folder of files that the site's vault encrypts, each bound to its study and round."""

    def __init__(self, folder: Path, vault: Vault) -> None:
        self._folder, self._vault = folder, vault

    def get(self, study_hash: str, round_: int, kind: Kind) -> bytes | None:
        """As ``Store.get``; RunError for a file that is damaged or locked, which is never taken for none."""
        path = self._path(study_hash, round_, kind)
        return self._at(study_hash, round_).read_bytes(path) if path.exists() else None

    def put(self, study_hash: str, round_: int, kind: Kind, data: bytes) -> None:
        """As ``Store.put``."""
        self._at(study_hash, round_).write_bytes(self._path(study_hash, round_, kind), data)
        self._flush()

    def drop(self, study_hash: str, round_: int, kind: Kind) -> None:
        """As ``Store.drop``."""
        path = self._path(study_hash, round_, kind)
        if path.exists():
            path.unlink()
            self._flush()

    def _path(self, study_hash: str, round_: int, kind: Kind) -> Path:
        return self._folder / f"{study_hash}-{round_:06d}.{kind}"

    def _at(self, study_hash: str, round_: int) -> Vault:
        return self._vault.at("secure aggregation", study_hash, str(round_))

    def _flush(self) -> None:
        """A renamed file is only as durable as its folder's entry."""
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
