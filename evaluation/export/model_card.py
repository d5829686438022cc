"""The model card of a run's encoder: what it is, where it comes from, what it is worth, what not to do with it.

A card goes where the weights go. No site is named in it, and no path, patient or image; the study lead's own words
(title, task, data set) are in it as they are.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.export import card_figures, card_training
from evaluation.export.card_privacy import privacy_use
from evaluation.export.card_training import modality_word
from evaluation.export.markdown import plain
from evaluation.export.recipe import input_code, standardisation_text
from evaluation.export.source import Source, find_encoder
from evaluation.export.timm_folder import loading_code
from evaluation.export.unnamed import without_site_names
from evaluation.report.run_folder import RunFolder, facts_in, read_run

CARD_NAME = "model-card.md"


def model_card(run: Path, arm: str = "federated", fold: int = 0, seed: int | None = None, loading: str = "") -> str:
    """The card of one encoder; ``seed``: default the lowest there is; ``loading``: how an exported folder is loaded.

    RunError where the run has no such encoder. A run that was not evaluated has a card that says so.
    """
    source = find_encoder(run, arm, fold, seed)
    info, study = facts_in(run / "run.json"), card_training.run_study(run)
    folder, arms = without_site_names(read_run(run)) if (run / "results.csv").is_file() else (None, {})
    title = plain(str(info.get("title") or info.get("name") or source.config.name))
    sections = {
        "What it is": card_training.what_it_is(source),
        "How it was trained": card_training.how_it_was_trained(source, info, study),
        "On what": card_training.on_what(source, study, _splits(run)),
        "What it is for": _purpose(source, study),
        "How to use it": _use(source, loading),
        "What it is worth": card_figures.figures(folder, arms.get(arm, arm)) if folder else card_figures.UNJUDGED,
        "What not to conclude": card_figures.not_to_conclude(folder) if folder else "",
        "Cost": card_training.cost(source, info),
        "Licence": _licence(),
        "How to repeat it": card_training.how_to_repeat(source, info, study),
    }
    parts = [f"# {title}: {plain(source.title)}", *_head(info, folder)]
    parts += [f"## {heading}\n\n{text}" for heading, text in sections.items() if text]
    return "\n\n".join(parts) + "\n"


def _splits(run: Path) -> pd.DataFrame:
    path = run / "evaluation" / "splits.csv"
    empty = pd.DataFrame(columns=["patient", "site", "fold", "role"])
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.is_file() else empty


def _head(info: Mapping[str, Any], folder: RunFolder | None) -> list[str]:
    """What is said before anything else."""
    warning = "> **Not for clinical use.** An encoder is a part, not a test: nothing here says how a tool built on it "
    parts = [f"{warning}would do for a patient."]
    if info.get("demonstration") is True:
        parts.append(
            "> **A demonstration**, made to show that the software works from end to end. It is no evidence for or "
            "against a method."
        )
    parts.append(f"**In short.** {card_figures.in_short(folder) if folder else card_figures.UNJUDGED}")
    return parts


def _purpose(source: Source, study: Mapping[str, Any]) -> str:
    kind = "volumes" if source.volumes else "images"
    trace = privacy_use(source, study, facts_in(source.run / "privacy.json"))
    return "\n".join(
        [
            f"- **For:** research on {modality_word(source)} {kind} like those it was trained on: frozen features for "
            "a small classifier, or weights to fine-tune from.",
            "- **Before use:** judge it on labelled images of the place where it is to be used, against an encoder "
            "that was not pretrained.",
            "- **Not for:** diagnosis, triage or any decision on a patient; other modalities or other ways of "
            "preparing images; telling people or hospitals apart.",
            f"- **Privacy:** weights can keep traces of the images they were trained on, and features can tell from "
            f"which scanner or site an image comes. {trace}",
        ]
    )


def _use(source: Source, loading: str) -> str:
    kind = "volume" if source.volumes else "image"
    here = ["In the arm's folder of the run:", "", "```python", *loading_code(source), "```"]
    return "\n".join(
        [
            loading or "\n".join(here),
            "",
            f"What goes in: a {kind} in [0, 1], then standardised, {standardisation_text(source.image)}. The code "
            "needs numpy and torch only:",
            "",
            "```python",
            input_code(source.image).rstrip("\n"),
            "```",
        ]
    )


def _licence() -> str:
    return (
        "fedpretext's code is under the Apache License 2.0; that says nothing of these weights. What may be done with "
        "them follows from the licence of the images they were trained on, from that of the starting weights, and "
        "from what the sites agreed. Whoever publishes them writes the terms here: *not stated*."
    )
