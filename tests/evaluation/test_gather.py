"""Encoders from runs, exports and files, gathered for one task: the splits, the baselines, and what is refused."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from evaluation.checkpoints import find_candidates
from evaluation.config import RunEvaluation
from evaluation.gather import gather
from evaluation.inputs import read_inputs
from evaluation.stage import evaluate
from evaluation.started_from import base_of, bases
from evaluation.tasks.task_file import read_task
from foundation.errors import DataError, FedpretextError, RunError, StudyError
from foundation.files import read_json, write_json
from foundation.tensor_files import load_tensors, save_tensors
from imaging.listing.manifest import Manifest
from tests.evaluation.conftest import IMAGE

MakeRun = Callable[..., Path]
TASK: dict[str, Any] = {"task": "square", "protocols": ["knn"], "finetune": {"epochs": 1}}


@pytest.fixture
def task_file(tmp_path: Path) -> Callable[..., Path]:
    """A function that writes a task file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump(TASK | changes))
        return path

    return write


def named(run: Path, name: str) -> Path:
    """The run under another name, with the description that simulation writes."""
    place = run.with_name(name)
    shutil.move(run, place)
    write_json(place / "run.json", {"title": name.title()})
    for described in place.glob("arms/*/fold-*/seed-*/encoder.json"):
        write_json(described, read_json(described) | {"image": IMAGE.model_dump(mode="json"), "seconds": 1.0})
    return place


def two_runs(make_run: MakeRun, **settings: Any) -> list[Path]:
    """Two runs on the same images and split, whose encoders differ."""
    first = named(make_run(**settings), "one")
    second = first.with_name("two")
    shutil.copytree(first, second)
    for path in second.glob("arms/federated/fold-*/seed-*/encoder.safetensors"):
        tensors = load_tensors(path)[0]
        save_tensors(path, {name: 1.01 * value for name, value in tensors.items()})
    return [first, second]


