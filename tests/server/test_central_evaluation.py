"""A federation's encoder on labelled images of the evaluator's own: one split, honest words, refusals in one line."""

import html
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from evaluation.report.run_folder import read_run
from federation.study import Study, load_study, study_from
from foundation.errors import FedpretextError
from foundation.files import read_json, write_json
from foundation.tensor_files import load_tensors, save_tensors
from server.central_evaluation import prepare
from server.export import write_encoder
from server.rounds import write_study
from simulation.runtimes.table import run_in_process
from simulation.sites.site_folders import Federation
from ssl_methods import build_method

Call = Callable[..., Any]
SETTINGS = {"protocols": ["logistic"], "finetune": {"epochs": 1}}
UNSEEN = "hether these images are also at a site cannot be seen from here"
ARM = Path("arms") / "federated" / "fold-0" / "seed-0"


def describe_run(run: Path, study: Study) -> Path:
    """The run folder's own two files, as the server writes them."""
    write_study(run, study)
    facts = {"name": study.name, "title": "Three hospitals", "demonstration": False, "started": "2026-11-01"}
    write_json(run / "run.json", facts | {"command": "fedpretext server"})
    return run


def fresh(study: Study, seed: int) -> dict[str, torch.Tensor]:
    """Shared weights of the study's model as another seed draws them."""
    shared = build_method(study.method, study.encoder, study.image, seed).shared_state()
    return {name: value.clone() for name, value in shared.items()}


@pytest.fixture
def run(tmp_path: Path, raw_study: dict[str, Any]) -> Path:
    """The run folder of a finished federation that trained nothing: its last weights are another seed's first."""
    study = study_from(raw_study | {"evaluation": SETTINGS}, "test")
    folder = describe_run(tmp_path / "runs" / "tiny-0123456789ab", study) / ARM
    save_tensors(folder / "global.safetensors", fresh(study, 5))
    (folder / "metrics.jsonl").write_text(json.dumps({"round": 1, "site": "A", "loss": 0.5, "steps": 2}) + "\n")
    write_encoder(folder, study, "federated", "Federated: images stay home")
    return folder.parents[3]


@pytest.fixture
def data(images: Any) -> Path:
    """The evaluator's folder; half of the images, of every patient some, have a bright square and another label."""
    root: Path = images.root
    return root


def split(run: Path) -> pd.DataFrame:
    return pd.read_csv(run / "evaluation" / "splits.csv")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def page_text(run: Path) -> str:
    """What a reader of the report sees."""
    body = re.sub(r"<(style|title)>.*?</\1>", "", (run / "report.html").read_text(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " ").split())


# From the federation to the report.


@pytest.mark.slow
def test_a_federation_is_trained_and_then_judged_on_other_images(
    raw_study: dict[str, Any], federation: Callable[..., Federation], data: Path, tmp_path: Path, fedpretext: Call
) -> None:
    raw_study |= {"evaluation": SETTINGS}
    study = study_from(raw_study, "test")
    made, run = federation(raw_study, f"runs/tiny/{ARM}"), describe_run(tmp_path / "runs" / "tiny", study)
    run_in_process(made)
    write_encoder(made.folder, study, "federated", "Federated: all sites together, images stay home")
    for own in ("sites", "store"):  # where hospitals are machines, these are there and not here
        shutil.rmtree(made.folder / own)
    said = fedpretext("evaluate", run, "--data", data)
    assert said.code == 0, said.err
    assert UNSEEN in " ".join(said.out.split())
    results = pd.read_csv(run / "results.csv")
    assert set(results["encoder"]) == {"federated", "random", "supervised", "pixels", "majority"}
    assert set(results["dataset"]) == {"images"}
    assert sorted(split(run)["image"]) == sorted(path.name for path in data.glob("*.png"))
    text = page_text(run)
    federated = results[(results["encoder"] == "federated") & (results["metric"] == "AUROC")]
    federated = federated[federated["statistic"] == "estimate"].set_index("site")["value"]
    assert f"on unseen patients the federated encoder’s AUROC is {federated['all']:.2f}" in text
    assert (
        "Federated all sites together, images stay home 1 1 48 2.53 12 6 –" in text
    )  # images, passes, steps, one after another
    assert text.count("Pretraining loss per round at each site") == 1
    assert {"A", "B", "C"} == set(read_run(run).curves["site"])


@pytest.mark.slow
def test_the_report_claims_nothing_that_cannot_be_known(run: Path, data: Path, fedpretext: Call) -> None:
    assert fedpretext("evaluate", run, "--data", data).code == 0
    text = page_text(run)
    assert text.index("Judged away from the hospitals: the labelled images are the evaluator’s own") < text.index(
        "the federated encoder"
    )
    assert text.count(UNSEEN) == 2  # on page one and among what not to conclude
    for words in (
        "Not the hospitals’ images.", "Whether training together helped was not asked.",
        "the sites that the labelled images come from, which need not be those that trained",
        "for this evaluation alone", "Evaluated on images: 60 images of 20 patients, SHA-256",
    ):  # fmt: skip
        assert words in text
    for words in (
        "no arm has read", "before any training", "over the sites of the federation", "left out of training",
        "took no part", "Parts of the record are missing", "not on record",
    ):  # fmt: skip
        assert words not in text


