"""A simulated study from end to end, small: its run folder, and what its numbers may and may not depend on."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import yaml
from PIL import Image

from federation.study import TrainingConfig, load_study, study_from
from foundation.errors import RunError
from foundation.files import digest, read_json, read_jsonl
from foundation.tensor_files import load_tensors
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig, draw_splits
from simulation.arms import RANDOM_SEEDS, Arm, plan_arms, tidy
from simulation.config import SimulationConfig
from simulation.runtimes.table import RUNTIMES
from simulation.simulate import planned, simulate, simulation_config
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

TRAINED = {"federated", "centralised", "local-only-north", "local-only-south"}


def place(arm: str) -> Path:
    return Path("arms") / arm / "fold-0" / "seed-0"


def encoders(run: Path) -> dict[str, bytes]:
    """Every encoder file of a run."""
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted(run.rglob("encoder.safetensors"))}


def test_the_run_folder(finished: Any) -> None:
    """What a person finds: the resolved study, where and with what it ran, figures, report, curves, encoders."""
    run = finished.folder
    study, facts = load_study(run / "study.yaml"), read_json(run / "run.json")
    resolved = yaml.safe_load((run / "study.yaml").read_text())
    assert resolved["training"]["warmup"] == 0.1
    assert resolved["simulation"]["splits"]["min_test_patients"] == 5  # defaults of every section are written out
    assert facts["study_hash"] == study.whole_hash()
    assert facts["training_hash"] == study.training_hash()
    assert (facts["seed"], facts["name"]) == (0, "tiny")
    assert facts["versions"]["torch"] == torch.__version__
    assert {"processor", "cores", "memory_gib", "system"} <= facts["machine"].keys()
    assert facts["commit"]
    assert facts["started"] <= facts["finished"]
    results, stored = pd.read_csv(run / "results.csv"), read_json(run / "results.json")
    assert len(results) == len(stored["results"]) > 0
    assert set(results["encoder"]) >= {*TRAINED, "random", "supervised", "pixels", "majority"}
    assert "<html" in (run / "report.html").read_text()
    assert {row["arm"] for row in read_json(run / "arms.json")} == {*TRAINED, "random"}
    for arm in TRAINED:
        assert list((run / place(arm) / "tensorboard").glob("events.*"))
        rows = read_jsonl(run / place(arm) / "metrics.jsonl")
        sites = {"federated": {"north", "small", "south"}, "centralised": {"centralised"}}.get(
            arm, {arm.removeprefix("local-only-")}
        )
        assert {(row["round"], row["site"]) for row in rows} == {(r, s) for r in (1, 2) for s in sites}
        assert all(np.isfinite([row["loss"], row["learning_rate"], row["update_norm"]]).all() for row in rows)


def test_the_split_is_drawn_once_and_kept(finished: Any) -> None:
    split = pd.read_csv(finished.folder / "evaluation" / "splits.csv")
    roles = split.groupby("site")["role"].agg(set).to_dict()
    usual = {"train", "validation", "test"}
    assert roles == {"north": usual, "south": usual, "small": {"train"}, "away": {"left-out"}}
    assert (split.groupby("patient")["role"].nunique() == 1).all()
    manifest = Manifest.read(finished.images / "manifest.csv")
    drawn = draw_splits(manifest, SplitConfig(left_out=("away",)), 0)
    assert drawn[["patient", "role"]].to_numpy().tolist() == split[["patient", "role"]].to_numpy().tolist()


def test_the_encoder_loads_in_plain_timm(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the line in encoder.json, run where the file is; and gives the features that the project's own gives."""
    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    for arm in ("federated", "random"):
        folder = finished.folder / place(arm)
        described = read_json(folder / "encoder.json")
        monkeypatch.chdir(folder)
        names: dict[str, Any] = {"timm": timm}
        exec(described["load"], names)
        own = build_encoder(
            EncoderConfig.model_validate(described["encoder"]), ImageConfig.model_validate(described["image"])
        )
        own.load_state_dict(load_tensors(folder / "encoder.safetensors")[0])
        with torch.inference_mode():
            features = names["encoder"].eval()(images)
            assert torch.equal(features, own.eval()(images))
        assert features.shape == (3, 24)
        assert features.std(dim=0).max() > 0


