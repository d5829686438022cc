"""What nobody should conclude from a run, generated from what applies to it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined

from evaluation.protocols.table import PROTOCOLS
from evaluation.report.answers import Contrast, worth_telling
from evaluation.report.run_folder import RunFolder
from evaluation.report.sentences import Verdict
from evaluation.statistics.metric_values import MetricQuery, arm_figures, metric_title, protocol_title
from evaluation.statistics.multiple import holm_sentence
from evaluation.tasks.leaks import leak_caution

_WORDS = Environment(undefined=StrictUndefined)
_CAUTIONS = [
    (
        _WORDS.compile_expression(str(each.get("when", True)), undefined_to_none=False),
        _WORDS.from_string(each["heading"]),
        _WORDS.from_string(each["text"]),
    )
    for each in yaml.safe_load((Path(__file__).parent / "templates" / "cautions.yaml").read_text(encoding="utf-8"))
]


def study_settings(folder: RunFolder) -> Mapping[str, Any]:
    """The study as a mapping; empty when there is none or it is not readable."""
    try:
        loaded = yaml.safe_load(folder.study) if folder.study else {}
    except yaml.YAMLError:
        return {}
    return loaded if isinstance(loaded, Mapping) else {}


def method_name(folder: RunFolder) -> str:
    """The pretext method's name out of the study, "" when it does not say."""
    method = study_settings(folder).get("method", "")
    return str(method.get("name", "") if isinstance(method, Mapping) else method)


def training_seeds(folder: RunFolder) -> int | None:
    """Pretraining seeds of the encoders in question; None when the run does not say."""
    counts = [arm.seeds for arm in folder.arms if arm.name in folder.leads and arm.seeds is not None]
    return max(counts, default=None)


def demonstration_text(folder: RunFolder) -> str:
    """The banner of a demonstration, "" for any other run."""
    if not folder.demonstration:
        return ""
    seeds = training_seeds(folder)
    what = "one pretraining seed" if seeds in (None, 1) else f"{seeds} pretraining seeds"
    return (
        f"This is a demonstration: {what}; a short training on few images. It shows that the software works from "
        "end to end. It is no evidence for or against a method."
    )


def cautions(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> list[tuple[str, str]]:
    """Heading and text of every caution of ``cautions.yaml`` that applies, the gravest first."""
    facts = _facts(folder, query, found)
    return [(heading.render(facts), text.render(facts)) for applies, heading, text in _CAUTIONS if applies(**facts)]


def _facts(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> dict[str, Any]:
    """What the cautions are chosen by and speak of."""
    judged = [figure.n for figure in arm_figures(folder, query).values() if figure.n is not None]
    compared = worth_telling(found)
    return {
        "folder": folder,
        "demonstration": demonstration_text(folder).partition(": ")[2],
        "tasks": sorted(set(folder.results["task"]) - {""}),
        "judged": max(judged, default=None),
        "seeds": training_seeds(folder),
        "position": any(item.kind == "position" and item.verdict is not Verdict.BETTER for item in found),
        "several": holm_sentence([item.title for item in compared], [item.p for item in compared]),
        "kinds": {folder.arm(str(name)).kind for name in folder.results["encoder"].unique()},
        "neighbours": bool((folder.results["protocol"] == "knn").any()),
        "masked": "mae" in method_name(folder).lower(),
        "protocol": protocol_title(query.protocol),
        "metric": metric_title(query.metric),
        "tuned": _has_finetuning(folder),
        "leak": leak_caution(folder.leaks) if folder.leaks else None,
        "outside": left_out_sites(folder),
        "unused_rounds": len({(event.arm, event.round) for event in folder.left_out}),
        "collapsing_arms": sorted({folder.arm(arm).short for arm, _ in folder.collapsing}),
        "collapsing_sites": sorted({site for _, site in folder.collapsing}),
    }


def _has_finetuning(folder: RunFolder) -> bool:
    """Whether an encoder in question was also judged by training it on the labels."""
    own = folder.results[folder.results["encoder"].isin(folder.leads)]
    return any(name in PROTOCOLS and PROTOCOLS[name].trains_encoder for name in own["protocol"].unique())


def elsewhere_text(folder: RunFolder) -> str:
    """Where the images of a run that hospitals made came from, and what cannot be known of them; "" for others."""
    if not folder.pretrained_elsewhere:
        return ""
    if not folder.about_one:
        return (
            "Not all pretrained here: what some of these encoders were trained on is not on record. Whether images "
            "of this test, or of the same people, were among it cannot be seen from here."
        )
    return (
        "Judged away from the hospitals: the labelled images are the evaluator’s own and none was taken from a site "
        "for this. Whether these images are also at a site cannot be seen from here."
    )


def left_out_sites(folder: RunFolder) -> list[str]:
    """Sites that took no part in training, by the split's roles."""
    of_role = {role: set(group["site"]) for role, group in folder.splits.groupby("role")}
    return sorted(of_role.get("left-out", set()) - of_role.get("train", set()))
