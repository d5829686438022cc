"""Tensors read from a safetensors file by our own few lines are those that safetensors wrote."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from foundation.errors import RunError
from foundation.tensor_files import TensorFile, load_tensors, save_tensors

TENSORS = {
    "weight": torch.arange(12, dtype=torch.float32).reshape(3, 4) / 7,
    "half": torch.tensor([1.5, float("inf")], dtype=torch.float16),
    "brain": torch.tensor([[2.5], [-1.0]], dtype=torch.bfloat16),
    "wide": torch.tensor([1e300], dtype=torch.float64),
    "count": torch.tensor(7),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "nothing": torch.empty(0, 3),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_tensors(tmp_path / "a.safetensors", TENSORS, {"note": "metadata shares the header"})
    return tmp_path / "a.safetensors"


def test_safetensors_reads_what_is_written(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"note": "metadata shares the header"}
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert found.keys() == TENSORS.keys()
    assert all(found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in TENSORS.items())


def test_views_and_other_layouts_are_written_as_they_read(tmp_path: Path) -> None:
    whole = torch.arange(24, dtype=torch.float32).reshape(2, 3, 2, 2)
    last = whole.contiguous(memory_format=torch.channels_last)
    tensors = {"whole": whole, "last": last, "part": whole[:, 1], "turned": whole.transpose(0, 1), "empty": whole[:0]}
    save_tensors(tmp_path / "a.safetensors", tensors)
    found, metadata = load_tensors(tmp_path / "a.safetensors")
    assert metadata == {}
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    for name, value in tensors.items():
        assert torch.equal(TensorFile(tmp_path / "a.safetensors").tensor(name), value)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_comes_back(path: Path, name: str) -> None:
    found = TensorFile(path).tensor(name)
    assert (found.dtype, found.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
    assert torch.equal(found, TENSORS[name])


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (5, 12), (11, 100), (3, 3)])
def test_a_piece_is_cut_from_the_flattened_tensor(path: Path, start: int, stop: int) -> None:
    assert torch.equal(TensorFile(path).piece("weight", start, stop), TENSORS["weight"].flatten()[start:stop])


def test_what_is_read_is_the_readers_own(path: Path) -> None:
    file = TensorFile(path)
    file.tensor("weight").zero_()
    assert torch.equal(file.tensor("weight"), TENSORS["weight"])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (lambda data: data[:-3], "flags"),
        (lambda data: data[:20], "weight"),
        (lambda data: b"", "weight"),
        (lambda data: b"\xff" * 8 + data[8:], "weight"),
        (lambda data: data, "absent"),
    ],
)
def test_a_damaged_file_is_told_in_one_line(path: Path, damage: Callable[[bytes], bytes], name: str) -> None:
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"a\.safetensors: is damaged \(") as raised:
        TensorFile(path).tensor(name)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"a\.safetensors: is missing"):
        TensorFile(tmp_path / "a.safetensors").tensor("weight")
