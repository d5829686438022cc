"""One process at a time in a folder, and nothing left there of one that was killed."""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from foundation.errors import RunError


@contextmanager
def alone_in(folder: Path, lock: str, refusal: str) -> Iterator[None]:
    """Hold ``folder / lock`` while the block runs; the system frees it when a process dies.

    RunError, "FOLDER: REFUSAL", where another process holds it. Half-written files and folders, which a killed process
    leaves beside their places, are removed: no other writes there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / lock).open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{folder}: {refusal}") from error
        for left in sorted(folder.rglob(".*.part")):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)
        yield
