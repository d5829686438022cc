"""The evaluation stage: a run folder's encoders to its results table. Finished scores are not computed again."""

from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from evaluation.config import PROTOCOLS_OF
from evaluation.features import alignment_of, features_of
from evaluation.inputs import Encoder, Inputs, read_inputs
from evaluation.protocols.baselines import MAJORITY, PIXELS, POSITION
from evaluation.protocols.table import PROTOCOLS
from evaluation.scoring import score_baselines, score_encoder, score_leakage
from evaluation.started_from import bases, shown_as, supervised_arms
from evaluation.statistics.diagnostics import feature_spread, rankme, uniformity
from evaluation.statistics.held_scores import Scores
from evaluation.statistics.intervals import IntArray, Scored, jackknife, mean
from evaluation.statistics.results import comparison_rows, rows_of, table_row
from evaluation.statistics.results_schema import ALL, BESIDE, COMPARISONS, LEADS, RESULTS, Role, Row, Statistic, records
from evaluation.tasks.kinds import KINDS, main_metric
from evaluation.tasks.label_checks import one_class_sites
from evaluation.tasks.label_draws import Labels, draw_labels
from evaluation.tasks.leaks import check_leaks
from evaluation.tasks.metrics import balanced_accuracy
from foundation.errors import StudyError, look_up
from foundation.files import digest, read_json, write_json, write_text
from foundation.messages import logger
from foundation.progress import track
from imaging.listing.splits import HELD

Key = tuple[str, str, str]
"""Encoder, protocol, label fraction."""


def evaluate(run: Path, protocols: Sequence[str] | None = None, show: bool = True) -> pd.DataFrame:
    """Evaluate every encoder of a run folder; returns the results table (``results_schema.RESULTS``).

    Writes results.csv, results.json, comparisons.csv and evaluation/scores.csv into ``run``; what an earlier call found
    by other protocols stays in them. ``protocols``: names from PROTOCOLS; default: the
    study's. RunError for a folder that is not a finished run, DataError for unusable labels.
    """
    for name in protocols or ():
        look_up(PROTOCOLS, name, "protocol")
    inputs = _screened(read_inputs(Path(run), show), show)
    kind = inputs.config.kind
    names = tuple(protocols) if protocols else inputs.config.protocols
    for name in names:
        if kind not in PROTOCOLS[name].predict:
            raise StudyError(f"protocol {name!r} does nothing for {kind}; there are: {', '.join(PROTOCOLS_OF[kind])}")
    labels = draw_labels(inputs)
    frames = [score_baselines(inputs, labels)] if labels.draws else []
    leaks = []
    for encoder in track(inputs.encoders, "evaluating encoders", show=show):
        if labels.draws:
            frames += [score_encoder(inputs, labels, encoder, name) for name in _protocols_of(inputs, encoder, names)]
        leaks.append(score_leakage(inputs, encoder))
    scores = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    grouped = group_scores(scores)
    rows = _main_rows(inputs, grouped) + _skipped_rows(inputs, labels, names) + _diagnostic_rows(inputs, leaks)
    results, comparisons = RESULTS.frame(rows), COMPARISONS.frame(_comparisons(inputs, grouped))
    scores, results, comparisons = _with_earlier(inputs, names, scores, results, comparisons)
    _write(inputs, scores, results, comparisons)
    return results


def _screened(inputs: Inputs, show: bool) -> Inputs:
    """The inputs without test images that are near-copies of training images; what is odd about labels is said."""
    images = inputs.images
    screen = check_leaks(inputs.run, inputs.view().store, inputs.roles, images.rows, progress=show)
    for fold, rows in screen.left_out.items():
        images = images.without_roles(fold, np.flatnonzero(np.isin(images.rows, rows)).astype(np.int64))
    lines = list(screen.lines)
    if inputs.config.kind == "classification":
        held = np.unique(np.concatenate([images.where(fold, *HELD) for fold in images.roles]))
        lines += one_class_sites(images.site[held].tolist(), images.label[held].tolist())
    for line in lines if show else ():
        logger.warning(line)
    return replace(inputs, images=images)


