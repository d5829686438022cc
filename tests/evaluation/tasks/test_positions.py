"""Where in its series an image lies, from what a manifest knows."""

import numpy as np
import pandas as pd
import pytest

from evaluation.tasks.positions import relative_positions


def test_by_position_within_the_patients_series() -> None:
    table = pd.DataFrame(
        {
            "image": [f"{n}.png" for n in range(6)],
            "patient": ["a", "a", "a", "b", "b", "b"],
            "series": ["1", "1", "1", "1", "1", "2"],
            "position": [-30.0, -10.0, 10.0, 5.0, 9.0, 7.0],
        }
    )
    found = relative_positions(table)
    assert found is not None
    np.testing.assert_allclose(found, [0.0, 0.5, 1.0, 0.0, 1.0, np.nan])  # one image is a series without a length


def test_by_slice_within_the_file() -> None:
    table = pd.DataFrame({"image": ["x.nii"] * 3 + ["y.nii"] * 2, "patient": ["a"] * 5, "slice": [0, 1, 4, 3, 5]})
    found = relative_positions(table)
    assert found is not None
    assert found.tolist() == pytest.approx([0.0, 0.25, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("extra", [{}, {"position": [np.nan, np.nan, 3.0, np.nan]}, {"position": [1.0, 1.0, 1.0, 1.0]}])
def test_what_is_not_known_is_not_made_up(extra: dict[str, list[float]]) -> None:
    assert relative_positions(pd.DataFrame({"image": list("wxyz"), "patient": list("aabb"), **extra})) is None
