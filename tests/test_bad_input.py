"""Bad input: one line that says the value, the rule and the remedy; exit code 2; nothing lost or half-written."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from evaluation.config import PROTOCOLS_OF
from evaluation.protocols.table import PROTOCOLS
from ssl_methods import METHODS

from .tiers import slow

Call = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run_folders(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "runs").glob("*")) if (tmp_path / "runs").exists() else []


REFUSED_STUDIES = {
    "a misspelt key": (["rounds.cuont=5"], "key 'rounds.cuont' is not known; did you mean 'count'?"),
    "an unknown section": (["zzzz=1"], "key 'zzzz' is not known; known there: algorithm, demonstration, encoder"),
    "a misspelt key of the simulation": (
        ["simulation.splits.left_outt=[away]"],
        "simulation: key 'splits.left_outt' is not known; did you mean 'left_out'?",
    ),
    "a value of the wrong kind": (["rounds.count=many"], "rounds.count: Input should be a valid integer"),
    "a value where a section belongs": (["rounds=5"], "rounds: Input should be a valid dictionary"),
    "a value out of range": (["rounds.count=0"], "rounds.count: Input should be greater than or equal to 1 (got 0)"),
    "no equals sign": (["rounds.count"], "--set 'rounds.count': write key=value, for example --set rounds.count=5"),
    "no YAML": (["rounds.count=[1"], "--set 'rounds.count=[1': the value is not valid YAML"),
    "a key below a value": (["name.x=1"], "--set 'name.x=1': 'name' is a value, not a section"),
    "MAE on a ResNet": (
        ["encoder={name: resnet10t}"],
        "encoder 'resnet10t' is convolutional, but method 'mae' takes vit encoders: choose for example",
    ),
    "an encoder that is none": (["encoder.name=vit_tinny_patch16_224"], "did you mean 'vit_tiny_patch16_224'?"),
    "a patch that does not divide the image": (
        ["encoder.patch_size=7"],
        "encoder patch_size 7 does not divide image.size 32 into 2 x 2 patches or more: set encoder.patch_size to 8",
    ),
    "an unknown method": (
        ["method.name=mea"],
        f"method.name 'mea' is not known; there are: {', '.join(sorted(METHODS))}; did you mean 'mae'?",
    ),
    "an unknown protocol": (["evaluation.protocols=[knnn]"], "evaluation.protocols.0: Input should be 'knn'"),
    "an unknown dataset": (
        ["simulation.dataset=phantom"],
        "study tiny: simulation: dataset 'phantom' is not known; there are: bccd, busi_224, chase_db1",
    ),
    "an option of another dataset": (
        ["simulation.options.size=32"],
        "study tiny: simulation: simulation.options.size = 32: Extra inputs are not permitted; folder has no options",
    ),
    "a root for phantoms": (["simulation.dataset=phantoms"], "dataset 'phantoms' draws its images and reads no folder"),
    "a misspelt option": (
        ["simulation.dataset=phantoms", "simulation.options.imags=32"],
        "phantoms has the options: images, size; did you mean 'images'?",
    ),
    "a missing folder": (
        ["simulation.root=/nowhere/at/all"],
        "/nowhere/at/all: there is no such manifest; give a .csv or .parquet file, or a folder of images",
    ),
    "no folder given": (["simulation.root=null"], "dataset 'folder' needs simulation.root"),
    "a left-out site that is none": (
        ["simulation.splits.left_out=[awya]"],
        "left_out site 'awya' has no images; there are: away, north, small, south; did you mean 'away'?",
    ),
    "every site left out": (
        ["simulation.splits.left_out=[away, north, small, south]"],
        "left_out names every site (away, north, small, south); leave at least one to train",
    ),
    "more sites than patients": (
        ["simulation.partition={kind: iid, sites: 99}", "simulation.splits.left_out=[]"],
        "partition.sites is 99, but there are 20 patients and a site needs one; set partition.sites to 20 or fewer",
    ),
    "a label that is no column": (
        ["evaluation.label=lable"],
        "label 'lable' is no column of the manifest; it has: image, patient, site, label; did you mean 'label'?",
    ),
    "fewer sites than the algorithm needs": (
        ["algorithm.name=fedmedian", "simulation.splits.left_out=[away, small]"],
        "algorithm 'fedmedian' needs at least 3 sites; there are 2: choose another algorithm",
    ),
}


@pytest.mark.parametrize("command", ["simulate", "validate"])
@pytest.mark.parametrize("case", REFUSED_STUDIES)
def test_a_study_is_refused(case: str, command: str, fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    overrides, answer = REFUSED_STUDIES[case]
    before = contents(tmp_path)
    said = fedpretext(command, study_file, *[part for each in overrides for part in ("--set", each)])
    assert answer in said.error
    assert run_folders(tmp_path) == []
    assert contents(tmp_path) == before


def test_a_study_that_is_not_there(fedpretext: Call, tmp_path: Path) -> None:
    answer = "nothing.yaml: there is no such study file; the ready ones are in configs/"
    assert fedpretext("simulate", "nothing.yaml").error == answer
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert fedpretext("simulate", "list.yaml").error == "list.yaml: holds list instead of 'key: value' lines"
    assert "cannot be read as a text file" in fedpretext("validate", tmp_path).error
    assert run_folders(tmp_path) == []


REFUSED_IMAGES = {
    "one patient in two sites": (
        ("south-0-0.png,south-0,", "south-0-0.png,north-0,"),
        "patient 'north-0' is listed in 2 sites, 'north' and 'south'; a patient belongs to one site",
    ),
    "an image without site": (
        ("north-1,north,", "north-1,,"),
        "patient 'north-1' is listed in 2 sites",
    ),
    "an image without patient": (
        ("north-0-1.png,north-0,", "north-0-1.png,,"),
        "row 2 (north-0-1.png) has an empty 'patient' cell (1 rows in all); every image needs one",
    ),
    "an image twice": (("north-0-1.png", "north-0-0.png"), "image 'north-0-0.png' is listed twice"),
    "no column patient": (("image,patient", "image,patinet"), "has no column 'patient'; it has:"),
    "no column site": (("patient,site,", "patient,hospital,"), "needs a column site, and this dataset has none"),
}


@pytest.mark.parametrize("case", REFUSED_IMAGES)
def test_images_are_refused(case: str, fedpretext: Call, study_file: Path, images: Any, tmp_path: Path) -> None:
    (old, new), answer = REFUSED_IMAGES[case]
    images.replace(old, new, 1)
    for command in ("validate", "simulate"):
        assert answer in fedpretext(command, study_file).error
    assert run_folders(tmp_path) == []


def drop(images: Any, condition: Callable[[str], bool]) -> None:
    """Leave the images out of the manifest whose name meets the condition."""
    heading, *rows = images.listing.read_text().splitlines()
    images.listing.write_text("\n".join([heading, *[row for row in rows if not condition(row)]]) + "\n")


def test_an_empty_site(fedpretext: Call, study_file: Path, images: Any, tmp_path: Path) -> None:
    """A site named in the study without an image, images without a site, and no images at all."""
    drop(images, lambda row: ",away," in row)
    assert (
        "left_out site 'away' has no images; there are: north, small, south" in fedpretext("simulate", study_file).error
    )
    for patient in range(3):
        images.replace(f"small-{patient},small,", f"small-{patient},,")
    said = fedpretext("simulate", study_file, "--set", "simulation.splits.left_out=[]")
    assert "partition kind 'site': 9 images have no site (small-0-0.png first); fill the column site" in said.error
    drop(images, lambda row: True)
    assert "lists no images; add a row an image" in fedpretext("simulate", study_file).error
    assert run_folders(tmp_path) == []


@pytest.mark.parametrize("command", ["simulate", "validate"])
def test_a_site_with_one_image(command: str, fedpretext: Call, study_file: Path, images: Any, tmp_path: Path) -> None:
    drop(images, lambda row: row.startswith("small") and not row.startswith("small-1-1"))
    assert fedpretext(command, study_file).error == (
        "site small: this site has 1 image; pretraining needs at least 2, so leave the site out "
        "(simulation.splits.left_out leaves a site out)"
    )
    assert run_folders(tmp_path) == []


@pytest.mark.parametrize("command", ["simulate", "validate"])
def test_one_patient_under_simclr(
    command: str, fedpretext: Call, study_file: Path, images: Any, tmp_path: Path
) -> None:
    drop(images, lambda row: row.startswith("small") and not row.startswith("small-1"))
    simclr = ("--set", "method={name: simclr}")
    said = fedpretext(command, study_file, *simclr)
    assert said.error.startswith(
        "site small: this site has 1 patient; simclr needs 2, as images of one patient are not"
    )
    assert "choose mae or ijepa, or leave the site out" in said.error
    assert run_folders(tmp_path) == []
    if command == "validate":  # the other methods take the site
        assert fedpretext(command, study_file).code == 0


def test_a_site_name_that_cannot_be_one(fedpretext: Call, study_file: Path, images: Any, tmp_path: Path) -> None:
    for patient in range(6):
        images.replace(f"north-{patient},north,", f"north-{patient},Hôpital Nord,")
    said = fedpretext("simulate", study_file)
    assert said.error.startswith("site 'Hôpital Nord': a site's name is at most 40 letters, digits")
    assert run_folders(tmp_path) == []


def test_one_patient_in_two_splits(fedpretext: Call, finished: Any, tmp_path: Path) -> None:
    """A split that somebody edited is refused when the run is taken up again and when it is evaluated."""
    run = finished.copy(tmp_path / "run")
    split = run / "evaluation" / "splits.csv"
    tested = next(line for line in split.read_text().splitlines() if line.endswith(",test"))
    split.write_text(split.read_text().replace(tested, tested.removesuffix("test") + "train"))
    before = contents(run)
    patient = tested.split(",")[1]
    for command in (["simulate", finished.study, "--resume", run], ["evaluate", run]):
        said = fedpretext(*command)
        assert said.error == f"patient {patient!r} is in test and train of fold 0; a patient has one role"
        assert contents(run) == before


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("gpu", "device 'gpu' is not known; there are: auto, cpu, cuda, mps"),
        ("cuda", "device 'cuda' is not on this machine; there are: cpu (or write auto)"),
    ],
)
def test_a_device_that_is_not_there(name: str, answer: str, fedpretext: Call, study_file: Path, tmp_path: Path) -> None:
    if name == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    said = fedpretext("simulate", study_file, "--device", name)
    assert answer in said.error
    assert run_folders(tmp_path) == []


def test_evaluate_refuses(fedpretext: Call, finished: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    before = contents(run)
    said = fedpretext("evaluate", run, "--protocol", "linear")
    assert said.error.startswith(f"protocol 'linear' is not known; there are: {', '.join(sorted(PROTOCOLS))}")
    said = fedpretext("evaluate", run, "--protocol", "ridge")
    there_are = ", ".join(PROTOCOLS_OF["classification"])
    assert said.error.startswith(f"protocol 'ridge' does nothing for classification; there are: {there_are}")
    said = fedpretext("evaluate", run, run)
    assert said.error == (
        "several encoders, and a folder to write, need a task to be judged on: give a task file (--task FILE)"
    )
    assert contents(run) == before
    assert fedpretext("evaluate", "nowhere").error == (
        "nowhere: there is no such run folder; give the folder that simulate or server printed"
    )
    (tmp_path / "holiday").mkdir()
    assert "holiday: holds no trained encoder under arms/" in fedpretext("evaluate", "holiday").error
    assert list((tmp_path / "holiday").iterdir()) == []


def test_resume_refuses_another_study(fedpretext: Call, finished: Any, tmp_path: Path) -> None:
    run = finished.copy(tmp_path / "run")
    before = contents(run)
    again = ("simulate", finished.study, "--resume", run)
    said = fedpretext(*again, "--set", "training.batch=8")
    assert (
        "is of another study (training.batch was 4 and is 8 now); give the study file and --set options" in said.error
    )
    said = fedpretext(*again, "--set", "simulation.splits.left_out=[small]")
    assert "is of another study (simulation.splits.left_out was ['away'] and is ['small'] now)" in said.error
    assert contents(run) == before
    (tmp_path / "holiday").mkdir()
    assert fedpretext("simulate", finished.study, "--resume", "holiday").error.startswith(
        "--resume holiday: holds no study.yaml"
    )
    assert fedpretext("simulate", finished.study, "--resume", "nowhere").error.startswith(
        "--resume nowhere: holds no study.yaml"
    )
    assert run_folders(tmp_path) == []


@pytest.mark.parametrize("arguments", [["simulate", "STUDY", "--set", "rounds.cuont=2"], slow(["evaluate", "holiday"])])
def test_as_a_process(arguments: list[str], study_file: Path, tmp_path: Path) -> None:
    arguments = [str(study_file) if part == "STUDY" else part for part in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "fedpretext", *arguments],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "60"},
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: "]


def test_a_study_with_a_key_twice(fedpretext: Call, study_file: Path) -> None:
    study_file.write_text(study_file.read_text() + yaml.safe_dump({"rounds": {"count": 9}}))
    assert "key 'rounds' twice" in fedpretext("simulate", study_file).error
