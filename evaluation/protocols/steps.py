"""The optimiser's steps of heads that are trained on labels: how many, which images, at which rate."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from foundation.randomness import numpy_generator

LEAST_STEPS = 300
"""Optimiser steps of a dense head: small training sets are passed more often than its ``epochs`` say until there are as
many. 30 passes over 20 images teach a new head nothing."""
LARGEST_GRADIENT = 1.0


def batches(count: int, epochs: int, batch: int, seed: int) -> Iterator[tuple[float, Tensor]]:
    """How much of the training is done at the middle of a step, and the places ``[B]`` of the images it takes."""
    order = numpy_generator(seed, "order")
    a_pass = -(-count // batch)
    passes = max(epochs, -(-LEAST_STEPS // a_pass))
    for number in range(passes):
        for step, chosen in enumerate(np.array_split(order.permutation(count), a_pass)):
            yield (number * a_pass + step + 0.5) / (passes * a_pass), torch.from_numpy(chosen)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its multiple (``scale``) of the rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group["scale"]


def take_step(network: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step down the loss, the gradient cut to LARGEST_GRADIENT."""
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(loss)
    nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
    optimiser.step()
