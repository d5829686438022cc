"""A round's work by hand, and what must hold for every site."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from federation.local_work import LocalWork, local_work, steps_for_budget
from federation.training_config import TrainingConfig


def training(**settings: Any) -> TrainingConfig:
    return TrainingConfig(**({"epochs": None} if "steps" in settings else {}) | settings)


@pytest.mark.parametrize(
    ("settings", "images", "steps", "batch", "seen"),
    [
        ({"batch": 4, "epochs": 1}, 9, 2, 4, 8),  # one image sits out
        ({"batch": 4, "epochs": 1}, 8, 2, 4, 8),
        ({"batch": 4, "epochs": 2}, 9, 4, 4, 16),  # 18 / 4
        ({"batch": 4, "epochs": 0.5}, 9, 1, 4, 4),
        ({"batch": 4, "epochs": 0.1}, 9, 1, 4, 4),  # at least one step
        ({"batch": 32, "epochs": 1}, 12, 1, 12, 12),  # a smaller site takes all it has
        ({"batch": 32, "epochs": 3}, 12, 3, 12, 36),
        ({"batch": 4, "accumulate": 2, "epochs": 1}, 17, 2, 4, 16),
        ({"batch": 4, "steps": 5}, 9, 5, 4, 20),
        ({"batch": 32, "steps": 5}, 9, 5, 9, 45),
        ({"batch": 4, "accumulate": 3, "steps": 5}, 9, 5, 4, 60),
        ({"batch": 10, "epochs": 0.7}, 100, 7, 10, 70),  # 0.7 * 100 is a little under 70 in floating point
    ],
)
def test_by_hand(settings: dict[str, Any], images: int, steps: int, batch: int, seen: int) -> None:
    work = local_work(training(**settings), images)
    assert work == LocalWork(steps, batch, settings.get("accumulate", 1))
    assert work.images == seen


counts = st.integers(2, 5000)
settings = st.builds(
    training, batch=st.integers(2, 512), accumulate=st.integers(1, 8), epochs=st.floats(0.01, 50, allow_nan=False)
)


@given(settings, counts)
def test_epochs_are_never_exceeded_but_for_the_one_step(config: TrainingConfig, images: int) -> None:
    work = local_work(config, images)
    step = work.batch * work.accumulate
    assert config.epochs is not None
    asked = config.epochs * images
    assert work.batch <= images
    assert work.steps == 1 or work.images <= asked * (1 + 1e-6)
    assert work.images > asked - step - 1e-6 * step


@given(st.integers(1, 1000), st.integers(2, 512), counts, counts)
def test_fixed_steps_are_equal_everywhere(steps: int, batch: int, small: int, large: int) -> None:
    config = training(batch=batch, steps=steps)
    assert local_work(config, small).steps == local_work(config, large).steps == steps


@given(settings, st.lists(counts, min_size=1, max_size=8), counts)
def test_an_arm_of_one_site_sees_the_federations_budget_within_half_a_step(
    config: TrainingConfig, sites: list[int], alone: int
) -> None:
    """The rule behind "at equal budget": what all sites see in a round, one site sees to the nearest step."""
    budget = sum(local_work(config, images).images for images in sites)
    steps = steps_for_budget(config, alone, budget)
    work = local_work(config.model_copy(update={"steps": steps, "epochs": None}), alone)
    half = work.batch * work.accumulate / 2
    assert work.steps == steps >= 1
    assert abs(work.images - budget) <= half or (steps == 1 and budget < half)


def test_steps_for_budget_by_hand() -> None:
    assert steps_for_budget(training(batch=4), 100, 18) == 4  # 4.5 steps: 16 images, half a step short
    assert steps_for_budget(training(batch=4), 100, 19) == 5
    assert steps_for_budget(training(batch=4, accumulate=2), 100, 24) == 3
    assert steps_for_budget(training(batch=64), 10, 18) == 2
    assert steps_for_budget(training(batch=64), 100, 3) == 1
