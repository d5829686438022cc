"""BatchNorm's running statistics: begun anew each round in training, estimated on plain images at a study's end."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from foundation.progress import track
from imaging.config import ImageConfig
from imaging.store import TensorStore
from imaging.views.augment import Augmentation
from ssl_methods.encoders.outputs import features

_RATE = 0.1
_AT_ONCE = 128
"""Images: the more, the nearer are the figures behind the first layer to those of all at once."""


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The layers of ``network`` that have running statistics."""
    found = (layer for layer in network.modules() if isinstance(layer, _BatchNorm))
    return [layer for layer in found if layer.running_mean is not None]


def follow_batches(network: nn.Module, *, anew: bool) -> None:
    """Have running statistics follow the batches from here on; anew: the next one takes the place of what was there.

    At torch's rate of .1 from the start (mean 0, variance 1) a fifth of the start is left after 16 steps. A plain mean
    over the steps would have a GPU's step wait for a count.
    """
    for layer in batch_norms(network):
        layer.momentum = 1.0 if anew else _RATE


@torch.no_grad()
def estimate_statistics(encoder: nn.Module, batches: Iterable[Tensor], *, trained_only: bool = False) -> None:
    """Set the running statistics to the mean and variance of what each layer sees in one pass over ``batches``.

    batches: standardised images as ``features`` takes them, at least two a batch, on the encoder's device. Weights
    stay; layers normalise by each batch's own statistics meanwhile, as in training, all else is in evaluation mode.
    Batches are put together by the law of total variance, so that of one site the first layer's figures are those of
    all images at once. Does nothing for an encoder without such layers.

    trained_only: leave layers alone that are in evaluation mode, as those of frozen blocks are in fine-tuning.
    """
    layers = [layer for layer in batch_norms(encoder) if layer.training or not trained_only]
    if not layers:
        return
    seen = [_Moments() for _ in layers]
    was_training = encoder.training
    encoder.eval()
    hooks = [
        layer.register_forward_pre_hook(partial(_see, moments)) for layer, moments in zip(layers, seen, strict=True)
    ]
    try:
        with _of_the_batch(layers):
            for batch in batches:
                features(encoder, batch)
    finally:
        for hook in hooks:
            hook.remove()
        encoder.train(was_training)
    for layer, moments in zip(layers, seen, strict=True):
        moments.put_into(layer)


def plain_batches(
    count: int, read: Callable[[NDArray[np.int64]], Tensor], image: ImageConfig, device: torch.device
) -> Iterator[Tensor]:
    """``count`` images as evaluation sees them, in batches as large as memory bears and as even as can be.

    read: gives images ``[B, *image.shape]`` in [0, 1] by their places from 0 to count - 1.
    """
    augmentation = Augmentation(image)
    pieces = -(-count // max(2, image.at_once(_AT_ONCE)))
    for chosen in np.array_split(np.arange(count), max(1, min(pieces, count // 2))):
        yield augmentation.plain(read(chosen).to(device))


def estimate_over(encoder: nn.Module, store: TensorStore, image: ImageConfig, device: torch.device, title: str) -> None:
    """``estimate_statistics`` of all images of a store; the encoder is on ``device`` then."""
    batches = plain_batches(len(store), store.batch, image, device)
    estimate_statistics(encoder.to(device), track(batches, title))


@contextmanager
def _of_the_batch(layers: list[_BatchNorm]) -> Iterator[None]:
    """Normalise by the batch, and leave running statistics alone."""
    for layer in layers:
        layer.train()
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


class _Moments:
    """Count, mean and sum of squared deviations of each channel, put together batch by batch (Chan et al. 1979)."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, seen: Tensor) -> None:
        """seen: what a layer gets, ``[B, C, ...]``."""
        wide = torch.float32 if seen.device.type == "mps" else torch.float64
        channels = seen.detach().transpose(0, 1).flatten(1)  # [C, n]
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        count, more = self._count, channels.shape[1]
        gap = mean.to(wide) - self._mean
        self._count = count + more
        self._mean = self._mean + gap * (more / self._count)
        self._squares = self._squares + variance.to(wide) * more + gap.square() * (count * more / self._count)

    def put_into(self, layer: _BatchNorm) -> None:
        """Make them the layer's; one that was not reached keeps what it has."""
        if self._count and isinstance(self._mean, Tensor) and isinstance(self._squares, Tensor):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.copy_(self._mean)
            layer.running_var.copy_(self._squares / self._count)


def _see(moments: _Moments, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
    moments.add(arguments[0])
