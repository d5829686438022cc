"""A whole simulated study: split, arms, evaluation, report. `simulate(study)` is what the command line calls."""

import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from evaluation.arm_table import write_arms
from evaluation.config import RunEvaluation
from evaluation.inputs import check_outlines, write_settings
from evaluation.tasks.targets import check_labels
from federation.study import Study, load_study
from foundation.configuration.yaml_files import checked
from foundation.errors import FedpretextError, RunError, StudyError
from foundation.exclusive import alone_in
from foundation.files import AnyPath, read_json, write_json, write_text
from foundation.machine import DeviceName, choose_device, command_line, provenance
from foundation.messages import logger
from foundation.progress import bar
from imaging.listing.manifest import Manifest
from imaging.listing.splits import check_splits, draw_splits
from simulation.arms import Arm, is_done, make_encoder, plan_arms
from simulation.config import SimulationConfig
from simulation.sites.checks import check_runtime, check_sites, decode_images
from simulation.sites.partition import assign_sites
from simulation.spent import record_privacy
from simulation.starting import identified, keep_weights
from ssl_methods import build_method

if TYPE_CHECKING:
    from evaluation.judge import Run

_BUSY = "another process is working in this run folder; wait for it or stop it"


def simulate(
    study: Study | AnyPath,
    overrides: Sequence[str] = (),
    *,
    runs: AnyPath = "runs",
    resume: AnyPath | None = None,
    device: DeviceName = "auto",
) -> "Run":
    """Run a study over simulated hospitals: pretrain every arm, evaluate, report.

    study: a study file or a study. overrides: ``key.sub=value``, as ``--set`` takes them. runs: where run folders are
    made. ``resume`` goes on in an existing run folder (of the same study) with whatever is not finished there.
    """
    from evaluation.judge import Run
    from evaluation.report.page import write_report
    from evaluation.stage import evaluate

    folder = pretrain(study, overrides, runs=runs, resume=resume, device=device)
    with alone_in(folder, "lock", _BUSY), _saying_how_to_resume(folder):
        results = evaluate(folder)
        run_facts = read_json(folder / "run.json")
        write_json(folder / "run.json", run_facts | {"finished": _now()})
        return Run(folder, results, write_report(folder))


def pretrain(
    study: Study | AnyPath,
    overrides: Sequence[str] = (),
    *,
    runs: AnyPath = "runs",
    resume: AnyPath | None = None,
    device: DeviceName = "auto",
) -> Path:
    """Pretrain every arm of a study over simulated hospitals; the run folder, to be evaluated on any task."""
    from server.federated_evaluation import collect

    chosen = _resolved(study if isinstance(study, Study) else load_study(study, overrides))
    choose_device(device)
    build_method(chosen.method, chosen.encoder, chosen.image, chosen.seed)  # refuses parts that do not fit
    folder = _open_run(chosen, Path(runs), None if resume is None else Path(resume))
    with alone_in(folder, "lock", _BUSY), _saying_how_to_resume(folder):
        resolved = load_study(folder / "study.yaml")
        config = simulation_config(resolved)
        with _no_trace_of_failure(folder if resume is None else None):
            keep_weights(folder, config, resolved)
            images, arms = planned(folder, resolved, config)
        for arm in arms:
            if arm.kind == "federated" and arm.sites is not None and not is_done(folder, arm):
                decode_images(arm.study, arm.sites, images, folder / "store")
        _pretrain(folder, arms, config, device)
        record_privacy(folder, resolved, arms)
        write_arms(folder, [arm.place for arm in arms])
        collect(folder)
    return folder


def simulation_config(study: Study) -> SimulationConfig:
    """The study's simulation section, checked."""
    if study.simulation is None:
        raise StudyError(
            f"study {study.name}: has no `simulation` section, so there are no hospitals to simulate; add one"
        )
    return checked(SimulationConfig, study.simulation, f"study {study.name}: simulation")


def _resolved(study: Study) -> Study:
    """The study with all of its simulation section written out, defaults and the digest of its starting weights."""
    config = identified(simulation_config(study), study)
    return study.model_copy(update={"simulation": config.model_dump(mode="json")})