def test_without_a_site_column_there_is_one_site(run: Path, data: Path, fedpretext: Call) -> None:
    table = pd.read_csv(data / "manifest.csv").drop(columns="site")
    table.to_csv(data / "manifest.csv", index=False)
    assert fedpretext("evaluate", run, "--data", data / "manifest.csv").code == 0
    assert set(split(run)["site"]) == {"central"}
    assert split(run).groupby("role")["patient"].nunique().to_dict() == {"test": 4, "train": 13, "validation": 3}
    text = page_text(run)
    assert "The results hold no figure for single sites." in text
    assert "central 13 / 39 3 / 9 4 / 12 0" in text


def test_given_weights_stand_beside_what_pretraining_made_of_them(run: Path, data: Path) -> None:
    study = load_study(run / "study.yaml")
    start = fresh(study, 9)
    save_tensors(run / ARM / "initial.safetensors", start)
    prepare(run, data)
    arms = read_json(run / "arms.json")
    assert [(row["arm"], row["kind"], row["images"]) for row in arms] == [
        ("random", "random", 0), ("pretrained-init", "pretrained-init", 0), ("federated", "federated", None),
    ]  # fmt: skip
    kinds = {"random": fresh(study, study.seed), "pretrained-init": start, "federated": fresh(study, 5)}
    for arm, weights in kinds.items():
        kept = load_tensors(run / "arms" / arm / "fold-0" / "seed-0" / "encoder.safetensors")[0]
        assert kept
        assert all(torch.equal(value, weights[f"encoder.{name}"]) for name, value in kept.items())


# One split.


def test_the_split_is_drawn_once_by_patient_and_read_back(run: Path, data: Path) -> None:
    """The same images may come from elsewhere and in another order."""
    prepare(run, data)
    before = contents(run)
    assert (split(run).groupby("patient")["role"].nunique() == 1).all()
    assert set(split(run)["role"]) == {"train", "validation", "test"}
    prepare(run, data / "manifest.csv")
    assert contents(run) == before
    moved = data.rename(data.with_name("moved"))
    table = pd.read_csv(moved / "manifest.csv").sample(frac=1.0, random_state=1)
    table.to_csv(moved / "manifest.csv", index=False)
    prepare(run, moved)
    after = contents(run)
    assert {name for name in after if after[name] != before.get(name)} == {"evaluation/manifest.csv"}
    assert all(Path(image).is_file() for image in pd.read_csv(run / "evaluation" / "manifest.csv")["image"])


def another_label(data: Path) -> None:
    table = pd.read_csv(data / "manifest.csv")
    table.loc[0, "label"] = 1 - table.loc[0, "label"]
    table.to_csv(data / "manifest.csv", index=False)


def another_patient(data: Path) -> None:
    (data / "manifest.csv").write_text((data / "manifest.csv").read_text().replace("north-5,north,", "north-9,north,"))


def another_image(data: Path) -> None:
    Image.fromarray(np.zeros((30, 30), np.uint8)).save(data / "north-0-0.png")


def one_less(data: Path) -> None:
    lines = (data / "manifest.csv").read_text().splitlines()
    (data / "manifest.csv").write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize("change", [another_label, another_patient, another_image, one_less])
def test_other_data_are_refused_until_the_evaluation_is_removed(
    run: Path, data: Path, change: Callable[[Path], None]
) -> None:
    prepare(run, data)
    before = contents(run)
    change(data)
    with pytest.raises(FedpretextError, match=r"was evaluated on other images or labels \(images, label 'label'\)"):
        prepare(run, data)
    assert contents(run) == before
    shutil.rmtree(run / "evaluation")
    prepare(run, data)
    assert read_json(run / "run.json")["evaluated_on"] != json.loads(before["run.json"])["evaluated_on"]


def test_an_edited_split_is_noticed(run: Path, data: Path) -> None:
    prepare(run, data)
    place = run / "evaluation" / "splits.csv"
    place.write_text(place.read_text().replace(",test", ",train"))
    with pytest.raises(FedpretextError, match=r"splits\.csv: is not as it was drawn; put it back, or remove "):
        prepare(run, data)


def test_an_interrupted_preparation_is_done_again(run: Path, data: Path) -> None:
    prepare(run, data)
    before = contents(run)
    for name in ("evaluation/data.json", "evaluation/splits.csv", "arms/random/fold-0/seed-0/encoder.json"):
        (run / name).unlink()
    prepare(run, data)
    assert contents(run) == before