def _protocols_of(inputs: Inputs, encoder: Encoder, names: Sequence[str]) -> tuple[str, ...]:
    """The protocols asked for. Of each base the first seed's encoder is trained on the labels in any case.

    Random, or the starting weights where there are any: that is supervised training without pretraining. Random
    encoders of seeds with which nothing was trained are only looked at frozen, which costs little.
    """
    kind = inputs.config.kind
    whole = next(name for name in PROTOCOLS_OF[kind] if PROTOCOLS[name].trains_encoder)
    twins = [other.seed for other in inputs.encoders if other.arm == encoder.arm and other.fold == encoder.fold]
    supervised = encoder.arm in bases(inputs) and encoder.seed == min(twins)
    trained = {other.seed for other in inputs.encoders if other.kind is not Role.RANDOM}
    if encoder.kind is Role.RANDOM and not supervised and encoder.seed not in trained:
        return tuple(name for name in names if not PROTOCOLS[name].trains_encoder)
    return (*names, whole) if supervised and whole not in names else tuple(names)


def group_scores(scores: pd.DataFrame) -> dict[Key, Scores]:
    """One ``Scores`` per encoder, protocol and label budget, in the order they came."""
    if scores.empty:
        return {}
    return {
        (str(key[0]), str(key[1]), str(key[2])): Scores.of(part)
        for key, part in scores.groupby(["encoder", "protocol", "label_fraction"], sort=False)
    }


def _fixed(inputs: Inputs, key: Key) -> dict[str, Any]:
    encoder, protocol, fraction = key
    named = {"task": inputs.config.task, "dataset": inputs.config.dataset}
    named |= {"encoder": encoder, "role": roles_of(inputs)[encoder]}
    return {**named, "protocol": protocol, "label_fraction": fraction}


def roles_of(inputs: Inputs) -> dict[str, Role]:
    """What each encoder of the tables is, by its name there."""
    roles = {encoder.arm: encoder.kind for encoder in inputs.encoders}
    roles |= dict.fromkeys(supervised_arms(inputs).values(), Role.SUPERVISED)
    return roles | {PIXELS: Role.PIXELS, POSITION: Role.POSITION, MAJORITY: Role.MAJORITY}


def _main_rows(inputs: Inputs, grouped: dict[Key, Scores]) -> list[Row]:
    metrics = KINDS[inputs.config.kind].metrics(inputs.config, inputs.images.classes)
    return [row for key, own in grouped.items() for row in rows_of(own, metrics, inputs.config, _fixed(inputs, key))]


def _skipped_rows(inputs: Inputs, labels: Labels, names: Sequence[str]) -> list[Row]:
    """A row for each encoder and protocol of a label budget that could not be drawn."""
    arms = {(shown_as(inputs, encoder, name), name) for encoder in inputs.encoders for name in names}
    blank = {"site": ALL, "seed": ALL, "n": 0, "statistic": Statistic.SKIPPED}
    metric = main_metric(inputs.config, inputs.images.classes)
    return [
        table_row(inputs.config, _fixed(inputs, (arm, name, fraction)), blank, metric, None, why)
        for fraction, why in labels.skipped.items()
        for arm, name in sorted(arms)
    ]


def _diagnostic_rows(inputs: Inputs, leaks: Sequence[pd.DataFrame]) -> list[Row]:
    """What each arm's features look like, mean over folds and seeds, and what they say of the site."""
    rows = []
    figures = (("RankMe", rankme), ("feature_std", feature_spread), ("uniformity", uniformity))
    for arm in sorted({encoder.arm for encoder in inputs.encoders}):
        own = [i for i, encoder in enumerate(inputs.encoders) if encoder.arm == arm]
        tables = [features_of(inputs, inputs.encoders[i]) for i in own]
        fixed = _fixed(inputs, (arm, "diagnostic", "1"))
        seeds = {inputs.encoders[i].seed for i in own}
        seed = str(min(seeds)) if len(seeds) == 1 else ALL
        where = {"site": ALL, "seed": seed, "n": len(np.unique(inputs.images.patient))}
        for name, figure in figures:
            value = float(np.mean([figure(table) for table in tables]))
            rows.append(table_row(inputs.config, fixed, where, name, value, "over all images"))
        aligned = float(np.mean([alignment_of(inputs, inputs.encoders[i]) for i in own]))
        rows.append(table_row(inputs.config, fixed, where, "alignment", aligned, "of two views each"))
        found = [leak for i in own if len(leak := leaks[i])]
        estimates = [jackknife(_leak_scores(leak), balanced_accuracy) for leak in found]
        estimates = [each for each in estimates if np.isfinite(each.value)]
        if estimates:
            where = {**where, "n": pd.concat(found)["patient"].nunique()}
            rows.append(table_row(inputs.config, fixed, where, "site_leakage", mean(estimates)))
    return rows


