"""Where in its series each image lies, as far as the manifest knows: what a figure can owe to no image at all."""

import numpy as np
import pandas as pd

from evaluation.statistics.intervals import FloatArray


def relative_positions(table: pd.DataFrame) -> FloatArray | None:
    """``[rows]`` from 0 (first) to 1 (last image of its series), of a manifest's table; None where it is not known.

    By ``position`` within the patient's ``series``, else by ``slice`` within the file. NaN where a row has none, and in
    a series of one place. None where fewer than half of the rows have one: volumes, x-rays, tiles.
    """
    if "position" in table:
        place, series = table["position"], table["patient"].astype(str)
        series = series + "/" + table["series"].astype(str) if "series" in table else series
    elif "slice" in table:
        place, series = table["slice"], table["image"].astype(str)
    else:
        return None
    number = pd.to_numeric(place, errors="coerce").astype(float)
    low, high = (number.groupby(series).transform(name) for name in ("min", "max"))
    relative = ((number - low) / (high - low).where(high > low)).to_numpy(dtype=np.float64)
    return relative if np.isfinite(relative).mean() >= 0.5 else None
