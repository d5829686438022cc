"""Networks that follow the trained ones slowly: the teachers, targets and key encoders of several papers."""

import copy
from typing import TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def follower(online: Module) -> Module:
    """A copy of ``online`` that no gradient trains."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move ``target`` towards ``online``: t <- m t + (1 - m) o for every parameter; buffers are copied.

    Momentum 0 makes ``target`` a copy (He et al. 2020, eq. 2; Grill et al. 2020, eq. 1).
    """
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.lerp_(new.detach(), 1.0 - momentum)
    for kept, current in zip(target.buffers(), online.buffers(), strict=True):
        kept.copy_(current)
