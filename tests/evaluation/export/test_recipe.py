"""The code that a card holds does what imaging/ did in training: read here against imaging/ itself."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.export.recipe import input_code, standardisation, timm_statistics
from imaging.config import ImageConfig, Modality
from imaging.reading.formats import Scale
from imaging.reading.readers import fitted_box, resize, to_unit
from imaging.reading.volumes import resize_volume
from imaging.views.augment import Augmentation


def recipe(image: ImageConfig) -> dict[str, Any]:
    """The names that the card's code defines; it may import numpy and torch only."""
    names: dict[str, Any] = {}
    code = input_code(image)
    imported = {line.split()[1].split(".")[0] for line in code.splitlines() if line.startswith(("import", "from"))}
    assert imported == {"numpy", "torch"}
    assert max(map(len, code.splitlines())) <= 120
    exec(code, names)
    return names


@given(
    modality=st.sampled_from(["mri", "ct", "x-ray", "histopathology", "fundus"]),
    scale=st.sampled_from(["8-bit", "stored", "physical"]),
    sides=st.tuples(st.integers(5, 60), st.integers(5, 60)),
    seed=st.integers(0, 9),
)
def test_images_are_prepared_as_in_training(
    modality: Modality, scale: Scale, sides: tuple[int, int], seed: int
) -> None:
    image = ImageConfig(modality=modality, size=32, channels=2)
    pixels = np.random.default_rng(seed).uniform(-1500, 1500, (2, *sides)).astype(np.float32)
    pixels = np.abs(pixels) % 256 if scale == "8-bit" else pixels
    unit = np.clip(resize(to_unit(pixels, modality, scale), 32), 0, 1)
    expected = Augmentation(image).plain(torch.from_numpy(unit)[None].clone())
    torch.testing.assert_close(recipe(image)["prepare"](pixels, scale), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modality", ["mri", "ct", "x-ray"])
@pytest.mark.parametrize("scale", ["8-bit", "stored", "physical"])
def test_volumes_are_prepared_as_in_training(modality: Modality, scale: Scale) -> None:
    """Thick slices of oblong pixels: proportions in millimetres are kept."""
    image = ImageConfig(modality=modality, size=16, depth=8, channels=2)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 5, 20, 30)).astype(np.float32)
    box = fitted_box(20 * 2.0, 30 * 0.5, 16)
    unit = np.clip(resize_volume(to_unit(pixels, modality, scale), box, 8, 16), 0, 1)
    expected = Augmentation(image).plain(torch.from_numpy(unit)[None].clone())
    found = recipe(image)["prepare"](pixels, scale, spacing=(5.0, 2.0, 0.5))
    assert found.shape == (1, 2, 8, 16, 16)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_window_of_the_study_is_in_the_code() -> None:
    image = ImageConfig(modality="ct", size=16, channels=1, window=(-160.0, 240.0))
    pixels = np.linspace(-1000, 1000, 256, dtype=np.float32).reshape(1, 16, 16)
    expected = Augmentation(image).plain(torch.from_numpy(to_unit(pixels, "ct", "physical", (-160.0, 240.0)))[None])
    torch.testing.assert_close(recipe(image)["prepare"](pixels, "physical"), expected, rtol=1e-4, atol=1e-5)


def test_a_flat_image_stays_flat() -> None:
    image = ImageConfig(modality="mri", size=16, channels=1)
    assert recipe(image)["prepare"](np.full((1, 16, 16), 7, np.float32)).eq(0).all()


def test_only_fixed_statistics_are_told_to_timm() -> None:
    """An image's own mean cannot be a constant of the data: timm is told to change nothing then."""
    fundus, mri = (ImageConfig(modality=name, size=16, channels=3) for name in ("fundus", "mri"))  # type: ignore[arg-type]
    assert (standardisation(fundus), standardisation(mri)) == ("fixed", "channel")
    assert timm_statistics(fundus) == ([0.5] * 3, [0.25] * 3)
    assert timm_statistics(mri) == ([0.0] * 3, [1.0] * 3)
