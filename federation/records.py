"""What may travel between a server and its sites, as plain values; nothing else does."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from federation.audit.log import NOTHING, AuditHead, Extension
from foundation.errors import FedpretextError, RunError
from foundation.files import digest

if TYPE_CHECKING:
    from torch import Tensor  # a status has none: who reads it need not wait for the import

Category = Literal[
    "study-not-approved",
    "data-not-usable",
    "loss-not-finite",
    "out-of-memory",
    "disk-full",
    "state-damaged",
    "app-not-approved",
    "not-the-server",
    "log-not-continued",
    "labels-not-permitted",
    "labels-too-few",
    "budget-spent",
    "ledger-not-continued",
    "secure-sum-refused",
    "internal-error",
    "offline",
]
"""All that a site ever says of an error: never its text, which could hold a path or a name."""

CATEGORIES: tuple[str, ...] = get_args(Category)
ENCODER = "encoder."
"""What the names of the encoder's shared tensors begin with."""
UNKNOWN_SITE = "unknown"
"""What a site is called whose own file cannot be read."""
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_JOURNAL_KEYS = ("round", "site", "images", "event", "reason", "update_norm")


def weights_digest(weights: "dict[str, Tensor]") -> str:
    """SHA-256 over names, types, shapes and bits: a stored update belongs to the weights it was trained from."""
    import torch

    parts: list[memoryview | str] = []
    for name, value in sorted(weights.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        parts += [name, str(value.dtype), str(list(value.shape)), flat.view(torch.uint8).numpy().data]
    return digest(*parts)


def noted_tensors(tensors: "dict[str, Tensor]", known: str = "") -> dict[str, str | int]:
    """What the audit logs say of tensors that leave or arrive: their bytes, and their digest, where it is not known."""
    return {"bytes": bytes_of(tensors.values()), "weights": known or weights_digest(tensors)}


def bytes_of(tensors: "Iterable[Tensor]") -> int:
    """Bytes that the numbers of these tensors take together."""
    return sum(tensor.nbytes for tensor in tensors)


def encoder_of(weights: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """The encoder's tensors among shared weights, under the names that the encoder itself has for them."""
    return {name.removeprefix(ENCODER): value for name, value in weights.items() if name.startswith(ENCODER)}


def same_form(one: "Mapping[str, Tensor]", other: "Mapping[str, Tensor]") -> bool:
    """Whether both have tensors of the same names, shapes and types."""
    forms = [{name: (tensor.shape, tensor.dtype) for name, tensor in each.items()} for each in (one, other)]
    return forms[0] == forms[1]


@dataclass(frozen=True)
class AuditNote:
    """What goes with each message about the two parties' audit logs (federation/audit/log.py).

    extension: the sender's head, proved from the head that the receiver holds; known: the receiver's head that the
    sender holds, from which the receiver will prove its own.
    """

    extension: Extension
    known: AuditHead


@dataclass(frozen=True)
class TrainInstruction:
    """Train one round from these shared weights.

    ledger: the head that the server holds of the site's privacy ledger; the site proves that its ledger goes on there.
    """

    study_hash: str
    round: int
    weights: "dict[str, Tensor]"
    ledger: AuditHead = NOTHING

    @cached_property
    def digest(self) -> str:
        """``weights_digest`` of the weights, computed once: several ask for it, and it costs as much as a file."""
        return weights_digest(self.weights)


@dataclass(frozen=True)
class TrainReply:
    """A site's update: its shared tensors after the round, the images it has, and scalars.

    In a private study ``images`` is the constant 1 and there are no scalars; so it is with secure aggregation, and
    then ``weights`` is empty: the site has trained, and its update leaves under masks only. ``ledger`` is, in a private
    study, the head of the site's privacy ledger, proved from the one in the instruction; None in every other.
    """

    study_hash: str
    round: int
    site: str
    images: int
    weights: "dict[str, Tensor]"
    metrics: dict[str, float] = field(default_factory=dict)
    ledger: Extension | None = None

    @cached_property
    def digest(self) -> str:
        """``weights_digest`` of the weights, computed once."""
        return weights_digest(self.weights)


@dataclass(frozen=True)
class Failure:
    """A site could not do the round."""

    study_hash: str
    round: int
    site: str
    category: str


@dataclass(frozen=True)
class SiteInfo:
    """A site's answer to 'who are you'."""

    site: str
    study_hash: str
    images: int


class WithheldError(FedpretextError):
    """An answer holds something that is not on the list of what may leave a site; it is not sent."""


def all_finite(value: "Tensor") -> bool:
    """False when a floating-point tensor holds NaN or infinity. In one pass: NaN comes through the extremes."""
    import torch

    if not value.is_floating_point() or value.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(value.aminmax())).all())


def check_reply(reply: TrainReply, expected: "dict[str, Tensor]", study_hash: str, round_: int) -> None:
    """Judge one reply alone: study, round, names, shapes, types, finite values, image count, metric names.

    RunError names the first thing that is wrong, in one line.
    """
    if reply.study_hash != study_hash:
        raise RunError("answers another study")
    if reply.round != round_:
        raise RunError(f"answers round {reply.round} instead of {round_}")
    if reply.images < 1:
        raise RunError(f"claims {reply.images} images; a site trains on at least 1")
    missing, extra = expected.keys() - reply.weights.keys(), reply.weights.keys() - expected.keys()
    if missing or extra:
        what = f"lacks tensor {min(missing)!r}" if missing else f"has the extra tensor {min(extra)!r}"
        raise RunError(f"{what}; the study shares exactly {len(expected)} tensors")
    for name, like in expected.items():
        value = reply.weights[name]
        if value.shape != like.shape or value.dtype != like.dtype:
            raise RunError(
                f"tensor {name!r} is {list(value.shape)} {value.dtype} instead of {list(like.shape)} {like.dtype}"
            )
        if not all_finite(value):
            raise RunError(f"tensor {name!r} has values that are not finite")
        if name.endswith("running_var") and bool((value < 0).any()):
            raise RunError(f"tensor {name!r} has negative variances")
    for metric in reply.metrics:
        if not _METRIC_NAME.fullmatch(metric) or metric in _JOURNAL_KEYS:
            raise RunError(f"has a metric with a name that is not allowed ({len(metric)} characters)")
