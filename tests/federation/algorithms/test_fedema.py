"""FedEMA and FedU: what a site starts from and keeps, against numpy; which studies may have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from federation.algorithms.algorithm import State, Weights
from federation.algorithms.fedavg import FedAvg, FedAvgConfig
from federation.algorithms.fedema import FedEMA, FedEMAConfig
from federation.study import study_from
from foundation.errors import StudyError
from foundation.tensor_files import load_tensors, save_tensors

SHAPES = {
    "encoder.conv.weight": (2, 1, 3, 3),
    "encoder.fc.weight": (2, 3),
    "encoder.norm.weight": (2,),
    "encoder.pos_embed": (1, 2, 2),
    "predictor.0.weight": (3, 2),
    "predictor.0.bias": (3,),
}
MEASURED = ("encoder.conv.weight", "encoder.fc.weight")
EMA = FedEMAConfig()
FEDU = FedEMAConfig(tau=None, threshold=2.0)


def weights(seed: int, scale: float = 1.0) -> Weights:
    draw = np.random.default_rng(seed)
    drawn = {name: torch.from_numpy(scale * draw.normal(size=shape)) for name, shape in SHAPES.items()}
    statistics = {f"predictor.1.{name}": torch.full((2,), float(seed)) for name in ("running_mean", "running_var")}
    return drawn | statistics | {"predictor.1.steps": torch.tensor(seed)}


def moved(start: Weights, seed: int, scale: float) -> Weights:
    step = weights(seed, scale)
    return {name: start[name] + step[name] for name in start}


def numpys_distance(one: Weights, other: Weights) -> float:
    each = [np.sqrt(((one[name].numpy() - other[name].numpy()) ** 2).sum()) for name in MEASURED]
    return float(sum(each) / len(each))


STEPS = {1: 0.5, 2: 0.4, 3: 0.9}


def run(
    config: FedEMAConfig, rounds: list[int], between: Callable[[State], State] = lambda kept: kept
) -> list[Weights]:
    """What a site starts these rounds from, where in round r the server sends ``weights(r)``."""
    kept: State = {}
    starts = []
    for round_ in rounds:
        algorithm, received = FedEMA(config), weights(round_)
        start = algorithm.start(round_, received, between(kept))
        starts.append(start)
        kept = algorithm.keep(round_, received, moved(start, 10 + round_, STEPS[round_]), between(kept))
    return starts


def test_three_rounds_are_numpys() -> None:
    """mu = tau d / d_1, cut at 1; the third round's is from the second, whose training began at a mixture."""
    first, second, third = run(EMA, [1, 2, 3])
    assert all(torch.equal(first[name], weights(1)[name]) for name in first)
    trained = moved(first, 11, STEPS[1])
    scale = 0.7 / numpys_distance(first, trained)
    for round_, found in ((2, second), (3, third)):
        before = first if round_ == 2 else second
        trained = moved(before, 10 + round_ - 1, STEPS[round_ - 1])
        mu = min(scale * numpys_distance(before, trained), 1.0)
        assert 0 < mu < 1
        for name in SHAPES:
            expected = mu * trained[name].numpy() + (1 - mu) * weights(round_)[name].numpy()
            np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-12, atol=1e-12)
        for name in found.keys() - SHAPES.keys():  # statistics and counters
            assert torch.equal(found[name], weights(round_)[name])


def test_by_hand() -> None:
    """From 0 a site moves to (3, 4): d 5, lambda .14, mu .7; then by (0, 5 / 2): mu .35; far enough: mu 1."""
    name = "encoder.w.weight"
    algorithm, zero = FedEMA(EMA), {name: torch.zeros(1, 2)}
    kept = algorithm.keep(1, zero, {name: torch.tensor([[3.0, 4.0]])}, {})
    start = algorithm.start(2, {name: torch.tensor([[1.0, 0.0]])}, kept)[name]
    assert start.tolist()[0] == pytest.approx([0.7 * 3 + 0.3, 0.7 * 4])
    for step, mu in ((2.5, 0.35), (5.0, 0.7), (100.0, 1.0)):
        trained = start + torch.tensor([[0.0, step]])
        after = algorithm.keep(2, {name: torch.tensor([[1.0, 0.0]])}, {name: trained}, kept)
        assert algorithm.start(3, zero, after)[name].tolist()[0] == pytest.approx((mu * trained[0]).tolist())


def test_fedu_keeps_the_predictor_where_the_site_moved_far() -> None:
    for threshold, own in ((0.5, True), (50.0, False)):
        first, second = run(FedEMAConfig(tau=None, threshold=threshold), [1, 2])
        trained, received = moved(first, 11, STEPS[1]), weights(2)
        for name in second:
            kept = own and name in ("predictor.0.weight", "predictor.0.bias")
            assert torch.equal(second[name], trained[name] if kept else received[name]), name