def _leak_scores(leak: pd.DataFrame) -> Scored:
    """A leakage frame, whose classes are its sites."""
    sites = [str(name).removeprefix("score_") for name in leak.columns if str(name).startswith("score_")]
    code = {site: number for number, site in enumerate(sites)}
    labels: IntArray = np.array(leak["label"].map(code), dtype=np.int64)
    scores = leak[[f"score_{site}" for site in sites]].to_numpy(np.float64)
    strata = leak["fold"].astype(str) + "/" + leak["site"].astype(str)
    return Scored(labels, scores, leak["patient"].to_numpy(np.str_), strata.to_numpy(np.str_))


def _comparisons(inputs: Inputs, grouped: dict[Key, Scores]) -> list[Row]:
    """Each pretrained encoder that is in question minus every other, at the most labels.

    In question are the federated ones and those that were brought from elsewhere; two of them are compared once.
    Baselines and supervised training stand beside every protocol.
    """
    roles = roles_of(inputs)
    leads = [arm for arm, role in roles.items() if role in LEADS]
    fractions = {fraction for _, _, fraction in grouped}
    most = "1" if "1" in fractions else max(fractions, default="")
    metric = main_metric(inputs.config, inputs.images.classes)
    rows = []
    for (arm, protocol, fraction), own in grouped.items():
        if arm not in leads or fraction != most:
            continue
        for (other, others_protocol, others_fraction), scores in grouped.items():
            same = others_protocol == protocol or roles[other] in BESIDE
            if other == arm or others_fraction != most or not same or (other in leads and other < arm):
                continue
            note = "" if others_protocol == protocol else f"{other}: {others_protocol}"
            fixed = {
                "task": inputs.config.task,
                "protocol": protocol,
                "label_fraction": fraction,
                "note": note,
                "encoder_a": arm,
                "role_a": roles[arm],
                "encoder_b": other,
                "role_b": roles[other],
            }
            rows += comparison_rows(own, scores, metric, inputs.config, fixed)
    return rows


def _write(inputs: Inputs, scores: pd.DataFrame, results: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    run, images = inputs.run, inputs.images
    write_text(run / "evaluation" / "scores.csv", scores.to_csv(index=False))
    COMPARISONS.write(run / "comparisons.csv", comparisons)
    write_json(
        run / "results.json",
        {
            "task": inputs.config.task,
            "kind": inputs.config.kind,
            "dataset": inputs.config.dataset,
            "label": inputs.config.label,
            "classes": list(images.classes),
            "unit": inputs.config.unit,
            "judged": _judged(inputs),
            "encoders": [{**encoder.described, "digest": encoder.key} for encoder in inputs.encoders],
            "supervised": {name: arm for arm, name in supervised_arms(inputs).items()},
            "results": records(results),
            "comparisons": records(comparisons),
        },
    )
    RESULTS.write(run / "results.csv", results)


def _judged(inputs: Inputs) -> str:
    """Digest of all that every protocol's figures hang on: images, labels and split, encoders, settings."""
    encoders = [f"{encoder.arm} {encoder.fold} {encoder.seed} {encoder.key}" for encoder in inputs.encoders]
    return digest(inputs.key(), inputs.config.model_dump_json(exclude={"protocols"}), *encoders)


def _with_earlier(
    inputs: Inputs, names: Sequence[str], scores: pd.DataFrame, results: pd.DataFrame, comparisons: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The tables, and behind them the rows of protocols that an earlier call evaluated: a call adds to a run's results.

    Rows of other images, labels, encoders or settings cannot be held against the new ones: they are dropped.
    """
    run, answer, scored = inputs.run, inputs.run / "results.json", inputs.run / "evaluation" / "scores.csv"
    if not (answer.is_file() and scored.is_file()) or read_json(answer).get("judged") != _judged(inputs):
        return scores, results, comparisons
    replaced = {*zip(results["encoder"], results["protocol"], strict=True)}

    def kept(earlier: pd.DataFrame, encoder: str = "encoder") -> pd.DataFrame:
        again = [pair in replaced for pair in zip(earlier[encoder], earlier["protocol"], strict=True)]
        return earlier[~(earlier["protocol"].isin(names) | np.array(again, dtype=np.bool_))]

    earlier = kept(_as_text(scored.read_text()))
    if len(earlier):
        scores = pd.concat([_as_text(scores.to_csv(index=False)), earlier], ignore_index=True).fillna("")
    results = pd.concat([results, kept(RESULTS.read(run / "results.csv"))], ignore_index=True)
    apart = kept(COMPARISONS.read(run / "comparisons.csv"), "encoder_a")
    return scores, results, pd.concat([comparisons, apart], ignore_index=True)


def _as_text(csv: str) -> pd.DataFrame:
    """A table of text, so that no figure changes when it is written again."""
    return pd.read_csv(StringIO(csv), dtype=str, keep_default_na=False)
