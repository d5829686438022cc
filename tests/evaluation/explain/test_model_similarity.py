"""CKA tables of a run folder."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation.explain.model_similarity import arm_similarity, round_similarity
from evaluation.features import features_of
from evaluation.inputs import read_inputs
from evaluation.statistics.similarity import linear_cka
from evaluation.tasks.targets import HELD
from foundation.tensor_files import load_tensors
from foundation.vault import Vault

MakeRun = Callable[..., Path]
ARMS = (("random", "random"), ("federated", "federated"), ("centralised", "centralised"))


def test_every_two_arms_at_every_site(make_run: MakeRun) -> None:
    run = make_run(arms=ARMS)
    found = arm_similarity(run)
    pairs = [("centralised", "federated"), ("centralised", "random"), ("federated", "random")]
    sites = ["all", "away", "north", "south"]
    assert list(zip(found["arm_a"], found["arm_b"], found["site"], strict=True)) == [
        (*pair, site) for pair in pairs for site in sites
    ]
    inputs = read_inputs(run, show=False)
    by_arm = {encoder.arm: features_of(inputs, encoder) for encoder in inputs.encoders}
    held = inputs.images.where(0, *HELD)
    north = held[inputs.images.site[held] == "north"]
    row = found[(found["arm_a"] == "centralised") & (found["arm_b"] == "random") & (found["site"] == "north")].iloc[0]
    assert row["cka"] == pytest.approx(linear_cka(by_arm["centralised"][north], by_arm["random"][north]))
    assert row["n"] == len(north) < len(held)


@pytest.mark.slow
def test_arms_are_compared_within_a_fold_and_a_seed(make_run: MakeRun) -> None:
    run = make_run(folds=2, seeds=2)
    found = arm_similarity(run)
    inputs = read_inputs(run, show=False)
    each = []
    for fold in (0, 1):
        held = inputs.images.where(fold, *HELD)
        for seed in (0, 1):
            pair = [features_of(inputs, e)[held] for e in inputs.encoders if (e.fold, e.seed) == (fold, seed)]
            each.append(linear_cka(*pair))
    (row,) = found[found["site"] == "all"].to_dict("records")
    assert (row["arm_a"], row["arm_b"]) == ("federated", "random")
    assert row["cka"] == pytest.approx(np.mean(each))


def snapshot(run: Path, round_: int, scale: float, vault: Vault) -> None:
    """The federated encoder with its first weights changed."""
    place = run / "arms" / "federated" / "fold-0" / "seed-0"
    tensors, _ = load_tensors(place / "encoder.safetensors")
    tensors["blocks.0.mlp.fc1.weight"] *= scale
    vault.save_tensors(place / "snapshots" / f"round-{round_:05d}.safetensors", tensors)


def test_snapshots_are_held_against_the_final_encoder(make_run: MakeRun) -> None:
    run = make_run()
    for round_, scale in ((10, 1.0), (2, 100.0), (5, 3.0)):
        snapshot(run, round_, scale, Vault(None))
    found = round_similarity(run)
    assert set(found["arm"]) == {"federated"}
    overall = found[found["site"] == "all"]
    assert overall["round"].tolist() == [2, 5, 10]
    first, second, last = overall["cka"]
    assert last == pytest.approx(1.0)
    assert first < second < 1
    assert set(found["site"]) == {"all", "away", "north", "south"}


def test_without_snapshots_or_with_sealed_ones_there_are_no_rows(make_run: MakeRun) -> None:
    run = make_run()
    assert round_similarity(run).empty
    snapshot(run, 1, 2.0, Vault(bytes(32)))
    found = round_similarity(run)
    assert found.empty
    assert list(found) == ["arm", "round", "site", "cka", "n"]


def test_one_encoder_has_no_other(make_run: MakeRun) -> None:
    run = make_run()
    shutil.rmtree(run / "arms" / "random")
    assert arm_similarity(run).empty
