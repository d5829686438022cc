"""Tensors of every type in one copy: same shapes, same bits."""

import torch

from foundation.transfer import moved

from ..pretend_gpu import GPU, OnGpu, PretendGpu


def test_tables_of_tensors_go_over_in_one_copy_and_keep_every_bit() -> None:
    draw = torch.Generator().manual_seed(0)
    given = {
        "mask": torch.tensor([True, False, True]),
        "images": torch.arange(10, dtype=torch.int32).to(torch.uint16),
        "inner": {"numbers": torch.rand(4, 3, generator=draw)[:, ::2], "none": torch.empty(0, dtype=torch.long)},
        "places": torch.tensor([[2**62, -1], [3, 4]]),
        "one": torch.tensor(float("nan")),
        "spread": torch.arange(3).expand(2, -1),
    }
    with PretendGpu().running() as gpu:
        there = moved(given, GPU)
    assert gpu.copies.total() == 1 and not gpu.faults and not gpu.waits
    there |= there.pop("inner")
    given |= given.pop("inner")  # type: ignore[arg-type]
    for name, tensor in given.items():
        assert isinstance(there[name], OnGpu) and there[name].dtype == tensor.dtype
        torch.testing.assert_close(there[name].as_subclass(torch.Tensor), tensor, rtol=0, atol=0, equal_nan=True)


def test_on_the_cpu_nothing_is_copied_and_nothing_moves_as_nothing() -> None:
    given = {"numbers": torch.rand(3)}
    assert moved(given, torch.device("cpu")) is given
    with PretendGpu().running() as gpu:
        assert moved({}, GPU) == {}
    assert not gpu.copies
