"""A federated run's encoder on labelled images of the evaluator's own: puts beside it what evaluation reads."""

import json
from pathlib import Path

import pandas as pd
from torch import Tensor

from evaluation.arm_table import DESCRIPTION_NAME, write_arms
from evaluation.config import EvaluationConfig, RunEvaluation
from evaluation.inputs import write_settings
from evaluation.tasks.targets import check_labels, has_label
from federation.study import Study, load_study
from foundation.errors import DataError, RunError
from foundation.files import digest, read_json, write_json
from foundation.progress import track
from foundation.tensor_files import load_tensors
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig, draw_splits
from server.export import TITLES, TrainingCost, write_encoder
from server.initial import INITIAL_NAME
from ssl_methods import build_method

RECORD_NAME = "data.json"
ONE_SITE = "central"
"""The site of images whose manifest names none."""
_SPLITS = SplitConfig()


def prepare(run: Path, data: Path, *, label: str | None = None) -> None:
    """Make a federation's finished run folder one that ``evaluation.stage.evaluate`` reads.

    ``data``: a manifest, or a folder with one; its images with a label (the column ``label``; default: the study's)
    are divided by patient into train, validation and test. That happens once: the split is read back when the same
    images come again, and others are refused. Beside the federated encoder stand a randomly initialised one and, if
    the run started from given weights, one with those. DataError for images or labels that cannot be evaluated,
    RunError for a run that is not there, not finished, or evaluated on other images.
    """
    study = _finished(run)
    settings = _settings(study.evaluation, label)
    images = _labelled(data, settings.label)
    _draw_once(run, study, settings, images, _name(data))
    _write_baselines(run, study)


def _finished(run: Path) -> Study:
    """The study of a federation's run whose encoder is there."""
    if not run.is_dir():
        raise RunError(f"{run}: there is no such run folder; give the one below the federation's runs/")
    if not ((run / "study.yaml").is_file() and (run / "run.json").is_file()):
        raise RunError(f"{run}: is no run folder (it has no study.yaml and run.json); give one below the runs/ folder")
    study = load_study(run / "study.yaml")
    if study.simulation is not None:
        raise RunError(
            f"{run}: is a simulation, which drew a split of its own images before it trained; leave --data out"
        )
    if not (_place(run, "federated", study) / DESCRIPTION_NAME).is_file():
        raise RunError(
            f"{run}: is not finished, so it has no encoder yet; let its server run to the end (fedpretext status)"
        )
    return study


def _place(run: Path, arm: str, study: Study) -> Path:
    return run / "arms" / arm / "fold-0" / f"seed-{study.seed}"


def _settings(config: EvaluationConfig, label: str | None) -> EvaluationConfig:
    """The study's settings. Those of its label say nothing of another one: that is the task's name then."""
    if label in (None, config.label):
        return config
    return config.model_copy(update={"label": label, "task": label, "positive": None})


def _labelled(data: Path, label: str) -> Manifest:
    """The manifest's images with a label, each with a site."""
    manifest = Manifest.open(data)
    table = manifest.table
    if label not in table:
        raise DataError(
            f"{data}: has no column {label!r} to take labels from; it has: {', '.join(map(str, table))}; name the "
            "right one with --label"
        )
    site = table["site"].fillna(ONE_SITE) if "site" in table else ONE_SITE
    return Manifest(table.assign(site=site), manifest.root, manifest.unit).where(has_label(table[label]))


def _name(data: Path) -> str:
    """The folder's name, for tables and report."""
    place = data.resolve()
    return place.name if place.is_dir() else place.parent.name


