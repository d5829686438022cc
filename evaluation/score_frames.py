"""Predictions as a table, a row a held image or patient; kept in the run folder under what they depend on."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from evaluation.inputs import Inputs
from evaluation.statistics.intervals import IntArray
from evaluation.tasks.predictions import kept_columns
from foundation.files import digest, write_with

VERSION = "3"
"""Raise it when scores change, so that kept ones are made anew."""


def chosen(target: Any, places: IntArray) -> Any:
    """What is asked of the images at ``places``."""
    return [target[place] for place in places] if isinstance(target, list) else target[places]


def frame_of(
    inputs: Inputs, fold: int, places: IntArray, predictions: Any, target: Any, *, by_patient: bool = False
) -> pd.DataFrame:
    """A row a held image (or patient): fold, image, patient, site, role, and what its kind of task keeps of it."""
    images = inputs.images
    if by_patient:
        first = np.sort(np.unique(images.patient[places], return_index=True)[1])
        places = places[first]
    plain = {
        "fold": fold,
        "image": images.image[places],
        "patient": images.patient[places],
        "site": images.site[places],
        "role": images.roles[fold][places],
    }
    if images.position is not None:
        plain["position"] = images.position[places]
    kept = kept_columns(inputs.config.kind, predictions, chosen(target, places), images.classes)
    frame = pd.DataFrame({**plain, **kept})
    how = inputs.config.aggregate
    return frame if by_patient or how == "none" else _by_patient(frame, how)


def _by_patient(frame: pd.DataFrame, how: str) -> pd.DataFrame:
    """A row a patient: the mean or the largest of each class's scores, made to sum to 1."""
    scores = [str(name) for name in frame if str(name).startswith("score_")]
    grouped = frame.groupby("patient", sort=False)
    first = grouped.first().reset_index()
    first[scores] = grouped[scores].agg(how).to_numpy()
    first[scores] = first[scores].div(first[scores].sum(axis=1), axis=0)
    return first[list(frame.columns)].assign(image=first["patient"])


def kept_frame(inputs: Inputs, name: str, key: tuple[str, ...], compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """The frame kept under this key, or a computed one that is then kept."""
    code = digest(VERSION, name, *key, inputs.key())[:16]
    path = inputs.run / "evaluation" / "scores" / f"{name}-{code}.parquet"
    if not path.exists():
        frame = compute()
        write_with(path, lambda handle: frame.to_parquet(handle, index=False))
    return pd.read_parquet(path)
