"""A report on several encoders, or on one that is not federated: nobody wins where an interval contains zero."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.config import RunEvaluation
from evaluation.report.page import page_values, write_report
from evaluation.report.run_folder import read_run
from evaluation.report.summary import summary_lines
from evaluation.stage import evaluate
from evaluation.statistics.metric_values import main_question, metric_rank
from evaluation.statistics.results_schema import COMPARISONS, RESULTS
from evaluation.tasks.kinds import KINDS, main_metric

TITLES = {
    "ours": ("Brain study: Federated", "federated"),
    "vit": ("vit_small: weights from elsewhere", "pretrained"),
    "resnet": ("resnet18: weights from elsewhere", "pretrained"),
    "random": ("Random initialisation: no pretraining", "random"),
    "random-resnet18": ("Random initialisation: no pretraining", "random"),
}
BASES = {"ours": "random", "vit": "random", "resnet": "random-resnet18"}
Pair = tuple[str, str, float, tuple[float, float]]


def gathered_run(
    run: Path, values: dict[str, float], pairs: list[Pair], metric: str = "AUROC", protocol: str = "logistic"
) -> Path:
    """What ``evaluate CHECKPOINT... --task`` leaves of these encoders; pairs: (first, second, difference, interval)."""
    fixed = {"task": "tumour", "dataset": "LGG", "protocol": protocol, "label_fraction": "1", "metric": metric}
    rows = [
        fixed | {"encoder": name, "role": TITLES[name][1], "site": site, "seed": "0", "statistic": statistic,
                 "value": value, "ci_low": value - 0.1, "ci_high": value + 0.1, "n": 60, "unit": "patient"}
        for name, value in values.items()
        for site, statistic in (("all", "estimate"), ("A", "estimate"), ("B", "estimate"), ("all", "site mean"))
    ]  # fmt: skip
    apart = [
        fixed | {"site": site, "encoder_a": first, "role_a": TITLES[first][1], "encoder_b": second,
         "role_b": TITLES[second][1], "unit": "patient", "value": value,
         "ci_low": bounds[0] if site == "all" else -1, "ci_high": bounds[1] if site == "all" else 1,
         "p": 0.01 if bounds[0] > 0 or bounds[1] < 0 else 0.4, "n": 60}
        for first, second, value, bounds in pairs for site in ("all", "A", "B", "left-out")
    ]  # fmt: skip
    (run / "evaluation").mkdir(parents=True)
    RESULTS.write(run / "results.csv", RESULTS.frame(rows))
    COMPARISONS.write(run / "comparisons.csv", COMPARISONS.frame(apart))
    reported = [
        {"arm": name, "title": TITLES[name][0], "kind": TITLES[name][1], "folds": [0], "seeds": [0]} for name in values
    ]
    (run / "arms.json").write_text(json.dumps(reported))
    encoders = [{"arm": each["arm"], "base": BASES.get(each["arm"], "")} for each in reported]
    (run / "results.json").write_text(
        json.dumps({"kind": "classification", "classes": ["0", "1"], "encoders": encoders})
    )
    (run / "evaluation" / "gathered.json").write_text("{}")
    return run


def values_of(run: Path) -> dict[str, Any]:
    return page_values(read_run(run))


def test_each_is_held_against_its_own_base_and_nobody_wins_within_chance(tmp_path: Path) -> None:
    values = {"ours": 0.9, "vit": 0.88, "resnet": 0.7, "random": 0.8, "random-resnet18": 0.71}
    pairs = [
        ("ours", "random", 0.1, (0.05, 0.15)), ("ours", "random-resnet18", 0.19, (0.1, 0.3)),
        ("resnet", "random-resnet18", -0.01, (-0.1, 0.08)), ("vit", "random", 0.08, (0.01, 0.15)),
        ("ours", "vit", 0.02, (-0.03, 0.07)), ("ours", "resnet", 0.2, (0.1, 0.3)),
        ("resnet", "vit", -0.18, (-0.3, -0.1)),
    ]  # fmt: skip
    run = gathered_run(tmp_path, values, pairs)
    first, second = values_of(run)["answer"]
    assert first == (
        "Of 3 pretrained encoders, on unseen patients, better than without pretraining: Brain study and vit_small; "
        "no clear difference from no pretraining: resnet18."
    )
    assert second == (
        "Between them, Brain study did better than resnet18: 0.20 above (95 % interval 0.10 to 0.30); vit_small did "
        "better than resnet18: 0.18 above (95 % interval 0.10 to 0.30). The other pair cannot be told apart."
    )
    text = " ".join(values_of(run)["sentences"])
    assert "We cannot tell Brain study from vit_small: AUROC 0.90, 0.02 above 0.88" in text
    assert "vit_small did better than resnet18: AUROC 0.88, 0.18 above 0.70 (95 % interval 0.10 to 0.30)." in text
    assert "Site by site: they cannot be told apart at A and B." in text
    assert max(map(len, summary_lines(run))) <= 80
    assert "We cannot tell resnet18 from random initialisation (random-resnet18): AUROC 0.70, 0.01 below 0.71" in text
    table = {(row.own, row.other): (row.p, row.adjusted) for row in values_of(run)["comparison_rows"]}
    assert table["Brain study", "resnet18"] == ("0.010", "0.070")  # the smallest of seven


def test_without_a_clear_difference_no_encoder_is_named_first(tmp_path: Path) -> None:
    pairs = [("ours", "vit", 0.05, (-0.01, 0.11))]
    answer = values_of(gathered_run(tmp_path, {"ours": 0.9, "vit": 0.85}, pairs))["answer"]
    assert answer[0].endswith("on unseen patients, not compared with what it started from: Brain study and vit_small.")
    assert answer[1].startswith("Between them we cannot say which is better")


def test_of_a_foreign_encoder_nothing_is_said_to_be_federated(tmp_path: Path) -> None:
    run = gathered_run(tmp_path, {"vit": 0.9, "random": 0.8}, [("vit", "random", 0.1, (0.05, 0.15))])
    page = write_report(run).read_text()
    assert "vit_small did better than random initialisation: AUROC 0.90, 0.10 above 0.80" in page
    assert "ederated" not in page[page.index("<body>") :]
    assert "learning curve" not in page.lower()
    assert "ederated" not in " ".join(summary_lines(run))


def test_less_is_better_turns_the_words(tmp_path: Path) -> None:
    pairs = [("ours", "vit", 1.5, (0.5, 2.5)), ("ours", "random", -2.0, (-3.0, -1.0))]
    run = gathered_run(tmp_path, {"ours": 4.0, "vit": 2.5, "random": 6.0}, pairs, "MAE", "ridge")
    first, second = values_of(run)["answer"]
    assert "better than without pretraining: Brain study" in first
    assert second.startswith("Between them, vit_small did better than Brain study: 1.50 below")


def test_the_mean_over_sites_is_no_site(tmp_path: Path) -> None:
    found = values_of(gathered_run(tmp_path, {"ours": 0.9, "random": 0.8}, []))
    assert [column.name for column in found["site_columns"]] == ["A", "B"]
    assert found["site_rows"][0].mean.value == "0.90"
    assert {(row.site, row.metric) for row in found["result_rows"]} == {
        ("all sites", "AUROC"), ("all sites", "AUROC site mean"), ("A", "AUROC"), ("B", "AUROC"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_is_the_main_figure_of_the_kind(tmp_path: Path, kind: str) -> None:
    config = RunEvaluation(kind=kind)
    names = [metric.name for metric in KINDS[config.kind].metrics(config, ("a", "b"))]
    assert min(reversed(names), key=metric_rank) == main_metric(config, ("a", "b")).name
    for name in names:
        assert metric_rank(name) < 99
    run = gathered_run(tmp_path, {"ours": 0.5}, [], names[0], config.protocols[-1])
    assert main_question(read_run(run)).protocol == config.protocols[-1]


def test_what_sites_measured_themselves_has_a_table(tmp_path: Path) -> None:
    run = gathered_run(tmp_path, {"ours": 0.9, "random": 0.8}, [])
    assert "What the sites measured themselves" not in write_report(run).read_text()
    fixed = {"task": "tumour", "dataset": "labels at the sites", "encoder": "ours", "protocol": "federated logistic",
             "role": "federated", "label_fraction": "1", "seed": "0", "statistic": "estimate",
             "unit": "patient"}  # fmt: skip
    rows = [
        fixed | {"site": "A", "metric": "AUROC", "value": 0.83, "ci_low": 0.7, "ci_high": 0.91, "n": 31},
        fixed | {"site": "all", "statistic": "site mean", "metric": "AUROC", "value": 0.84, "n": 60},
        fixed | {"site": "A", "metric": "F1", "value": 0.5, "n": 31},
    ]
    RESULTS.write(run / "evaluation" / "federated.csv", RESULTS.frame(rows))
    found = values_of(run)["federated_rows"]
    assert [(row.site, row.metric, row.value, row.interval) for row in found] == [
        ("A", "AUROC", "0.83", "0.70 to 0.91"), ("all sites", "AUROC site mean", "0.84", "–"),
    ]  # fmt: skip
    assert "What the sites measured themselves" in write_report(run).read_text()


def test_left_out_copies_are_said_without_a_name(tmp_path: Path) -> None:
    run = gathered_run(tmp_path, {"ours": 0.9}, [])
    copy = {"tested": "secret-7.png", "trained": "secret-8.png", "row": 3}
    record = {"key": "", "folds": [{"fold": 0, "tested": 50, "left_out": [copy]}]}
    (run / "evaluation" / "leaks.json").write_text(json.dumps(record))
    page = write_report(run).read_text()
    assert "Near-copies were left out of the test." in page
    assert "secret" not in page


@pytest.mark.slow
def test_images_are_shown_only_when_asked_for_and_a_card_lies_beside(make_run: Callable[..., Path]) -> None:
    run = make_run(RunEvaluation(protocols=("knn",)))
    evaluate(run, show=False)
    assert "image/png" not in write_report(run).read_text()
    assert (run / "model-card.md").read_text().startswith("# ")
    page = write_report(run, images=True).read_text()
    assert page.count('src="data:image/png') > 4
    assert "They are images of patients" in page
    assert "north-" not in page
