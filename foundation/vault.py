"""Files encrypted at rest: what a site or a server keeps on its disk is worth nothing without a key kept elsewhere.

A sealed file is a header (magic, version, a random salt, a commitment to the key) and chunks of AES-256-GCM in the
STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizar 2015): a chunk's nonce is its number and whether it is the
last, so that chunks cannot be cut off, put in another order or taken from another file. Every file has a key of its
own, HKDF-SHA256(key, salt), and with it comes the commitment: without one, a wrong key would look like damage. Each
chunk is bound to the file's name and to the place that ``Vault.at`` names; not to its folder, as folders are renamed.

Not found is an older copy of a file put back in the very same place: that is for the audit log's chain.
"""

import io
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from foundation import files
from foundation.errors import RunError

if TYPE_CHECKING:
    import torch  # where tensors are kept it is imported: that takes seconds, and who asks for a key needs none

    from foundation.tensor_files import TensorFile

KEY_BYTES = 32
CHUNK = 1 << 16
"""Bytes a chunk: a reader keeps one, and the server has a reader for each of a round's sites."""
_MAGIC, _VERSION = b"fedpretext vault ", b"1\n"
_SALT, _COMMITMENT, _TAG = 16, 32, 16
_START = len(_MAGIC + _VERSION) + _SALT + _COMMITMENT


class LockedError(RunError):
    """Not damage: the key and the file do not go together, so a fallback would throw away what another key opens."""


class Vault:
    """Writes and reads files under one key, or, without a key, ordinary ones as foundation/files.py does."""

    def __init__(self, key: bytes | None, place: tuple[str, ...] = ()) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(f"a key of {len(key)} bytes; AES-256 has {KEY_BYTES}")
        self._key, self._place = key, place

    def at(self, *place: str) -> "Vault":
        """The vault of one place (a study's round, say): what is sealed there opens nowhere else."""
        return Vault(self._key, (*self._place, *place))

    def write_bytes(self, path: Path, data: bytes) -> None:
        """Write ``data`` atomically; RunError when the disk is full."""
        if self._key is None:
            files.write_bytes(path, data)
        else:
            _seal(path, data, self._key, self._bound(path))

    def read_bytes(self, path: Path) -> bytes:
        """What ``write_bytes`` wrote. RunError when missing or damaged, LockedError for another key or none."""
        if self._key is None:
            _refuse_sealed(path)
            with files.reading(path, OSError, ValueError):
                return path.read_bytes()
        with files.reading(path, OSError, ValueError), self._sealed(path, self._key).open() as sealed:
            return sealed.read()

    def save_tensors(
        self, path: Path, tensors: "Mapping[str, torch.Tensor]", metadata: Mapping[str, str] | None = None
    ) -> None:
        """Write tensors as safetensors, atomically. With a key this takes the memory of two more copies of them."""
        from safetensors.torch import save

        from foundation.tensor_files import detach_to_cpu, save_tensors

        if self._key is None:
            save_tensors(path, tensors, metadata)
            return
        data = save(detach_to_cpu(tensors), dict(metadata) if metadata else None)
        _seal(path, data, self._key, self._bound(path))

    def load_tensors(self, path: Path) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
        """All tensors of a file and its metadata; errors as ``read_bytes``. Holds the tensors and one chunk."""
        from foundation.tensor_files import TensorFile, load_tensors

        if self._key is None:
            _refuse_sealed(path)
            return load_tensors(path)
        sealed = self._sealed(path, self._key)
        with files.reading(path, OSError, ValueError), sealed.open() as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        metadata = header.pop("__metadata__", {})
        file = TensorFile(cast(Path, sealed))
        return {name: file.tensor(name) for name in header}, metadata

    def tensor_file(self, path: Path) -> "TensorFile":
        """A reader of single tensors and of pieces of them, one chunk in memory; errors as ``read_bytes``."""
        from foundation.tensor_files import TensorFile

        if self._key is None:
            _refuse_sealed(path)
            return TensorFile(path)
        return TensorFile(cast(Path, self._sealed(path, self._key)))

    def _sealed(self, path: Path, key: bytes) -> "_SealedFile":
        return _SealedFile(path, key, self._bound(path))

    def _bound(self, path: Path) -> bytes:
        return bytes.fromhex(files.digest(*self._place, path.name))


PLAIN = Vault(None)


def _derived(key: bytes, salt: bytes) -> tuple[AESGCM, bytes]:
    """A file's cipher, and what its header says of the key."""
    both = HKDF(SHA256(), KEY_BYTES + _COMMITMENT, salt, _MAGIC + _VERSION).derive(key)
    return AESGCM(both[:KEY_BYTES]), both[KEY_BYTES:]


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _seal(path: Path, data: bytes, key: bytes, bound: bytes) -> None:
    salt = os.urandom(_SALT)
    cipher, commitment = _derived(key, salt)
    whole = memoryview(data)
    last = max(0, len(data) - 1) // CHUNK

    def write(handle: BinaryIO) -> None:
        handle.write(_MAGIC + _VERSION + salt + commitment)
        for number in range(last + 1):
            chunk = whole[number * CHUNK : (number + 1) * CHUNK]
            handle.write(cipher.encrypt(_nonce(number, number == last), chunk, bound))

    files.write_with(path, write)


