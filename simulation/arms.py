"""The arms of the comparison: who trains on what, and for how long (``simulation.budget``)."""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd
import yaml
from torch import Tensor, nn

from evaluation.arm_table import DESCRIPTION_NAME
from federation.algorithms.fedavg import FedAvgConfig
from federation.local_work import steps_for_budget
from federation.privacy.config import PatientPrivacyConfig
from federation.study import Study
from federation.training_config import TrainingConfig
from foundation.files import write_text
from foundation.machine import DeviceName, choose_device
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from server.export import TITLES, TrainingCost, write_encoder
from simulation.budgets import RoundWork, round_work
from simulation.config import BudgetRule, SimulationConfig
from simulation.sites.site_folders import Federation, write_site_folders
from ssl_methods import build_method
from ssl_methods.encoders.statistics import batch_norms, estimate_over

Kind = Literal["random", "pretrained-init", "federated", "local-only", "centralised"]
_CENTRALISED, LEDGER_NAME = "centralised", "ledger.jsonl"
_SAME = {"passes": "same passes over its images", "images": "same number of images seen"}
_FEWEST = dict.fromkeys(("min_images", "min_patients", "smallest_count"), 1)
RANDOM_SEEDS = 5
OPEN_POLICY = {"studies": "any", **_FEWEST, "allow_label_statistics": True, "allow_score_histogram": True}
"""A simulated hospital's: its images are public, and it is the study's to say who takes part."""


@dataclass(frozen=True)
class Arm:
    """One encoder to make: an ordinary study over the sites in ``images``."""

    name: str
    title: str
    kind: Kind
    fold: int
    seed: int
    study: Study
    sites: Manifest | None
    """Pretraining images with the arm's own site column; None where nothing is trained."""
    tested: Manifest | None = None
    """Images of test patients that lie at the sites, where the study has a federated evaluation."""
    unlabelled: Manifest | None = None
    """Images that an encoder which is not trained gets its BatchNorm statistics from; None for one that is."""

    @property
    def place(self) -> Path:
        """The arm's folder inside the run folder."""
        return Path("arms") / self.name / f"fold-{self.fold}" / f"seed-{self.seed}"

    def site_sizes(self) -> dict[str, int]:
        """Images by site, in site-name order."""
        if self.sites is None:
            return {}
        return {str(site): int(n) for site, n in self.sites.table["site"].value_counts().sort_index().items()}

    def works(self) -> list[RoundWork]:
        """What each site does in a round, in site-name order."""
        if self.sites is None:
            return []
        return [round_work(self.study, own["patient"]) for _, own in self.sites.table.groupby("site")]

    def budget(self) -> TrainingCost:
        """Images and steps of the whole study (for the manifest's images; unreadable ones make it smaller).

        With privacy by patient the images are those that are expected.
        """
        works, rounds = self.works(), self.study.rounds.count
        if not works:
            return TrainingCost()
        seen = rounds * sum(w.images for w in works)
        return TrainingCost(
            seen,
            rounds * sum(w.steps for w in works),
            rounds * max(w.steps for w in works),
            seen / sum(self.site_sizes().values()),
        )


def plan_arms(study: Study, config: SimulationConfig, images: Manifest, splits: pd.DataFrame) -> list[Arm]:
    """All arms of all folds and seeds, the random ones first because they cost nothing.

    The first fold gets ``config.seeds`` pretraining seeds, the others one; of the random encoder every fold has at
    least ``RANDOM_SEEDS``, as one draw of it may be far from another. Only images whose patient has the role "train" in
    a fold are in any arm of that fold.
    """
    plan: list[Arm] = []
    for fold in sorted(splits["fold"].unique()):
        part = splits[splits["fold"] == fold]
        training = images.where(images.table["image"].isin(part.loc[part["role"] == "train", "image"]))
        held = images.where(images.table["image"].isin(part.loc[part["role"] == "test", "image"]))
        trained = config.seeds if fold == 0 else 1
        for repeat in range(max(trained, RANDOM_SEEDS)):
            seeded = study.model_copy(update={"seed": study.seed + repeat, "simulation": None})
            if repeat < trained:
                plan += _arms_of(seeded, int(fold), training, held, config)
            else:
                plan.append(_untrained("random", seeded, int(fold), training))
    order = {"random": 0, "pretrained-init": 1, "federated": 2, "local-only": 3, "centralised": 4}
    return sorted(plan, key=lambda arm: (arm.fold, arm.seed, order[arm.kind], arm.name))


def _arms_of(study: Study, fold: int, training: Manifest, held: Manifest, config: SimulationConfig) -> list[Arm]:
    tested = None if study.federated_evaluation is None else held
    federated = Arm("federated", TITLES["federated"], "federated", fold, study.seed, study, training, tested)
    untrained: list[Kind] = ["random", *([] if config.weights is None else ["pretrained-init"])]  # type: ignore[list-item]
    arms = [*(_untrained(kind, study, fold, training) for kind in untrained), federated]
    answer = f"{_SAME[config.budget]}{_open(study)}"
    if "local-only" in config.arms:
        for site in sorted(set(held.table["site"])):
            own = training.where(training.table["site"] == site)
            arms.append(
                _single(
                    f"local-only-{site}", f"{site} local-only, {answer}", "local-only", federated, own, config.budget
                )
            )
    if "centralised" in config.arms:
        everything = replace(training, table=training.table.assign(site=_CENTRALISED))
        title = f"Centralised: all images in one place, {answer}"
        arms.append(_single("centralised", title, "centralised", federated, everything, config.budget))
    return arms


def _untrained(kind: Kind, study: Study, fold: int, training: Manifest) -> Arm:
    return Arm(kind, TITLES[kind], kind, fold, study.seed, study, None, unlabelled=training)


