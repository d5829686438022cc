"""Reliability curves of the report: how sure a classifier was, and how often it was right."""

import numpy as np
import pandas as pd

from evaluation.report.plots import Panel, Reliability, reliability_panel
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.calibration import reliability
from evaluation.statistics.held_scores import TEST, matrix
from evaluation.statistics.metric_values import MetricQuery, arm_order

_MOST = 4
"""Curves in one image; more cannot be told apart."""


def reliability_panels(folder: RunFolder, query: MetricQuery) -> list[Panel]:
    """One panel of the encoders in question and what they started from; [] for other kinds than classification."""
    path = folder.path / "evaluation" / "scores.csv"
    classes = [str(name) for name in folder.task.get("classes", ())]
    if folder.kind != "classification" or not path.is_file():
        return []
    table = pd.read_csv(path, dtype={"label": str, "label_fraction": str, "encoder": str}, keep_default_na=False)
    table = table[
        (table["protocol"] == query.protocol) & (table["label_fraction"] == query.fraction) & (table["role"] == TEST)
    ]
    bases = {other for own in folder.leads for other in table["encoder"].unique() if folder.is_base(own, str(other))}
    names = sorted({*folder.leads, *map(str, bases)}, key=lambda name: arm_order(folder, name))
    code = {name: k for k, name in enumerate(classes)}
    curves = []
    for name in names[:_MOST]:
        own = table[table["encoder"] == name]
        labels = np.array([code[label] for label in own["label"]], dtype=np.int64)
        bins = reliability(labels, matrix(own, "score_", classes))
        if bins:
            curves.append(Reliability(folder.arm(name).short, tuple(bins)))
    return [reliability_panel(curves)] if curves else []
