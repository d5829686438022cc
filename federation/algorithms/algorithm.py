"""What every federated algorithm is: an aggregation at the server and hooks at the site, in one file a paper."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from federation.algorithms.table import ALGORITHMS, AlgorithmConfig

Weights = dict[str, Tensor]
State = dict[str, Tensor]
"""What an algorithm carries from round to round (momenta, say); kept in the checkpoint."""


class Contribution(Protocol):
    """One site's accepted reply, read piece by piece so that an aggregation holds one model plus one tensor."""

    @property
    def site(self) -> str:
        """The site's name."""
        ...

    @property
    def images(self) -> int:
        """How many images the site has."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The shared tensor of that name as the site ended the round with it."""
        ...

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """Numbers ``start`` to ``stop`` (not more than there are) of that tensor, flattened."""
        ...


class Algorithm(ABC):
    """Both halves of one federated algorithm."""

    Config: ClassVar[type[AlgorithmConfig]]
    # What these say is with ``AlgorithmFacts``.
    summary: ClassVar[str]
    paper: ClassVar[str]
    fewest_replies: ClassVar[int] = 1

    def __init_subclass__(cls, name: str | None = None) -> None:
        """Take the facts of ``ALGORITHMS[name]``; a class without a name states or inherits them."""
        super().__init_subclass__()
        if name is not None:
            for fact, value in asdict(ALGORITHMS[name]).items():
                setattr(cls, fact, value)

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def aggregate(self, weights: Weights, contributions: Sequence[Contribution], state: State) -> tuple[Weights, State]:
        """Server half: the next global weights from this round's, and the next state.

        ``contributions`` come in site-name order. Results have the shapes and types of ``weights``.
        """

    def penalty(self, trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor | None:
        """Site half: a term added to the local loss, from the shared parameters now and as received; None for none."""
        return None


_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def is_parameter(name: str, value: Tensor) -> bool:
    """True for what an optimiser may step; False for counters and normalisation statistics."""
    return value.is_floating_point() and not name.endswith(_STATISTICS)


_PIECE = 1 << 16  # numbers: so many, once as float32 and twice as float64, stay in a processor's cache


def average(name: str, like: Tensor, contributions: Sequence[Contribution]) -> Tensor:
    """Mean of one tensor over the sites, weighted by images, summed in float64 in the order given.

    Integer tensors (counters) are averaged likewise and rounded. The result has the type of ``like``.
    """
    total = float(sum(c.images for c in contributions))
    result = torch.empty(like.numel(), dtype=like.dtype)
    mean, wide = (torch.empty(min(_PIECE, like.numel()), dtype=torch.float64) for _ in range(2))
    for start in range(0, like.numel(), _PIECE):
        stop = min(start + _PIECE, like.numel())
        part, numbers = mean[: stop - start].zero_(), wide[: stop - start]
        for c in contributions:
            part.add_(numbers.copy_(c.piece(name, start, stop)), alpha=c.images / total)
        result[start:stop] = part if like.is_floating_point() else part.round()
    return result.reshape(like.shape)
