"""Judging updates together: by an absolute bound and by their median."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from federation.study import Study, study_from
from server.judge import UpdateScreening, judge_statistics, judge_together, update_norm

STUDY: dict[str, Any] = {
    "name": "tiny",
    "image": {"modality": "mri", "size": 32, "channels": 1},
    "encoder": {"name": "resnet10t"},
    "method": {"name": "simclr"},
    "training": {"batch": 4},
    "algorithm": {"name": "fedavg"},
}
BEFORE = {"w": torch.zeros(2), "b": torch.ones(1), "bn.running_var": torch.ones(1), "n": torch.tensor(0)}


@dataclass(frozen=True)
class Update:
    """A site whose update has a given length."""

    site: str
    norm: float
    images: int = 1

    def tensor(self, name: str) -> Tensor:
        """All of the length is in the parameters; statistics and counters differ wildly."""
        return {
            "w": torch.tensor([0.6, 0.0], dtype=torch.float64) * self.norm,
            "b": torch.tensor([1 - 0.8 * self.norm], dtype=torch.float64),
            "bn.running_var": torch.tensor([1e9]),
            "n": torch.tensor(10**9),
        }[name]

    def piece(self, name: str, start: int, stop: int) -> Tensor:
        """A part of it."""
        return self.tensor(name).reshape(-1)[start:stop]


def judge(
    *norms: float, last: dict[str, float] | None = None, factor: float = 10, bound: float = 1e4
) -> UpdateScreening:
    updates = [Update("ABCDE"[n], norm) for n, norm in enumerate(norms)]
    return judge_together(updates, BEFORE, study(norm_factor=factor, norm_bound=bound), last or {})


def study(**rounds: float) -> Study:
    """Batches of four, one epoch a round: a site of 12 images takes 3 steps."""
    return study_from(STUDY | {"rounds": {"count": 1, **rounds}}, "test")


def test_a_large_hospital_among_small_ones_is_not_taken_for_a_broken_one() -> None:
    """24 steps against 3: 12 times the others' norm is what so many steps can give; 300 times is not."""
    small = [Update("A", 1.0, 12), Update("B", 1.2, 12)]
    honest, broken = (judge_together([*small, Update("C", norm, 96)], BEFORE, study(), {}) for norm in (12.0, 300.0))
    assert honest.left_out == {}
    # By hand, for 24 steps: A 1 x 8, B 1.2 x 8, C itself; the median is B's 9.6.
    assert broken.left_out == {"C": "update norm 300 is 31 times the median 9.6 for its steps (rounds.norm_factor 10)"}


def test_a_small_hospital_is_measured_by_the_others_as_they_are() -> None:
    large = [Update("A", 10.0, 96), Update("B", 12.0, 96)]
    assert judge_together([*large, Update("C", 1.0, 12)], BEFORE, study(), {}).left_out == {}
    assert set(judge_together([*large, Update("C", 150.0, 12)], BEFORE, study(), {}).left_out) == {"C"}


def test_the_norm_is_over_parameters_only() -> None:
    assert update_norm(Update("A", 5.0), BEFORE) == pytest.approx(5.0)


def test_a_sum_of_squares_that_float32_cannot_hold() -> None:
    assert update_norm(Update("A", 1e30), BEFORE) == pytest.approx(1e30)


def test_one_of_four_a_hundredfold_is_out_and_said_why() -> None:
    verdict = judge(1.0, 2.0, 150.0, 2.0)
    assert verdict.norms == pytest.approx({"A": 1.0, "B": 2.0, "D": 2.0})
    assert verdict.left_out == {"C": "update norm 150 is 75 times the median 2 for its steps (rounds.norm_factor 10)"}


def test_the_factor_is_of_the_median_not_of_the_mean() -> None:
    """By the mean (275) nobody would be out: two wild updates of five hide each other."""
    assert set(judge(1.0, 1.0, 1.0, 700.0, 700.0).left_out) == {"D", "E"}


