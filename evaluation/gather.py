"""Encoders from anywhere and a task, put into one folder that ``evaluation.stage.evaluate`` reads."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from evaluation.arm_table import DESCRIPTION_NAME, WEIGHTS_NAME, write_arms
from evaluation.checkpoints import RANDOM, Candidate, find_candidates, untrained
from evaluation.config import EvaluationConfig, RunEvaluation
from evaluation.inputs import write_settings
from evaluation.protocols.baselines import MAJORITY, PIXELS, POSITION
from evaluation.started_from import SUPERVISED, UNTRAINED
from evaluation.tasks.leaks import patient_leak, write_seen
from evaluation.tasks.targets import check_labels, labelled_rows, target_column
from evaluation.tasks.task_file import TaskFile, read_task
from foundation.errors import DataError, RunError
from foundation.files import digest, read_json, write_json, write_text
from foundation.machine import choose_device, provenance
from foundation.tensor_files import save_tensors
from imaging.listing.manifest import Manifest
from imaging.listing.splits import HELD, draw_splits
from imaging.store import TensorStore
from ssl_methods.encoders.statistics import batch_norms, estimate_over
from ssl_methods.encoders.timm_encoders import build_encoder, timm_line

RECORD = "evaluation/gathered.json"
ONE_SITE = "central"
"""The site of images whose manifest names none."""
RESERVED = (SUPERVISED, PIXELS, POSITION, MAJORITY)
_SAW = ("train", "validation")
"""Roles of patients whom a run's encoder, or a choice made for it, has seen."""


def gather(given: Sequence[str], task_path: Path, out: Path, command: str) -> Path:
    """Make ``out`` an evaluation folder of the encoders that ``given`` names, on the task; returns it.

    The patients' split is that of the simulated runs among them, drawn before they trained; of images of the
    evaluator's own it is drawn now, and no patient whom a run trained on may be tested. A folder that holds the same
    evaluation is gone on with. DataError, RunError or StudyError in one line; then nothing is written.
    """
    task = read_task(task_path)
    found = [candidate for each in given for candidate in find_candidates(each, task.image)]
    runs = _simulated(given)
    manifest, splits, dataset = _own_data(task, runs) if task.data else _data_of_runs(task_path, runs)
    encoders = _with_baselines(found if task.data is None else _of_first_fold(found))
    settings = RunEvaluation(
        **task.model_dump(include=set(EvaluationConfig.model_fields)),
        dataset=task.dataset or dataset,
        unit=manifest.unit,
        pretrained_elsewhere=len(runs) < len(given),
    )
    check_labels(manifest.table, splits, settings)
    record = {
        "task": settings.model_dump(mode="json"),
        "encoders": sorted([one.name, one.fold, one.seed, _digest(one)] for one in encoders),
        "images": digest(manifest.table.to_csv(index=False), splits.to_csv(index=False)),
    }
    if not _is_there(out, record):
        facts: dict[str, Any] = {
            "name": task.task,
            "title": task.task,
            "kind": "evaluation",
            "checkpoints": list(given),
        }
        facts |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "seed": settings.seed}
        write_json(out / "run.json", facts | provenance(command))
        write_text(out / "task.yaml", task_path.read_text())
        manifest.write_located(out / "evaluation")
        if task.data is not None and runs:
            write_seen(out, {run.name: _images_seen_by(run) for run in runs})
        write_settings(out / "evaluation", settings, encoders[0].image, splits)
        _write_encoders(out, encoders, manifest, splits)
        write_json(out / RECORD, record)  # last: with it the folder is whole
    return out


def _simulated(given: Sequence[str]) -> list[Path]:
    """The runs among what is given (or whose arms are) that drew a split before they trained."""
    places = [Path(each) for each in given]
    runs = [place if (place / "arms").is_dir() else place.parent.parent for place in places]
    return list(dict.fromkeys(run for run in runs if (run / "evaluation" / "splits.csv").is_file()))


