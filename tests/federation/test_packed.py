"""Shared tensors as one run of bytes: they come back bit for bit, and nothing else fits in."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.packed import check_packed, pack, unpack
from federation.records import WithheldError

TYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
names = st.text("abc._0", min_size=1, max_size=6)
layouts = st.dictionaries(names, st.tuples(shapes, st.sampled_from(TYPES)), max_size=6)


def filled(layout: dict[str, tuple[tuple[int, ...], torch.dtype]], value: float = 1.0) -> dict[str, torch.Tensor]:
    return {name: torch.full(shape, value).to(dtype) for name, (shape, dtype) in layout.items()}


@given(layouts)
def test_bits_come_back_and_are_allowed(layout: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> None:
    tensors = filled(layout)
    data = pack(tensors)
    back = unpack(data)
    assert back.keys() == tensors.keys()
    assert all(back[name].dtype == value.dtype and torch.equal(back[name], value) for name, value in tensors.items())
    check_packed(data, filled(layout, 0.0))  # what is expected has other values


@given(layouts, st.data())
def test_a_changed_length_or_header_is_not_allowed(
    layout: dict[str, tuple[tuple[int, ...], torch.dtype]], data: st.DataObject
) -> None:
    whole = pack(filled(layout))
    end = 8 + int.from_bytes(whole[:8], "little")
    place = data.draw(st.integers(0, end - 1))
    changed = bytearray(whole)
    changed[place] ^= data.draw(st.integers(1, 255))
    for other in (bytes(changed), whole + b"\0", whole[:-1]):
        with pytest.raises(WithheldError):
            check_packed(other, filled(layout))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_is_not_finite_is_not_allowed(value: float, dtype: torch.dtype) -> None:
    tensors = {"a": torch.zeros(3), "b": torch.tensor([0.0, value], dtype=dtype), "c": torch.zeros(5, dtype=torch.bool)}
    with pytest.raises(WithheldError, match="tensor 'b'"):
        check_packed(pack(tensors), tensors)


def test_tensors_that_share_memory_or_lie_by_columns() -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    back = unpack(pack({"rows": whole, "columns": whole.T, "again": whole}))
    assert torch.equal(back["columns"], whole.T)
    back["rows"].fill_(9)
    assert torch.equal(back["again"], whole)