class _SealedFile:
    """One sealed file. Its end is checked when it is first opened, every chunk when it is read; one chunk is kept.

    It is what ``TensorFile`` needs of a path: it can be opened, again and again, and has a name.
    """

    def __init__(self, path: Path, key: bytes, bound: bytes) -> None:
        self._path, self._key, self._bound = path, key, bound
        self._cipher: AESGCM | None = None
        self._last = 0
        self._kept = -1, b""
        self.length = 0

    def __str__(self) -> str:
        return str(self._path)

    def open(self, mode: str = "rb", buffering: int = -1) -> "_Plaintext":
        """A handle on what was sealed; OSError when there is no such file, RunError when it does not open."""
        handle = io.FileIO(self._path, mode)
        try:
            if self._cipher is None:
                self._begin(handle)
        except BaseException:
            handle.close()
            raise
        return _Plaintext(self, handle)

    def _begin(self, handle: io.FileIO) -> None:
        header = handle.read(_START)
        if not _MAGIC.startswith(header[: len(_MAGIC)]):
            raise LockedError(
                f"{self}: is not encrypted although a key is set, so that somebody may have planted it; "
                f"remove it, or unset the key if the file is yours"
            )
        if len(header) < _START:
            raise RunError(f"{self}: is damaged (it is cut short)")
        if not header.startswith(_MAGIC + _VERSION):
            raise LockedError(f"{self}: is encrypted in a form that this version does not know; update fedpretext")
        salt, commitment = header[-_COMMITMENT - _SALT : -_COMMITMENT], header[-_COMMITMENT:]
        cipher, expected = _derived(self._key, salt)
        if commitment != expected:
            raise LockedError(
                f"{self}: is encrypted with another key or is damaged; set the key that it was written with"
            )
        size = os.fstat(handle.fileno()).st_size - _START
        self._last = max(0, size - 1) // (CHUNK + _TAG)
        self.length = max(0, size - (self._last + 1) * _TAG)
        self._chunk(handle, cipher, self._last)
        self._cipher = cipher

    def _chunk(self, handle: io.FileIO, cipher: AESGCM, number: int) -> bytes:
        if self._kept[0] != number:
            handle.seek(_START + number * (CHUNK + _TAG))
            try:
                plain = cipher.decrypt(_nonce(number, number == self._last), handle.read(CHUNK + _TAG), self._bound)
            except InvalidTag:
                raise RunError(
                    f"{self}: is damaged or was put in another file's place "
                    f"(chunk {number + 1} of {self._last + 1} is not what was written there)"
                ) from None
            self._kept = number, plain
        return self._kept[1]

    def read_into(self, handle: io.FileIO, start: int, buffer: memoryview) -> int:
        """Fill ``buffer`` with the plaintext from byte ``start`` on; how many bytes there were."""
        assert self._cipher is not None
        wanted, done = min(len(buffer), self.length - start), 0
        while done < wanted:
            number, skipped = divmod(start + done, CHUNK)
            piece = memoryview(self._chunk(handle, self._cipher, number))[skipped : skipped + wanted - done]
            buffer[done : done + len(piece)] = piece
            done += len(piece)
        return done


class _Plaintext(io.RawIOBase):
    """A sealed file's plaintext, as a binary file that can be read and sought in."""

    def __init__(self, sealed: _SealedFile, handle: io.FileIO) -> None:
        super().__init__()
        self._sealed, self._handle, self._position = sealed, handle, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to byte ``offset`` from the start."""
        if whence != io.SEEK_SET:
            raise io.UnsupportedOperation("only from the start")
        self._position = offset
        return offset

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer``, and not less of it unless the file ends."""
        count = self._sealed.read_into(self._handle, self._position, memoryview(buffer).cast("B"))
        self._position += count
        return count

    def read(self, size: int = -1) -> bytes:
        """``size`` bytes, or as many as there are; -1: all."""
        left = max(0, self._sealed.length - self._position)
        data = bytearray(left if size < 0 else min(size, left))
        self.readinto(data)
        return bytes(data)

    def close(self) -> None:
        """Close the file beneath."""
        self._handle.close()
        super().close()


def _refuse_sealed(path: Path) -> None:
    """LockedError where ``path`` is a sealed file; nothing where it is another or cannot be read."""
    try:
        with path.open("rb", buffering=0) as handle:
            sealed = handle.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return
    if sealed:
        raise LockedError(f"{path}: is encrypted and no key is set; set the key that it was written with")
