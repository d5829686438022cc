"""Training randomness: a stream of its own for every name, the same in every process and on every machine."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.randomness import numpy_generator, seeded_torch, stream_seed, torch_generator

ROOT = Path(__file__).resolve().parents[2]


def _by_hand(text: bytes) -> int:
    value = 0
    for byte in hashlib.blake2b(text, digest_size=8).digest():
        value = value * 256 + byte
    return value // 2


def test_pinned_values() -> None:
    """Literal values: another seed on another machine or in a later version would make every run unrepeatable."""
    assert stream_seed(0, "training", "A", 3) == _by_hand(b"0\x1fstr:training\x1fstr:A\x1fint:3") == 7951950201992319834
    assert stream_seed(7) == _by_hand(b"7") == 8333924190356522945


def test_every_name_matters() -> None:
    streams = [
        stream_seed(0, "training", "A", 1),
        stream_seed(1, "training", "A", 1),
        stream_seed(0, "splits", "A", 1),
        stream_seed(0, "training", "B", 1),
        stream_seed(0, "training", "A", 2),
        stream_seed(0, "training", 1, "A"),
        stream_seed(0, "training", "A", "1"),
        stream_seed(0, "training", "A"),
    ]
    assert len(set(streams)) == len(streams)


@given(st.integers(0, 2**64), st.lists(st.one_of(st.text(max_size=8), st.integers())))
def test_seeds_fit_numpy_and_torch(seed: int, names: list[str | int]) -> None:
    value = stream_seed(seed, *names)
    assert 0 <= value < 2**63
    assert torch_generator(seed, *names).initial_seed() == value


def test_the_same_in_another_process() -> None:
    """Python's own string hashes change from process to process; a seed must not."""
    code = "from foundation.randomness import stream_seed; print(stream_seed(5, 'Ärzte', 2))"
    environment = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == stream_seed(5, "Ärzte", 2)


def test_generators_repeat_and_do_not_share() -> None:
    assert torch.equal(
        torch.rand(5, generator=torch_generator(1, "a")), torch.rand(5, generator=torch_generator(1, "a"))
    )
    assert not torch.equal(
        torch.rand(5, generator=torch_generator(1, "a")), torch.rand(5, generator=torch_generator(1, "b"))
    )
    assert np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(1, "a").random(5))
    assert not np.array_equal(numpy_generator(1, "a").random(5), numpy_generator(2, "a").random(5))


def test_seeded_block_leaves_the_global_state_alone() -> None:
    before = torch.random.get_rng_state()
    with seeded_torch(3, "initialisation"):
        first = torch.rand(4)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(KeyError), seeded_torch(3, "initialisation"):
        second = torch.rand(4)
        raise KeyError("in the block")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first, second)
    assert torch.equal(first, torch.rand(4, generator=torch_generator(3, "initialisation")))


@pytest.mark.parametrize(("used", "expected"), [(False, []), (True, ["read 2", "written 2"])])
def test_only_the_current_gpu_is_touched_and_none_that_is_not_used(
    used: bool, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def read(device: int) -> torch.Tensor:
        calls.append(f"read {device}")
        return torch.zeros(1)

    answers = {"is_available": True, "is_initialized": used, "device_count": 4, "current_device": 2}
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda answer=answer: answer)
    monkeypatch.setattr(torch.cuda, "get_rng_state", read)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: calls.append(f"written {device}"))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: None)
    with seeded_torch(3, "initialisation"):
        pass
    assert calls == expected
