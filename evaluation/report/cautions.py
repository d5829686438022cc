"""What nobody should conclude from a run, generated from what applies to it."""

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from evaluation.protocols.table import PROTOCOLS
from evaluation.report.answers import Contrast, worth_telling
from evaluation.report.run_folder import RunFolder
from evaluation.report.sentences import Verdict
from evaluation.statistics.metric_values import MetricQuery, arm_figures, metric_title, protocol_title
from evaluation.statistics.multiple import holm_sentence
from evaluation.tasks.leaks import leak_caution

# Below about this many patients one more or fewer visibly moves an interval.
FEW_UNITS = 50


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
    """Heading and text of every caution that applies, the gravest first."""
    return [
        *_on_purpose(folder),
        *_on_position(query, found),
        *_on_size(folder, query, found),
        *_on_arms(folder, query),
        *_on_data(folder),
    ]


def _on_purpose(folder: RunFolder) -> Iterator[tuple[str, str]]:
    yield (
        "Not for clinical use.",
        "An encoder is a part, not a test. Nothing here says how a tool built on it would do for a patient.",
    )
    yield from _on_origin(folder)
    if folder.demonstration:
        text = demonstration_text(folder).partition(": ")[2]
        yield "A demonstration.", text[0].upper() + text[1:]
    tasks = sorted(set(folder.results["task"]) - {""})
    if len(tasks) <= 1:
        name = f" ({tasks[0]})" if tasks else ""
        yield (
            "One task.",
            f"The encoder{'s were' if len(folder.leads) > 1 else ' was'} judged on a single task{name}; on another the "
            "order may differ.",
        )


def _on_position(query: MetricQuery, found: list[Contrast]) -> Iterator[tuple[str, str]]:
    reached = [item for item in found if item.kind == "position" and item.verdict is not Verdict.BETTER]
    if reached:
        yield (
            "Position answers it as well.",
            "An encoder is not above what an image’s position in its series says without the image. Its "
            f"{metric_title(query.metric)} is no evidence that it sees the finding: look at the figures within "
            "patients and at the same position, or at another task.",
        )


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


def _on_origin(folder: RunFolder) -> Iterator[tuple[str, str]]:
    if not folder.pretrained_elsewhere:
        return
    if not folder.about_one:
        yield (
            "Encoders from elsewhere.",
            "They differ in more than one thing: architecture, size, images, method, length of training. A "
            "difference does not say which of these it comes from; and if images of this test were in the training "
            "of one, its figures are too good.",
        )
        return
    yield (
        "Whether these images are also at a site cannot be seen from here.",
        "The sites’ images never left them, so that no duplicates could be looked for. If these images, or others "
        "of the same people, were in the pretraining, the figures of the federated encoder are too good.",
    )
    yield (
        "Not the hospitals’ images.",
        "The figures are of the evaluator’s images. How the encoder does on those of a site that took part, only "
        "labelled images of that site can show.",
    )


