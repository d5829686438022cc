"""What a pilot will do: whose images it may use, which candidates it trains, over which encoder, for how long.

All is fixed before anything is trained: the same encoder, the same number of encoder passes and one protocol for every
candidate. The study's split is drawn by its own function; of its training and validation patients the pilot draws its
own test patients. Nobody whom the study tests, and no left-out site, is opened.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from advisor.candidates import Candidate
from advisor.ranking import Ranked, best
from advisor.setting import Setting
from advisor.study_file import PROTOCOLS
from evaluation.config import RunEvaluation
from evaluation.inputs import write_settings
from evaluation.tasks.targets import check_labels, target_column
from federation.study import Study, study_from
from foundation.errors import DataError, StudyError
from foundation.machine import DeviceName, choose_device
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.listing.partners import Partners
from imaging.listing.splits import HELD, SplitConfig, draw_splits
from simulation.arms import Arm, plan_arms
from simulation.budgets import round_work
from simulation.config import SimulationConfig
from simulation.simulate import prepare_data, simulation_config
from simulation.sites.checks import check_sites
from simulation.starting import identified
from ssl_methods import usual_training

PASSES = 5_000
"""Encoder passes of one candidate's pretraining, all sites together, where nobody says otherwise."""
TEST_SHARE, VALIDATION_SHARE = 0.4, 0.1
"""Of the patients that a pilot may use; benchmarks/comparisons/sweep.py has the same."""


@dataclass(frozen=True)
class Plan:
    """A pilot before it runs.

    images: those that it may use; spared: how many patients it may not. arms: by candidate, its federated arm. base:
    what all of them start from. judge: the protocol.
    """

    folder: Path
    study: Study
    config: SimulationConfig
    setting: Setting
    images: Manifest
    splits: pd.DataFrame
    spared: int
    ranked: tuple[Ranked, ...]
    arms: dict[str, Arm]
    base: Arm
    judge: str


@dataclass(frozen=True)
class Trained:
    """What came of a candidate's pretraining: seconds, or why there is none."""

    seconds: float
    failed: str = ""


def plan_pilot(
    study: Study, folder: Path, answer: Mapping[str, bool], device: DeviceName, passes: int = PASSES
) -> Plan:
    """Draw the pilot's data, rank, and make each candidate's study. Errors in one line, before anything is trained.

    answer: fields of ``Setting`` that cannot be read from the data (privacy, different_sites).
    """
    if passes < 1:
        raise StudyError(f"passes {passes}: give 1 or more")
    config = identified(simulation_config(study), study)
    if config.splits.folds > 1:
        raise StudyError(
            f"simulation.splits.folds {config.splits.folds} tests every patient, so that none is left for a pilot; "
            "give --set simulation.splits.folds=1"
        )
    images, spared = spare_tested(*prepare_data(folder / "study", study, config))
    own = SplitConfig(test_share=TEST_SHARE, validation_share=VALIDATION_SHARE)
    splits = draw_splits(images, own, study.seed)
    judge = PROTOCOLS[study.evaluation.kind][-1]  # fine-tuning: frozen features say little of masked methods
    judged = study.evaluation.model_copy(update={"protocols": (judge,), "shots": (), "label_fractions": (1.0,)})
    check_labels(images.table, splits, judged)
    training = images.where(images.table["image"].isin(splits.loc[splits["role"] == "train", "image"]))
    setting = setting_of(study, config, training, answer, choose_device(device).type != "cpu")
    ranked, studies = fitting(study, config, setting, training)
    once = config.model_copy(update={"arms": (), "seeds": 1})
    arms: dict[str, Arm] = {}
    for each in ranked:
        name, whole = each.candidate.name, studies[each.candidate.name]
        count = rounds_for(whole, training, passes, each.candidate.passes)
        short = whole.model_copy(update={"rounds": whole.rounds.model_copy(update={"count": count})})
        check_sites(short, training)
        planned = {arm.name: arm for arm in plan_arms(short, once, images, splits)}
        arms[name] = replace(planned["federated"], name=arm_name(each.candidate), title=f"{name}, federated")
    base = "pretrained-init" if config.weights is not None else "random"
    write_settings(
        folder / "evaluation",
        RunEvaluation(**judged.model_dump(), dataset=config.dataset, unit=images.unit),
        study.image,
        splits,
    )
    images.write_located(folder / "evaluation")
    return Plan(folder, study, config, setting, images, splits, spared, tuple(ranked), arms, planned[base], judge)


