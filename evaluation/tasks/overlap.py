"""What a predicted mask and a true one have in common, and how far their edges lie apart."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from evaluation.statistics.intervals import FloatArray

PERCENTILE = 95


def overlap_table(predicted: NDArray[Any], truth: NDArray[Any], classes: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Per image and class, from masks ``[N, S, S]`` or ``[N, D, S, S]``: columns ``[N]`` such as ``truth_tumour``.

    classes: names of the mask values 1, 2, ... Columns are the class's name after ``intersection_``, ``predicted_`` and
    ``truth_`` (pixels) and ``hd95_`` (see ``edge_distance``).
    """
    axes = tuple(range(1, truth.ndim))
    table: dict[str, NDArray[Any]] = {}
    for value, name in enumerate(classes, start=1):
        found, true = predicted == value, truth == value
        table[f"intersection_{name}"] = (found & true).sum(axes, dtype=np.int64)
        table[f"predicted_{name}"] = found.sum(axes, dtype=np.int64)
        table[f"truth_{name}"] = true.sum(axes, dtype=np.int64)
        pairs = zip(found, true, strict=True)
        table[f"hd95_{name}"] = np.array([edge_distance(*pair) for pair in pairs], dtype=np.float64)
    return table


def edge_distance(predicted: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """The 95 % Hausdorff distance of two masks of one image, in pixels of the image that the encoder sees.

    The greater of two 95th percentiles: of the distances from the edge pixels of one mask to the nearest edge pixel of
    the other, and the other way. NaN where both are empty; where one is, the image's diagonal, as in the BraTS
    challenge, so that a structure that was missed counts.
    """
    if not predicted.any() and not truth.any():
        return float("nan")
    if not predicted.any() or not truth.any():
        return float(np.linalg.norm(truth.shape))
    around = ndimage.find_objects((predicted | truth).astype(np.int8))[0]
    first, second = (_edge(np.pad(mask[around], 1)) for mask in (predicted, truth))
    apart = (ndimage.distance_transform_edt(~other)[edge] for edge, other in ((first, second), (second, first)))
    return max(float(np.percentile(distances, PERCENTILE)) for distances in apart)


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask that share a side with one outside it."""
    return np.asarray(mask & ~ndimage.binary_erosion(mask))


def patient_dice(intersection: FloatArray, predicted: FloatArray, truth: FloatArray) -> float:
    """2 sum I / (sum P + sum T) over a patient's images ``[N]``; NaN where all of them are empty in both masks."""
    whole = float(predicted.sum() + truth.sum())
    return 2 * float(intersection.sum()) / whole if whole > 0 else float("nan")


def patient_distance(distances: FloatArray) -> float:
    """The mean of a patient's distances ``[N]`` where there are any; NaN where there are none."""
    known = distances[np.isfinite(distances)]
    return float(known.mean()) if len(known) else float("nan")
