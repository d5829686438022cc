"""Where the key of a vault comes from: never from beside what it locks."""

import base64
import os
import re
import secrets
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from foundation.configuration.section import Section
from foundation.errors import StudyError
from foundation.vault import KEY_BYTES, PLAIN, Vault

_COMMAND_S = 30.0
_LONGEST = 1024  # no form of a key is longer, and a wrong file may be


class KeySource(Section):
    """Where to take the 256-bit key that encrypts a state folder: exactly one of a file, a credential and a command."""

    file: Path | None = Field(
        default=None,
        description="Mounted secret: 32 raw bytes or 64 hex digits, readable by its owner alone, outside the state.",
    )
    credential: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@-]{0,254}$",
        description="Name of a systemd credential (LoadCredentialEncrypted=), in either of the same forms.",
    )
    command: Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Program and arguments, run without a shell, that print the key as 64 hex digits or base64.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.file, self.credential, self.command].count(None) != 2:
            raise ValueError("file, credential and command: exactly one of them is set")
        return self

    def counted_from(self, folder: Path) -> "KeySource":
        """The same source with a relative ``file`` counted from ``folder``, where the file that names it lies."""
        return self if self.file is None else self.model_copy(update={"file": folder / self.file})


def new_key_text() -> str:
    """A new key from the system's secure source, as 64 hex digits."""
    return secrets.token_hex(KEY_BYTES)


def open_vault(source: KeySource | None, guarded: Sequence[Path]) -> Vault:
    """The vault that ``source`` has the key of; the plain one where there is no source.

    StudyError when the key cannot be had, is of another length, may be read by others, or lies in one of the
    ``guarded`` folders, which are those that it locks.
    """
    if source is None:
        return PLAIN
    if source.command is not None:
        return Vault(_printed_by(source.command))
    if source.credential is not None:
        return Vault(_key_in(_credential(source.credential), guarded, private=False))
    assert source.file is not None
    return Vault(_key_in(source.file, guarded, private=True))


def _credential(name: str) -> Path:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise StudyError(
            f"key.credential {name!r}: CREDENTIALS_DIRECTORY is not set; start as a systemd service "
            f"with LoadCredentialEncrypted={name}, or name a file or a command"
        )
    return Path(folder) / name


def _key_in(path: Path, guarded: Sequence[Path], private: bool) -> bytes:
    """The key in a file. A credential's mode is systemd's affair: an access list shows up as the group's rights."""
    try:
        real = path.resolve(strict=True)
        inside = next((folder for folder in guarded if real.is_relative_to(folder.resolve())), None)
        if inside is not None:
            raise StudyError(
                f"{path}: lies in {inside}, and a key beside what it locks protects nothing; "
                f"keep it on another disk, in a systemd credential, or behind a command"
            )
        if not real.is_file():
            raise StudyError(f"{path}: is not a file; name the file that holds the key")
        with real.open("rb") as handle:
            mode, data = stat.S_IMODE(os.fstat(handle.fileno()).st_mode), handle.read(_LONGEST)
    except FileNotFoundError as error:
        raise StudyError(f"{path}: there is no such key file; mount it, or correct the key's place") from error
    except OSError as error:
        raise StudyError(f"{path}: the key cannot be read ({error.strerror}); permit this user to read it") from error
    if private and mode & 0o077:
        raise StudyError(f"{path}: others than its owner may use the key (mode {mode:04o}); run: chmod 600 {path}")
    # 32 characters of text are a passphrase or a 128-bit key in hex. Of random keys one in 4 billion looks like text.
    raw = data if len(data) == KEY_BYTES and not data.isascii() else None
    key = raw or _from_hex(data)
    if key is None:
        raise StudyError(f"{path}: holds {len(data)} bytes that are no key; it takes 32 random bytes or 64 hex digits")
    return key


def _printed_by(command: Sequence[str]) -> bytes:
    """The key that a command prints. Its output is repeated nowhere, as it may be the key; stderr is let through."""
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=_COMMAND_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise StudyError(
            f"key.command {name!r}: has not ended after {_COMMAND_S:g} s; it must print the key without asking anybody"
        ) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StudyError(f"key.command {name!r}: cannot be run ({reason}); give the program's whole path") from error
    if done.returncode != 0:
        raise StudyError(f"key.command {name!r}: ended with code {done.returncode}; run it by hand to see why")
    key = _from_hex(done.stdout) or _from_base64(done.stdout)
    if key is None:
        raise StudyError(
            f"key.command {name!r}: printed {len(done.stdout)} bytes that are no key; "
            f"it has to print 64 hex digits, or 32 bytes in base64"
        )
    return key


def _from_hex(text: bytes) -> bytes | None:
    digits = re.fullmatch(rb"\s*([0-9a-fA-F]{%d})\s*" % (2 * KEY_BYTES), text)
    return bytes.fromhex(digits[1].decode()) if digits else None


def _from_base64(text: bytes) -> bytes | None:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None