def test_equal_passes(finished: Any) -> None:
    """Two rounds of one epoch of an arm's own images in every pretrained arm, in whole batches of 4."""
    described = {arm: read_json(finished.folder / place(arm) / "encoder.json") for arm in TRAINED}
    assert {arm: facts["images"] for arm, facts in described.items()} == {
        "federated": 2 * (12 + 12 + 8), "local-only-north": 2 * 12, "local-only-south": 2 * 12, "centralised": 2 * 32,
    }  # fmt: skip
    for arm, facts in described.items():
        assert facts["passes"] == (2.0 if arm.startswith("local-only") else 1.94)  # 64 of 33 images
        seen = [row["images_seen"] for row in read_jsonl(finished.folder / place(arm) / "metrics.jsonl")]
        steps = [row["steps"] for row in read_jsonl(finished.folder / place(arm) / "metrics.jsonl")]
        assert (sum(seen), sum(steps)) == (facts["images"], facts["optimiser_steps"])


def test_arms_differ(finished: Any) -> None:
    """Each arm has weights of its own, so that equal ones elsewhere mean something."""
    found = encoders(finished.folder)
    assert len(found) == len(TRAINED) + RANDOM_SEEDS
    assert len(set(found.values())) == len(found)


@pytest.mark.slow
def test_interrupted_between_arms(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The same study again, stopped after two arms and resumed: the same encoders and the same results table."""
    run_arm = RUNTIMES["in-process"]
    done: list[str] = []

    def stopping(federation: Any) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        run_arm(federation)
        done.append(federation.folder.parts[-3])

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setitem(RUNTIMES, "in-process", stopping)
        simulate(finished.study, runs=tmp_path / "runs", device="cpu")
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"--resume {folder}" in capfd.readouterr().err
    assert len(encoders(folder)) == 3
    monkeypatch.setitem(RUNTIMES, "in-process", lambda federation: (done.append(""), run_arm(federation))[0])
    run = simulate(finished.study, resume=folder, device="cpu")
    assert len(done) == len(TRAINED)
    assert encoders(run.folder) == encoders(finished.folder)
    assert (folder / "results.csv").read_bytes() == (finished.folder / "results.csv").read_bytes()
    assert (folder / "comparisons.csv").read_bytes() == (finished.folder / "comparisons.csv").read_bytes()
    assert run.report == folder / "report.html"
    assert len(run.results) == len(pd.read_csv(folder / "results.csv"))


def test_a_finished_run_is_not_computed_again(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed, it trains nothing, decodes nothing and computes no feature; the table is the same."""

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("computed again")

    folder = finished.copy(tmp_path / "run")
    computing = ("client.training.site_training.train_round", "imaging.store.prepare", "evaluation.features._extract")
    for name in (*computing, "evaluation.protocols.finetune.finetune_scores", "simulation.arms.build_method"):
        monkeypatch.setattr(name, never)
    before = {name: (folder / name).read_bytes() for name in ("results.csv", "comparisons.csv", "arms.json")}
    simulate(finished.study, resume=folder, device="cpu")
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert encoders(folder) == encoders(finished.folder)


@pytest.mark.slow
def test_marked_patients_are_read_by_no_arm(finished: Any, tmp_path: Path) -> None:
    """All images of test, validation and left-out patients become noise: not a bit of any encoder changes.

    One training image changed the same way does change them.
    """
    root = tmp_path / "images"
    shutil.copytree(finished.images, root)
    split = pd.read_csv(finished.folder / "evaluation" / "splits.csv")
    names = split["image"].map(lambda image: Path(image).name)
    draw = np.random.default_rng(1)

    def garble(chosen: list[str]) -> None:
        for name in chosen:
            Image.fromarray(draw.integers(0, 256, (48, 31), dtype=np.uint8)).save(root / name)

    def run(folder: str) -> dict[str, bytes]:
        own = [f"simulation.root={root}"]
        return encoders(simulate(finished.study, own, runs=tmp_path / folder, device="cpu").folder)

    marked = list(names[split["role"] != "train"])
    assert len(marked) == 27
    garble(marked)
    assert run("marked") == encoders(finished.folder)
    garble(list(names[(split["role"] == "train") & (split["site"] == "north")])[:1])
    changed = run("changed")
    same = {name for name, weights in encoders(finished.folder).items() if changed[name] == weights}
    assert {Path(name).parts[1] for name in same} == {"random", "local-only-south"}
    assert len(same) == RANDOM_SEEDS + 1


def test_two_processes_in_one_run_folder(finished: Any, tmp_path: Path) -> None:
    folder = finished.copy(tmp_path / "run")
    with (folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(
            RunError, match=r"run: another process is working in this run folder; wait for it or stop it"
        ):
            simulate(finished.study, resume=folder, device="cpu")
    simulate(finished.study, resume=folder, device="cpu")


@pytest.fixture
def listed(tmp_path: Path) -> tuple[Manifest, Callable[..., list[Arm]]]:
    """A manifest of three sites without files, and ``plan(folds=5)``, which plans arms over it."""
    rows = [
        {"image": f"{site}{patient}-{n}.png", "patient": f"{site}{patient}", "site": site, "label": n % 2}
        for site, patients in {"A": 10, "B": 7, "C": 2}.items()
        for patient in range(patients)
        for n in range(3)
    ]
    manifest = Manifest(pd.DataFrame(rows), tmp_path)

    def plan(training: dict[str, Any] | None = None, **settings: Any) -> list[Arm]:
        config = SimulationConfig.model_validate({"dataset": "folder"} | settings)
        study = STUDY.model_copy(update={"training": TrainingConfig.model_validate({"batch": 4} | (training or {}))})
        return plan_arms(study, config, manifest, draw_splits(manifest, config.splits, 0))

    return manifest, plan


STUDY = study_from(
    {
        "name": "plan",
        "seed": 5,
        "image": {"modality": "mri", "size": 32, "channels": 1},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
        "method": {"name": "mae"},
        "training": {"batch": 4},
        "algorithm": {"name": "fedprox"},
        "rounds": {"count": 3},
    },
    "test",
)


def test_the_plan_of_folds_and_seeds(listed: Any) -> None:
    """Trained seeds on the first fold only; every fold has all arms and random encoders, of its training patients."""
    manifest, plan = listed
    arms = plan(splits={"folds": 5}, seeds=3)
    names = {
        "random",
        "federated",
        "local-only-A",
        "local-only-B",
        "centralised",
    }  # C has two patients: no test set, no own arm
    found = {(arm.name, arm.fold, arm.seed) for arm in arms}
    folds = [(0, 5), (0, 6), (0, 7), (1, 5), (2, 5), (3, 5), (4, 5)]
    random = {("random", fold, 5 + repeat) for fold in range(5) for repeat in range(RANDOM_SEEDS)}
    assert found == {(name, fold, seed) for name in names for fold, seed in folds} | random
    assert len(arms) == len(found) == len({arm.place for arm in arms}) == 28 + 25
    splits = draw_splits(manifest, SplitConfig(folds=5), 0)
    for arm in arms:
        assert arm.study.seed == arm.seed
        if arm.sites is None:
            assert (arm.kind, arm.budget().images) == ("random", 0)
            continue
        trains = splits[(splits["fold"] == arm.fold) & (splits["role"] == "train")]
        allowed = (
            trains
            if not arm.name.startswith("local-only")
            else trains[trains["site"] == arm.name.removeprefix("local-only-")]
        )
        assert sorted(arm.sites.table["image"]) == sorted(allowed["image"])
    tested = splits[splits["role"] == "test"].groupby("patient")["fold"].nunique()
    assert (tested == 1).all()
    assert set(tested.index) == {p for p in manifest.table["patient"] if p[0] != "C"}


def test_single_site_arms_are_ordinary_studies_that_see_as_many_images(listed: Any) -> None:
    _, plan = listed
    arms = {arm.name: arm for arm in plan(budget="images")}
    budget = arms["federated"].budget()
    assert arms["federated"].study.algorithm.name == "fedprox"
    for name in ("local-only-A", "local-only-B", "centralised"):
        assert arms[name].study.algorithm.name == "fedavg"  # of one site there is nothing else to choose
        assert abs(arms[name].budget().images - budget.images) <= 3 * 4
        assert set(arms[name].site_sizes()) == {name.removeprefix("local-only-")}
    # By hand: A trains 6 of 10 patients, 18 images, 4 batches; B 5 of 7, 15, 3; C 2, 6, 1: 8 batches of 4 a round.
    assert arms["federated"].site_sizes() == {"A": 18, "B": 15, "C": 6}
    assert (budget.images, budget.optimiser_steps, budget.sequential_steps) == (3 * 32, 3 * 8, 3 * 4)


@pytest.mark.parametrize(
    ("training", "steps", "seen"),
    [
        # A 18 images, B 15, C 6: in batches of 4 whole epochs are 4, 3 and 1 steps, and 9 of all 39.
        (
            {"epochs": 1},
            {"local-only-A": 4, "local-only-B": 3, "centralised": 9},
            {"local-only-A": 48, "local-only-B": 36, "centralised": 108},
        ),
        # 3 sites x 5 steps x 4 images: each is seen 60 / 39 times. A sees 27.7, 7 steps; B 23.1, 6; all 60, 15.
        (
            {"epochs": None, "steps": 5},
            {"local-only-A": 7, "local-only-B": 6, "centralised": 15},
            {"local-only-A": 84, "local-only-B": 72, "centralised": 180},
        ),
    ],
)
def test_single_site_arms_see_each_image_as_often(
    listed: Any, training: dict[str, Any], steps: dict[str, int], seen: dict[str, int]
) -> None:
    _, plan = listed
    arms = {arm.name: arm for arm in plan(training=training)}
    assert {name: arms[name].works()[0].steps for name in steps} == steps
    assert {name: arms[name].budget().images for name in seen} == seen
    federated = arms["federated"].budget()
    for name in steps:
        count = sum(arms[name].site_sizes().values())
        assert arms[name].budget().passes == pytest.approx(seen[name] / count)
        assert abs(seen[name] - federated.passes * count) <= 3 * 4  # a batch a round
        assert arms[name].title.endswith(", same passes over its images")


def test_every_simulation_setting_does_something(
    listed: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, plan = listed
    base = load_study(finished.study)
    tried: set[str] = set()

    def data(**settings: Any) -> tuple[Manifest, list[Arm]]:
        tried.update(settings)
        study = base.model_copy(update={"simulation": {**(base.simulation or {}), **settings}})
        folder = tmp_path / digest(json.dumps(settings, default=str))[:8]
        return planned(folder, study, simulation_config(study))

    def sites(**settings: Any) -> set[str]:
        return set(data(**settings)[0].table["site"])

    phantoms = {"dataset": "phantoms", "root": None, "splits": {"left_out": ["F"]}}
    assert sites() == {"away", "north", "small", "south"}
    assert sites(**phantoms, options={"images": 48, "size": 32}) == set("ABCDEF")
    few, more = (len(data(**phantoms, options={"images": n, "size": 32})[0]) for n in (48, 64))
    assert few < more
    other = tmp_path / "other"
    shutil.copytree(finished.images, other)
    assert Path(data(root=str(other))[0].table["image"][0]).parent == other
    assert sites(partition={"kind": "iid", "sites": 2}, splits={}) == {"site-1", "site-2"}
    away = next(arm for arm in data(splits={"left_out": ["small"]})[1] if arm.name == "federated")
    assert set(away.site_sizes()) == {"away", "north", "south"}
    assert {arm.name for arm in plan(arms=["centralised"])} == {"random", "federated", "centralised"}
    assert {arm.seed for arm in plan(seeds=2) if arm.name == "federated"} == {5, 6}
    local_only = [next(arm for arm in plan(budget=rule) if arm.name == "local-only-A") for rule in ("passes", "images")]
    assert [arm.works()[0].steps for arm in local_only] == [4, 8]
    assert local_only[1].title == "A local-only, same number of images seen"

    class Chosen(Exception):
        pass

    def ray(_: Any) -> None:
        raise Chosen

    monkeypatch.setitem(RUNTIMES, "ray", ray)
    with pytest.raises(Chosen):
        simulate(finished.study, ["simulation.runtime=ray"], runs=tmp_path / "runs", device="cpu")
    weights = {"weights", "weights_sha256"}  # tests/simulation/test_starting.py
    assert tried | {"arms", "budget", "seeds", "runtime"} | weights == set(SimulationConfig.model_fields)


def test_a_finished_arm_keeps_what_a_person_needs(tmp_path: Path) -> None:
    """Encoder, shared weights, curves and a failing site's log stay; what only a resume needs goes."""
    kept = ["encoder.safetensors", "global.safetensors", "metrics.jsonl", "sites/A/site.yaml"]
    gone = ["checkpoints/round-00003/state.json", "replies/round-00003/A.safetensors", "sites/A/state/lock"]
    for name in [*kept, *gone, "sites/A/state/site.log"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    tidy(tmp_path)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([*kept, "sites/A/site.log"])
