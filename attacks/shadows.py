"""Shadow pretrainings: the study's own, on random halves of the patients, to know an image's score without it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from attacks.crowd import Crowd, places_of
from attacks.models import released
from attacks.scores import scores
from attacks.settings import AttackSettings
from federation.algorithms.fedavg import FedAvgConfig
from federation.privacy.config import PatientPrivacyConfig
from federation.study import Study
from foundation.errors import StudyError
from foundation.machine import checked_device
from foundation.progress import bar
from foundation.randomness import numpy_generator
from imaging.listing.manifest import Manifest
from simulation.arms import Arm, make_encoder
from simulation.config import SimulationConfig


def score_without(
    run: Path,
    arm: Arm,
    crowd: Crowd,
    config: SimulationConfig,
    shadows: int,
    settings: AttackSettings,
    device: torch.device,
) -> dict[int, float]:
    """The mean loss score that an image has in shadow models which did not see its patient, by image.

    Shadows come in pairs that train on one half of the patients and on the other, so that every patient is unseen by
    half of them.
    """
    found: dict[int, list[float]] = {place: [] for place in places_of(crowd.everyone)}
    with bar("shadow pretrainings", shadows) as line, TemporaryDirectory(prefix=".attack-", dir=run) as work:
        for pair in range(shadows // 2):
            order = numpy_generator(settings.seed, "shadow", pair).permutation(len(crowd.everyone))
            for half in (0, 1):
                inside = [crowd.everyone[place] for place in order[half::2]]
                outside = [crowd.everyone[place] for place in order[1 - half :: 2]]
                names = set(crowd.store.table["patient"].iloc[places_of(inside)])
                table = crowd.store.table
                images = Manifest(table[table["patient"].isin(names)], run / "evaluation")
                shadow = _arm(arm, images, Path(work).name, f"shadow-{pair}-{half}", settings)
                make_encoder(run, shadow, config, checked_device(device.type))
                method = released(run / shadow.place, shadow.study)
                for place, score in scores("loss", method, crowd.store, places_of(outside), settings, device).items():
                    found[place].append(score)
                line.advance()
    return {place: float(np.mean(each)) for place, each in found.items()}


def check_shadows(count: int) -> None:
    """StudyError for an odd number of shadows."""
    if count < 0 or count % 2:
        raise StudyError(f"--shadows {count}: give an even number, as each half of the patients trains one; 0 for none")


class _ShadowArm(Arm):
    """An arm in a folder that goes away again."""

    @property
    def place(self) -> Path:
        work, name = self.title.split("/")
        return Path(work) / name / f"fold-{self.fold}" / f"seed-{self.seed}"


def _arm(arm: Arm, images: Manifest, work: str, name: str, settings: AttackSettings) -> Arm:
    """The arm's study without privacy, in one place, for few rounds: it tells which images are hard, no more."""
    shown = Manifest(images.table.assign(site="shadow"), images.root, images.unit)
    study = _open(arm.study, settings)
    return _ShadowArm(name, f"{work}/{name}", "centralised", arm.fold, arm.seed, study, shown)


def _open(study: Study, settings: AttackSettings) -> Study:
    """The study without defences; a private one's steps have as many images as it expects in one."""
    training = study.training
    if isinstance(study.privacy, PatientPrivacyConfig):
        images = study.privacy.patients_per_step * study.privacy.images_per_patient
        training = training.model_copy(update={"batch": max(2, images)})
    rounds = study.rounds.model_copy(update={"count": min(study.rounds.count, settings.shadow_rounds)})
    absent = dict.fromkeys(("privacy", "secure_aggregation", "federated_evaluation"))
    return study.model_copy(update={"training": training, "rounds": rounds, "algorithm": FedAvgConfig(), **absent})
