"""KoLeo: spreads features over the sphere (Sablayrolles et al. 2019, ICLR, sec. 3; DINOv2: Oquab et al. 2024)."""

import torch
from torch import Tensor

from ssl_methods.components.similarity import unit

EPSILON = 1e-8
"""Added to a distance: two equal images have a finite loss."""


def koleo(features: Tensor) -> Tensor:
    """- mean log of each feature's distance to its nearest neighbour in the batch, at least in float32.

    features ``[B, D]`` of any length, B at least 2: distances are those of the unit vectors. The Kozachenko-Leonenko
    estimate of their entropy, up to constants: it falls as they spread out.
    """
    with torch.autocast(features.device.type, enabled=False):
        points = unit(features)
        with torch.no_grad():  # which neighbour is the nearest has no gradient
            nearest = (points @ points.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        distance: Tensor = torch.linalg.vector_norm(points - points[nearest] + EPSILON, dim=1)
        return -(distance + EPSILON).log().mean()
