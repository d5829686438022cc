"""The parts of a model card on the encoder: what it is, how and on what it was trained, cost, how to repeat it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from evaluation.export.card_privacy import privacy_line
from evaluation.export.markdown import bullets, plain
from evaluation.export.source import Source
from evaluation.report.run_folder import facts_in
from evaluation.report.tables.run import described, duration
from evaluation.started_from import UNTRAINED
from foundation.files import read_jsonl
from foundation.machine import versions
from ssl_methods.encoders.outputs import feature_dim
from ssl_methods.encoders.starting_weights import file_digest

_TOLD = ("study_hash", "commit", "started", "finished", "seed")


def run_study(run: Path) -> Mapping[str, Any]:
    """``study.yaml``; empty where the folder has none or it is no mapping."""
    path = run / "study.yaml"
    try:
        value = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError:
        value = {}
    return value if isinstance(value, Mapping) else {}


def modality_word(source: Source) -> str:
    """The modality as it is written in a sentence."""
    modality = source.image.modality
    return modality.upper() if modality in ("ct", "mri") else modality


def what_it_is(source: Source) -> str:
    """Architecture, size, input and output."""
    image, encoder = source.image, source.build()
    options = source.config.model_dump(mode="json", exclude_defaults=True, exclude={"name"})
    sides = " x ".join(map(str, image.shape[1:]))
    count = sum(weight.numel() for weight in encoder.parameters())
    kind = "volumes" if source.volumes else "images"
    return bullets(
        [
            ("Network", f"`{source.config.name}`" + (f" ({plain(described(options))})" if options else "")),
            ("Weights", f"{count:,}"),
            ("Input", f"{modality_word(source)} {kind}, {image.channels} x {sides}, prepared as the code below does"),
            ("Output", f"{feature_dim(encoder)} features a {kind[:-1]}; no classifier"),
        ]
    )


def how_it_was_trained(source: Source, info: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Method, sites, rounds, algorithm, privacy, start."""
    if source.kind in UNTRAINED:
        return f"It was not pretrained in this run: {plain(source.title)}."
    training = study.get("training", {})
    parts = [
        ("Arm", plain(source.title)),
        ("Pretext task", plain(_without_nothing(study.get("method")) or str(source.facts.get("method", "")))),
        ("Started from", plain(str(info.get("starting_weights") or ("random initialisation" if study else "")))),
        ("Fold and training seed", f"{source.facts.get('fold', '–')}, {source.facts.get('seed', '–')}"),
        ("Training at a site", plain(_without_nothing(training))),
    ]
    if source.kind == "federated":
        sites = _sites(source)
        parts[2:2] = [
            ("Sites", f"{sites} took part" if sites else ""),
            ("Algorithm", plain(_without_nothing(study.get("algorithm")))),
            ("Rounds", str(study.get("rounds", {}).get("count", ""))),
            ("Privacy", privacy_line(study, facts_in(source.run / "privacy.json"))),
        ]
    return bullets(parts)


def _without_nothing(value: Any) -> str:
    """A section of the study in words, without settings that are off."""
    if not isinstance(value, Mapping):
        return str(value or "")
    return described({key: inner for key, inner in value.items() if inner not in (None, False, "none", {})})


def _rows(source: Source) -> list[dict[str, Any]]:
    return [row for row in read_jsonl(source.weights.with_name("metrics.jsonl")) if "event" not in row]


def _sites(source: Source) -> int:
    return len({row["site"] for row in _rows(source) if "site" in row})


def on_what(source: Source, study: Mapping[str, Any], splits: pd.DataFrame) -> str:
    """The images it was pretrained on, in counts; nothing that names a place or a person."""
    simulation = study.get("simulation")
    if source.kind in UNTRAINED:
        return "No image of this run was used to train it."
    if isinstance(simulation, Mapping):
        own = splits[(splits["fold"] == str(source.facts.get("fold", 0))) & (splits["role"] == "train")]
        counts = (
            f" Of it, pretraining may have read {len(own):,} images of {own['patient'].nunique():,} patients at "
            f"{own['site'].nunique()} sites, the split's training part; validation, test and left-out patients were "
            "held back from it."
            if len(own) and own["site"].nunique() > 1
            else ""
        )
        return f"The data set `{plain(str(simulation.get('dataset', '')))}`, in simulated hospitals.{counts}"
    if not study:
        return "The folder does not say what it was pretrained on."
    answer = _told_images(source)
    return (
        f"Images of the hospitals that took part{answer}. They never left the hospitals, so that nothing more about "
        "them is known here."
    )


def _told_images(source: Source) -> str:
    """How many images the sites have, where every one of them tells."""
    counts = {row.get("site"): row.get("images") for row in _rows(source)}
    if not counts or None in counts.values():
        return "; how many, not all of them tell"
    return f", {sum(int(count) for count in counts.values() if count is not None):,} together"


def cost(source: Source, info: Mapping[str, Any]) -> str:
    """What this encoder cost, and the machine where one machine did it all."""
    titles = ("Images seen, repeats counted", "Optimiser steps, all sites", "Steps one after another", "Passes")
    counts = zip(titles, ("images", "optimiser_steps", "sequential_steps", "passes"), strict=True)
    known = [(title, f"{source.facts[key]:,}") for title, key in counts if source.facts.get(key) is not None]
    seconds = source.facts.get("seconds")
    return (
        bullets(
            [
                *known,
                ("Time", duration(seconds) if seconds is not None else ""),
                ("Machine of the run", plain(described(info.get("machine")))),
            ]
        )
        or "Not on record."
    )


def how_to_repeat(source: Source, info: Mapping[str, Any], study: Mapping[str, Any]) -> str:
    """Hashes, commit, versions, and the study without its section of places."""
    answer = [(key.replace("_", " ").capitalize(), plain(str(info[key]))) for key in _TOLD if info.get(key) is not None]
    trained = str(source.facts.get("training_hash", ""))
    facts = bullets(
        [
            *answer,
            ("Training hash", plain(trained)),
            (f"SHA-256 of the run's {source.weights.name}", file_digest(source.weights)),
            ("Versions of the run", plain(described(info.get("versions")))),
            ("Written with", f"fedpretext {versions()['fedpretext']}"),
        ]
    )
    if not study:
        return facts
    kept = {key: _given(value) for key, value in study.items() if key != "simulation"}
    text = yaml.safe_dump(kept, sort_keys=False, allow_unicode=True, width=110).replace("```", "'''")
    said = "The study, without settings that are off and without `simulation`, which holds places:"
    return f"{facts}\n\n{said}\n\n```yaml\n{text}```"


def _given(value: Any) -> Any:
    """A section without its settings that are null or empty."""
    if not isinstance(value, Mapping):
        return value
    return {key: _given(inner) for key, inner in value.items() if inner is not None and _given(inner) != {}}
