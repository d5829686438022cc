"""Empirical audit of the private step: how much of the claimed epsilon an adversary can prove, and planted faults.

    python -m benchmarks.privacy.audit [--runs 4000]

Lower bounds on epsilon at 95 % confidence; a bound over the claim would prove the claim wrong. The game: so many small
studies with one known patient and as many without, each judged by what a chosen event says
(benchmarks/privacy/audit_game.py); "all": every patient in the one step, at epsilon 3; "sampled": a fifth of the
patients in each of eight steps, at epsilon 1.5. "weights" is the same game over whole rounds
(client/privacy/training.py), judged by the weights that leave the site after AdamW instead of the noised gradients.
One run: 5,000 known patients in one step (benchmarks/privacy/audit_one_run.py). Faults are planted by replacing a
function of the step.
"""

import argparse
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch

import client.privacy.training
from benchmarks.measure import RESULTS, table, write_result
from benchmarks.privacy.audit_game import (
    FAULTS,
    SAMPLED,
    WHOLE,
    Bound,
    Figures,
    Linear,
    Setting,
    audit,
    bound,
    store_of,
)
from benchmarks.privacy.audit_one_run import lower_bound, right_guesses
from client.privacy.training import train_private_round
from client.training.round import TrainingContext
from federation.algorithms import build_algorithm
from federation.algorithms.fedavg import FedAvgConfig
from federation.study import Study, study_from
from foundation.files import write_json

_WIDTH = 256  # numbers in the update: AdamW's first step is little more than their signs
_CANARIES, _GUESSES, _DELTA = 5000, 100, 1e-5


def study_of(setting: Setting) -> Study:
    """A study of one round with the setting's privacy; its method is replaced by the audit's own."""
    raw: dict[str, Any] = {
        "name": "audit",
        "title": "Audit",
        "image": {"modality": "mri", "size": 32, "channels": 1},
        "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
        "method": {"name": "mae"},
        "training": {"batch": 64, "epochs": None, "steps": setting.steps, "learning_rate": 0.001, "threads": 1},
        "privacy": setting.privacy.model_dump(),
        "algorithm": {"name": "fedavg"},
        "rounds": {"count": 1},
        "evaluation": {"task": "none"},
    }
    return study_from(raw, "audit")


def play_rounds(setting: Setting, canary: bool, runs: int) -> Figures:
    """How far the weights that leave went along the canary's gradient, ``[runs, 1]``."""
    axis = torch.full((_WIDTH,), _WIDTH**-0.5)
    method, store = Linear(_WIDTH), store_of(setting, canary, axis)
    algorithm = build_algorithm(FedAvgConfig())
    context = TrainingContext(study_of(setting), method, algorithm, store, "site", torch.device("cpu"))
    before = {name: value.clone() for name, value in method.state_dict().items()}
    found = []
    with mock.patch.object(client.privacy.training, "feature_diagnostics_of", lambda *_: {}):
        for _ in range(runs):
            method.load_state_dict(before)
            train_private_round(context, 1, {})
            moved = method.state_dict()["encoder.weight"] - before["encoder.weight"]
            found.append([-float(moved[0] @ axis)])
    return np.asarray(found)


def audit_weights(setting: Setting, runs: int) -> Bound:
    """The game over whole rounds."""
    inside, outside = play_rounds(setting, True, runs), play_rounds(setting, False, runs)
    return bound(inside, outside, {"distance": lambda seen: seen[:, 0]}, setting.delta)


def game_rows(runs: int) -> list[dict[str, Any]]:
    """Honest steps and faults."""
    rows = []
    for name, setting in (("all", WHOLE), ("sampled", SAMPLED)):
        rows.append(_row(f"none, {name}", setting, runs, audit(setting, runs)))
    rows.append(_row("none, all, weights", WHOLE, runs, audit_weights(WHOLE, runs)))
    for fault, (planted, setting) in FAULTS.items():
        with planted():
            rows.append(_row(fault, setting, runs // 4, audit(setting, runs // 4)))
    return rows


def _row(fault: str, setting: Setting, runs: int, found: Bound) -> dict[str, Any]:
    row = {
        "fault": fault,
        "delta": setting.delta,
        "noise": setting.sigma,
        "rate": setting.privacy.rate,
        "steps": setting.steps,
        "runs": 2 * runs,
        "claimed": setting.claimed,
        "bound": found.epsilon,
        "event": found.statistic,
        "in": found.inside,
        "out": found.outside,
    }
    print(row, flush=True)
    return row


def one_run_rows() -> list[dict[str, Any]]:
    """One run for each of four claims."""
    rows = []
    for epsilon in (1.0, 2.0, 4.0, 8.0):
        right = right_guesses(epsilon, _DELTA, _CANARIES, _GUESSES)
        found = lower_bound(right, 2 * _GUESSES, _CANARIES, _DELTA)
        rows.append({"claimed": epsilon, "right": right, "guesses": 2 * _GUESSES, "bound": found})
    return rows


def page(game: Sequence[dict[str, Any]], one_run: Sequence[dict[str, Any]]) -> list[str]:
    """Both tables."""
    first = [
        [
            row["fault"],
            f"{row['noise']:.2f}",
            f"{row['rate']:g}",
            str(row["steps"]),
            f"{row['runs']:,}",
            f"{row['claimed']:.2f}",
            f"{row['bound']:.2f}",
            "yes" if row["bound"] > row["claimed"] else "no",
            row["event"],
            f"{row['in']:.3f} / {row['out']:.3f}",
        ]
        for row in game
    ]
    found = ["claimed epsilon", "bound (95 %)", "claim proven wrong", "event by", "event with / without the patient"]
    header = ["fault", "noise", "rate", "steps", "runs", *found]
    second = [[f"{row['claimed']:g}", f"{row['right']} of {row['guesses']}", f"{row['bound']:.2f}"] for row in one_run]
    return [
        f"The game, delta {game[0]['delta']:g}:",
        "",
        *table(header, first),
        "",
        f"One run, {_CANARIES:,} known patients, delta {_DELTA:g}:",
        "",
        *table(["claimed epsilon", "right guesses", "bound (95 %)"], second),
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=int, default=4000, help="with the patient, and as many without; faults: a quarter"
    )
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    game, one_run = game_rows(asked.runs), one_run_rows()
    write_json(RESULTS / "privacy/audit.json", {"game": game, "one_run": one_run})
    print(write_result("privacy/audit", "Empirical audit of privacy by patient", __doc__, page(game, one_run)))


if __name__ == "__main__":
    main()
