"""What is sealed comes back, says nothing without its key, and no change to it goes unnoticed."""

import errno
import resource
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from foundation import files, tensor_files
from foundation.errors import RunError
from foundation.vault import CHUNK, PLAIN, LockedError, Vault

from ..tiers import examples

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
VAULT = Vault(KEY)
HEADER, TAG = 67, 16  # 17 bytes of magic, 2 of version, 16 of salt, 32 of commitment; 16 of tag end each chunk
SEALED = CHUNK + TAG

TENSORS = {
    "weight": torch.arange(40_000, dtype=torch.float32).reshape(200, 200) / 7,
    "half": torch.tensor([1.5, float("inf")], dtype=torch.float16),
    "brain": torch.tensor([[2.5], [-1.0]], dtype=torch.bfloat16),
    "wide": torch.tensor([1e300], dtype=torch.float64),
    "count": torch.tensor(7),
    "bytes": torch.arange(70_001).to(torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "gradient": torch.ones(2, requires_grad=True),
    "nothing": torch.empty(0, 3),
}


def pattern(size: int) -> bytes:
    """Bytes that no shift by a chunk maps onto themselves."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def message(read: Callable[[], object]) -> str:
    with pytest.raises(RunError) as caught:
        read()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def chunks_of(path: Path) -> list[bytes]:
    body = path.read_bytes()[HEADER:]
    return [body[start : start + SEALED] for start in range(0, len(body), SEALED)]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A sealed file of two whole chunks and a bit."""
    path = tmp_path / "three"
    VAULT.write_bytes(path, pattern(2 * CHUNK + 100))
    return path


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    VAULT.save_tensors(tmp_path / "a.safetensors", TENSORS, {"round": "3"})
    return tmp_path / "a.safetensors"


@given(chunks=st.integers(0, 3), more=st.integers(-TAG - 1, TAG + 1))
@examples(80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(chunks=0, more=0)
@example(chunks=1, more=0)
@example(chunks=3, more=1)
def test_bytes_come_back_whatever_their_number(tmp_path: Path, chunks: int, more: int) -> None:
    data = pattern(max(0, chunks * CHUNK + more))
    VAULT.write_bytes(tmp_path / "x", data)
    assert VAULT.read_bytes(tmp_path / "x") == data
    sealed_chunks = max(1, -(-len(data) // CHUNK))
    assert (tmp_path / "x").stat().st_size == HEADER + len(data) + sealed_chunks * TAG


def test_the_form_is_the_one_described(three: Path) -> None:
    """A reader written from the description alone."""
    data = three.read_bytes()
    assert data[:19] == b"fedpretext vault 1\n"
    derived = HKDF(SHA256(), 64, data[19:35], b"fedpretext vault 1\n").derive(KEY)
    assert data[35:67] == derived[32:]
    bound = bytes.fromhex(files.digest("three"))
    nonces = [bytes(12), bytes(10) + b"\x01\x00", bytes(10) + b"\x02\x01"]
    plain = [AESGCM(derived[:32]).decrypt(*part, bound) for part in zip(nonces, chunks_of(three), strict=True)]
    assert b"".join(plain) == pattern(2 * CHUNK + 100)


def test_tensors_and_metadata_come_back(tensors: Path) -> None:
    loaded, metadata = VAULT.load_tensors(tensors)
    assert metadata == {"round": "3"}
    assert loaded.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert (loaded[name].dtype, loaded[name].shape) == (value.dtype, value.shape)
        assert torch.equal(loaded[name], value.detach())


def test_no_tensors_is_a_file_too(tmp_path: Path) -> None:
    VAULT.save_tensors(tmp_path / "x", {})
    assert VAULT.load_tensors(tmp_path / "x") == ({}, {})


def test_two_names_of_one_memory_are_cut_loose(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    VAULT.save_tensors(tmp_path / "x", {"a": tied, "b": tied, "c": tied[:2]})
    loaded, _ = VAULT.load_tensors(tmp_path / "x")
    loaded["a"].zero_()
    assert loaded["b"].tolist() == [0, 1, 2, 3]
    assert loaded["c"].tolist() == [0, 1]


@given(name=st.sampled_from(sorted(TENSORS)), start=st.integers(0, 80_000), length=st.integers(0, 80_000))
@examples(60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_piece_is_the_one_that_a_plain_file_gives(tensors: Path, name: str, start: int, length: int) -> None:
    plain = tensors.with_name("plain")
    if not plain.exists():
        tensor_files.save_tensors(plain, TENSORS)
    start = min(start, TENSORS[name].numel())
    expected = PLAIN.tensor_file(plain).piece(name, start, start + length)
    found = VAULT.tensor_file(tensors).piece(name, start, start + length)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_one_reader_gives_pieces_in_any_order(tensors: Path) -> None:
    file = VAULT.tensor_file(tensors)
    for start in (39_000, 0, 20_000, 19_999, 39_000):
        assert torch.equal(file.piece("weight", start, start + 1000), TENSORS["weight"].flatten()[start : start + 1000])
    assert torch.equal(file.tensor("weight"), TENSORS["weight"])
    file.tensor("weight").zero_()
    assert torch.equal(file.tensor("weight"), TENSORS["weight"])


def test_reading_holds_few_chunks(tmp_path: Path) -> None:
    """Of Python's memory; the tensors' own is not counted."""
    path, big = tmp_path / "big", {"a": torch.arange(2**20), "b": torch.zeros(1000)}
    VAULT.save_tensors(path, big)
    del big
    tracemalloc.start()
    try:
        file = VAULT.tensor_file(path)
        for start in range(0, 2**20, 2**15):
            assert file.piece("a", start, start + 1).item() == start
        VAULT.load_tensors(path)
        assert tracemalloc.get_traced_memory()[1] < 6 * CHUNK
    finally:
        tracemalloc.stop()


def test_two_writes_have_no_chunk_in_common(tmp_path: Path) -> None:
    for folder in "ab":
        VAULT.write_bytes(tmp_path / folder / "x", bytes(3 * CHUNK))
    one, other = chunks_of(tmp_path / "a" / "x"), chunks_of(tmp_path / "b" / "x")
    assert len({*one, *other}) == 6


def test_nothing_of_the_content_is_readable(tensors: Path) -> None:
    sealed = tensors.read_bytes()
    for secret in (b"weight", b"round", b"F32", pattern(16), TENSORS["weight"][1, :4].numpy().tobytes()):
        assert secret not in sealed


def test_every_flipped_bit_of_a_small_file_is_found(tmp_path: Path) -> None:
    path = tmp_path / "small"
    VAULT.write_bytes(path, b"twenty bytes of text")
    whole = path.read_bytes()
    assert len(whole) == HEADER + 20 + TAG
    for place in range(len(whole)):
        for bit in (0, 7):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            said = message(lambda: VAULT.read_bytes(path))
            if place >= HEADER:
                assert said.endswith("small: is damaged or was put in another file's place (chunk 1 of 1 is not "
                                     "what was written there)")  # fmt: skip


@pytest.mark.parametrize("chunk", [0, 1, 2])
@pytest.mark.parametrize("place", [0, 50, -TAG - 1, -TAG, -1])
def test_a_flipped_bit_is_found_in_any_chunk_and_its_tag(three: Path, chunk: int, place: int) -> None:
    parts = [bytearray(part) for part in chunks_of(three)]
    parts[chunk][place] ^= 4
    three.write_bytes(three.read_bytes()[:HEADER] + b"".join(parts))
    assert f"(chunk {chunk + 1} of 3 is not what was written there)" in message(lambda: VAULT.read_bytes(three))


def test_a_damaged_chunk_is_told_when_a_piece_of_it_is_read(tensors: Path) -> None:
    data = bytearray(tensors.read_bytes())
    data[HEADER + SEALED + 1000] ^= 1
    tensors.write_bytes(bytes(data))
    assert "a.safetensors: is damaged" in message(lambda: VAULT.tensor_file(tensors).tensor("weight"))
    assert "a.safetensors: is damaged" in message(lambda: VAULT.load_tensors(tensors))


@given(kept=st.integers(0, HEADER + 2 * SEALED + 115))
@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_cut_is_found(three: Path, kept: int) -> None:
    cut = three.with_name("cut") / "three"
    cut.parent.mkdir(exist_ok=True)
    cut.write_bytes(three.read_bytes()[:kept])
    assert "three: is damaged" in message(lambda: VAULT.read_bytes(cut))


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_cut_at_a_chunks_border_is_found_before_anything_is_read(tensors: Path, chunks: int) -> None:
    """The last chunk says that it is the last: "half" lies in what is left, and is not given."""
    assert len(chunks_of(tensors)) == 4
    tensors.write_bytes(tensors.read_bytes()[: HEADER + chunks * SEALED])
    assert "a.safetensors: is damaged" in message(lambda: VAULT.tensor_file(tensors).tensor("half"))


@pytest.mark.parametrize("more", [b"\0", bytes(TAG), bytes(SEALED)])
def test_bytes_at_the_end_are_found(three: Path, more: bytes) -> None:
    three.write_bytes(three.read_bytes() + more)
    assert "three: is damaged" in message(lambda: VAULT.read_bytes(three))


@pytest.mark.parametrize("order", [(1, 0, 2), (0, 0, 2), (0, 2), (0, 1, 1)])
def test_chunks_in_another_order_are_found(three: Path, order: tuple[int, ...]) -> None:
    parts = chunks_of(three)
    three.write_bytes(three.read_bytes()[:HEADER] + b"".join(parts[number] for number in order))
    assert "three: is damaged" in message(lambda: VAULT.read_bytes(three))


def test_a_chunk_of_an_earlier_write_is_found(three: Path) -> None:
    old = chunks_of(three)
    VAULT.write_bytes(three, pattern(2 * CHUNK + 100))
    new = chunks_of(three)
    three.write_bytes(three.read_bytes()[:HEADER] + new[0] + old[1] + new[2])
    assert "(chunk 2 of 3 " in message(lambda: VAULT.read_bytes(three))


def test_a_file_in_anothers_place_is_found(tensors: Path) -> None:
    other = tensors.with_name("b.safetensors")
    shutil.copy(tensors, other)
    assert "b.safetensors: is damaged or was put in another file's place" in message(lambda: VAULT.load_tensors(other))
    moved = tensors.with_name("folder") / tensors.name
    moved.parent.mkdir()
    shutil.copy(tensors, moved)
    assert VAULT.load_tensors(moved)[1] == {"round": "3"}  # folders are renamed when they are whole


@pytest.mark.parametrize("place", [(), ("A",), ("A", "2"), ("A", "1", "0"), ("A1",), ("1", "A")])
def test_what_was_sealed_for_one_place_opens_nowhere_else(tmp_path: Path, place: tuple[str, ...]) -> None:
    VAULT.at("A", "1").write_bytes(tmp_path / "x", b"text")
    assert VAULT.at("A").at("1").read_bytes(tmp_path / "x") == b"text"
    assert "x: is damaged or was put in another" in message(lambda: VAULT.at(*place).read_bytes(tmp_path / "x"))


READERS: dict[str, Callable[[Vault, Path], Any]] = {
    "read_bytes": lambda vault, path: vault.read_bytes(path),
    "load_tensors": lambda vault, path: vault.load_tensors(path),
    "tensor_file": lambda vault, path: vault.tensor_file(path).tensor("half"),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_key_and_a_file_that_do_not_go_together_are_told(
    tensors: Path, read: Callable[[Vault, Path], object]
) -> None:
    """One line each, and of a kind that nobody takes for damage."""
    with pytest.raises(LockedError) as caught:
        read(Vault(OTHER_KEY), tensors)
    assert str(caught.value) == (
        f"{tensors}: is encrypted with another key or is damaged; set the key that it was written with"
    )
    with pytest.raises(LockedError) as caught:
        read(PLAIN, tensors)
    assert str(caught.value) == f"{tensors}: is encrypted and no key is set; set the key that it was written with"
    PLAIN.save_tensors(tensors, TENSORS)
    read(PLAIN, tensors)
    with pytest.raises(LockedError) as caught:
        read(VAULT, tensors)
    assert str(caught.value) == (
        f"{tensors}: is not encrypted although a key is set, so that somebody may have planted it; "
        f"remove it, or unset the key if the file is yours"
    )


def test_a_form_of_a_later_version_is_told(three: Path) -> None:
    three.write_bytes(three.read_bytes().replace(b"vault 1\n", b"vault 2\n", 1))
    with pytest.raises(LockedError, match=r"three: is encrypted in a form that this version does not know; update"):
        VAULT.read_bytes(three)


@pytest.mark.parametrize("vault", [PLAIN, VAULT], ids=["plain", "sealed"])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_missing_file_is_told(tmp_path: Path, vault: Vault, read: Callable[[Vault, Path], object]) -> None:
    assert message(lambda: read(vault, tmp_path / "gone")) == f"{tmp_path / 'gone'}: is missing"
    (tmp_path / "folder").mkdir()
    assert f"{tmp_path / 'folder'}: is damaged (" in message(lambda: read(vault, tmp_path / "folder"))


def test_sealed_bytes_that_are_no_tensors_are_told(three: Path) -> None:
    assert "three: is damaged (" in message(lambda: VAULT.load_tensors(three))
    assert "three: is damaged (" in message(lambda: VAULT.tensor_file(three).tensor("half"))


def test_without_a_key_files_are_those_of_before(tmp_path: Path) -> None:
    tensor_files.save_tensors(tmp_path / "before", TENSORS, {"round": "3"})
    PLAIN.at("anywhere").save_tensors(tmp_path / "now", TENSORS, {"round": "3"})
    assert (tmp_path / "now").read_bytes() == (tmp_path / "before").read_bytes()
    PLAIN.write_bytes(tmp_path / "bytes", b"text")
    assert (tmp_path / "bytes").read_bytes() == PLAIN.read_bytes(tmp_path / "bytes") == b"text"


WRITERS: dict[str, Callable[[Path], None]] = {
    "write_bytes": lambda path: VAULT.write_bytes(path, bytes(3 * CHUNK)),
    "save_tensors": lambda path: VAULT.save_tensors(path, TENSORS),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_is_one_line_and_the_old_file_stays(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Refused by the operating system itself, which permits no file above 100,000 bytes for a moment."""
    VAULT.write_bytes(tmp_path / "x", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(RunError) as caught:
            write(tmp_path / "x")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(caught.value) == (
        f"{tmp_path / 'x'}: could not be written (File too large); free space or permit writing, then go on"
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert VAULT.read_bytes(tmp_path / "x") == b"old"


@pytest.mark.parametrize("length", [0, 16, 31, 33, 64])
def test_a_key_of_another_length_is_a_mistake(length: int) -> None:
    with pytest.raises(ValueError, match=rf"^a key of {length} bytes; AES-256 has 32$"):
        Vault(bytes(length))


def test_a_vault_does_not_show_its_key() -> None:
    shown = repr(VAULT.at("A")) + str(VAULT)
    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
