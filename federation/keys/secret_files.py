"""Files with secrets: never readable by another user, not even for a moment, and refused where they are."""

import os
import stat
from pathlib import Path

from federation.keys.certificates import CredentialError


def write_secret(path: Path, data: bytes, *, replace: bool = False) -> None:
    """Write ``data`` to ``path`` whole or not at all, mode 0600 from the moment it exists.

    CredentialError when there is something at ``path`` already, unless ``replace``.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    temporary.unlink(missing_ok=True)  # a killed process's
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            temporary.replace(path)
        else:
            path.hardlink_to(temporary)  # unlike a rename, never over another file
    except FileExistsError as error:
        raise CredentialError(
            f"{path}: is there already, and a key is never overwritten; move it away first"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_secret(path: Path) -> bytes:
    """The bytes of a secret; CredentialError when it is missing, or may be read or changed by more than its owner."""
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                mode = stat.S_IMODE(about.st_mode)
                raise CredentialError(
                    f"{path}: is open to other users (mode {mode:04o}); chmod 600 it, or replace it if it was read"
                )
            return file.read()
    except OSError as error:
        raise CredentialError(f"{path}: cannot be read ({error.strerror}); restore the file") from error


def private_folder(path: Path) -> None:
    """Make a folder for the owner alone, mode 0700; CredentialError when there is one that is open to others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        mode = stat.S_IMODE(path.stat().st_mode)
        if not path.is_dir():
            raise CredentialError(f"{path}: is a file; a folder is needed there") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise CredentialError(f"{path}: is open to other users (mode {mode:04o}); chmod 700 it") from None