def _data_of_runs(task_path: Path, runs: Sequence[Path]) -> tuple[Manifest, pd.DataFrame, str]:
    """Images and split of simulated runs, which have to be the same for all of them."""
    if not runs:
        raise DataError(
            f"{task_path}: names no data, and no simulated run is given whose images could be used; add `data`, a "
            "manifest or a folder with labelled images"
        )
    splits = [_read_splits(run) for run in runs]
    for run, other in zip(runs[1:], splits[1:], strict=True):
        apart = _first_difference(splits[0], other)
        if apart:
            raise DataError(
                f"{run}: its split is not that of {runs[0]} ({apart}), so that a patient whom one trained on would be "
                "tested by the other; simulate both with the same seed, data and splits, or evaluate them apart"
            )
    config = read_json(runs[0] / "evaluation" / "config.json")
    manifest = Manifest.read(runs[0] / "evaluation" / "manifest.csv", config["unit"])
    return manifest, splits[0], str(config["dataset"])


def _read_splits(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "evaluation" / "splits.csv", dtype=str, keep_default_na=False)


def _roles(splits: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {
        (str(fold), str(patient)): str(role)
        for fold, patient, role in splits[["fold", "patient", "role"]].itertuples(index=False, name=None)
    }


def _first_difference(first: pd.DataFrame, second: pd.DataFrame) -> str:
    own, other = _roles(first), _roles(second)
    for fold, patient in sorted(own.keys() | other.keys()):
        roles = [table.get((fold, patient), "not there") for table in (own, other)]
        if roles[0] != roles[1]:
            return f"fold {fold}: patient {patient!r} is {roles[0]} in one and {roles[1]} in the other"
    return ""


def _own_data(task: TaskFile, runs: Sequence[Path]) -> tuple[Manifest, pd.DataFrame, str]:
    """The task's labelled images and the split that is drawn of them."""
    place = task.data
    assert place is not None
    found = Manifest.open(place)
    table = found.table
    try:
        kept = table[labelled_rows(table, task)]
    except DataError as error:
        raise DataError(f"{place}: {error}") from error
    site = kept["site"].fillna(ONE_SITE) if "site" in kept else ONE_SITE
    manifest = Manifest(kept.assign(site=site), found.root, found.unit)
    by = kept[target_column(task)] if task.kind in ("classification", "regression") else None
    drawn = Manifest(manifest.table.assign(label=by), found.root, found.unit)
    splits = draw_splits(drawn, task.splits, task.seed).astype({"fold": str})
    tested = set(splits.loc[splits["role"].isin(HELD), "patient"])
    patient_leak(tested, {run.name: _seen_by(run) for run in runs})
    place = place.resolve()
    return manifest, splits, place.name if place.is_dir() else place.parent.name


def _seen_by(run: Path) -> set[str]:
    splits = _read_splits(run)
    return set(splits.loc[splits["role"].isin(_SAW), "patient"])


def _images_seen_by(run: Path) -> Manifest:
    manifest = Manifest.read(run / "evaluation" / "manifest.csv")
    return manifest.where(manifest.table["patient"].isin(_seen_by(run)).to_numpy())


def _of_first_fold(found: Sequence[Candidate]) -> list[Candidate]:
    """On other images the folds of a run mean nothing: its first fold's encoders stand for it, in every fold."""
    return [replace(one, fold=None) for one in found if one.fold in (None, 0)]


def _with_baselines(found: Sequence[Candidate]) -> list[Candidate]:
    """Every encoder once; each kind of encoder has one randomly initialised twin, and starting weights stand once."""
    kept: list[Candidate] = []
    for one in found:
        if one.name in RESERVED:
            raise RunError(f"{one.source}: {one.name!r} is the name of another row of the tables; rename the folder")
        if one.kind in UNTRAINED and any(_same(one, other) for other in kept):
            continue
        taken = {other.name for other in kept if (other.fold, other.seed) == (one.fold, one.seed)}
        if one.name in taken and one.kind not in UNTRAINED:
            raise RunError(
                f"{one.source}: two encoders are called {one.name!r}; give each once, or rename one of the folders"
            )
        kept.append(replace(one, name=f"{one.name}-{one.encoder.name}") if one.name in taken else one)
    for one in list(kept):
        if one.kind not in UNTRAINED and _base(one, kept) is None:
            taken = {other.name for other in kept}
            kept.append(untrained(one, RANDOM if RANDOM not in taken else f"{RANDOM}-{one.encoder.name}"))
    return kept


def _same(one: Candidate, other: Candidate) -> bool:
    """Whether one of two untrained encoders will do: any two random ones of a kind, starting weights that are equal."""
    places = (one.kind, one.fold, one.seed) == (other.kind, other.fold, other.seed)
    alike = one.encoder == other.encoder and one.image.shape == other.image.shape
    return places and alike and (one.kind == RANDOM or _digest(one) == _digest(other))


def _base(one: Candidate, others: Iterable[Candidate]) -> Candidate | None:
    """What its training started from: the starting weights of its own run, else a random encoder of its kind."""
    like = [other for other in others if other.encoder == one.encoder and other.image.shape == one.image.shape]
    own = [other for other in like if other.kind == "pretrained-init" and other.source == one.source]
    return next(iter([*own, *(other for other in like if other.kind == RANDOM)]), None)


def _digest(one: Candidate) -> str:
    tensors = [f"{name} {list(value.shape)} {digest(value.numpy().tobytes())}" for name, value in one.weights.items()]
    return digest(one.encoder.model_dump_json(), one.image.model_dump_json(), *tensors)


def _is_there(out: Path, record: dict[str, Any]) -> bool:
    """Whether the folder holds this very evaluation; RunError where it holds something else."""
    if (out / RECORD).is_file() and read_json(out / RECORD) == record:
        return True
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out}: holds something else already; give another --out, or remove it")
    return False