def spare_tested(images: Manifest, splits: pd.DataFrame) -> tuple[Manifest, int]:
    """The images of nobody whom the study tests or leaves out, and how many patients that spares."""
    tested = set(splits.loc[splits["role"].isin(HELD), "patient"])
    return images.where(~images.table["patient"].isin(tested)), len(tested)


def setting_of(
    study: Study, config: SimulationConfig, training: Manifest, answer: Mapping[str, bool], accelerator: bool
) -> Setting:
    """What the advisor would have been told of this study: its own words, and counts of the pilot's training part."""
    per_site = training.table.groupby("site")["patient"].nunique()
    column = target_column(study.evaluation)
    return Setting(
        modality=study.image.modality,
        task=study.evaluation.kind,
        labels=int(training.table[column].notna().sum()),
        sites=len(per_site),
        patients=int(per_site.min()),
        images=max(1, round(len(training) / int(per_site.sum()))),
        volumes=study.image.dimensions == 3,
        pretrained_weights=config.weights is not None,
        accelerator=accelerator,
        **answer,
    )


def fitting(
    study: Study, config: SimulationConfig, setting: Setting, training: Manifest
) -> tuple[list[Ranked], dict[str, Study]]:
    """The first candidates over one encoder, and their studies.

    The study's encoder where all of them take it, or where it has starting weights; otherwise a small ViT, which every
    method takes, so that methods are compared and not encoders.
    """
    ranked = best(setting, lambda candidate: has_partners(candidate, training))
    studies = _studies(study, ranked, study.encoder.model_dump(mode="json"))
    if len(studies) < len(ranked) and config.weights is None:
        studies = _studies(study, ranked, vit_for(study.image))
    kept = [each for each in ranked if each.candidate.name in studies]
    if len(kept) < 2:
        names = ", ".join(each.candidate.name for each in ranked)
        raise StudyError(
            f"encoder {study.encoder.name!r} takes {len(kept)} of the candidates ({names}), and a pilot compares 2 or "
            "more; choose a ViT, or leave simulation.weights out"
        )
    return kept, studies


def has_partners(candidate: Candidate, training: Manifest) -> bool:
    """Whether every site has the second images that the candidate asks for, if it asks for any."""
    relation = candidate.config.partner
    if relation is None:
        return True
    try:
        return all(Partners(own, relation).share() > 0 for _, own in training.table.groupby("site"))
    except DataError:  # a column is missing
        return False


def _studies(study: Study, ranked: Sequence[Ranked], encoder: dict[str, Any]) -> dict[str, Study]:
    """Each candidate's study, for those that take the encoder. The study's own method keeps its settings.

    A learning rate or betas that are those of the study's method give way to the candidate's own.
    """
    found, training = {}, study.training.model_dump(mode="json")
    left = {name for name, value in usual_training(study.method).items() if getattr(study.training, name) == value}
    training |= dict.fromkeys(left)
    for each in ranked:
        own = each.candidate.name == study.method.name
        method = study.method.model_dump(mode="json") if own else each.candidate.section
        with suppress(StudyError):
            raw = study.model_dump(mode="json") | {"method": method, "encoder": encoder, "training": training}
            found[each.candidate.name] = study_from(raw, study.name)
    return found


def vit_for(image: ImageConfig) -> dict[str, Any]:
    """A small ViT whose patches tile such an image, about eight along each side (volumes: four)."""
    if image.depth is not None:
        sides = [_patch(side, 4) for side in (image.depth, image.size, image.size)]
        return {"name": "monai_vit", "patch_size": sides, "depth": 4, "width": 96, "heads": 3}
    return {"name": "vit_tiny_patch16_224", "patch_size": _patch(image.size, 8), "depth": 4}


def _patch(side: int, along: int) -> int:
    """The divisor of ``side`` that cuts it most nearly into ``along`` parts, and into 2 at least."""
    divisors = [size for size in range(1, side // 2 + 1) if side % size == 0]
    return min(divisors, key=lambda size: abs(side / size - along))


def rounds_for(study: Study, training: Manifest, passes: int, each: float) -> int:
    """Rounds that cost about so many encoder passes, where an image costs ``each``."""
    a_round = sum(round_work(study, own["patient"]).images for _, own in training.table.groupby("site"))
    return max(1, round(passes / (each * a_round)))


def arm_name(candidate: Candidate) -> str:
    """The candidate's folder and its name in the tables."""
    return "-".join((candidate.method, *candidate.members)).replace("_", "-")
