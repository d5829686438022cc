"""FedEMA at a real site: its second round is what any site makes of its own weights mixed with the global ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from federation.algorithms.algorithm import is_parameter
from foundation.tensor_files import load_tensors

Make = Callable[..., Any]
BYOL = {"name": "byol", "projection": 8, "projector_width": 16}
TRAINING = {"learning_rate": 0.05, "warmup": 0.0}


def target(tmp_path: Path, site: str, round_: int) -> dict[str, Tensor]:
    (path,) = tmp_path.glob(f"sites/{site}/state/*/round-{round_:05d}/local.safetensors")
    return load_tensors(path)[0]


def test_a_second_round_starts_from_the_mixture(study: Make, site: Make, instruction: Make, tmp_path: Path) -> None:
    asked, plain = (study(method=BYOL, training=TRAINING, algorithm={"name": name}) for name in ("fedema", "fedavg"))
    own = site(asked).train(instruction(asked)).weights
    folder = next(tmp_path.glob(f"sites/A/state/{asked.training_hash()[:16]}"))
    kept, _ = load_tensors(folder / "round-00001" / "algorithm.safetensors")
    share = float(kept["scale"]) * float(kept["distance"])
    assert share == pytest.approx(0.7, rel=1e-12)
    twin = site(plain).train(instruction(plain)).weights
    assert all(torch.equal(own[name], twin[name]) for name in own)  # the first starts from what was received
    received = {name: value * 0.9 if is_parameter(name, value) else value for name, value in own.items()}
    mixture = {
        name: (share * own[name].double() + (1 - share) * value.double()).float()
        if is_parameter(name, value)
        else value
        for name, value in received.items()
    }
    found = site(asked).train(instruction(asked, 2, received)).weights
    expected = site(plain).train(instruction(plain, 2, mixture)).weights
    other = site(plain).train(instruction(plain, 2, received)).weights
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert float((found["encoder.norm.weight"] - other["encoder.norm.weight"]).abs().max()) > 1e-3


def test_a_site_that_missed_a_round_makes_its_target_anew(
    study: Make, site: Make, instruction: Make, tmp_path: Path
) -> None:
    """With momentum 1 the target stays as it was made: a copy of what the round was asked to start from."""
    asked = study(method=BYOL | {"momentum": 1.0}, training=TRAINING, algorithm={"name": "fedema"})
    first = site(asked).train(instruction(asked)).weights
    site(asked).train(instruction(asked, 3, first))
    made = target(tmp_path, "A", 3)
    assert torch.equal(made["target_encoder.norm.weight"], first["encoder.norm.weight"])
    assert not torch.equal(made["target_encoder.norm.weight"], torch.ones(24))
