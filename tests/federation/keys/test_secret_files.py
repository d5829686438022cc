"""Secrets on disk: nobody else ever reads them, nothing overwrites them, and what is open to others is refused."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from federation.keys.certificates import CredentialError
from federation.keys.secret_files import private_folder, read_secret, write_secret


@pytest.fixture(autouse=True)
def careless_umask() -> Iterator[None]:
    """An account whose new files everybody may read and write."""
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_secret_is_private_from_the_moment_it_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    opened, flushed = os.open, os.fsync

    def look(*arguments: object, **keywords: object) -> int:
        handle: int = opened(*arguments, **keywords)  # type: ignore[arg-type]
        seen.append([mode(path) for path in tmp_path.iterdir()])
        return handle

    def look_again(handle: int) -> None:
        seen.append([mode(path) for path in tmp_path.iterdir()])
        flushed(handle)

    monkeypatch.setattr(os, "open", look)
    monkeypatch.setattr(os, "fsync", look_again)
    write_secret(tmp_path / "key", b"secret")
    assert seen == [[0o600], [0o600]]
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (mode(tmp_path / "key"), read_secret(tmp_path / "key")) == (0o600, b"secret")


def test_a_secret_is_overwritten_only_where_that_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_secret(path, b"first")
    with pytest.raises(CredentialError, match="never overwritten; move it away first"):
        write_secret(path, b"second")
    assert (path.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (b"first", ["key"])
    write_secret(path, b"third", replace=True)
    assert (path.read_bytes(), mode(path)) == (b"third", 0o600)


def test_what_a_killed_process_left_is_not_followed(tmp_path: Path) -> None:
    """Not even where it is a link that somebody laid to another file."""
    (tmp_path / "theirs").write_bytes(b"theirs")
    (tmp_path / f".key.{os.getpid()}.part").symlink_to(tmp_path / "theirs")
    write_secret(tmp_path / "key", b"secret")
    assert (tmp_path / "theirs").read_bytes() == b"theirs"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["key", "theirs"]


def test_a_full_disk_leaves_the_old_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    write_secret(path, b"first")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_secret(path, b"second", replace=True)
    assert (path.read_bytes(), [p.name for p in tmp_path.iterdir()]) == (b"first", ["key"])


@pytest.mark.parametrize("bits", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o666])
def test_a_secret_that_others_can_open_is_refused(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "key"
    write_secret(path, b"secret")
    path.chmod(bits)
    with pytest.raises(CredentialError) as caught:
        read_secret(path)
    assert str(caught.value) == (
        f"{path}: is open to other users (mode {bits:04o}); chmod 600 it, or replace it if it was read"
    )
    path.chmod(0o400)
    assert read_secret(path) == b"secret"


def test_a_missing_secret_is_said(tmp_path: Path) -> None:
    with pytest.raises(CredentialError, match=r"key: cannot be read \(No such file or directory\); restore the file"):
        read_secret(tmp_path / "key")


def test_a_private_folder(tmp_path: Path) -> None:
    path = tmp_path / "above" / "state"
    private_folder(path)
    assert mode(path) == 0o700
    (path / "job").write_text("kept")
    private_folder(path)  # there already, and private
    assert (path / "job").read_text() == "kept"
    path.chmod(0o750)
    with pytest.raises(CredentialError, match=r"state: is open to other users \(mode 0750\); chmod 700 it"):
        private_folder(path)
    with pytest.raises(CredentialError, match="job: is a file; a folder is needed there"):
        private_folder(path / "job")
