"""What an arm leaves: the encoder alone, a description that loads it, and a row of costs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from evaluation.arm_table import write_arms
from federation.study import Study, study_from
from foundation.errors import RunError
from foundation.files import read_json
from foundation.tensor_files import load_tensors, save_tensors
from server.export import TrainingCost, spent, write_encoder
from simulation.runtimes.table import run_in_process
from simulation.sites.site_folders import Federation
from ssl_methods import build_method

SEED = 3
Row = dict[str, Any]


def place(run: Path, arm: str = "federated", fold: int = 0, seed: int = SEED) -> Path:
    return run / "arms" / arm / f"fold-{fold}" / f"seed-{seed}"


def study_of(raw: dict[str, Any], seed: int = SEED) -> Study:
    return study_from(raw | {"seed": seed}, "test")


def used(round_: int, site: str, images: float | None, steps: float | None) -> Row:
    """A row of an update that was used; a count of None is not told."""
    counts = {"images_seen": images, "steps": steps}
    answer = {name: count for name, count in counts.items() if count is not None}
    return {"round": round_, "site": site, "images": 9, "loss": 0.5, **answer}


def write_rows(folder: Path, rows: list[Row]) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


ROUNDS = [
    used(1, "A", 8.0, 2.0), used(1, "B", 12.0, 3.0),
    {"round": 1, "event": "site left out", "site": "C", "reason": "no answer before the deadline"},
    used(2, "A", 8.0, 2.0), used(2, "B", 4.0, 1.0), used(2, "C", 4.0, 1.0),
]  # fmt: skip


def test_the_cost_is_that_of_the_updates_that_were_used(tmp_path: Path) -> None:
    """36 images and 9 steps in all; one after another the busiest site's: 3 in the first round, 2 in the second."""
    write_rows(tmp_path / "arm", ROUNDS)
    assert spent(tmp_path / "arm") == TrainingCost(8 + 12 + 8 + 4 + 4, 2 + 3 + 2 + 1 + 1, 3 + 2, 36 / (3 * 9))


@pytest.mark.parametrize(
    ("rows", "cost"),
    [
        ([*ROUNDS, used(3, "A", 8.0, None)], TrainingCost(44, None, None, 44 / 27)),
        ([*ROUNDS, used(3, "A", None, 2.0)], TrainingCost(None, 11, 7, None)),
        (ROUNDS[2:3], TrainingCost(None, None, None, None)),
        ([], TrainingCost(None, None, None, None)),
    ],
    ids=["no steps", "no images", "no update", "nothing"],
)
def test_a_count_that_one_site_keeps_is_not_made_up(tmp_path: Path, rows: list[Row], cost: TrainingCost) -> None:
    write_rows(tmp_path / "arm", rows)
    assert spent(tmp_path / "arm") == cost


def test_the_encoder_of_the_shared_weights_loads_by_the_line_beside_it(
    tmp_path: Path, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, folder = study_of(raw_study), place(tmp_path)
    write_rows(folder, ROUNDS)
    shared = build_method(study.method, study.encoder, study.image, seed=11).shared_state()
    save_tensors(folder / "global.safetensors", shared)
    write_encoder(folder, study, "federated", "Federated: all together")
    facts, (tensors, _) = read_json(folder / "encoder.json"), load_tensors(folder / "encoder.safetensors")
    assert len(shared) > len(tensors) > 0  # the decoder stays behind
    assert all(torch.equal(value, shared[f"encoder.{name}"]) for name, value in tensors.items())
    known = ("arm", "title", "kind", "fold", "seed", "images", "optimiser_steps", "sequential_steps", "passes")
    assert facts["seconds"] is None
    assert [facts[key] for key in known] == [
        "federated", "Federated: all together", "federated", 0, SEED, 36, 9, 5, 1.33,
    ]  # fmt: skip
    assert facts["training_hash"] == study.training_hash()
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"timm": timm}
    exec(facts["load"], names)
    loaded = names["encoder"].state_dict()
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in loaded.items())


def test_given_weights_and_costs_come_before_the_folders(tmp_path: Path, raw_study: dict[str, Any]) -> None:
    study, folder = study_of(raw_study), place(tmp_path, "local-only-A", fold=2)
    write_rows(folder, ROUNDS)
    weights = {"encoder.w": torch.ones(2), "decoder.w": torch.zeros(2)}
    save_tensors(folder / "global.safetensors", {"encoder.w": torch.zeros(2)})
    write_encoder(
        folder, study, "local-only", "A alone", weights=weights, budget=TrainingCost(7, 5, 5, 0.5), seconds=1.26
    )
    assert load_tensors(folder / "encoder.safetensors")[0]["w"].tolist() == [1, 1]
    facts = read_json(folder / "encoder.json")
    assert (facts["arm"], facts["fold"], facts["images"], facts["seconds"]) == ("local-only-A", 2, 7, 1.3)


def test_without_weights_nothing_is_written(tmp_path: Path, raw_study: dict[str, Any]) -> None:
    with pytest.raises(RunError, match=r"global\.safetensors: is missing"):
        write_encoder(place(tmp_path), study_of(raw_study), "federated", "Federated")
    assert not list(tmp_path.rglob("encoder.*"))


def test_what_a_federation_records_is_what_it_planned(
    raw_study: dict[str, Any], federation: Callable[..., Federation]
) -> None:
    """9, 6 and 4 images in batches of 4, an epoch a round: 2, 1 and 1 steps, three rounds."""
    made = federation(raw_study)
    run_in_process(made)
    assert spent(made.folder) == TrainingCost(3 * (8 + 4 + 4), 3 * (2 + 1 + 1), 3 * 2, 3 * 16 / 19)


def test_the_table_of_arms_adds_up_folds_and_seeds(tmp_path: Path, raw_study: dict[str, Any]) -> None:
    weights, cost = {"encoder.w": torch.ones(2)}, TrainingCost(7, 5, 5, 0.5)
    places = [place(Path(), "federated", fold, seed) for fold, seed in ((0, 3), (0, 4), (1, 3))]
    for number, each in enumerate(places):
        study = study_of(raw_study, int(each.name.removeprefix("seed-")))
        seconds = 1.5 * number
        write_encoder(tmp_path / each, study, "federated", "F", weights=weights, budget=cost, seconds=seconds)
    random = place(Path(), "random")
    write_encoder(tmp_path / random, study_of(raw_study), "random", "R", weights=weights, budget=TrainingCost())
    write_arms(tmp_path, [random, *places])
    counts = {"images": 7, "optimiser_steps": 5, "sequential_steps": 5, "passes": 0.5}
    nothing = dict.fromkeys(counts, 0)
    assert read_json(tmp_path / "arms.json") == [
        {"arm": "random", "title": "R", "kind": "random", "folds": [0], "seeds": [3], "seconds": None, **nothing},
        {"arm": "federated", "title": "F", "kind": "federated", "folds": [0, 1], "seeds": [3, 4], "seconds": 4.5}
        | counts,
    ]
