"""BatchNorm's statistics under masks come to what they are when merged in the open."""

import numpy as np
import pytest
import torch

from federation.algorithms.statistics import merged
from federation.secure_aggregation.encoding import FixedPoint, decode, encode
from federation.secure_aggregation.statistics import (
    check_encodable,
    statistics_moved,
    statistics_numbers,
    statistics_of,
)
from foundation.errors import TrainingError

LARGEST = 1.0
COUNTS = (40, 100, 60)


class _Site:
    def __init__(self, images: int, weights: dict[str, torch.Tensor]) -> None:
        self.site, self.images, self.weights = "A", images, weights

    def tensor(self, name: str) -> torch.Tensor:
        return self.weights[name]

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.tensor(name).reshape(-1)[start:stop]


def statistics(mean: torch.Tensor, variance: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"encoder.bn.running_mean": mean, "encoder.bn.running_var": variance}


def sites(scale: float) -> list[dict[str, torch.Tensor]]:
    draw = torch.Generator().manual_seed(7)
    drawn = [torch.randn(2, 50, generator=draw) for _ in COUNTS]
    return [statistics(scale * one[0], scale**2 * one[1].exp()) for one in drawn]


def summed(received: dict[str, torch.Tensor], own: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One sum as the server gets it: fixed point, weights by images."""
    fixed = FixedPoint(LARGEST, 1000)
    vectors = [statistics_moved(one, received, LARGEST).numpy() for one in own]
    with np.errstate(over="ignore"):
        total = sum(encode(v, n, fixed, len(own)) for v, n in zip(vectors, COUNTS, strict=True))
    mean = decode(np.asarray(total, dtype=np.uint32).view(np.int32)[:-1], sum(COUNTS), fixed, len(own))
    assert len(mean) == statistics_numbers(received)
    return statistics_of(received, mean, LARGEST)


@pytest.mark.parametrize(("scale", "sums"), [(0.01, 2), (1.0, 2), (20.0, 4), (2000.0, 6)])
def test_sums_come_to_the_merged_statistics_whatever_their_scale(scale: float, sums: int) -> None:
    """The first takes the start, mean 0 and variance 1, for its unit; each other one what the one before has found."""
    found = start = statistics(torch.zeros(50), torch.ones(50))
    exact = merged(start, [_Site(n, one) for n, one in zip(COUNTS, sites(scale), strict=True)])
    for _ in range(sums):
        found = summed(found, sites(scale))
    deviation = exact["encoder.bn.running_var"].sqrt()
    assert float(((found["encoder.bn.running_mean"] - exact["encoder.bn.running_mean"]) / deviation).abs().max()) < 1e-3
    torch.testing.assert_close(found["encoder.bn.running_var"], exact["encoder.bn.running_var"], rtol=2e-3, atol=0)
    check_encodable(sites(scale)[0], found)


def test_statistics_that_cannot_be_encoded_are_refused_at_the_end() -> None:
    start = statistics(torch.zeros(50), torch.ones(50))
    with pytest.raises(TrainingError, match=r"units from those of the round before, and 1000 can be summed: they are"):
        check_encodable(sites(2000.0)[0], start)
