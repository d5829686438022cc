"""BatchNorm's statistics of several sites put together, against those of all images at once."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.algorithms.statistics import distance, exchanges, means_of, merged
from federation.study import study_from

Make = Callable[..., Any]
BEFORE = {
    "encoder.bn1.weight": torch.ones(3),
    "encoder.bn1.running_mean": torch.zeros(3),
    "encoder.bn1.running_var": torch.ones(3),
    "encoder.bn1.num_batches_tracked": torch.tensor(0),
    "projector.1.running_mean": torch.zeros(2),
    "projector.1.running_var": torch.ones(2),
}


class _Site:
    """A site that has seen ``values`` ``[n, 3]``."""

    site = "A"

    def __init__(self, values: torch.Tensor) -> None:
        self.images = len(values)
        own = {"running_mean": values.mean(dim=0), "running_var": values.var(dim=0, correction=0)}
        self.weights = {f"encoder.bn1.{name}": value.float() for name, value in own.items()}

    def tensor(self, name: str) -> torch.Tensor:
        return self.weights[name]

    def piece(self, name: str, start: int, stop: int) -> torch.Tensor:
        return self.tensor(name).reshape(-1)[start:stop]


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(-20, 20)), min_size=1, max_size=6))
def test_merged_statistics_are_those_of_all_images_at_once(sites: list[tuple[int, float]]) -> None:
    draw = torch.Generator().manual_seed(len(sites))
    seen = [torch.randn(n, 3, generator=draw, dtype=torch.float64) * 2 + shift for n, shift in sites]
    found = merged(
        {k: v for k, v in BEFORE.items() if k.endswith(("bn1.running_mean", "bn1.running_var"))}, [*map(_Site, seen)]
    )
    everything = torch.cat(seen)
    torch.testing.assert_close(found["encoder.bn1.running_mean"], everything.mean(dim=0).float(), rtol=1e-5, atol=1e-5)
    exact = everything.var(dim=0, correction=0).float()
    torch.testing.assert_close(found["encoder.bn1.running_var"], exact, rtol=1e-4, atol=1e-5)


def test_statistics_only_and_all_of_them_are_merged(contributions: Make) -> None:
    found = merged(BEFORE, contributions((1, BEFORE), (3, BEFORE)))
    assert found.keys() == BEFORE.keys() - {"encoder.bn1.weight"}
    assert means_of(BEFORE) == ["encoder.bn1.running_mean", "projector.1.running_mean"]
    assert means_of(BEFORE, "encoder.") == ["encoder.bn1.running_mean"]


def test_distance_counts_means_and_deviations(contributions: Make) -> None:
    other = BEFORE | {
        "encoder.bn1.weight": torch.full((3,), 9.0),
        "encoder.bn1.running_mean": torch.tensor([0.0, 2.0, 0.0]),
        "projector.1.running_var": torch.tensor([1.0, 9.0]),
    }
    (reply,) = contributions((5, other))
    assert distance(reply, BEFORE) == pytest.approx((4 + 4) ** 0.5)


@pytest.mark.parametrize(
    ("weights", "privacy", "expected"),
    [
        (BEFORE, None, 4),
        ({name: BEFORE[name] for name in BEFORE if name.startswith("projector")}, None, 3),
        (BEFORE, {"unit": "site", "epsilon": 8, "delta": 1e-3, "clip": 1.0, "sites": 5}, 3),
    ],
    ids=["encoder with BatchNorm", "only the projector has it", "private"],
)
def test_one_exchange_more_where_the_encoder_has_statistics(
    raw_study: dict[str, Any], weights: dict[str, torch.Tensor], privacy: Any, expected: int
) -> None:
    study = study_from(raw_study | {"rounds": {"count": 3}}, "test")
    assert exchanges(study.model_copy(update={"privacy": privacy}), weights) == expected
