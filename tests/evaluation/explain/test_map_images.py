"""PNGs of images and maps: the right pixels, small, the same each time."""

import io

import matplotlib as mpl
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from evaluation.explain.map_images import GAP, SIDE, colours_png, enlarged, maps_png, plane_png
from foundation.randomness import numpy_generator


def pixels(png: bytes) -> NDArray[np.uint8]:
    return np.array(Image.open(io.BytesIO(png)).convert("RGBA"))


def rgb(scale: str, share: float) -> list[int]:
    return [round(255 * part) for part in mpl.colormaps[scale](float(share))[:3]]


def test_a_map_runs_from_its_low_to_its_high_and_stops_there() -> None:
    drawn = pixels(maps_png([np.array([[-9.0, 0.0], [2.0, 9.0]])], [(0.0, 2.0)], "magma", None))
    assert drawn.shape == (SIDE, SIDE, 4)
    corners = drawn[[0, 0, -1, -1], [0, -1, 0, -1], :3].tolist()
    assert corners == [rgb("magma", 0), rgb("magma", 0), rgb("magma", 1), rgb("magma", 1)]
    assert (drawn[: SIDE // 2, : SIDE // 2] == drawn[0, 0]).all()  # a cell is a square of one colour


def test_maps_stand_four_a_row_with_nothing_between_them() -> None:
    maps = [np.full((2, 2), float(number)) for number in range(5)]
    drawn = pixels(maps_png(maps, [(0.0, 4.0)] * 5, "viridis", None))
    assert drawn.shape == (2 * SIDE + GAP, 4 * SIDE + 3 * GAP, 4)
    assert (drawn[:, SIDE : SIDE + GAP, 3] == 0).all() and (drawn[-1, SIDE + GAP :, 3] == 0).all()
    assert drawn[0, 0, :3].tolist() == rgb("viridis", 0) and drawn[-1, 0, :3].tolist() == rgb("viridis", 1)
    assert drawn[0, -1, 3] == 255


@pytest.mark.parametrize("grid", [3, 14, 64, 200])
def test_a_marked_cell_is_outlined_and_no_other(grid: int) -> None:
    values = np.zeros((grid, grid))
    plain = pixels(maps_png([values], [(0.0, 1.0)], "viridis", None))
    marked = pixels(maps_png([values], [(0.0, 1.0)], "viridis", (1, 2)))
    times = len(plain) // grid
    changed = (plain != marked).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (
        times, 2 * times - 1, 2 * times, 3 * times - 1,
    )  # fmt: skip
    assert marked[times, 2 * times, :3].tolist() == [0, 0, 0]


def test_colours_stay_what_they_are() -> None:
    drawn = pixels(colours_png(np.array([[[1.0, 0.0, 0.5], [0.0, 0.2, 1.0]]])))
    assert drawn[0, 0].tolist() == [255, 0, 128, 255] and drawn[0, -1].tolist() == [0, 51, 255, 255]


def test_a_grey_image_is_stretched_and_ringed() -> None:
    plane = np.full((32, 32), 0.2, dtype=np.float32)
    plane[:, :16] = 0.0
    plain, ringed = pixels(plane_png(plane, None)), pixels(plane_png(plane, (0.25, 0.75)))
    assert plain[0, 0, 0] == 0 and plain[0, -1, 0] == 255
    rows, columns = np.nonzero((plain != ringed).any(axis=2))
    assert abs(rows.mean() - 0.75 * SIDE) < 1 and abs(columns.mean() - 0.25 * SIDE) < 1


def test_an_empty_image_is_black() -> None:
    assert (pixels(plane_png(np.zeros((16, 16), dtype=np.float32), None))[..., :3] == 0).all()


def test_noise_is_small_and_the_same_each_time() -> None:
    """Nothing compresses worse."""
    draw = numpy_generator(1, "noise")
    grey, colour = draw.random((300, 300)).astype(np.float32), draw.random((128, 128, 3)).astype(np.float32)
    grid = draw.random((40, 40))
    for make in (
        lambda: plane_png(grey, (0.5, 0.5)),
        lambda: plane_png(colour, (0.5, 0.5)),
        lambda: colours_png(draw.random((28, 28, 3))),
        lambda: maps_png([grid] * 6, [(0.0, 1.0)] * 6, "magma", None),
    ):
        assert len(make()) < 30_000
    assert plane_png(colour, None) == plane_png(colour, None)
    assert Image.open(io.BytesIO(plane_png(grey, None))).info == {}  # nothing but pixels


@pytest.mark.parametrize(("grid", "side"), [(14, 168), (16, 160), (7, 161), (1, 160), (300, 300)])
def test_cells_become_squares(grid: int, side: int) -> None:
    assert enlarged(np.zeros((grid, grid), dtype=np.uint8)).shape == (side, side)
