"""A tiny run that was attacked once, and the settings it was attacked with."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from attacks.attack import attack
from attacks.settings import AttackSettings
from simulation.simulate import simulate
from tests.conftest import write_images, write_simulated

SMALL = AttackSettings(
    views=4, control_patients=4, control_steps=20, shadow_rounds=1, targets=2, crowd=8, restarts=1, steps=10
)


@pytest.fixture(scope="session")
def small() -> AttackSettings:
    return SMALL


@pytest.fixture(scope="session")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The run's folder and what ``attack`` returned."""
    place = tmp_path_factory.mktemp("attacked")
    images = write_images(place / "images", {"north": 10, "south": 9, "away": 4}, each=2)
    study = write_simulated(place / "study.yaml", images.root)
    raw = yaml.safe_load(study.read_text())
    raw["simulation"] |= {"arms": [], "splits": {"left_out": ["away"], "test_share": 0.4}}
    study.write_text(yaml.safe_dump(raw))
    folder = simulate(study, runs=place / "runs", device="cpu").folder
    return folder, dict(attack(folder, shadows=2, device="cpu", settings=SMALL))
