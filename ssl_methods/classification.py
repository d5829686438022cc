"""The loss of the tasks whose answer is one of a few classes."""

from torch import Tensor
from torch.nn import functional


def class_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy, at least in float32, and the share of right guesses (detached).

    logits ``[..., K]``, labels ``[...]`` int64 from 0 to K - 1.
    """
    rows = logits.flatten(0, -2)
    rows = rows if rows.dtype.itemsize >= 4 else rows.float()
    truth = labels.flatten()
    right = (rows.detach().argmax(dim=1) == truth).float().mean()
    return functional.cross_entropy(rows, truth), right
