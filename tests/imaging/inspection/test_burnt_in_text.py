"""Text drawn into images is found, whatever its size, place and range; images without text are passed."""

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from imaging.inspection.burnt_in_text import FALSE_ALARMS, FINDS, find_text

Pixels = npt.NDArray[np.float32]


def tissue(side: int = 128, seed: int = 0) -> Pixels:
    """Smooth blobs with noise, [1, side, side], 0 to about 200."""
    draw = np.random.default_rng(seed)
    smooth = gaussian_filter(draw.normal(size=(side, side)), 6)
    scaled = (smooth - smooth.min()) / np.ptp(smooth) * 180 + draw.normal(0, 4, (side, side))
    return np.asarray(scaled[None].clip(0, 255), dtype=np.float32)


def labelled(pixels: Pixels, text: str, corner: tuple[int, int], size: int, value: float) -> Pixels:
    """The image with text whose upper left corner is at (x, y)."""
    ink = Image.new("L", (pixels.shape[2], pixels.shape[1]))
    ImageDraw.Draw(ink).text(corner, text, fill=255, font=ImageFont.load_default(size))
    share = np.asarray(ink, dtype=np.float32) / np.float32(255)
    return np.asarray(pixels * (1 - share) + share * value, dtype=np.float32)


@given(
    size=st.integers(12, 24),
    x=st.integers(2, 20),
    y=st.integers(2, 90),
    seed=st.integers(0, 50),
    text=st.sampled_from(["SMITH J", "ID 48392", "12.03.61"]),
    scale=st.sampled_from([1.0, 16.0, 1 / 255]),
)
def test_a_bright_label_is_found_where_it_is(size: int, x: int, y: int, seed: int, text: str, scale: float) -> None:
    line = find_text(labelled(tissue(seed=seed), text, (x, y), size, 255) * np.float32(scale) - 100)
    assert line is not None and line.letters >= 3
    assert y <= line.y <= y + size and x - 2 <= line.x <= 128
    assert 0.4 * size <= line.height <= 1.1 * size


def test_dark_letters_on_a_bright_box_are_found() -> None:
    pixels = tissue()
    pixels[:, 80:110, 10:120] = 250
    assert find_text(labelled(pixels, "WARD 7B", (20, 84), 18, 0)) is not None


def test_colour_is_found_in_any_number_of_channels() -> None:
    pixels = np.repeat(labelled(tissue(), "LEFT BREAST", (10, 40), 14, 255), 3, axis=0)
    assert find_text(pixels) is not None
    assert find_text(pixels[:2]) is not None


@pytest.mark.parametrize("seed", range(40))
def test_images_without_text_are_passed(seed: int) -> None:
    assert find_text(tissue(side=96 + seed, seed=seed)) is None


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 300), (3, 9, 9)])
def test_tiny_images_hold_none(shape: tuple[int, ...]) -> None:
    assert find_text(np.arange(np.prod(shape), dtype=np.float32).reshape(shape)) is None


def test_a_constant_image_and_a_lone_letter_hold_none() -> None:
    assert find_text(np.full((1, 64, 64), 7, np.float32)) is None
    assert find_text(labelled(np.zeros((1, 64, 64), np.float32), "L", (20, 20), 24, 255)) is None


def test_a_large_image_is_shrunk_and_the_place_told_in_its_own_pixels() -> None:
    pixels = np.kron(tissue(512), np.ones((1, 5, 5), dtype=np.float32))  # 2560 pixels: by a factor of 3
    line = find_text(labelled(pixels, "RIGHT BREAST", (400, 1500), 60, 255))
    assert line is not None
    assert 1490 <= line.y <= 1570 and line.x >= 390 and 30 <= line.height <= 70


def test_what_is_said_of_the_detector_is_what_was_measured() -> None:
    result = (Path(__file__).parents[3] / "benchmarks" / "results" / "burnt_in_text.md").read_text()
    found = re.search(r"- found: (\d+) %", result)
    false = re.search(r"- false alarms: ([\d.]+) %", result)
    assert found is not None and false is not None
    assert round(FINDS * 100) == int(found[1])
    assert abs(FALSE_ALARMS * 100 - float(false[1])) <= 0.5