def _draw_once(run: Path, study: Study, settings: EvaluationConfig, images: Manifest, name: str) -> None:
    """Draw and write the split, or find it as it was drawn of the same images."""
    place = run / "evaluation"
    found = {"label": settings.label, "images": _fingerprint(images, settings.label)}
    if (place / RECORD_NAME).exists():
        _check_record(place, found, name)
        images.write_located(place)  # the same images may lie elsewhere by now
        return
    splits = _draw(images, settings, study.seed, name)
    images.write_located(place)
    facts = RunEvaluation(**settings.model_dump(), dataset=name, unit=images.unit, pretrained_elsewhere=True)
    write_settings(place, facts, study.image, splits)
    patients = images.table["patient"].nunique()
    line = f"{name}: {len(images)} images of {patients} patients, SHA-256 {found['images'][:12]}"
    write_json(run / "run.json", read_json(run / "run.json") | {"evaluated_on": line})
    # Last: with it the split counts as drawn.
    write_json(place / RECORD_NAME, found | {"name": name, "splits": _file_digest(place / "splits.csv")})


def _check_record(place: Path, found: dict[str, str], name: str) -> None:
    record = read_json(place / RECORD_NAME)
    if {key: record[key] for key in found} != found:
        raise RunError(
            f"{place.parent}: was evaluated on other images or labels ({record['name']}, label {record['label']!r}), "
            f"and a run's split is drawn once; to evaluate it on {name}, label {found['label']!r}, instead, remove "
            f"{place}"
        )
    if _file_digest(place / "splits.csv") != record["splits"]:
        raise RunError(
            f"{place / 'splits.csv'}: is not as it was drawn; put it back, or remove {place} and evaluate again"
        )


def _draw(images: Manifest, settings: EvaluationConfig, seed: int, name: str) -> pd.DataFrame:
    """The split, of which it is certain that it can be evaluated."""
    table, label = images.table, settings.label
    most = int(table.groupby("site")["patient"].nunique().max()) if len(table) else 0
    if most < _SPLITS.min_test_patients:
        raise DataError(
            f"{name}: has {table['patient'].nunique()} patients with a {label!r}, at most {most} at one site; "
            f"{_SPLITS.min_test_patients} at one site are needed to train, validate and test: label more patients"
        )
    splits = draw_splits(Manifest(table.assign(label=table[label]), images.root, images.unit), _SPLITS, seed)
    try:
        check_labels(images.table, splits, settings)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    tested = splits[splits["role"] == "test"]
    if tested["label"].nunique() < 2:
        raise DataError(
            f"{name}: the {tested['patient'].nunique()} test patients all have {label} {str(tested['label'].iloc[0])!r}"
            ", so nothing can be told apart; label more patients of the other classes"
        )
    return splits


def _fingerprint(images: Manifest, label: str) -> str:
    """SHA-256 over every image's bytes, slice, patient, site and label, wherever the files are and in any order."""
    files = sorted(set(images.paths()))
    content = {path: _file_digest(path) for path in track(files, f"reading {len(files)} images")}
    facts = images.table.reindex(columns=["slice", "patient", "site"]).assign(label=images.table[label])
    rows = zip(images.paths(), facts.itertuples(index=False, name=None), strict=True)
    return digest(*sorted(json.dumps([content[path], *map(str, row)]) for path, row in rows))


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a series' folder; "" where it cannot be read, as evaluation will tell."""
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        return digest(*(file.read_bytes() for file in files))
    except OSError:
        return ""


def _write_baselines(run: Path, study: Study) -> None:
    """The encoders that pretraining is held against, once, and the table of all arms."""
    own, kinds = _place(run, "federated", study), ["random"]
    if (own / INITIAL_NAME).exists():
        kinds.append("pretrained-init")
    for kind in kinds:
        folder = _place(run, kind, study)
        if not (folder / DESCRIPTION_NAME).exists():
            write_encoder(
                folder, study, kind, TITLES[kind], weights=_untrained(study, kind, own), budget=TrainingCost()
            )
    write_arms(run, [_place(run, kind, study).relative_to(run) for kind in (*kinds, "federated")])


def _untrained(study: Study, kind: str, federated: Path) -> dict[str, Tensor]:
    if kind == "pretrained-init":
        return load_tensors(federated / INITIAL_NAME)[0]
    return build_method(study.method, study.encoder, study.image, study.seed).shared_state()
