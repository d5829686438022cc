"""Sites' replies held in memory."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from federation.algorithms.algorithm import Contribution


@dataclass(frozen=True)
class InMemory:
    """A site's reply; counts how often a tensor is read."""

    site: str
    images: int
    weights: dict[str, Tensor]
    reads: list[str]

    def tensor(self, name: str) -> Tensor:
        """One tensor of the reply."""
        self.reads.append(name)
        return self.weights[name]

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """A part of one tensor, flattened."""
        return self.tensor(name).reshape(-1)[start:stop]


@pytest.fixture
def contributions() -> Callable[..., Sequence[Contribution]]:
    """``contributions((images, weights), ...)``: replies of the sites A, B, C, ..."""

    def make(*replies: tuple[int, dict[str, Tensor | float]]) -> list[InMemory]:
        return [
            InMemory(chr(65 + number), images, {name: torch.as_tensor(v) for name, v in weights.items()}, [])
            for number, (images, weights) in enumerate(replies)
        ]

    return make
