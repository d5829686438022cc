"""The stage end to end on small run folders of untrained encoders, and what it says of bad ones."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import evaluation.features as features
import evaluation.scoring as scoring
from evaluation.config import RunEvaluation
from evaluation.inputs import read_inputs
from evaluation.report.page import page_values
from evaluation.report.run_folder import read_run
from evaluation.stage import evaluate
from evaluation.statistics.results_schema import COMPARISONS, RESULTS
from foundation.errors import DataError, RunError, StudyError
from imaging.listing.manifest import Manifest

MakeRun = Callable[..., Path]
Evaluated = Callable[[int], tuple[Path, pd.DataFrame]]


def test_end_to_end(make_run: MakeRun) -> None:
    config = RunEvaluation(
        task="square",
        dataset="noise",
        protocols=("knn", "logistic", "finetune"),
        label_fractions=(0.1, 0.6, 1.0),
        shots=(2,),
        finetune={"epochs": 1},
    )
    run = make_run(config, arms=[("random", "random"), ("federated", "federated"), ("local-only-north", "local-only")])
    table = evaluate(run, show=False)
    assert tuple(table.columns) == RESULTS.columns
    assert set(table["task"]) == {"square"}
    assert set(table["encoder"]) == {"random", "federated", "local-only-north", "supervised", "pixels", "majority"}
    assert set(table.loc[table["encoder"] == "supervised", "protocol"]) == {"finetune"}
    assert "finetune" not in set(table.loc[table["encoder"] == "random", "protocol"])
    assert set(table["site"]) == {"all", "north", "south", "away"}
    skipped = table[table["statistic"] == "skipped"]
    assert set(skipped["label_fraction"]) == {"0.1"}
    assert skipped["value"].isna().all()
    roles = dict(zip(table["encoder"], table["role"], strict=True))
    assert (roles["local-only-north"], roles["supervised"], roles["pixels"]) == ("local-only", "supervised", "pixels")
    main = table[(table["label_fraction"] == "1") & (table["protocol"] == "logistic")]
    main = main[main["statistic"] == "estimate"].set_index(["encoder", "site", "metric"])
    assert main.loc[("pixels", "all", "AUROC"), "value"] > 0.95
    assert main.loc[("majority", "all", "AUROC"), "value"] == 0.5
    assert main.loc[("federated", "north", "AUROC"), "interval"] == "too few patients to say"
    assert main.loc[("federated", "all", "AUROC"), "interval"] == "jackknife, logit scale"
    assert main.loc[("federated", "all", "AUROC"), "ci_low"] < main.loc[("federated", "all", "AUROC"), "ci_high"]
    metrics = {"RankMe", "feature_std", "uniformity", "alignment", "site_leakage"}
    assert set(table.loc[table["protocol"] == "diagnostic", "metric"]) == metrics
    written = pd.read_csv(run / "results.csv", keep_default_na=False, dtype=str)
    assert len(written) == len(table)
    described = json.loads((run / "results.json").read_text())
    assert described["classes"] == ["0", "1"]
    assert len(described["results"]) == len(table)


def test_with_starting_weights_the_supervised_arm_starts_from_them(make_run: MakeRun) -> None:
    """The fair competitor: fine-tuned once a fold in any case; random weights only where the protocol is asked for."""
    arms = [("random", "random"), ("pretrained-init", "pretrained-init"), ("federated", "federated")]
    first = evaluate(make_run(RunEvaluation(protocols=("knn",)), arms=arms, seeds=2), show=False)
    assert set(first["encoder"]) == {"random", "pretrained-init", "federated", "supervised", "pixels", "majority"}
    assert set(first.loc[first["protocol"] == "finetune", "encoder"]) == {"supervised"}
    run = make_run(RunEvaluation(protocols=("finetune",)), arms=arms)
    asked = evaluate(run, show=False)
    assert set(asked.loc[asked["protocol"] == "finetune", "encoder"]) == {"supervised", "random", "federated"}
    scores = pd.read_csv(run / "evaluation" / "scores.csv")
    assert len(scores[scores["encoder"] == "supervised"]) == len(scores[scores["encoder"] == "random"])
    pairs = pd.read_csv(run / "comparisons.csv")
    assert set(pairs["encoder_b"]) == {"supervised", "random", "pixels", "majority"}


def test_comparisons_are_of_the_same_patients(evaluated: Evaluated) -> None:
    run, table = evaluated(1)
    apart = pd.read_csv(run / "comparisons.csv", keep_default_na=False)
    assert tuple(apart.columns) == COMPARISONS.columns
    assert set(apart["site"]) == {"all", "north", "south", "away", "left-out"}
    assert set(apart["encoder_b"]) == {"random", "pixels", "majority", "supervised"}
    main = table[(table["metric"] == "AUROC") & (table["protocol"] == "logistic") & (table["seed"] == "0")]
    main = main[main["statistic"] == "estimate"]
    value = main.set_index(["encoder", "site"])["value"]
    row = apart[(apart["protocol"] == "logistic") & (apart["encoder_b"] == "random")].set_index("site")
    for site in ("all", "north", "away"):
        expected = value["federated", site] - value["random", site]
        assert row.loc[site, "value"] == pytest.approx(expected)
    assert float(row.loc["all", "ci_low"]) < row.loc["all", "value"] < float(row.loc["all", "ci_high"])


def test_scores_are_of_held_images_only(evaluated: Evaluated) -> None:
    run, _ = evaluated(3)
    scores = pd.read_csv(run / "evaluation" / "scores.csv")
    assert set(scores["role"]) == {"test", "left-out"}
    splits = pd.read_csv(run / "evaluation" / "splits.csv").set_index(["fold", "image"])["role"]
    found = [splits[row.fold, row.image] for row in scores.itertuples()]
    assert found == scores["role"].tolist()


def test_folds_are_averaged_and_every_patient_tested_once(evaluated: Evaluated) -> None:
    run, table = evaluated(3)
    row = table[(table["encoder"] == "federated") & (table["protocol"] == "logistic") & (table["metric"] == "AUROC")]
    row = row[row["statistic"] == "estimate"].set_index("site")
    assert row.loc["all", "n"] == 28
    scores = pd.read_csv(run / "evaluation" / "scores.csv")
    own = scores[(scores["encoder"] == "federated") & (scores["protocol"] == "logistic")]
    folds = []
    for _, part in own[own["role"] == "test"].groupby("fold"):
        high, low = (part.loc[part["label"] == k, "score_1"].to_numpy() for k in (1, 0))
        folds.append(((high[:, None] > low).mean() + (high[:, None] >= low).mean()) / 2)
    assert row.loc["all", "value"] == pytest.approx(np.mean(folds))
    away = []
    for _, part in own[own["role"] == "left-out"].groupby("fold"):
        high, low = (part.loc[part["label"] == k, "score_1"].to_numpy() for k in (1, 0))
        away.append(((high[:, None] > low).mean() + (high[:, None] >= low).mean()) / 2)
    assert row.loc["away", "value"] == pytest.approx(np.mean(away))


def test_training_seeds_are_shown_apart(make_run: MakeRun) -> None:
    run = make_run(seeds=3)
    table = evaluate(run, ["logistic"], show=False)
    own = table[(table["encoder"] == "federated") & (table["site"] == "all")]
    spread = own[own["statistic"] == "seed sd"].set_index("metric")["value"]
    auroc = own[(own["metric"] == "AUROC") & (own["statistic"] == "estimate")].set_index("seed")["value"]
    assert set(auroc.index) == {"all", "0", "1", "2"}
    single = auroc[["0", "1", "2"]].to_numpy()
    assert auroc["all"] == pytest.approx(single.mean())
    assert spread["AUROC"] == pytest.approx(single.std(ddof=1))


@pytest.mark.slow
def test_seeds_on_the_first_fold_only(make_run: MakeRun) -> None:
    """The figure is of the seed that has every fold, the spread of what all seeds have."""
    run = make_run(folds=3, seeds=2)
    for arm in ("random", "federated"):
        for fold in (1, 2):
            shutil.rmtree(run / "arms" / arm / f"fold-{fold}" / "seed-1")
    table = evaluate(run, ["knn"], show=False)
    own = table[(table["encoder"] == "federated") & (table["protocol"] == "knn") & (table["site"] == "all")]
    own = own[own["metric"] == "AUROC"].set_index("statistic")
    assert (own.loc["estimate", "seed"], own.loc["estimate", "n"]) == ("0", 28)
    assert own.loc["seed sd", "interval"].endswith("fold 0")
    assert (own.loc["seed sd", "unit"], own.loc["seed sd", "n"]) == ("training seed", 2)


def test_a_second_call_computes_nothing(evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    run, first = evaluated(1)

    def refuse(*_: object) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(features, "_extract", refuse)
    monkeypatch.setattr(scoring, "logistic_scores", refuse)
    monkeypatch.setattr(scoring, "frame_of", refuse)
    pd.testing.assert_frame_equal(evaluate(run, show=False), first)


def test_a_second_call_with_another_protocol_adds_its_rows(make_run: MakeRun) -> None:
    run = make_run()
    evaluate(run, ["knn"], show=False)
    places = [run / name for name in ("results.csv", "comparisons.csv", "evaluation/scores.csv")]
    before = [set(place.read_text().splitlines()) for place in places]
    both = evaluate(run, ["logistic"], show=False)
    assert {"knn", "logistic"} <= set(both["protocol"])
    assert not both.duplicated().any()
    after = [place.read_text().splitlines() for place in places]
    for earlier, lines in zip(before, after, strict=True):
        assert earlier <= set(lines)
        assert len(lines) == len(set(lines))
    again = evaluate(run, ["logistic"], show=False)
    pd.testing.assert_frame_equal(again, both)
    assert [place.read_text().splitlines() for place in places] == after
    pd.testing.assert_frame_equal(RESULTS.read(run / "results.csv"), both)
    assert len(json.loads((run / "results.json").read_text())["results"]) == len(both)
    assert {"knn", "logistic"} <= {row.protocol for row in page_values(read_run(run))["result_rows"]}


def test_rows_of_other_labels_do_not_stay(make_run: MakeRun) -> None:
    run = make_run()
    evaluate(run, ["knn"], show=False)
    path = run / "evaluation" / "manifest.csv"
    manifest = Manifest.read(path)
    manifest.table["label"] = 1 - manifest.table["label"]
    manifest.write(path)
    assert "knn" not in set(evaluate(run, ["logistic"], show=False)["protocol"])


@pytest.mark.slow
def test_a_planted_test_patient_changes_nobody_elses_score(make_run: MakeRun) -> None:
    """One test patient's images become white and its labels turn over: no other image's score moves."""
    run = make_run(RunEvaluation(protocols=("knn", "logistic", "finetune"), finetune={"epochs": 1}))
    evaluate(run, show=False)
    before = pd.read_csv(run / "evaluation" / "scores.csv")
    marker = before.loc[before["role"] == "test", "patient"].iloc[0]
    path = run / "evaluation" / "manifest.csv"
    manifest = Manifest.read(path)
    mine = manifest.table["patient"] == marker
    for image in manifest.table.loc[mine, "image"]:
        np.save(image, np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16))
    manifest.table.loc[mine, "label"] = 1 - manifest.table.loc[mine, "label"]
    manifest.write(path)
    evaluate(run, show=False)
    after = pd.read_csv(run / "evaluation" / "scores.csv")
    others = before["patient"] != marker
    assert (before.loc[~others, "score_1"] != after.loc[~others, "score_1"]).any()
    pd.testing.assert_frame_equal(before[others], after[others])


def test_clusters_are_said_beside_every_figure(make_run: MakeRun) -> None:
    run = make_run(RunEvaluation(unit="image cluster"))
    table = evaluate(run, ["knn"], show=False)
    assert set(table.loc[table["statistic"] == "estimate", "unit"]) == {"image cluster"}


def change_labels(run: Path, label: object) -> None:
    path = run / "evaluation" / "manifest.csv"
    table = pd.read_csv(path)
    table["label"] = label
    table.to_csv(path, index=False)


def drop_encoders(run: Path) -> None:
    shutil.rmtree(run / "arms")


def drop_splits(run: Path) -> None:
    (run / "evaluation" / "splits.csv").unlink()


def cut_encoder(run: Path) -> None:
    path = run / "arms" / "random" / "fold-0" / "seed-0" / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[:100])


def misspell(run: Path) -> None:
    path = run / "evaluation" / "config.json"
    path.write_text(path.read_text().replace('"label_seeds"', '"label_seedz"'))


def two_roles(run: Path) -> None:
    path = run / "evaluation" / "splits.csv"
    splits = pd.read_csv(path)
    splits.loc[splits["patient"] == "north-1", "role"] = ["train", "test", "test"]
    splits.to_csv(path, index=False)


def no_validation(run: Path) -> None:
    path = run / "evaluation" / "splits.csv"
    splits = pd.read_csv(path)
    splits["role"] = splits["role"].replace("validation", "train")
    splits.to_csv(path, index=False)


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (drop_encoders, RunError, "holds no trained encoder under arms/"),
        (drop_splits, RunError, "splits.csv: is missing"),
        (cut_encoder, RunError, "encoder.safetensors: is damaged"),
        (misspell, RunError, "label_seedz"),
        (two_roles, DataError, "patient 'north-1' is in"),
        (no_validation, DataError, "fold 0 has no labelled validation image"),
        (lambda run: change_labels(run, 1), DataError, "all 117 labelled images have label '1'"),
        (lambda run: change_labels(run, ""), DataError, "no image has a 'label'"),
        (lambda run: change_labels(run, np.arange(117) / 7), DataError, "117 different values"),
        (lambda run: shutil.rmtree(run), RunError, "there is no such run folder"),
    ],
)
def test_bad_input_is_one_line(
    make_run: MakeRun, spoil: Callable[[Path], None], error: type[Exception], says: str
) -> None:
    run = make_run()
    spoil(run)
    with pytest.raises(error) as caught:
        evaluate(run, show=False)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_protocol_and_label_are_named(make_run: MakeRun) -> None:
    with pytest.raises(StudyError, match="did you mean 'logistic'"):
        evaluate(make_run(), ["logistik"], show=False)
    with pytest.raises(DataError, match="did you mean 'label'"):
        read_inputs(make_run(RunEvaluation(label="labell")), show=False)


def test_three_classes(make_run: MakeRun) -> None:
    run = make_run(RunEvaluation(protocols=("logistic",)))
    change_labels(run, [f"kind {i % 3}" for i in range(117)])
    table = evaluate(run, show=False)
    own = table[(table["encoder"] == "majority") & (table["site"] == "all") & (table["statistic"] == "estimate")]
    own = own.set_index("metric")["value"]
    assert own["AUROC"] == 0.5
    assert own["balanced_accuracy"] == pytest.approx(1 / 3)
    path = run / "evaluation" / "config.json"
    path.write_text(path.read_text().replace('"positive": null', '"positive": "kind 1"'))
    with pytest.raises(DataError, match="does nothing with 3 classes"):
        evaluate(run, show=False)


def test_the_positive_class_comes_last(make_run: MakeRun) -> None:
    assert read_inputs(make_run(), show=False).images.classes == ("0", "1")
    assert read_inputs(make_run(RunEvaluation(positive="0")), show=False).images.classes == ("1", "0")
