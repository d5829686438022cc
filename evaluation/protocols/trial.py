"""What a protocol knows beside labelled images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from evaluation.config import EvaluationConfig
from imaging.config import ImageConfig


@dataclass(frozen=True)
class Trial:
    """One encoder, one fold, one draw of labels.

    classes: K, the columns of a score (regression: 1; segmentation: the background counts). encoder: makes a fresh copy
    of the encoder under study on the CPU, with the given stochastic depth; seed: of this label draw.
    """

    classes: int
    image: ImageConfig
    config: EvaluationConfig
    encoder: Callable[[float], nn.Module]
    seed: int
    device: torch.device
