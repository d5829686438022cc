"""The Gram term of DINOv3 (Siméoni et al. 2025, sec. 4.2): keeps patch features from losing their structure."""

import torch
from torch import Tensor

from ssl_methods.similarity import unit


def gram_loss(tokens: Tensor, anchor: Tensor) -> Tensor:
    """Mean squared difference of the cosines between the patches of a picture, at least in float32.

    tokens, anchor ``[B, N, D]``: patch tokens of the same pictures by two encoders; no gradient enters the anchor.
    The features themselves may move as long as which patch is like which stays. The paper writes the sum over the
    N x N entries (eq. 2) and takes their mean in its code.
    """
    with torch.autocast(tokens.device.type, enabled=False):
        now, then = unit(tokens), unit(anchor.detach())
        return (now @ now.mT - then @ then.mT).square().mean()
