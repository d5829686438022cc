"""All attacks on one arm of a run. ``attack(run)`` is what the command line calls."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from attacks.crowd import Crowd, Patient, by_patient, crowd_of, halves, places_of
from attacks.figures import AttackResult, advantage
from attacks.inversion import invert
from attacks.models import overfitted, released, start_of
from attacks.reading import promise_of, verdict
from attacks.scores import scores
from attacks.settings import AttackSettings
from attacks.shadows import check_shadows, score_without
from attacks.sites import by_site, tell_sites
from attacks.updates import Defence, Target, defence_of, why_not
from evaluation.report.tables.attack_rows import ATTACKS_NAME
from federation.privacy.config import PatientPrivacyConfig
from federation.study import load_study
from foundation.errors import RunError, look_up
from foundation.files import write_json
from foundation.machine import DeviceName, choose_device
from imaging.store import TensorStore
from simulation.arms import Arm, plan_arms
from simulation.config import SimulationConfig
from simulation.simulate import prepare_data, simulation_config


@dataclass(frozen=True)
class _Scene:
    run: Path
    config: SimulationConfig
    arm: Arm
    crowd: Crowd
    settings: AttackSettings
    device: torch.device


def attack(
    run: Path,
    *,
    shadows: int = 4,
    arm: str = "federated",
    device: DeviceName = "auto",
    settings: AttackSettings = AttackSettings(),  # noqa: B008
) -> Mapping[str, Any]:
    """Attack the first fold and seed of an arm, write ``attacks.json`` into the run folder, and return what it says.

    shadows: shadow pretrainings, an even number; 0 leaves that attack out. The same run and settings give the same
    figures on the same machine. RunError where the run is not finished, or has too few patients; StudyError for an arm
    that does not exist.
    """
    check_shadows(shadows)
    scene = _scene(run, arm, settings, choose_device(device))
    promise = promise_of(scene.arm.study)
    answer = {
        "version": 1,
        "arm": arm,
        "shadows": shadows,
        "settings": asdict(settings),
        "members": len(scene.crowd.members),
        "others": len(scene.crowd.others),
        "promise": promise,
        "attacks": _membership(scene, shadows, promise) + _updates(scene),
    }
    write_json(run / ATTACKS_NAME, answer)
    return answer


def _scene(run: Path, name: str, settings: AttackSettings, device: torch.device) -> _Scene:
    if not (run / "evaluation" / "splits.csv").exists():
        raise RunError(
            f"{run}: is no simulated run with a split: only there is it known who trained and who was held out; give "
            "the folder that fedpretext simulate printed"
        )
    study = load_study(run / "study.yaml")
    config = simulation_config(study)
    images, splits = prepare_data(run, study, config)
    arms = {
        each.name: each
        for each in plan_arms(study, config, images, splits)
        if each.sites is not None and each.fold == 0 and each.seed == study.seed
    }
    arm: Arm = look_up(arms, name, "arm with training")
    store = TensorStore.build(images, study.image, run / "store")
    return _Scene(run, config, arm, crowd_of(arm, images, splits, store, settings), settings, device)


def _membership(scene: _Scene, shadows: int, promise: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """By loss, by features and, with shadows, by loss compared with models that did not see the patient."""
    crowd, settings = scene.crowd, scene.settings
    folder, study = scene.run / scene.arm.place, scene.arm.study
    permitted = None if promise is None else promise["largest_advantage"]
    inside, outside = halves(crowd.everyone, settings.control_patients)
    inside, outside = ([replace(each, images=each.images[:1]) for each in half] for half in (inside, outside))
    target = released(folder, study)
    found = {kind: _scores(scene, kind, target, crowd.everyone) for kind in ("loss", "features")}
    control = overfitted(target, crowd.store, places_of(inside), settings, scene.device)
    known = {kind: _scores(scene, kind, control, [*inside, *outside]) for kind in ("loss", "features")}
    if shadows:
        without = score_without(scene.run, scene.arm, crowd, scene.config, shadows, settings, scene.device)
        for each in (found, known):
            each["shadows"] = {place: score - without[place] for place, score in each["loss"].items()}
    return [
        _entry(
            f"membership-{kind}",
            _figure(found[kind], crowd.members, crowd.others),
            _figure(known[kind], inside, outside),
            permitted,
        )
        for kind in found
    ]


def _scores(scene: _Scene, kind: str, method: Any, patients: Sequence[Patient]) -> dict[int, float]:
    return scores(kind, method, scene.crowd.store, places_of(patients), scene.settings, scene.device)


def _figure(found: Mapping[int, float], members: Sequence[Patient], others: Sequence[Patient]) -> AttackResult | None:
    own = by_patient(found, [*members, *others])
    return advantage(own[: len(members)], own[len(members) :])


def _updates(scene: _Scene) -> list[dict[str, Any]]:
    """Attacks on the update of one step, from the study's start; undefended and on fewest images: the control."""
    crowd, settings, study = scene.crowd, scene.settings, scene.arm.study
    start = start_of(scene.run, study)
    why = why_not(study, start)
    if why:
        return [_entry(name, None, None, None, why) for name in ("inversion", "site")]
    defence = defence_of(study)
    targets = [patient.images[0] for patient in crowd.members]
    target = Target(start, crowd.store, settings, scene.device)
    inverted = [invert(target, targets, each) for each in dict.fromkeys((defence, Defence()))]
    groups = by_site(crowd.members, settings.site_patients)
    few = [own[:2] for own in groups]
    answer, known = (
        tell_sites(target, own, step, each)
        for own, step, each in ((groups, _step_images(scene), defence), (few, 0, Defence()))
    )
    return [_entry("inversion", inverted[0], inverted[-1], None), _entry("site", answer, known, None)]


def _step_images(scene: _Scene) -> int:
    """Images of a site's step in the study."""
    study = scene.arm.study
    if isinstance(study.privacy, PatientPrivacyConfig):
        return study.privacy.patients_per_step * study.privacy.images_per_patient
    return study.training.batch * study.training.accumulate


def _entry(
    name: str, figure: AttackResult | None, control: AttackResult | None, permitted: float | None, why: str = ""
) -> dict[str, Any]:
    word, reading = verdict(figure, control, permitted, why)
    return {
        "attack": name,
        "figure": None if figure is None else figure.as_dict(),
        "control": None if control is None else control.as_dict(),
        "permitted": permitted,
        "verdict": word,
        "reading": reading,
    }