def _described(one: Candidate) -> dict[str, Any]:
    encoder, image = one.encoder.model_dump(mode="json"), one.image.model_dump(mode="json")
    source = {"source": one.source, "load": timm_line(one.encoder, one.image)}
    return {"title": one.title, "kind": one.kind, "encoder": encoder, "image": image, **source, **one.facts}


def _write_encoders(out: Path, encoders: Sequence[Candidate], manifest: Manifest, splits: pd.DataFrame) -> None:
    """Encoders below ``arms/``, those that no fold trained in every fold, and the table of what they cost."""
    written, folds = [], sorted({int(fold) for fold in splits["fold"]})
    for one in encoders:
        base = _base(one, encoders)
        for fold in folds if one.fold is None else [one.fold]:
            place = Path("arms") / one.name / f"fold-{fold}" / f"seed-{one.seed}"
            weights = (
                _with_statistics(one, _trained_on(manifest, splits, fold), out) if one.fold is None else one.weights
            )
            save_tensors(out / place / WEIGHTS_NAME, dict(weights))
            started_from = base.name if base is not None and one.kind not in UNTRAINED else ""
            described = {"arm": one.name, "fold": fold, "seed": one.seed, "base": started_from} | _described(one)
            write_json(out / place / DESCRIPTION_NAME, described)
            written.append(place)
    write_arms(out, written)


def _trained_on(manifest: Manifest, splits: pd.DataFrame, fold: int) -> Manifest:
    own = splits[(splits["fold"].astype(int) == fold) & (splits["role"] == "train")]
    return manifest.where(manifest.table["image"].isin(own["image"]).to_numpy())


def _with_statistics(one: Candidate, images: Manifest, out: Path) -> Mapping[str, Tensor]:
    """The weights with BatchNorm statistics of a fold's training images, as each encoder of a run has those of its own.

    An encoder that has never seen this modality, or any image, would be judged by statistics of another.
    """
    encoder, device = build_encoder(one.encoder, one.image), choose_device("auto")
    if not batch_norms(encoder):
        return one.weights
    encoder.load_state_dict(dict(one.weights))
    store = TensorStore.build(images, one.image, out / "store")
    estimate_over(encoder, store, one.image, device, f"{one.name}, statistics")
    return {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
