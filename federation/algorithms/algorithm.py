"""What every federated algorithm is: an aggregation at the server and hooks at the site, in one file a paper."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from federation.algorithms.table import ALGORITHMS, AlgorithmConfig, Setting
from federation.training_config import TrainingConfig
from ssl_methods.method_config import MethodConfig

Weights = dict[str, Tensor]
State = dict[str, Tensor]
"""What an algorithm carries from round to round (momenta, say): in the server's checkpoint, or with a site's round."""


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
    missed: ClassVar[str]
    fewest_replies: ClassVar[int] = 1
    refuses: ClassVar[Mapping[Setting, str]] = {}

    def __init_subclass__(cls, name: str | None = None) -> None:
        """Take the facts of ``ALGORITHMS[name]``; a class without a name states or inherits them."""
        super().__init_subclass__()
        if name is not None:
            for fact, value in asdict(ALGORITHMS[name]).items():
                setattr(cls, fact, value)

    def __init__(self, config: Any) -> None:
        self.config = config

    def check(self, training: TrainingConfig, method: MethodConfig) -> None:
        """StudyError, in one line, where the algorithm does not go with these sections of a study."""
        return

    @abstractmethod
    def aggregate(self, weights: Weights, contributions: Sequence[Contribution], state: State) -> tuple[Weights, State]:
        """Server half: the next global weights from this round's, and the next state.

        ``contributions`` come in site-name order. Results have the shapes and types of ``weights``.
        """

    def start(self, round_: int, received: Weights, kept: State) -> Weights:
        """Site half: the shared tensors that a site's round starts from; by default those it received.

        kept: what ``keep`` gave in the last round that this site finished; empty where there is none. Also called with
        the same arguments when a round is trained again, so that the result depends on nothing else.
        """
        return received

    def goes_on(self, round_: int, kept: State) -> bool:
        """Site half: whether local parts are those that the site's last round left; False: they are made anew."""
        return True

    def keep(self, round_: int, received: Weights, trained: Weights, kept: State) -> State:
        """Site half: what the site keeps of this round for its next one; it is stored with the round and never sent.

        received, kept: as ``start`` had them; trained: the shared tensors at the round's end, on the CPU, before
        anything is clipped, noised by site or masked.
        """
        return {}

    def penalty(self, trained: Mapping[str, Tensor], received: Mapping[str, Tensor]) -> Tensor | None:
        """Site half: a term of the loss, from the shared parameters now and at the round's start; None for none."""
        return None


MEAN, VARIANCE, COUNTER = STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
"""How the names of BatchNorm's tensors end that are no parameters."""


def is_parameter(name: str, value: Tensor) -> bool:
    """True for what an optimiser may step; False for counters and normalisation statistics."""
    return value.is_floating_point() and not name.endswith(STATISTICS)


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