def _on_size(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> Iterator[tuple[str, str]]:
    counts = [figure.n for figure in arm_figures(folder, query).values() if figure.n is not None]
    if counts and max(counts) < FEW_UNITS:
        yield (
            "Few to judge by.",
            f"The main figures rest on {max(counts)} {folder.unit}. A difference that cannot be seen may still be "
            "there: “cannot say” does not mean “equal”.",
        )
    if folder.cluster_units:
        yield (
            "The intervals are optimistic.",
            "The data name no patients, so near-duplicate images were grouped and the group is the unit. Images "
            "of one patient may still be spread over several units, and over training and test.",
        )
    seeds = training_seeds(folder)
    if folder.gathered:
        yield (
            "One set of weights each.",
            f"Intervals are over {folder.unit} only. An encoder that is trained again with another seed gives other "
            "figures, by an amount that these cannot show.",
        )
    elif seeds is None:
        yield (
            "Training seeds are not on record.",
            f"Intervals are over {folder.unit} only. Training again with another seed would move every figure by an "
            "amount that they do not show.",
        )
    elif seeds == 1:
        yield (
            "One training run per arm.",
            f"Intervals are over {folder.unit} only. Training again with another seed would move every figure by an "
            "amount that this run cannot show.",
        )
    else:
        yield (
            "Two sources of chance.",
            f"Intervals are over {folder.unit} only; the spread over the {seeds} training seeds is shown apart, and "
            f"{seeds} seeds give a rough idea of it at best.",
        )
    answer = worth_telling(found)
    if several := holm_sentence([item.title for item in answer], [item.p for item in answer]):
        yield (
            "Several comparisons.",
            f"{several} Every interval on this page is for its own comparison; with so many, one may exclude zero "
            "by chance.",
        )


def _on_arms(folder: RunFolder, query: MetricQuery) -> Iterator[tuple[str, str]]:
    kinds = {folder.arm(str(name)).kind for name in folder.results["encoder"].unique()}
    if folder.about_one and "federated" in kinds and not kinds & {"local-only", "centralised"}:
        yield (
            "Whether training together helped was not asked.",
            "There is no local-only or centralised arm, so nothing here says what the federation gained over either.",
        )
    if "centralised" in kinds:
        yield (
            "Centralised is a reference, not a ceiling.",
            "It saw each image about as often, in one place. It is not the best that centralised training can do, and "
            "a federated encoder may come out above it.",
        )
    if (folder.results["protocol"] == "knn").any():
        masked = "mae" in method_name(folder).lower()
        yield (
            "Nearest neighbours understate masked autoencoders."
            if masked
            else "Nearest neighbours are a rough measure.",
            "Features of a masked autoencoder are not meant to be compared by distance; a published one has an "
            "accuracy of 11 % by nearest neighbours and of 81 % fine-tuned."
            if masked
            else "They need no training and show the geometry of the features; a probe is nearer to use.",
        )
    kind = protocol_title(query.protocol)
    if "frozen" in kind:
        yield (
            "Frozen features only." if not _has_finetuning(folder) else "Frozen features in front.",
            f"The first page shows a {kind}. An encoder that is fine-tuned may gain more, or less, "
            f"{metric_title(query.metric)} from pretraining.",
        )


def _has_finetuning(folder: RunFolder) -> bool:
    """Whether an encoder in question was also judged by training it on the labels."""
    own = folder.results[folder.results["encoder"].isin(folder.leads)]
    return any(name in PROTOCOLS and PROTOCOLS[name].trains_encoder for name in own["protocol"].unique())


def _on_data(folder: RunFolder) -> Iterator[tuple[str, str]]:
    if found := leak_caution(folder.leaks) if folder.leaks else None:
        yield found
    outside = left_out_sites(folder)
    if len(outside) == 1:
        yield (
            "One hospital outside.",
            f"The site {outside[0]} took no part. It is one example of a new hospital, and no promise for the next.",
        )
    if folder.left_out:
        rounds = len({(event.arm, event.round) for event in folder.left_out})
        yield (
            "Not every update was used.",
            f"A site's update was left out in {rounds} round{'s' if rounds > 1 else ''}; the list is above.",
        )
    if folder.collapsing:
        arms = sorted({folder.arm(arm).short for arm, _ in folder.collapsing})
        sites = sorted({site for _, site in folder.collapsing})
        yield (
            "Features were collapsing.",
            f"In training ({', '.join(arms)}) the features of {', '.join(sites)} were becoming all alike in some "
            "rounds. Such an encoder says little of its images: look at the curve output_spread before using it.",
        )
    if folder.missing:
        yield (
            "Parts of the record are missing.",
            f"This run folder has no {', '.join(folder.missing)}; what would have been read from there is not shown.",
        )


def left_out_sites(folder: RunFolder) -> list[str]:
    """Sites that took no part in training, by the split's roles."""
    of_role = {role: set(group["site"]) for role, group in folder.splits.groupby("role")}
    return sorted(of_role.get("left-out", set()) - of_role.get("train", set()))