@pytest.mark.parametrize("config", [EMA, FEDU], ids=["fedema", "fedu"])
def test_a_site_that_missed_a_round_starts_from_the_global_weights(config: FedEMAConfig) -> None:
    algorithm = FedEMA(config)
    kept = algorithm.keep(1, weights(1), moved(weights(1), 11, 5.0), {})
    assert algorithm.goes_on(2, kept) and not algorithm.goes_on(3, kept) and not algorithm.goes_on(1, {})
    found = algorithm.start(3, weights(3), kept)
    assert all(torch.equal(found[name], weights(3)[name]) for name in found)
    if config is EMA:
        later = algorithm.keep(3, weights(3), moved(weights(3), 13, 1.0), kept)
        assert torch.equal(later["scale"], kept["scale"])


def test_a_site_that_never_moved_takes_all() -> None:
    algorithm = FedEMA(EMA)
    kept = algorithm.keep(1, weights(1), weights(1), {})
    found = algorithm.start(2, weights(2), kept)
    assert all(torch.equal(found[name], weights(2)[name]) for name in found)


@pytest.mark.parametrize("config", [EMA, FEDU], ids=["fedema", "fedu"])
def test_the_state_survives_the_disk_bit_for_bit(config: FedEMAConfig, tmp_path: Path) -> None:
    def through_disk(kept: State) -> State:
        save_tensors(tmp_path / "state", kept)
        return load_tensors(tmp_path / "state")[0]

    whole, stored = run(config, [1, 2, 3]), run(config, [1, 2, 3], through_disk)
    for one, other in zip(whole, stored, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_setting_does_something() -> None:
    one, other = run(EMA, [1, 2])[1], run(FedEMAConfig(tau=0.3), [1, 2])[1]
    assert not torch.allclose(one["encoder.fc.weight"], other["encoder.fc.weight"], atol=1e-2)
    assert FedEMAConfig().tau == 0.7
    for wrong in ({"tau": None}, {"threshold": 0.4}):
        with pytest.raises(ValueError, match="tau and threshold: exactly one of them is set, the other is null"):
            FedEMAConfig(**wrong)  # type: ignore[arg-type]


def test_fedu_keeps_no_more_than_it_may_need() -> None:
    kept = FedEMA(FEDU).keep(1, weights(1), moved(weights(1), 11, 1.0), {})
    assert kept.keys() == {"round", "distance", "own/predictor.0.weight", "own/predictor.0.bias"}


def test_the_server_half_is_fedavg(contributions: Callable[..., Any]) -> None:
    replies = contributions((3, weights(1)), (5, weights(2)))
    ours, state = FedEMA(EMA).aggregate(weights(3), replies, {})
    theirs, _ = FedAvg(FedAvgConfig()).aggregate(weights(3), replies, {})
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and state == {}


BYOL = {"name": "byol", "projection": 8}
STILL = {"batch": 4, "learning_rate": 0.01, "warmup": 0.0}


@pytest.mark.parametrize("method", ["byol", "moco_v3", "ijepa"])
def test_methods_with_a_predictor_and_a_target_may_have_it(raw_study: dict[str, Any], method: str) -> None:
    raw = raw_study | {"method": {"name": method}, "algorithm": {"name": "fedema"}, "training": STILL}
    assert study_from(raw, "test").algorithm.name == "fedema"


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        (
            {"method": {"name": "mae"}},
            "algorithm 'fedema' is for methods with a predictor and a target that stays at the site, which 'mae' has "
            "not: choose method ijepa or moco_v3 or byol, or algorithm fedavg",
        ),
        ({"method": {"name": "simsiam"}}, "which 'simsiam' has not: choose method ijepa or moco_v3 or byol"),
        (
            {"method": BYOL | {"share": ["encoder", "projector"]}},
            "method.share: algorithm 'fedema' has the predictor sent and the target stay at the site: leave share out",
        ),
        (
            {"method": BYOL | {"share": ["encoder", "predictor", "target_encoder"]}},
            "method.share: algorithm 'fedema' has the predictor sent",
        ),
        (
            {"training": STILL | {"warmup": 0.1}},
            "training.warmup 0.1: algorithm 'fedema' measures all later rounds by how far a site moved in its first, "
            "which a warm-up shortens, so that sites would keep to themselves: set warmup to 0",
        ),
    ],
)
def test_other_studies_are_refused(raw_study: dict[str, Any], sections: dict[str, Any], said: str) -> None:
    raw = raw_study | {"method": BYOL, "algorithm": {"name": "fedema"}, "training": STILL}
    with pytest.raises(StudyError) as caught:
        study_from(raw | sections, "test")
    assert said in str(caught.value)


def test_fedu_may_warm_up(raw_study: dict[str, Any]) -> None:
    algorithm = {"name": "fedema", "tau": None, "threshold": 0.4}
    assert study_from(raw_study | {"method": BYOL, "algorithm": algorithm}, "test").training.warmup == 0.1
