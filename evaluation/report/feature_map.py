"""The scatter of features in the report: held images on two principal components, by label and by site."""

from collections.abc import Sequence

import numpy as np

from evaluation.features import features_of
from evaluation.inputs import read_inputs
from evaluation.report.plots import Panel, scatter_panel
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.intervals import FloatArray
from foundation.errors import FedpretextError
from foundation.randomness import numpy_generator
from imaging.listing.splits import HELD

MOST_POINTS = 1500
MOST_NAMES = 12


def feature_panels(folder: RunFolder) -> list[Panel]:
    """Two panels of the features of test and left-out images, first fold and seed, of the first encoder in question.

    None when evaluation kept no features, or the run's images and weights are no longer in their place.
    """
    if not any((folder.path / "evaluation" / "features").glob("*.npy")):
        return []
    try:
        inputs = read_inputs(folder.path, show=False)
        encoder = next((encoder for encoder in inputs.encoders if encoder.arm in folder.leads), None)
        if encoder is None:
            return []
        held = inputs.images.where(encoder.fold, *HELD)
        table = features_of(inputs, encoder)[held]
    except FedpretextError:
        return []
    return scatter_panels(table, list(inputs.images.label[held]), list(inputs.images.site[held]))


def scatter_panels(features: FloatArray, labels: Sequence[str], sites: Sequence[str]) -> list[Panel]:
    """One cloud twice, by label and by site; features ``[N, D]``. At most 1500 points. [] under three.

    Not by what has no names (masks, boxes) or too many to tell apart (numbers).
    """
    if len(features) < 3 or features.shape[1] < 2:
        return []
    # Every k-th would follow any order that the images have, so the ones that are shown are drawn by lot.
    lot = numpy_generator(0, "scatter").permutation(len(features))[:MOST_POINTS]
    points = principal_components(features)[lot]
    return [
        scatter_panel(points, [str(names[place]) for place in lot], title)
        for title, names in (("By label", labels), ("By site", sites))
        if all(names) and len(set(names)) <= MOST_NAMES
    ]


def principal_components(features: FloatArray) -> FloatArray:
    """``[N, D]`` to ``[N, 2]``: centred features on their first two right singular vectors, largest part positive."""
    centred = features - features.mean(axis=0)
    top = np.linalg.svd(centred, full_matrices=False)[2][:2]
    signs = np.sign(top[np.arange(len(top)), np.abs(top).argmax(axis=1)])
    return np.asarray(centred @ (top * signs[:, None]).T, dtype=np.float64)
