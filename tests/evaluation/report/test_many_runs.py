"""One page on many runs: differences only between runs that were tested on the same images with the same labels."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from evaluation.config import RunEvaluation
from evaluation.report.many_runs import write_comparison
from evaluation.statistics.held_scores import Scores
from evaluation.statistics.results import rows_of
from evaluation.statistics.results_schema import RESULTS
from evaluation.tasks.kinds import KINDS
from foundation.errors import RunError
from foundation.files import write_json
from foundation.randomness import numpy_generator

CONFIG = RunEvaluation(protocols=("logistic",))


def scored_run(run: Path, arm: str, spread: float) -> Path:
    """An evaluated run of 40 patients with two images each, at two sites; scores spread about the truth."""
    rng, rows = numpy_generator(0, arm), []
    for patient in range(40):
        for index in range(2):
            score = 1 / (1 + np.exp(-(patient % 2 - 0.5 + spread * rng.standard_normal())))
            rows.append({
                "fold": 0, "image": f"{patient}-{index}.png", "patient": f"p{patient}", "site": "AB"[patient // 20],
                "role": "test", "label": str(patient % 2), "score_0": 1 - score, "score_1": score,
                "label_fraction": "1", "label_seed": 0, "encoder": arm, "protocol": "logistic", "seed": 0,
            })  # fmt: skip
    scores = pd.DataFrame(rows)
    fixed = {"task": "tumour", "dataset": "", "encoder": arm, "role": "federated", "protocol": "logistic",
             "label_fraction": "1"}  # fmt: skip
    metrics = KINDS["classification"].metrics(CONFIG, ("0", "1"))
    (run / "evaluation").mkdir(parents=True)
    scores.to_csv(run / "evaluation" / "scores.csv", index=False)
    RESULTS.write(run / "results.csv", RESULTS.frame(rows_of(Scores.of(scores), metrics, CONFIG, fixed)))
    write_json(run / "evaluation" / "config.json", CONFIG.model_dump(mode="json"))
    write_json(run / "results.json", {"kind": "classification", "classes": ["0", "1"], "encoders": []})
    write_json(run / "arms.json", [{"arm": arm, "title": arm, "kind": "federated", "folds": [0], "seeds": [0]}])
    return run


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs on the same images whose encoders differ; folders of one name below different ones."""
    return scored_run(tmp_path / "0" / "run", "fedavg", 0.4), scored_run(tmp_path / "1" / "run", "fedprox", 4.0)


def words(page: Path) -> str:
    body = page.read_text().partition("<body>")[2].replace("\u00a0", " ")
    return " ".join(re.sub(r"<[^>]+>", " ", body).split())


def change(run: Path, **columns: Callable[["pd.Series[Any]"], Any]) -> None:
    path = run / "evaluation" / "scores.csv"
    table = pd.read_csv(path)
    table.assign(**{name: new(table[name]) for name, new in columns.items()}).to_csv(path, index=False)


def test_the_difference_is_that_of_the_same_patients(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = two_runs
    text = words(write_comparison([first, second], tmp_path / "comparison.html"))
    values = []
    for run, encoder in ((first, "fedavg"), (second, "fedprox")):
        table = pd.read_csv(run / "results.csv", keep_default_na=False, dtype=str)
        table = table[(table["metric"] == "AUROC") & (table["site"] == "all") & (table["encoder"] == encoder)]
        table = table[table["statistic"] == "estimate"]
        values.append(float(table["value"].iloc[0]))
    apart = values[0] - values[1]
    shown = re.search(r"0/run − 1/run ([+−]?)(\d\.\d+) ", text)
    assert shown is not None
    assert float(shown[2]) == pytest.approx(abs(apart), abs=0.006)
    assert (shown[1] == "−") == (apart < 0)
    assert "without a difference" not in text


def test_other_images_or_labels_are_side_by_side_with_the_reason(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = two_runs
    change(second, label=lambda labels: 1 - labels)
    assert "the same images have other labels." in words(write_comparison([first, second], tmp_path / "a.html"))
    change(second, patient=lambda patients: patients + "x")
    text = words(write_comparison([first, second], tmp_path / "b.html"))
    assert "0/run and 1/run: not tested on the same images of the same patients." in text


def test_other_questions_are_said(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = two_runs
    for name in ("results.csv", "evaluation/scores.csv"):
        path = second / name
        path.write_text(path.read_text().replace("logistic", "knn"))
    text = words(write_comparison([first, second], tmp_path / "comparison.html"))
    assert (
        "asked differently (AUROC, logistic probe on frozen features, 100 % of the training labels and AUROC, k" in text
    )


def test_a_run_given_twice_or_not_evaluated_is_one_line(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is given twice"):
        write_comparison([two_runs[0], two_runs[0]], tmp_path / "comparison.html")
    with pytest.raises(RunError, match=r"results\.csv: is missing"):
        write_comparison([two_runs[0], tmp_path], tmp_path / "comparison.html")
    with pytest.raises(RunError, match="is a folder"):
        write_comparison(two_runs, tmp_path)


def test_a_hostile_title_is_text(two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    write_json(two_runs[0] / "run.json", {"command": "<script>alert(1)</script>"})
    assert "<script" not in write_comparison(two_runs, tmp_path / "comparison.html").read_text()
