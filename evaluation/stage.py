"""The evaluation stage: a run folder's encoders to its results table. Finished scores are not computed again."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.diagnostics import feature_spread, rankme
from evaluation.held import ALL, Scores
from evaluation.inputs import Encoder, Inputs, read_inputs
from evaluation.intervals import jackknife, mean
from evaluation.metrics import balanced_accuracy
from evaluation.protocols import PROTOCOLS
from evaluation.results import COLUMNS, COMPARISON_COLUMNS, Row, comparison_rows, rows_of, table_row
from evaluation.scoring import (
    MAJORITY,
    PIXELS,
    SUPERVISED,
    Labels,
    draw_labels,
    features_of,
    score_encoder,
    score_floors,
    score_leakage,
    shown_as,
    untrained_kind,
)
from foundation.errors import look_up
from foundation.files import write_json, write_text
from foundation.progress import track

Key = tuple[str, str, str]
"""Encoder, protocol, label fraction."""


def evaluate(run: Path, protocols: Sequence[str] | None = None, show: bool = True) -> pd.DataFrame:
    """Evaluate every encoder of a run folder; returns the results table (columns ``results.COLUMNS``).

    Writes results.csv, results.json, comparisons.csv and evaluation/scores.csv into ``run``. ``protocols``: names from
    PROTOCOLS; default: the study's. RunError for a folder that is not a finished run, DataError for unusable labels.
    """
    for name in protocols or ():
        look_up(PROTOCOLS, name, "protocol")
    inputs = read_inputs(Path(run), show)
    names = tuple(protocols) if protocols else inputs.config.protocols
    labels = draw_labels(inputs)
    frames = [score_floors(inputs, labels)] if labels.draws else []
    leaks = []
    for encoder in track(inputs.encoders, "evaluating encoders", show=show):
        if labels.draws:
            frames += [score_encoder(inputs, labels, encoder, name) for name in _protocols_of(inputs, encoder, names)]
        leaks.append(score_leakage(inputs, encoder))
    scores = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    grouped = group_scores(scores, inputs.pictures.classes)
    rows = _main_rows(inputs, grouped) + _skipped_rows(inputs, labels, names) + _diagnostic_rows(inputs, leaks)
    results = pd.DataFrame(rows, columns=list(COLUMNS))
    comparisons = pd.DataFrame(_comparisons(inputs, grouped), columns=list(COMPARISON_COLUMNS))
    _write(inputs, scores, results, comparisons)
    return results


def _protocols_of(inputs: Inputs, encoder: Encoder, names: Sequence[str]) -> tuple[str, ...]:
    """The protocols asked for. The first encoder of a fold that was not pretrained is fine-tuned in any case.

    Random, or the starting weights where there are any: that is supervised training without pretraining.
    """
    kind = untrained_kind(inputs)
    seeds = [other.seed for other in inputs.encoders if other.kind == kind and other.fold == encoder.fold]
    supervised = encoder.kind == kind and encoder.seed == min(seeds)
    return (*names, "finetune") if supervised and "finetune" not in names else tuple(names)


def group_scores(scores: pd.DataFrame, classes: tuple[str, ...]) -> dict[Key, Scores]:
    """One ``Scores`` per encoder, protocol and label budget, in the order they came."""
    if scores.empty:
        return {}
    return {
        (str(key[0]), str(key[1]), str(key[2])): Scores.of(part, classes)
        for key, part in scores.groupby(["encoder", "protocol", "label_fraction"], sort=False)
    }


def _fixed(inputs: Inputs, key: Key) -> dict[str, Any]:
    encoder, protocol, fraction = key
    named = {"task": inputs.config.task, "dataset": inputs.config.dataset}
    return {**named, "encoder": encoder, "protocol": protocol, "label_fraction": fraction}


def _main_rows(inputs: Inputs, grouped: dict[Key, Scores]) -> list[Row]:
    return [row for key, scores in grouped.items() for row in rows_of(scores, inputs.config, _fixed(inputs, key))]


def _skipped_rows(inputs: Inputs, labels: Labels, names: Sequence[str]) -> list[Row]:
    """A row for each encoder and protocol of a label budget that could not be drawn."""
    arms = {(shown_as(inputs, encoder, name), name) for encoder in inputs.encoders for name in names}
    blank = {"site": ALL, "seed": ALL, "n": 0}
    return [
        table_row(inputs.config, _fixed(inputs, (arm, name, fraction)), blank, "AUROC", float("nan"), [why])
        for fraction, why in labels.skipped.items()
        for arm, name in sorted(arms)
    ]


def _diagnostic_rows(inputs: Inputs, leaks: Sequence[pd.DataFrame]) -> list[Row]:
    """What each arm's features look like, mean over folds and seeds: RankMe, spread, and what they say of the site."""
    rows = []
    for arm in sorted({encoder.arm for encoder in inputs.encoders}):
        own = [i for i, encoder in enumerate(inputs.encoders) if encoder.arm == arm]
        tables = [features_of(inputs, inputs.encoders[i]) for i in own]
        fixed = _fixed(inputs, (arm, "diagnostic", "1"))
        seeds = {inputs.encoders[i].seed for i in own}
        seed = str(min(seeds)) if len(seeds) == 1 else ALL
        where = {"site": ALL, "seed": seed, "n": len(np.unique(inputs.pictures.patient))}
        for name, figure in (("RankMe", rankme), ("feature_std", feature_spread)):
            value = float(np.mean([figure(table) for table in tables]))
            rows.append(table_row(inputs.config, fixed, where, name, value, ["no interval: over all pictures"]))
        found = [leak for i in own if len(leak := leaks[i])]
        estimates = [jackknife(_leak_scores(leak).data, balanced_accuracy) for leak in found]
        estimates = [each for each in estimates if np.isfinite(each.value)]
        if estimates:
            count = pd.concat(found)["patient"].nunique()
            where = {**where, "n": count}
            rows.append(table_row(inputs.config, fixed, where, "site_leakage", mean(estimates)))
    return rows


