"""Tasks whose answer is one of a few classes."""

from abc import abstractmethod

from torch import Tensor
from torch.nn import functional

from ssl_methods.components.similarity import as_float32
from ssl_methods.method import Method, Views


def class_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each image the mean cross-entropy of its answers, ``[B]``, and the share of all right guesses (detached).

    At least in float32. logits ``[B, ..., K]``, labels ``[B, ...]`` int64 from 0 to K - 1.
    """
    rows, truth = as_float32(logits).flatten(0, -2), labels.flatten()
    right = (rows.detach().argmax(dim=1) == truth).float().mean()
    each = functional.cross_entropy(rows, truth, reduction="none").reshape(len(labels), -1)
    return each.mean(dim=1), right


class ClassifyingMethod(Method):
    """A method whose loss is the cross-entropy of what it is asked about each image."""

    @abstractmethod
    def answered(self, views: Views) -> tuple[Tensor, Tensor]:
        """``class_loss`` of the answers."""

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """The cross-entropy; also the share of right answers."""
        losses, right = self.answered(views)
        return losses.mean(), {"accuracy": right}

    def image_losses(self, views: Views) -> Tensor:
        """``[B]``: the cross-entropy of each image's answers."""
        return self.answered(views)[0]