def test_just_inside_and_just_outside() -> None:
    assert judge(1.0, 1.0, 9.99).left_out == {}
    assert set(judge(1.0, 1.0, 10.01).left_out) == {"C"}
    assert set(judge(1.0, 1.0, 3.0, factor=2.5).left_out) == {"C"}


def test_the_bound_holds_whatever_the_others_are() -> None:
    verdict = judge(200.0, 300.0, 250.0, bound=220.0)
    assert set(verdict.norms) == {"A"}
    assert verdict.left_out["B"] == "update norm 300 is above the bound 220 (rounds.norm_bound)"


def test_all_beyond_the_bound() -> None:
    assert judge(1e5, 1e6, 1e7).norms == {}


@pytest.mark.parametrize("factor", [1.1, 10])
def test_of_two_in_a_first_round_a_median_says_nothing(factor: float) -> None:
    assert judge(1.0, 1000.0, factor=factor).left_out == {}
    assert set(judge(1.0, 1e5, factor=factor).left_out) == {"B"}


def test_of_two_the_last_round_tells_which_is_wrong() -> None:
    verdict = judge(1.0, 100.0, last={"A": 1.1, "B": 0.9})
    assert set(verdict.left_out) == {"B"}
    assert set(judge(100.0, last={"A": 1.1, "B": 0.9}).left_out) == {"A"}


def test_of_three_the_last_round_is_not_asked() -> None:
    """Updates shrink with the learning rate: three of now are a better measure than those of before."""
    assert judge(100.0, 100.0, 100.0, last={"A": 1.0, "B": 1.0, "C": 1.0, "D": 1.0}).left_out == {}


def test_a_site_alone_is_never_compared() -> None:
    assert judge(100.0, last={"A": 1.0}, factor=1.1).left_out == {}


def test_nobody_and_no_movement() -> None:
    assert judge().norms == {}
    assert judge(0.0, 0.0, 5.0).left_out == {}  # no median to compare with


@given(st.lists(st.floats(0, 1e6), max_size=5), st.floats(1.01, 100), st.floats(0.1, 1e6))
def test_each_site_is_in_or_out_and_a_majority_is_never_out_by_the_median(
    norms: list[float], factor: float, bound: float
) -> None:
    verdict = judge(*norms, factor=factor, bound=bound)
    sites = set("ABCDE"[: len(norms)])
    assert set(verdict.norms) | set(verdict.left_out) == sites
    assert not set(verdict.norms) & set(verdict.left_out)
    by_median = [reason for reason in verdict.left_out.values() if "median" in reason]
    assert len(by_median) <= len(norms) / 2
    assert all(norm <= bound * (1 + 1e-9) for norm in verdict.norms.values())


@dataclass(frozen=True)
class Statistics:
    """A site whose weights are those sent, or not, with statistics of its own."""

    site: str
    mean: float
    moved: float = 0.0
    images: int = 1

    def tensor(self, name: str) -> Tensor:
        return {"w": torch.tensor([self.moved]), "bn.running_mean": torch.tensor([self.mean])}.get(
            name, torch.tensor([1.0])
        )


def test_far_statistics_and_changed_weights_are_left_out_and_named() -> None:
    sent = {"w": torch.zeros(1), "bn.running_mean": torch.zeros(1), "bn.running_var": torch.ones(1)}
    sites: list[Any] = [
        Statistics("A", 1.0),
        Statistics("B", 2.0),
        Statistics("C", 30.0),
        Statistics("D", 1.5, moved=1e-6),
    ]
    assert judge_statistics(sites, sent, study()).left_out == {
        "C": "BatchNorm statistics are 15 times as far off as the median (rounds.norm_factor)",
        "D": "changed weights in the exchange that only estimates statistics",
    }
    assert judge_statistics(sites[1:3], sent, study()).left_out == {}
    assert set(judge_together(sites[:3], sent, study(), {}).left_out) == {"C"}