# Labels.


def test_another_label_is_another_task_on_the_images_that_have_it(run: Path, data: Path, fedpretext: Call) -> None:
    study = load_study(run / "study.yaml")
    settings = {"evaluation": study.evaluation.model_copy(update={"task": "square", "positive": "0"})}
    write_study(run, study.model_copy(update=settings))
    table = pd.read_csv(data / "manifest.csv")
    table["grade"] = table["label"].map({0: "low", 1: "high"}).where(table["site"] != "away", "")
    table.to_csv(data / "manifest.csv", index=False)
    assert fedpretext("evaluate", run, "--data", data, "--label", "grade").code == 0
    results = pd.read_csv(run / "results.csv")
    assert set(results["task"]) == {"grade"}
    assert read_json(run / "results.json")["classes"] == ["high", "low"]
    assert set(split(run)["site"]) == {"north", "south", "small"}
    assert set(split(run)["label"]) == {"high", "low"}
    assert "label 'label', instead, remove" in fedpretext("evaluate", run, "--data", data).error


def test_the_studys_own_settings_hold_for_its_own_label(run: Path, data: Path) -> None:
    study = load_study(run / "study.yaml")
    settings = {"evaluation": study.evaluation.model_copy(update={"task": "square", "positive": "0"})}
    write_study(run, study.model_copy(update=settings))
    prepare(run, data, label="label")
    config = read_json(run / "evaluation" / "config.json")
    assert (config["task"], config["positive"], config["protocols"]) == ("square", "0", ["logistic"])


# What cannot be evaluated.


def relabel(data: Path, label: Callable[[pd.DataFrame], Any]) -> None:
    table = pd.read_csv(data / "manifest.csv")
    table["label"] = label(table)
    table.to_csv(data / "manifest.csv", index=False)


def few_patients(data: Path) -> None:
    table = pd.read_csv(data / "manifest.csv")
    table[table["patient"].str.fullmatch("(north|small)-[0-3]")].to_csv(data / "manifest.csv", index=False)


def one_of_a_class(data: Path) -> None:
    """One patient of twenty, and not one who is tested, has the other label."""
    relabel(data, lambda table: (table["patient"] == "small-0").astype(int))


def without_labels(data: Path) -> None:
    relabel(data, lambda table: "")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: (data / "manifest.csv").unlink(), "has no column 'label' to take labels from; it has: image, "
         "patient; name the right one with --label"),
        (without_labels, "images: has 0 patients with a 'label', at most 0 at one site; 5 at one site are needed"),
        (lambda data: relabel(data, lambda table: 1), "images: all 60 labelled images have label '1'; two classes"),
        (few_patients, "images: has 7 patients with a 'label', at most 4 at one site; 5 at one site are needed to "
         "train, validate and test: label more patients"),
        (one_of_a_class, "images: the 3 test patients all have label '0', so nothing can be told apart; label more "
         "patients of the other classes"),
        (shutil.rmtree, "there is no such manifest"),
    ],
    ids=["no column", "no labels", "one class", "few patients", "one class tested", "no data"],
)  # fmt: skip
def test_data_that_cannot_be_evaluated_are_refused(
    run: Path, data: Path, fedpretext: Call, spoil: Callable[[Path], Any], says: str
) -> None:
    before = contents(run)
    spoil(data)
    assert says in fedpretext("evaluate", run, "--data", data).error
    assert contents(run) == before


def unfinished(run: Path) -> None:
    (run / ARM / "encoder.json").unlink()


def simulated(run: Path) -> None:
    write_study(run, load_study(run / "study.yaml").model_copy(update={"simulation": {"dataset": "phantoms"}}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (shutil.rmtree, ": there is no such run folder; give the one below the federation's runs/"),
        (lambda run: (run / "run.json").unlink(), ": is no run folder (it has no study.yaml and run.json)"),
        (unfinished, ": is not finished, so it has no encoder yet; let its server run to the end (fedpretext status)"),
        (simulated, ": is a simulation, which drew a split of its own images before it trained; leave --data out"),
    ],
    ids=["no run", "another folder", "not finished", "simulated"],
)
def test_runs_that_cannot_be_evaluated_are_refused(
    run: Path, data: Path, fedpretext: Call, spoil: Callable[[Path], Any], says: str
) -> None:
    spoil(run)
    before = contents(run)
    assert f"{run}{says}" in fedpretext("evaluate", run, "--data", data).error
    assert contents(run) == before


def test_a_federations_run_needs_images_and_a_label_needs_data(run: Path, fedpretext: Call) -> None:
    before = contents(run)
    assert "give labelled images of your own with --data" in fedpretext("evaluate", run).error
    assert "give --data too, or leave it out" in fedpretext("evaluate", run, "--label", "grade").error
    assert contents(run) == before
