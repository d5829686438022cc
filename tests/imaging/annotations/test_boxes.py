"""Boxes: from pixels of the file to pixels of the encoder's image; what is no box is one line."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from foundation.errors import DataError
from imaging.annotations.boxes import Boxes, listed_boxes, placed_boxes, read_boxes
from imaging.annotations.masks import mask_of
from imaging.config import ImageConfig

SQUARE = ImageConfig(modality="microscopy", size=128, channels=1)
CELLS = ("RBC", "WBC")


def study(folder: Path, *cells: str | None, height: int = 48, width: int = 64) -> pd.DataFrame:
    """Black images with these boxes."""
    names = [f"{number}.png" for number in range(len(cells))]
    for name in names:
        Image.fromarray(np.zeros((height, width), np.uint8)).save(folder / name)
    return pd.DataFrame({"image": names, "patient": names, "boxes": list(cells)})


def read(folder: Path, *cells: str | None, classes: tuple[str, ...] = CELLS) -> list[Boxes]:
    return read_boxes(study(folder, *cells), folder, SQUARE, classes)


def test_by_hand(tmp_path: Path) -> None:
    """64 x 48 pixels fill 128 x 96 of the square, 16 rows below its top: everything doubles."""
    found = read(tmp_path, '[[10, 20, 30.5, 48, "WBC"], [0, 0, 64, 1, "RBC"]]', "[]", None)
    assert found[0].boxes.dtype == np.float32 and found[0].kinds.dtype == np.int64
    assert found[0].boxes.tolist() == [[20, 56, 61, 112], [0, 16, 128, 18]]
    assert found[0].kinds.tolist() == [1, 0]
    for nothing in found[1:]:
        assert nothing.boxes.shape == (0, 4) and nothing.kinds.shape == (0,)


def test_labels_may_be_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, '[[0, 0, 1, 1, 1], [0, 0, 1, 1, " 0 "]]', classes=("0", "1"))[0].kinds.tolist() == [1, 0]


edges = st.tuples(st.integers(0, 999), st.integers(1, 1000), st.integers(0, 999), st.integers(1, 1000))


@given(
    size=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    shares=st.lists(edges.filter(lambda e: e[0] < e[1] and e[2] < e[3]), min_size=1, max_size=5),
)
def test_every_box_stays_a_box_within_the_frame(size: tuple[int, int], shares: list[tuple[int, int, int, int]]) -> None:
    """Any box within any image; its area changes by what the image's does."""
    height, width = size
    x0, x1, y0, y1 = (np.array(shares, dtype=np.float64) / 1000).T
    listed = np.stack([x0 * width, y0 * height, x1 * width, y1 * height], axis=1)
    found = placed_boxes(listed, "a.png", size, SQUARE).astype(np.float64)
    assert (found >= 0).all() and (found <= 128).all()
    assert (found[:, 2] > found[:, 0]).all() and (found[:, 3] > found[:, 1]).all()
    whole = placed_boxes(np.array([[0.0, 0.0, width, height]]), "a.png", size, SQUARE)[0].astype(np.float64)
    assert max(whole[2] - whole[0], whole[3] - whole[1]) == 128
    share = (found[:, 2] - found[:, 0]) * (found[:, 3] - found[:, 1])
    share = share / ((whole[2] - whole[0]) * (whole[3] - whole[1]))
    np.testing.assert_allclose(share, (x1 - x0) * (y1 - y0), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (100, 30), (128, 128), (300, 400)])
def test_a_box_lies_where_a_mask_of_it_lies(height: int, width: int, tmp_path: Path) -> None:
    inside = np.zeros((height, width), np.uint8)
    top, left, bottom, right = height // 4, width // 5, height // 2, 4 * width // 5
    inside[top:bottom, left:right] = 1
    Image.fromarray(inside).save(tmp_path / "0.png")
    box = placed_boxes(np.array([[left, top, right, bottom]], np.float64), "0.png", (height, width), SQUARE)[0]
    ys, xs = np.nonzero(mask_of(tmp_path / "0.png", tmp_path / "0.png", SQUARE))
    around = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    np.testing.assert_allclose(box, around, atol=0.5 + 1e-4)


