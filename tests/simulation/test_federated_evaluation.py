"""A simulated study whose labels stay at the sites: the same figures as with all labels in one place."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import server.federated_evaluation
from evaluation.federated.figures import FIGURES
from evaluation.federated.score_histogram import histogram, pooled_area
from evaluation.protocols.logistic import Standard, path
from evaluation.statistics.intervals import FloatArray, IntArray, Scored, interval
from evaluation.statistics.results_schema import RESULTS
from federation.study import load_study
from foundation.errors import FedpretextError
from foundation.files import read_json
from foundation.tensor_files import load_tensors
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore
from imaging.views.augment import Augmentation
from server.federated_evaluation import RECORD_NAME, collect
from simulation.arms import make_encoder
from simulation.simulate import planned, simulate, simulation_config
from simulation.validate import validate
from ssl_methods.encoders.outputs import features
from ssl_methods.encoders.timm_encoders import build_encoder

from ..conftest import write_images, write_simulated

SECTION = {"classes": ["0", "1"], "strength": 0.1, "histogram": True}
SITES = {"north": 30, "south": 12, "small": 3}
CHANGES: dict[str, Any] = {
    "rounds": {"count": 1, "attempts": 1},
    "evaluation": {"protocols": ["knn"]},
    "simulation": {"dataset": "folder", "arms": [], "splits": {"test_share": 0.4}},
}


class Run:
    """The study with its evaluation at the sites, run once, and what is known of it centrally."""

    def __init__(self, place: Path) -> None:
        self.root = write_images(place / "images", SITES).root
        self.study = write_simulated(place / "study.yaml", self.root, **CHANGES, federated_evaluation=SECTION)
        self.folder = simulate(self.study, runs=place / "runs", device="cpu").folder
        self.arm = self.folder / "arms" / "federated" / "fold-0" / "seed-0"
        self.record = read_json(self.arm / RECORD_NAME)
        self.table = RESULTS.read(self.folder / "evaluation" / "federated.csv")

    def of(self, arm: str, metric: str = "AUROC", statistic: str = "estimate") -> dict[str, Any]:
        """The table's rows of one figure, by site."""
        own = self.table[(self.table["encoder"] == arm) & (self.table["metric"] == metric)]
        own = own[own["statistic"] == statistic]
        return {str(row["site"]): row for _, row in own.iterrows()}

    def central(self, arm: str) -> dict[str, Scored]:
        """Test images of each site with the scores of a probe trained on all sites' images in one place."""
        study, splits = load_study(self.study), pd.read_csv(self.folder / "evaluation" / "splits.csv")
        store = TensorStore.build(Manifest.read(self.root / "manifest.csv"), study.image, self.folder / "own-store")
        encoder = build_encoder(study.encoder, study.image)
        encoder.load_state_dict(load_tensors(self.folder / f"arms/{arm}/fold-0/seed-0/encoder.safetensors")[0])
        with torch.no_grad():
            shown = Augmentation(study.image).plain(store.batch(np.arange(len(store))))
            table: FloatArray = features(encoder.eval(), shown).double().numpy()
        labels: IntArray = store.table["label"].to_numpy(np.int64)
        patients, sites = (store.table[name].to_numpy(np.str_) for name in ("patient", "site"))
        role = store.table["patient"].map(dict(zip(splits["patient"], splits["role"], strict=True))).to_numpy()
        standard = Standard.of(table[role == "train"])
        (fitted,) = path(standard(table[role == "train"]), labels[role == "train"], 2, [0.1])
        scores = fitted.probabilities(standard(table))
        whole = Scored(labels, scores, patients, sites)
        return {site: whole.where((role == "test") & (sites == site)) for site in ("north", "south")}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("federated-evaluation"))


@pytest.mark.parametrize("arm", ["federated", "random"])
def test_each_sites_figures_are_those_of_the_central_probe(run: Run, arm: str) -> None:
    """Value, interval and patients of every figure, to the six digits that are told."""
    central = run.central(arm)
    for name, figure in FIGURES.items():
        rows = run.of(arm, name)
        assert set(rows) == {"north", "south"}  # small is too small to be tested
        for site, scored in central.items():
            estimate = figure(scored)
            assert rows[site]["value"] == pytest.approx(estimate.value, abs=1e-6)
            assert rows[site]["n"] == len(set(scored.patients))
            bounds = interval(estimate)
            assert rows[site]["ci_low"] == pytest.approx(bounds.low, abs=1e-4, nan_ok=True)
            assert rows[site]["ci_high"] == pytest.approx(bounds.high, abs=1e-4, nan_ok=True)


