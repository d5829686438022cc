"""Cosines of feature vectors and the losses that several papers build from them."""

import torch
from torch import Tensor
from torch.nn import functional


def as_float32(vectors: Tensor) -> Tensor:
    """At least in float32: half precision has too few digits for a loss."""
    return vectors if vectors.dtype == torch.float64 else vectors.float()


def unit(vectors: Tensor) -> Tensor:
    """``[..., D]`` at length 1, at least in float32."""
    return functional.normalize(as_float32(vectors), dim=-1)


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of -cos between ``[B, D]`` predictions and targets, at least in float32; no gradient enters the target.

    Chen and He 2021 (SimSiam), eq. 1-2. The squared distance of the unit vectors (Grill et al. 2020, eq. 2) is
    2 + 2 times this.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        return -(unit(prediction) * unit(target.detach())).sum(dim=-1).mean()


def info_nce(similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy that finds each anchor's positives among its candidates; which anchors counted, ``[A]`` bool.

    similarity ``[A, C]``: of A anchors to C candidates, divided by the temperature. positive, negative ``[A, C]``
    bool: the candidates of each kind; every anchor has a positive. With P(i) and N(i) these of anchor i,
    loss_i = - 1/|P(i)| sum over p in P(i) of [s_ip - log sum over a in P(i) and N(i) of exp(s_ia)]
    (Khosla et al. 2020, eq. 2; with one positive van den Oord et al. 2018, eq. 4). The mean is over the anchors
    that have a negative. Where none has, the loss is 0 and so is its gradient.
    """
    candidates = similarity.masked_fill(~(positive | negative), -torch.inf)
    log_probability = similarity - candidates.logsumexp(dim=1, keepdim=True)
    each = -(log_probability * positive).sum(dim=1) / positive.sum(dim=1)  # [A]
    counted = negative.any(dim=1)
    return (each * counted).sum() / counted.sum().clamp(min=1), counted
