"""Every figure of merit of every kind of task, worked by hand or held against scikit-learn."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as reference

from evaluation.config import RunEvaluation
from evaluation.statistics.held_scores import Scores, estimated
from evaluation.statistics.results import rows_of
from evaluation.tasks.kinds import KINDS, explained_share, main_metric
from evaluation.tasks.predictions import kept_columns
from foundation.randomness import numpy_generator
from imaging.annotations.boxes import Boxes


def frame(columns: dict[str, Any], count: int, sites: int = 1, **fixed: Any) -> pd.DataFrame:
    """Held rows, two a patient."""
    plain = {
        "fold": 0, "seed": 0, "label_seed": 0, "role": "test",
        "image": [f"{i}" for i in range(count)], "patient": [f"p{i // 2}" for i in range(count)],
        "site": [f"s{i // 2 % sites}" for i in range(count)],
    }  # fmt: skip
    return pd.DataFrame({**plain, **columns, **fixed})


def figures(kind: str, rows: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, float]:
    config = RunEvaluation(kind=kind)
    scores = Scores.of(rows)
    cells = scores.cells("test", "all", [0], [0])
    found = {metric.name: estimated(metric, cells) for metric in KINDS[config.kind].metrics(config, classes)}
    return {name: float("nan") if each is None else each.value for name, each in found.items()}


def test_findings_are_a_mean_over_findings() -> None:
    rng = numpy_generator(0, "findings")
    truth = rng.integers(0, 2, (60, 3))
    scores = np.clip(0.6 * truth + 0.5 * rng.uniform(size=(60, 3)), 0, 1)
    found = figures("multilabel", frame(kept_columns("multilabel", scores, truth, "abc"), 60), ("a", "b", "c"))
    assert found["AUROC"] == pytest.approx(reference.roc_auc_score(truth, scores, average="macro"))
    assert found["AUPRC"] == pytest.approx(reference.average_precision_score(truth, scores, average="macro"))
    assert found["F1"] == pytest.approx(reference.f1_score(truth, scores > 0.5, average="macro"))
    balanced = [reference.balanced_accuracy_score(truth[:, k], scores[:, k] > 0.5) for k in range(3)]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(balanced))


def test_a_finding_that_nobody_has_is_left_out_of_the_mean() -> None:
    truth = np.array([[1, 0], [0, 0], [1, 0], [0, 0]])
    scores = np.array([[0.9, 0.1], [0.2, 0.3], [0.8, 0.2], [0.1, 0.4]])
    assert figures("multilabel", frame(kept_columns("multilabel", scores, truth, "ab"), 4), ("a", "b"))["AUROC"] == 1.0


def test_numbers() -> None:
    rng = numpy_generator(1, "numbers")
    truth = rng.normal(size=40)
    value = truth + 0.5 * rng.normal(size=40)
    found = figures("regression", frame(kept_columns("regression", value[:, None], truth, ()), 40), ())
    assert found["R2"] == pytest.approx(reference.r2_score(truth, value))
    assert found["MAE"] == pytest.approx(reference.mean_absolute_error(truth, value))
    assert np.isnan(explained_share(np.ones(3), np.ones(3)))


def test_dice_is_a_mean_over_the_patients_who_have_the_structure() -> None:
    # p0: two images, 2 of 3 + 1 of 1 found, 4 drawn -> 2 * 3 / (4 + 4); p1: nothing there; p2: missed.
    truth = np.zeros((6, 4, 4), dtype=np.uint8)
    drawn = np.zeros_like(truth)
    truth[0, 0, :3], drawn[0, 0, :2], drawn[0, 3, 3] = 1, 1, 1
    truth[1, 1, 1], drawn[1, 1, 1] = 1, 1
    drawn[2, 0, 0] = 1
    truth[4, 2, 2] = 1
    found = figures("segmentation", frame(kept_columns("segmentation", drawn, truth, ["x"]), 6), ("x",))
    assert found["Dice"] == pytest.approx((6 / 8 + 0) / 2)


def test_detection_by_hand() -> None:
    from evaluation.protocols.detection_types import Detected

    truth = [Boxes(np.array([[0, 0, 10, 10]], np.float32), np.array([0])) for _ in range(4)]
    right = Detected(np.array([[0, 0, 10, 10]], np.float32), np.array([0]), np.array([0.9], np.float32))
    wrong = Detected(np.array([[20, 20, 30, 30]], np.float32), np.array([0]), np.array([0.8], np.float32))
    half = Detected(np.array([[0, 0, 10, 6]], np.float32), np.array([0]), np.array([0.7], np.float32))
    # Surest first: hit, hit, miss, IoU .6: precision 1 to a recall of 1/2 (51 points of 101), 3/4 to 3/4 (25 points).
    found = figures("detection", frame(kept_columns("detection", [right, right, wrong, half], truth, ["x"]), 4), ("x",))
    assert found["mAP50"] == pytest.approx((51 * 1 + 25 * 3 / 4) / 101)
    # At .5, .55 and .6 it is a hit; at the seven others only the first two are.
    assert found["mAP"] == pytest.approx((3 * (51 + 25 * 3 / 4) + 7 * 51) / 10 / 101)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_main_figure_is_the_first_and_greater_is_better(kind: Any) -> None:
    config = RunEvaluation(kind=kind)
    metrics = KINDS[config.kind].metrics(config, ("a", "b"))
    assert main_metric(config, ("a", "b")).name == metrics[0].name
    assert not metrics[0].less_is_better
    assert len({metric.name for metric in metrics}) == len(metrics)


def test_the_mean_over_sites_is_weighted_by_patients() -> None:
    rng = numpy_generator(2, "sites")
    truth = rng.normal(size=60)
    value = truth + rng.normal(size=60)
    rows = frame(kept_columns("regression", value[:, None], truth, ()), 60, sites=2)
    rows.loc[rows["patient"].isin([f"p{i}" for i in range(1, 20, 2)]), "site"] = "s0"  # 25 patients there, 5 here
    config = RunEvaluation(kind="regression")
    metrics = KINDS["regression"].metrics(config, ())
    found = pd.DataFrame(rows_of(Scores.of(rows), metrics, config, {}))
    own = found[(found["metric"] == "MAE") & (found["statistic"] == "estimate")].set_index("site")
    assert own.loc["s0", "n"] == 20 + 5
    expected = (25 * own.loc["s0", "value"] + 5 * own.loc["s1", "value"]) / 30
    mean = found[(found["metric"] == "MAE") & (found["statistic"] == "site mean")].iloc[0]
    assert mean["value"] == pytest.approx(expected)
    assert (mean["site"], mean["n"]) == ("all", 30)
    assert mean["ci_low"] < expected < mean["ci_high"]
    (worst,) = found[(found["metric"] == "R2") & (found["statistic"] == "worst site")]["value"]
    assert worst == pytest.approx(found[(found["metric"] == "R2") & found["site"].isin(["s0", "s1"])]["value"].min())