def test_the_mean_counts_patients_and_the_worst_site_is_named(run: Run) -> None:
    rows, mean = run.of("federated"), run.of("federated", statistic="site mean")["all"]
    north, south = rows["north"], rows["south"]
    assert (north["n"], south["n"]) == (12, 5)
    assert mean["value"] == pytest.approx((12 * north["value"] + 5 * south["value"]) / 17, abs=1e-9)
    assert mean["n"] == 17
    ((site, worst),) = run.of("federated", statistic="worst site").items()
    assert worst["value"] == min(north["value"], south["value"])
    assert worst["value"] == rows[site]["value"]


def test_the_pooled_area_is_that_of_the_histograms_and_within_its_bound(run: Run) -> None:
    central = run.central("federated")
    answer = {site: histogram(scored.labels, scored.scores, 1) for site, scored in central.items()}
    expected = pooled_area(answer)  # type: ignore[arg-type]
    whole = Scored(
        *(np.concatenate([getattr(s, n) for s in central.values()]) for n in ("labels", "scores", "patients", "strata"))
    )
    (row,) = run.of("federated", statistic="from histograms").values()
    assert row["value"] == pytest.approx(expected.value, abs=0.01)  # a score on the edge of two bins may go either way
    assert abs(row["value"] - FIGURES["AUROC"](whole).value) <= expected.bound + 0.01
    assert row["note"].startswith("from histograms of 2 sites, off by at most 0")


def test_the_table_and_the_record(run: Run) -> None:
    assert tuple(run.table) == RESULTS.columns
    assert set(run.table["protocol"]) == {"federated logistic"}
    assert set(run.table["encoder"]) == {"federated", "random"}
    arm = run.record["arms"]["federated"]
    assert arm["sites"] == ["north", "small", "south"]
    assert arm["not_evaluated"] == ""
    assert arm["left_out"] == {"small": "figures: labels-too-few"} | {"small": "histogram: labels-too-few"}
    assert 3 < arm["gradients"] < 100


def pretrained(study: Path, folder: Path) -> Path:
    """The federated arm alone, without central evaluation and report; goes on where it was stopped."""
    resolved = load_study(study)
    config = simulation_config(resolved)
    folder.mkdir(exist_ok=True)
    _, arms = planned(folder, resolved, config)
    (arm,) = (arm for arm in arms if arm.kind == "federated")
    make_encoder(folder, arm, config, "cpu")
    return folder / arm.place


def test_pretraining_is_not_touched(run: Run, tmp_path: Path) -> None:
    """Test patients lie at the sites now, and none of their images was trained on: the encoder has the same bits."""
    without = pretrained(write_simulated(tmp_path / "plain.yaml", run.root, **CHANGES), tmp_path / "plain")
    assert (run.arm / "sites" / "north" / "manifest.csv").read_text().count(",test") == 36
    encoder = "encoder.safetensors"
    assert (without / encoder).read_bytes() == (run.arm / encoder).read_bytes()
    assert not (without / RECORD_NAME).exists()
    assert collect(tmp_path / "plain") is None


@pytest.mark.slow
def test_killed_while_it_asks_it_goes_on_to_the_same_figures(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = server.federated_evaluation._Probe._gradient

    def killed(self: Any, *arguments: Any) -> Any:
        asked.append(1)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(server.federated_evaluation._Probe, "_gradient", killed)
        pretrained(run.study, tmp_path / "run")
    assert not list(tmp_path.rglob(RECORD_NAME))
    (answer,) = tmp_path.glob("run/arms/federated/*/*/sites/north/state/*/evaluation/*.asked")
    assert len(answer.read_text().splitlines()) == 4
    assert read_json(pretrained(run.study, tmp_path / "run") / RECORD_NAME) == run.record


def test_validate_says_what_will_leave(run: Run, tmp_path: Path) -> None:
    said = [line for line in validate(run.study) if "after the last round" in line]
    assert "of images with a 'label' (0, 1), for 2 encoders at most: their count" in said[0]
    assert "25 numbers" in said[1]  # 24 features and the bias
    assert "in 100 bins" in said[3]
    plain = write_simulated(tmp_path / "plain.yaml", run.root, **CHANGES)
    assert not any("after the last round" in line for line in validate(plain))


def test_an_unknown_label_is_told_before_anything_is_trained(run: Run, tmp_path: Path) -> None:
    section = SECTION | {"classes": ["0", "2"]}
    study = write_simulated(tmp_path / "study.yaml", run.root, **CHANGES, federated_evaluation=section)
    with pytest.raises(FedpretextError) as caught:
        simulate(study, runs=tmp_path / "runs", device="cpu")
    assert "column 'label' has the label '1', and the study's classes are 0, 2" in str(caught.value)