def test_a_box_below_a_pixel_is_kept(tmp_path: Path) -> None:
    found = placed_boxes(np.array([[2999.0, 0.0, 3000.0, 1.0]]), "a.png", (3000, 3000), SQUARE)
    assert found[0, 2] == 128 and 0 < found[0, 2] - found[0, 0] < 0.1


BAD = {
    "[[1, 2, 3, 4": r"boxes '\[\[1, 2, 3, 4' are no JSON \(Expecting ',' delimiter.*give a list of",
    '{"x": 1}': r"are no list; give a list of .* or \[\] for none",
    "7": "are no list",
    '[[1, 2, 3, "RBC"]]': r'box \[1, 2, 3, "RBC"\] is not \[x0, y0, x1, y1, label\]',
    '[1, 2, 3, 4, "RBC"]': r"box 1 is not \[x0",
    '[[1, 2, 3, 4, ""]]': "is not",
    "[[1, 2, 3, 4, null]]": "is not",
    "[[1, 2, 3, 4, true]]": "is not",
    "[[1, 2, 3, 4, 1.5]]": "is not",
    '[[1, 2, "3", 4, "RBC"]]': "is not",
    '[[true, 2, 3, 4, "RBC"]]': "is not",
    '[[NaN, 2, 3, 4, "RBC"]]': "is not",
    '[[0, 0, Infinity, 4, "RBC"]]': "is not",
    f'[[0, 0, 1{"0" * 400}, 4, "RBC"]]': "is not",
    "[" * 100_000: "are no JSON",
    '[[1, 2, 3, 4, "RBC"], [3, 2, 3, 4, "RBC"]]': r"box \[3, 2, 3, 4\] has no extent; x1 has to be above x0",
    '[[1, 4, 3, 2, "RBC"]]': r"box \[1, 4, 3, 2\] has no extent",
    '[[1, 2, 65, 4, "RBC"]]': r"box \[1, 2, 65, 4\] reaches out of the image, which is 64 pixels wide and 48 high",
    '[[1, 2, 3, 48.5, "RBC"]]': "reaches out of the image",
    '[[-1, 2, 3, 4, "RBC"]]': r"box \[-1, 2, 3, 4\] reaches out",
    '[[1, 2, 3, 4, "WBD"]]': "label 'WBD', but the classes are RBC, WBC; did you mean 'WBC'.*name it in classes",
}


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:40])
def test_what_is_no_box_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^1\.png: .*{BAD[text]}") as caught:
        read(tmp_path, "[]", text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_volumes_have_no_boxes(tmp_path: Path) -> None:
    image = ImageConfig(modality="mri", size=16, depth=8, channels=1)
    with pytest.raises(DataError, match=r"boxes outline images, but image\.depth is 8; leave it out"):
        read_boxes(study(tmp_path, "[]"), tmp_path, image, CELLS)


def test_a_missing_image_is_one_line(tmp_path: Path) -> None:
    table = study(tmp_path, '[[1, 2, 3, 4, "RBC"]]')
    (tmp_path / "0.png").unlink()
    with pytest.raises(DataError, match=r"0.png: there is no such image"):
        read_boxes(table, tmp_path, SQUARE, CELLS)


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4, st.text(min_size=1).filter(str.strip)), max_size=4))
def test_what_is_written_is_read(boxes: list[tuple[int, int, int, int, str]]) -> None:
    kept = [[x0, y0, x0 + 1 + x1, y0 + 1 + y1, label] for x0, y0, x1, y1, label in boxes]
    places, labels = listed_boxes(json.dumps(kept), "a.png")
    assert places.tolist() == [box[:4] for box in kept] and labels == [str(box[4]).strip() for box in kept]