@pytest.mark.slow
def test_two_runs_keep_their_split_and_share_a_random_encoder(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    runs = two_runs(make_run, folds=3)
    out = gather([str(run) for run in runs], task_file(), tmp_path / "out", "command")
    inputs = read_inputs(out, show=False)
    assert {encoder.arm for encoder in inputs.encoders} == {"one", "two", "random"}
    assert {base_of(inputs, encoder) for encoder in inputs.encoders} == {"random"}
    assert bases(inputs) == ["random"]
    own, theirs = (pd.read_csv(each / "evaluation" / "splits.csv") for each in (out, runs[0]))
    pd.testing.assert_frame_equal(own, theirs)
    table = evaluate(out, show=False)
    assert set(table["encoder"]) == {"one", "two", "random", "supervised", "pixels", "majority"}
    pairs = pd.read_csv(out / "comparisons.csv")
    assert {("one", "two"), ("one", "random"), ("two", "random")} <= set(
        zip(pairs["encoder_a"], pairs["encoder_b"], strict=True)
    )
    assert ("two", "one") not in set(zip(pairs["encoder_a"], pairs["encoder_b"], strict=True))
    assert ((pairs["p"] < 0.05) == ((pairs["ci_low"] > 0) | (pairs["ci_high"] < 0)))[pairs["ci_low"].notna()].all()
    assert {row["arm"] for row in read_json(out / "arms.json")} == {"one", "two", "random"}
    facts = read_json(out / "run.json")
    assert (facts["title"], facts["command"], facts["checkpoints"]) == ("square", "command", list(map(str, runs)))


def test_the_same_evaluation_goes_on_and_another_is_refused(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    run, out = named(make_run(), "one"), tmp_path / "out"
    gather([str(run)], task_file(), out, "")
    before = (out / "run.json").read_text()
    assert gather([str(run)], task_file(), out, "again") == out
    assert (out / "run.json").read_text() == before
    with pytest.raises(RunError, match="holds something else already; give another --out"):
        gather([str(run)], task_file(protocols=["logistic"]), out, "")


@pytest.mark.slow
def test_weights_of_timm_stand_beside_a_run(make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path) -> None:
    run = named(make_run(), "one")
    import timm

    weights = tmp_path / "resnet.safetensors"
    save_tensors(weights, timm.create_model("resnet10t", num_classes=10).state_dict())
    task = task_file(image=IMAGE.model_dump(mode="json", exclude_none=True))
    out = gather([str(run), f"resnet10t={weights}"], task, tmp_path / "out", "")
    inputs = read_inputs(out, show=False)
    kinds = {encoder.arm: (encoder.kind, encoder.base) for encoder in inputs.encoders}
    assert kinds == {
        "one": ("federated", "random"),
        "random": ("random", ""),
        "resnet10t": ("pretrained", "random-resnet10t"),
        "random-resnet10t": ("random", ""),
    }
    table = evaluate(out, show=False)
    assert {"supervised-random", "supervised-random-resnet10t"} < set(table["encoder"])
    assert read_json(out / "evaluation" / "config.json")["pretrained_elsewhere"] is True


def test_images_of_the_evaluators_own_are_divided_now(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = named(make_run(folds=3), "one")
    found = Manifest.read(run / "evaluation" / "manifest.csv")
    table = found.table.assign(patient="new-" + found.table["patient"], grade=found.table["label"])
    Manifest(table.drop(columns="label"), found.root).write_located(tmp_path / "own")
    out = gather([str(run)], task_file(data="own", label="grade"), tmp_path / "out", "")
    inputs = read_inputs(out, show=False)
    assert sorted(inputs.images.roles) == [0]
    assert {(encoder.arm, encoder.fold) for encoder in inputs.encoders} == {("one", 0), ("random", 0)}
    assert inputs.config.dataset == "own"


def test_a_patient_whom_the_run_trained_on_is_not_tested(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = named(make_run(), "one")
    found = Manifest.read(run / "evaluation" / "manifest.csv")
    found.write_located(tmp_path / "own")
    with pytest.raises(DataError, match=r"one trained on 4 patients of the test set \('north-3'"):
        gather([str(run)], task_file(data="own", seed=3), tmp_path / "out", "")
    assert not (tmp_path / "out").exists()


def test_runs_with_different_splits_are_refused(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = two_runs(make_run)
    path = second / "evaluation" / "splits.csv"
    splits = pd.read_csv(path)
    tested = splits.loc[splits["role"] == "test", "patient"].iloc[0]
    splits.loc[splits["patient"] == tested, "role"] = "train"
    splits.to_csv(path, index=False)
    with pytest.raises(DataError, match=f"patient '{tested}' is test in one and train in the other"):
        gather([str(first), str(second)], task_file(), tmp_path / "out", "")


def test_an_arm_stands_for_itself(make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path) -> None:
    run = named(
        make_run(arms=[("random", "random"), ("federated", "federated"), ("centralised", "centralised")]), "one"
    )
    out = gather([str(run), str(run / "arms" / "centralised")], task_file(), tmp_path / "out", "")
    kinds = {encoder.arm: encoder.kind for encoder in read_inputs(out, show=False).encoders}
    assert kinds == {"one": "federated", "one-centralised": "pretrained", "random": "random"}


@pytest.mark.parametrize(
    ("given", "kind", "answer"),
    [
        ("nowhere/run", RunError, "nowhere/run: there is no such run folder"),
        ("resnet10t", StudyError, "does not say how it sees an image; give the task file an `image` section"),
        (".", RunError, "is no run folder, no arm of one and no exported encoder; .* NAME=FILE"),
    ],
)
def test_what_is_no_encoder_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, kind: type[FedpretextError], answer: str
) -> None:
    monkeypatch.chdir(tmp_path)
    image = IMAGE if "/" in given else None
    with pytest.raises(kind, match=answer) as caught:
        find_candidates(given, image)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [
        ({"protocol": ["knn"]}, "key 'protocol' is not known; did you mean 'protocols'"),
        ({"splits": {"folds": 2}}, "splits does nothing without data"),
        ({"kind": "segmentation", "protocols": ["knn"]}, "protocol knn does nothing for segmentation"),
    ],
)
def test_a_wrong_task_file_is_one_line(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], answer: str
) -> None:
    run = named(make_run(RunEvaluation()), "one")
    with pytest.raises(StudyError, match=answer):
        gather([str(run)], task_file(**changes), tmp_path / "out", "")


def test_a_run_without_data_and_a_task_without_data(task_file: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="there is no such task file"):
        gather(["x"], tmp_path / "none.yaml", tmp_path / "out", "")


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs" / "tasks").glob("*.yaml")), ids=str)
def test_the_ready_task_files_are_read(path: Path) -> None:
    task = read_task(path)
    assert task.task
    assert (task.data is None) or task.data.is_absolute()


@pytest.mark.parametrize("name", ["supervised", "pixels", "majority"])
def test_an_encoder_may_not_be_called_as_a_row_of_the_tables(
    make_run: MakeRun, task_file: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    run = named(make_run(), name)
    with pytest.raises(RunError, match=f"'{name}' is the name of another row of the tables; rename the folder"):
        gather([str(run)], task_file(), tmp_path / "out", "command")
