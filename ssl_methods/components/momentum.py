"""Networks that follow the trained ones slowly: the teachers, targets and key encoders of several papers."""

import copy
from typing import TypeVar

import torch
from torch import nn

from ssl_methods.encoders.statistics import batch_norms

Module = TypeVar("Module", bound=nn.Module)


def follower(online: Module) -> Module:
    """A copy of ``online`` that no gradient trains."""
    return copy.deepcopy(online).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move ``target`` towards ``online``: t <- m t + (1 - m) o for every parameter.

    Momentum 0 makes ``target`` a copy, its buffers too (He et al. 2020, eq. 2; Grill et al. 2020, eq. 1). Else these
    stay: running statistics are of the target's own passes, or follow by ``follow_statistics``.
    """
    for old, new in zip(target.parameters(), online.parameters(), strict=True):
        old.lerp_(new.detach(), 1.0 - momentum)
    if momentum == 0.0:
        for kept, current in zip(target.buffers(), online.buffers(), strict=True):
            kept.copy_(current)


@torch.no_grad()
def follow_statistics(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Move running means and variances of ``target``'s BatchNorms towards ``online``'s, as the weights move.

    For a target in evaluation mode: s <- m s + (1 - m) o (Cai et al. 2021, EMAN), of the first calls the plain
    mean, so that nothing of the start (0 and 1) is left. Does nothing without BatchNorm.
    """
    for kept, current in zip(batch_norms(target), batch_norms(online), strict=True):
        assert kept.num_batches_tracked is not None
        kept.num_batches_tracked += 1
        rate = (1.0 / kept.num_batches_tracked).clamp(min=1.0 - momentum)
        for old, new in zip(kept.buffers(), current.buffers(), strict=True):
            if old.is_floating_point():
                old.lerp_(new, rate.to(old.dtype))