def _open(study: Study) -> str:
    """What the title of an arm says that shares nothing and so noises nothing, where the federated one does."""
    return ", without privacy" if study.privacy is not None else ""


def _single(name: str, title: str, kind: Kind, federated: Arm, images: Manifest, budget: BudgetRule) -> Arm:
    """An arm of one site: the same study, as much work as ``budget`` says, no federated algorithm to choose.

    Nothing of it leaves the place where it is trained, so that it has neither noise nor secure aggregation; it is what
    a site could have without the federation, and says nothing of how well its weights could be given away.
    """
    study = federated.study
    training = _training(federated, len(images), budget)
    absent = dict.fromkeys(("federated_evaluation", "privacy", "secure_aggregation"))
    local_only = study.model_copy(update={"training": training, "algorithm": FedAvgConfig(), **absent})
    return Arm(name, title, kind, federated.fold, federated.seed, local_only, images)


def _training(federated: Arm, images: int, budget: BudgetRule) -> TrainingConfig:
    """How an arm of one site with so many ``images`` trains in each round.

    "passes": each of its images is seen as often as in the federated arm. With ``training.epochs`` it trains for the
    same epochs of its own images. With ``training.steps``, and with privacy by patient, whose steps are drawn, the
    federated arm decides: an image is seen there on average p times a round (images seen by all sites over images
    at all sites), and the arm gets the steps, to the nearest and at least one, in which its images are seen p times.
    "images": it sees as many images a round as all sites of the federated arm together, however few it has.
    Whole batches are counted everywhere, so that a round may be up to a batch short or, of steps, half a batch apart.
    """
    training, seen = federated.study.training, sum(work.images for work in federated.works())
    if budget == "passes":
        if training.epochs is not None and not isinstance(federated.study.privacy, PatientPrivacyConfig):
            return training
        seen = round(seen * images / sum(federated.site_sizes().values()))
    return training.model_copy(update={"steps": steps_for_budget(training, images, seen), "epochs": None})


def is_done(run: Path, arm: Arm) -> bool:
    """True when the arm's encoder is written."""
    return (run / arm.place / DESCRIPTION_NAME).exists()


def make_encoder(run: Path, arm: Arm, config: SimulationConfig, device: DeviceName) -> None:
    """Pretrain an arm, from its last checkpoint if it has one, and write ``encoder.safetensors`` and ``.json``."""
    from server.initial import write_initial
    from simulation.runtimes.table import RUNTIMES  # Flower and both of its ends, which a plan of arms does without
    from simulation.sites.checks import telling_reasons
    from simulation.starting import kept_weights, source_of
    from ssl_methods.encoders.starting_weights import start_from

    folder, started = run / arm.place, time.monotonic()
    weights: dict[str, Tensor] | None = None
    if arm.sites is None:
        method = build_method(arm.study.method, arm.study.encoder, arm.study.image, arm.study.seed)
        if arm.kind == "pretrained-init":
            start_from(method, kept_weights(run), source_of(config))
        _estimate_statistics(run, arm, method.encoder, device)
        weights = method.shared_state()
    else:
        federation = _prepare(run, arm, device)
        if config.weights is not None:
            write_initial(folder, arm.study, kept_weights(run), source_of(config))
        with telling_reasons(folder):
            RUNTIMES[config.runtime](federation)
    seconds = time.monotonic() - started
    write_encoder(folder, arm.study, arm.kind, arm.title, weights=weights, budget=arm.budget(), seconds=seconds)
    if arm.sites is not None:
        tidy(folder)


def _estimate_statistics(run: Path, arm: Arm, encoder: nn.Module, device: DeviceName) -> None:
    """Give an untrained encoder the same care that a trained one gets at its sites after the last round."""
    if arm.unlabelled is not None and batch_norms(encoder):
        store, on = TensorStore.build(arm.unlabelled, arm.study.image, run / "store"), choose_device(device)
        estimate_over(encoder, store, arm.study.image, on, f"{arm.name}, statistics")
        encoder.cpu()


def tidy(folder: Path) -> None:
    """Remove what only a resume needs. Encoder, all shared weights, curves and the sites' logs stay."""
    from server.initial import INITIAL_NAME

    for log in folder.glob("sites/*/state/site.log"):
        log.replace(log.parents[1] / log.name)
    for done in (folder / "checkpoints", folder / "replies", *folder.glob("sites/*/state")):
        shutil.rmtree(done, ignore_errors=True)
    (folder / INITIAL_NAME).unlink(missing_ok=True)


def _prepare(run: Path, arm: Arm, device: str) -> Federation:
    from server.rounds import write_study
    from simulation.sites.run_keys import write_run_keys

    assert arm.sites is not None
    folder = run / arm.place
    write_study(folder, arm.study)
    places = write_site_folders(_with_tested(arm.sites, arm.tested), folder / "sites")
    for site, place in places.items():
        files = {"data": "manifest.csv", "state": "state", "cache": str((run / "store").resolve())}
        text = {"site": site, **files, "device": device, "policy": OPEN_POLICY}
        if arm.study.privacy is not None:
            text["ledger"] = LEDGER_NAME
        write_text(place / "site.yaml", yaml.safe_dump(text, sort_keys=False))
    if arm.study.secure_aggregation is not None:
        write_run_keys(folder / "sites", places)
    return Federation(folder.resolve(), tuple(sorted(place.name for place in places.values())))


def _with_tested(training: Manifest, tested: Manifest | None) -> Manifest:
    """What lies at the sites: their training images, and with a role those that are only evaluated on, if any are."""
    if tested is None:
        return training
    parts = [training.table.assign(role="train"), tested.table.assign(role="test")]
    return Manifest(pd.concat(parts, ignore_index=True), training.root, training.unit)
