"""Encoders judged and reported on: what ``fedpretext evaluate`` and a notebook call."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pandas as pd

from evaluation import stage
from evaluation.gather import gather
from evaluation.report.page import write_report
from foundation.errors import StudyError
from foundation.files import AnyPath
from foundation.machine import command_line


@dataclass(frozen=True)
class Run:
    """An evaluated run: its folder, the results table, and the report."""

    folder: Path
    results: pd.DataFrame
    report: Path


def evaluate(
    run: AnyPath | Sequence[AnyPath],
    protocols: Sequence[str] | None = None,
    *,
    task: AnyPath | None = None,
    out: AnyPath | None = None,
    images: bool = False,
) -> Run:
    """Score the encoders of a run on its own labels, or any encoders on a task file, and write the report.

    run: a run folder; with ``task`` also several, arms' folders in runs, exported folders, ``NAME=FILE`` (weights for a
    timm model) or ``NAME`` (timm's own weights). protocols: default: the study's or the task's. out: with ``task``, the
    folder to write, default ``runs/TASK-TIME``. images: show test images in the report, which are then of patients.
    FedpretextError in one line where there is nothing to judge or labels cannot be used.
    """
    given = [os.fspath(run)] if isinstance(run, str | os.PathLike) else [os.fspath(one) for one in run]
    if task is not None:
        default = Path("runs") / f"{Path(task).stem}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
        folder = gather(given, Path(task), Path(out or default), command_line("evaluate(runs, task=task)"))
    elif len(given) != 1 or out is not None:
        raise StudyError(
            "several encoders, and a folder to write, need a task to be judged on: give a task file (--task FILE)"
        )
    else:
        folder = Path(given[0])
    return Run(folder, stage.evaluate(folder, protocols), write_report(folder, images=images))