def prepare_data(
    folder: Path, study: Study, config: SimulationConfig, *, drawn: bool = True
) -> tuple[Manifest, pd.DataFrame]:
    """Load the dataset, give every image a site, draw the split once; all are written, and read back on a resume.

    ``drawn`` as ``Dataset.load`` takes it.
    """
    place = folder / "evaluation"
    if not (place / "splits.csv").exists():
        found = config.load_dataset(folder / "data", study.seed, drawn=drawn)
        assign_sites(found, config.partition, study.seed).write_located(place)
        images = Manifest.read(place / "manifest.csv", found.unit)
        splits = draw_splits(images, config.splits, study.seed)
        settings = RunEvaluation(**study.evaluation.model_dump(), dataset=config.dataset, unit=found.unit)
        write_settings(place, settings, study.image, splits)
    images = Manifest.read(place / "manifest.csv", read_json(place / "config.json")["unit"])
    splits = pd.read_csv(place / "splits.csv", dtype=SPLIT_TYPES, keep_default_na=False)
    check_splits(splits)
    return images, splits


SPLIT_TYPES = {"image": str, "patient": str, "site": str, "label": str, "role": str}


def planned(folder: Path, study: Study, config: SimulationConfig, *, drawn: bool = True) -> tuple[Manifest, list[Arm]]:
    """All images and all arms, with what can be known to be wrong refused before anything is decoded or trained.

    Not ``drawn``, images that are made on the spot are made only where the study's labels are read out of them.
    """
    drawn = drawn or study.evaluation.kind in ("segmentation", "detection")
    check_runtime(study, config)
    images, splits = prepare_data(folder, study, config, drawn=drawn)
    check_labels(images.table, splits, study.evaluation)
    check_outlines(images, splits, study.image, study.evaluation, folder)
    arms = plan_arms(study, config, images, splits)
    for arm in arms:
        if arm.kind == "federated" and arm.sites is not None:
            check_sites(arm.study, arm.sites)
    return images, arms


def _pretrain(folder: Path, arms: list[Arm], config: SimulationConfig, device: DeviceName) -> None:
    with bar("arms", len(arms)) as line:
        for arm in arms:
            line.describe(f"arm {arm.name}, fold {arm.fold}, seed {arm.seed}")
            if not is_done(folder, arm):
                make_encoder(folder, arm, config, device)
            line.advance()


def _open_run(study: Study, runs: Path, resume: Path | None) -> Path:
    """The run folder with the resolved study in it: a new one, or the one to resume if it is of this study."""
    if resume is not None:
        if not (resume / "study.yaml").exists():
            raise RunError(f"--resume {resume}: holds no study.yaml: not a run folder")
        recorded = load_study(resume / "study.yaml")
        if recorded.whole_hash() != study.whole_hash():
            raise RunError(
                f"--resume {resume}: is of another study ({_first_difference(recorded, study)}); give the study file "
                "and --set options it was made with"
            )
        logger.info(f"resuming {resume}")
        return resume
    folder = runs / f"{study.name}-{datetime.now().strftime('%Y%m%d-%H%M%S')}"
    if folder.exists():
        raise RunError(f"{folder}: exists already; wait a second, or --resume it")
    facts = study.facts() | {"started": _now()} | provenance(command_line("simulate(study)"))
    with _no_trace_of_failure(folder):
        write_json(folder / "run.json", facts)
        write_text(folder / "study.yaml", study.to_yaml())  # last: with it the folder can be resumed
    return folder


def _first_difference(recorded: Study, given: Study) -> str:
    before, now = (dict(_flat(study.model_dump(mode="json"))) for study in (recorded, given))
    for key in sorted((before.keys() | now.keys()) - {"simulation.root", "simulation.weights"}):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r} and is {now.get(key)!r} now"
    return "no difference found"


def _flat(value: Any, key: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(key, value)]
    return [pair for name in sorted(value) for pair in _flat(value[name], f"{key}.{name}".lstrip("."))]


@contextmanager
def _no_trace_of_failure(folder: Path | None) -> Iterator[None]:
    """Remove a new run folder in which nothing was trained yet when the study cannot be run."""
    try:
        yield
    except Exception:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _saying_how_to_resume(folder: Path) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, FedpretextError, OSError):
        if (folder / "study.yaml").exists():
            study, run = shlex.quote(str(folder / "study.yaml")), shlex.quote(str(folder))
            logger.warning(f"stopped; what is finished is kept. Go on with: fedpretext simulate {study} --resume {run}")
        raise


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
