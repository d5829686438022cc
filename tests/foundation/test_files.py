"""Files are whole or absent, and what is wrong with one is said in one line that names it."""

import errno
import hashlib
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation import files, tensor_files
from foundation.errors import RunError


def _left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failing_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    files.write_json(path, {"round": 1})

    def half(handle: BinaryIO) -> None:
        handle.write(b'{"rou')
        raise ValueError("a writer that dies")

    with pytest.raises(ValueError, match="a writer that dies"):
        files.write_with(path, half)
    assert files.read_json(path) == {"round": 1}
    assert _left(tmp_path) == ["state.json"]


def test_what_was_being_written_is_never_seen_under_the_final_name(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    seen: list[bool] = []
    files.write_with(path, lambda handle: (handle.write(b"whole"), seen.append(path.exists())))
    assert seen == [False]
    assert path.read_text() == "whole"


def test_missing_folders_are_made(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a" / "b" / "text.txt", "größer")
    assert (tmp_path / "a" / "b" / "text.txt").read_bytes() == "größer".encode()


def test_json_has_sorted_keys_so_that_equal_values_are_equal_files(tmp_path: Path) -> None:
    files.write_json(tmp_path / "1", {"b": 1, "a": [1, 2.5]})
    files.write_json(tmp_path / "2", {"a": [1, 2.5], "b": 1})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize("read", [files.read_json, tensor_files.load_tensors])
def test_a_missing_file_is_named(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(RunError) as caught:
        read(tmp_path / "not-there")
    assert str(caught.value) == f"{tmp_path / 'not-there'}: is missing"


@pytest.mark.parametrize("content", [b'{"round": 1', b"", b"\xff\xfe\x00"])
def test_damaged_json_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state.json"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"state.json: is damaged") as caught:
        files.read_json(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 4, 60, 400])
def test_truncated_tensors_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "weights.safetensors"
    tensor_files.save_tensors(path, {"a": torch.arange(200.0)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RunError, match=r"weights.safetensors: is damaged") as caught:
        tensor_files.load_tensors(path)
    assert "\n" not in str(caught.value)


def test_tensors_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "transposed": base.T,
        "slice": base[1],
        "count": torch.tensor(7),
        "flag": torch.tensor([True, False]),
        "half": torch.tensor([0.5], dtype=torch.bfloat16),
        "gradient": torch.ones(2, requires_grad=True),
        "empty": torch.empty(0, 3),
    }
    tensor_files.save_tensors(tmp_path / "x", tensors, {"round": "3"})
    loaded, metadata = tensor_files.load_tensors(tmp_path / "x")
    assert metadata == {"round": "3"}
    assert loaded.keys() == tensors.keys()
    for name, value in tensors.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value.detach())


def test_two_names_of_one_memory_are_cut_loose(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    tensor_files.save_tensors(tmp_path / "x", {"a": tied, "b": tied, "c": tied[:2]})
    loaded, _ = tensor_files.load_tensors(tmp_path / "x")
    assert loaded["a"].tolist() == loaded["b"].tolist() == [0, 1, 2, 3]
    assert loaded["c"].tolist() == [0, 1]


def test_no_tensors_is_a_file_too(tmp_path: Path) -> None:
    tensor_files.save_tensors(tmp_path / "x", {})
    assert tensor_files.load_tensors(tmp_path / "x") == ({}, {})


def test_a_torn_last_line_is_skipped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"round": 1})
    files.append_jsonl(path, {"round": 2})
    path.write_bytes(path.read_bytes()[:-3])
    assert files.read_jsonl(path) == [{"round": 1}]


def test_a_row_after_a_torn_line_is_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    files.append_jsonl(path, {"round": 1})
    path.write_bytes(path.read_bytes() + b'{"round": 2, "lo')
    files.append_jsonl(path, {"round": 3})
    files.append_jsonl(path, {"round": 4})
    assert files.read_jsonl(path) == [{"round": 1}, {"round": 3}, {"round": 4}]


@given(cut=st.integers(0, 60))
def test_any_cut_loses_at_most_the_row_it_falls_in(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    rows = [{"round": number, "site": "A"} for number in range(3)]
    for row in rows:
        files.append_jsonl(path, row)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    # A row without its line end is whole all the same.
    assert files.read_jsonl(path) == rows[: (whole[:cut] + b"\n").count(b'"A"}\n')]


def test_no_jsonl_file_is_no_rows(tmp_path: Path) -> None:
    assert files.read_jsonl(tmp_path / "none") == []


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync and every write through a Python file handle fail with ENOSPC."""

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", no_space)


WRITERS = {
    "write_bytes": lambda path: files.write_bytes(path, b"0" * 20_000),
    "write_json": lambda path: files.write_json(path, ["0" * 20_000]),
    "save_tensors": lambda path: tensor_files.save_tensors(path, {"a": torch.zeros(20_000)}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_is_one_line(tmp_path: Path, full_disk: None, write: Callable[[Path], None]) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(RunError) as caught:
        write(path)
    assert str(caught.value) == (
        f"{path}: could not be written (No space left on device); free space or permit writing, then go on"
    )
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert _left(tmp_path) == ["x"]


@contextmanager
def small_files() -> Iterator[None]:
    """The operating system itself refuses files above 1000 bytes, in Python and in safetensors' own code alike.

    Not a fixture: the limit must be off again when pytest writes the test's outcome into a log.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


APPEND = {"append_jsonl": lambda path: files.append_jsonl(path, {"text": "0" * 20_000})}


@pytest.mark.parametrize("write", (WRITERS | APPEND).values(), ids=(WRITERS | APPEND).keys())
def test_a_write_that_the_system_refuses_is_one_line(tmp_path: Path, write: Callable[[Path], None]) -> None:
    """Really refused, not simulated: safetensors reports it as its own error and not as an OSError."""
    with pytest.raises(RunError, match=r"x: could not be written \(File too large\)") as caught, small_files():
        write(tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG


def test_a_folder_replaces_an_older_one(tmp_path: Path) -> None:
    new, place = tmp_path / ".new", tmp_path / "round-1"
    for folder, name in ((new, "new"), (place, "old")):
        folder.mkdir()
        (folder / name).touch()
    files.replace_folder(new, place)
    assert _left(tmp_path) == ["round-1"]
    assert _left(place) == ["new"]


def test_digest_is_sha256_over_lengths_and_parts() -> None:
    by_hand = b"\0\0\0\0\0\0\0\x02ab" + b"\0\0\0\0\0\0\0\x01c"
    assert files.digest("ab", b"c") == hashlib.sha256(by_hand).hexdigest()


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_digests_of_different_lists_differ(one: list[bytes], other: list[bytes]) -> None:
    assert (files.digest(*one) == files.digest(*other)) == (one == other)