def _leak_scores(leak: pd.DataFrame) -> Scores:
    """A leakage frame, whose classes are its sites."""
    sites = tuple(name.removeprefix("score_") for name in leak.columns if name.startswith("score_"))
    return Scores.of(leak, sites)


def _comparisons(inputs: Inputs, grouped: dict[Key, Scores]) -> list[Row]:
    """Each federated encoder minus every other, at the most labels; floors and supervised under every protocol."""
    federated = {encoder.arm for encoder in inputs.encoders if encoder.kind == "federated"}
    fractions = {fraction for _, _, fraction in grouped}
    most = "1" if "1" in fractions else max(fractions, default="")
    rows = []
    for (arm, protocol, fraction), own in grouped.items():
        if arm not in federated or fraction != most:
            continue
        for (other, others_protocol, others_fraction), scores in grouped.items():
            same = others_protocol == protocol or other in (PIXELS, MAJORITY, SUPERVISED)
            if other == arm or others_fraction != most or not same:
                continue
            note = "" if others_protocol == protocol else f"{other}: {others_protocol}"
            fixed = {
                "protocol": protocol,
                "encoder_a": arm,
                "encoder_b": other,
                "label_fraction": fraction,
                "note": note,
            }
            rows += comparison_rows(own, scores, inputs.config, fixed)
    return rows


def _write(inputs: Inputs, scores: pd.DataFrame, results: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    run, pictures = inputs.run, inputs.pictures
    write_text(run / "evaluation" / "scores.csv", scores.to_csv(index=False))
    write_text(run / "comparisons.csv", comparisons.to_csv(index=False))
    write_json(
        run / "results.json",
        {
            "task": inputs.config.task,
            "dataset": inputs.config.dataset,
            "label": inputs.config.label,
            "classes": list(pictures.classes),
            "unit": inputs.config.unit,
            "pictures_and_split": pictures.key(),
            "encoders": [_described(encoder) for encoder in inputs.encoders],
            "results": _records(results),
            "comparisons": _records(comparisons),
        },
    )
    write_text(run / "results.csv", results.to_csv(index=False))


def _described(encoder: Encoder) -> dict[str, Any]:
    return {**encoder.described, "digest": encoder.key}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows with None where a figure is not a number, so that the file is JSON."""
    return [
        {str(name): None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in frame.to_dict("records")
    ]
