"""Files that are either whole or absent: written beside their place, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from foundation.errors import RunError

AnyPath = str | os.PathLike[str]
"""A path as a person or a program gives it."""


def write_with(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to disk, then rename it to ``path``."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _not_written(path, error) from error
    finally:
        with suppress(OSError):  # what cannot be written to may not be cleared either; the reason has been told
            temporary.unlink(missing_ok=True)


def _not_written(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: could not be written ({error.strerror}); free space or permit writing, then go on")


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``data`` to ``path`` atomically."""
    write_with(path, lambda handle: handle.write(data))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


@contextmanager
def reading(path: object, *damage: type[Exception]) -> Iterator[None]:
    """RunError of one line where ``path`` is missing, or where the block raises one of the errors that mean damage."""
    try:
        yield
    except FileNotFoundError as error:
        raise RunError(f"{path}: is missing") from error
    except damage as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path}: is damaged ({reason})") from error


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; RunError when it is missing or cut short."""
    with reading(path, json.JSONDecodeError, UnicodeDecodeError):
        return json.loads(path.read_text())


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON object as a line. A torn last line (a killed writer) is ended first; ``read_jsonl`` skips it."""
    line = (json.dumps(row) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as handle:
            if handle.tell() > 0:
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else b"\n" + line
            handle.write(line)
    except OSError as error:
        raise _not_written(path, error) from error


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a JSONL file, [] when there is none."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def replace_folder(temporary: Path, path: Path) -> None:
    """Rename a finished folder into its place; an older folder there is removed first."""
    if path.exists():
        shutil.rmtree(path)
    temporary.replace(path)


def digest(*parts: bytes | memoryview | str) -> str:
    """SHA-256 in hex over the parts, each with its length, so that no two lists of parts collide."""
    state = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update((data.nbytes if isinstance(data, memoryview) else len(data)).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()
