"""The model card: its figures are those of the results, and no site, place or person is named in it."""

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from evaluation.export.markdown import bullets, plain, table
from evaluation.export.model_card import model_card
from evaluation.statistics.results_schema import COMPARISONS, RESULTS
from foundation.errors import RunError
from foundation.files import write_json
from foundation.randomness import seeded_torch
from foundation.tensor_files import save_tensors
from imaging.config import ImageConfig
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder

from ..conftest import role_in

IMAGE = ImageConfig(modality="mri", size=16, channels=1)
ENCODER = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=16, heads=2)
SITES = ("Ashgrove", "Birchwood", "Cedarhill")
SECRETS = (*SITES, "/srv/images", "Jane Doe", "p-0013")
STUDY: dict[str, Any] = {
    "name": "brain", "title": "Brain MRI", "seed": 0, "method": {"name": "mae", "mask_ratio": 0.75, "share": None},
    "training": {"batch": 4, "clip": None}, "algorithm": {"name": "fedprox", "mu": 0.1}, "rounds": {"count": 7},
}  # fmt: skip
SIMULATED = STUDY | {"simulation": {"dataset": "lgg_mri", "root": "/srv/images", "splits": {"left_out": ["Cedarhill"]}}}


def result(encoder: str, value: float, low: float | str = "", high: float | str = "", **other: Any) -> dict[str, Any]:
    row = {
        "task": "tumour", "dataset": "LGG", "encoder": encoder, "role": role_in(encoder), "seed": "0",
        "protocol": "logistic", "label_fraction": "1", "site": "all", "metric": "AUROC", "statistic": "estimate",
        "value": value, "ci_low": low, "ci_high": high, "n": 46, "unit": "patient",
        "interval": "too few patients to say" if low == "" else "",
    }  # fmt: skip
    return row | other


def comparison(other: str, value: float, low: float | str, high: float | str) -> dict[str, Any]:
    return {
        "task": "tumour", "protocol": "logistic", "label_fraction": "1", "metric": "AUROC", "site": "all",
        "encoder_a": "federated", "role_a": "federated", "encoder_b": other, "role_b": role_in(other),
        "value": value, "ci_low": low, "ci_high": high, "p": 0.04, "n": 46, "unit": "patient",
    }  # fmt: skip


def write_arm(run: Path, arm: str, kind: str, title: str, **facts: Any) -> None:
    place = run / "arms" / arm / "fold-0" / "seed-0"
    with seeded_torch(0, arm):
        save_tensors(place / "encoder.safetensors", build_encoder(ENCODER, IMAGE).state_dict())
    described = {
        "arm": arm, "title": title, "kind": kind, "fold": 0, "seed": 0, "encoder": ENCODER.model_dump(mode="json"),
        "image": IMAGE.model_dump(mode="json"), "method": "mae", "training_hash": "c0ffee", "images": 30240,
        "optimiser_steps": 1000, "sequential_steps": 945, "seconds": 183.2,
    }  # fmt: skip
    write_json(place / "encoder.json", described | facts)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A simulated run before evaluation: two sites trained, one was left out; secrets wherever a run has them."""
    folder = tmp_path / "run"
    write_arm(folder, "federated", "federated", "Federated: images stay home")
    write_arm(folder, "local-only-Ashgrove", "local-only", "Ashgrove local-only, same passes")
    write_arm(folder, "random", "random", "Random initialisation: no pretraining", images=0)
    facts = {
        "name": "brain", "title": "Brain MRI", "study_hash": "9f2c", "commit": "4be1d0c", "seed": 0,
        "command": "fedpretext simulate /srv/images/study.yaml", "versions": {"torch": "2.13.0"},
        "machine": {"cores": 2, "gpus": []}, "demonstration": True,
    }  # fmt: skip
    write_json(folder / "run.json", facts)
    (folder / "study.yaml").write_text(yaml.safe_dump(SIMULATED))
    rows = [{"round": r, "site": s, "images": 100 + r, "loss": 1 / r} for r in (1, 2) for s in SITES[:2]]
    rows += [{"round": 2, "event": "site left out", "site": "Birchwood", "reason": "Jane Doe's norm is too large"}]
    place = folder / "arms" / "federated" / "fold-0" / "seed-0"
    (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = [
        {"image": f"/srv/images/{site}/{n}.png", "patient": f"p-00{10 * number + n // 2}", "site": site, "label": "0",
         "fold": "0", "role": "left-out" if site == "Cedarhill" else "test" if n < 2 else "train"}
        for number, site in enumerate(SITES) for n in range(8)
    ]  # fmt: skip
    (folder / "evaluation").mkdir()
    pd.DataFrame(splits).to_csv(folder / "evaluation" / "splits.csv", index=False)
    return folder


@pytest.fixture
def judged(run: Path) -> Path:
    """The same run with results."""
    rows = [
        result("federated", 0.842, 0.79, 0.88), result("random", 0.786, 0.71, 0.84), result("majority", 0.5),
        result("local-only-Ashgrove", 0.829, 0.77, 0.87), result("pixels", 0.813, 0.75, 0.86),
        result("federated", 0.811, 0.70, 0.9, site="Ashgrove", n=22),
        result("federated", 0.777, site="Birchwood", n=6),
        result("federated", 0.755, 0.6, 0.8, site="Cedarhill", n=14),
        result("federated", 0.804, 0.74, 0.85, statistic="site mean", n=28),
        result("federated", 0.655, 0.61, 0.69, metric="F1"), result("federated", 0.733, 0.7, 0.76, protocol="knn"),
        result("federated", 0.52, 0.45, 0.6, protocol="diagnostic", metric="site_leakage"),
    ]  # fmt: skip
    RESULTS.write(run / "results.csv", RESULTS.frame(rows))
    apart = [comparison("random", 0.056, 0.02, 0.09), comparison("local-only-Ashgrove", 0.013, -0.02, 0.05)]
    COMPARISONS.write(run / "comparisons.csv", COMPARISONS.frame(apart))
    titles = {"federated": "Federated: images stay home", "local-only-Ashgrove": "Ashgrove local-only, same passes"}
    write_json(
        run / "arms.json",
        [
            {"arm": arm, "title": title, "kind": role_in(arm), "folds": [0], "seeds": [0]}
            for arm, title in titles.items()
        ],
    )
    return run


def section(card: str, heading: str) -> str:
    return card.split(f"## {heading}\n")[1].split("\n## ")[0]


def rows_of(text: str) -> list[list[str]]:
    """Cells of the tables' rows, heads too."""
    found = [line for line in text.splitlines() if line.startswith("|") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in found]


def test_every_arm_stands_in_the_table_with_its_interval(judged: Path) -> None:
    rows = rows_of(section(model_card(judged), "What it is worth"))
    assert ["**Federated: images stay home**", "0.84", "0.79 to 0.88", "46"] in rows
    assert ["Random initialisation: no pretraining", "0.79", "0.71 to 0.84", "46"] in rows
    assert ["S1 local-only, same passes", "0.83", "0.77 to 0.87", "46"] in rows
    assert any(row[0].startswith("Majority class") and row[1] == "0.50" for row in rows)
    assert any(row[0].startswith("Raw pixels") for row in rows)


def test_differences_are_those_of_this_encoder(judged: Path) -> None:
    against_random = ["Federated minus Random initialisation", "+0.06", "+0.02 to +0.09", "better"]
    against_alone = ["Federated minus S1 local-only", "+0.01", "−0.02 to +0.05", "cannot say"]
    own = rows_of(section(model_card(judged), "What it is worth"))
    assert against_random in own
    assert against_alone in own
    alone = rows_of(section(model_card(judged, "local-only-Ashgrove"), "What it is worth"))
    assert against_alone in alone
    assert against_random not in alone


def test_sites_have_numbers_and_the_one_outside_says_so(judged: Path) -> None:
    rows = rows_of(section(model_card(judged), "What it is worth"))
    assert ["S1", "0.81", "0.70 to 0.90", "22"] in rows
    assert ["S2", "0.78", "no interval: too few patients to say", "6"] in rows
    assert ["S3, took no part in training", "0.76", "0.60 to 0.80", "14"] in rows
    assert ["mean of the sites, by their patients", "0.80", "0.74 to 0.85", "28"] in rows


def test_other_protocols_and_metrics_are_there_once(judged: Path) -> None:
    rows = rows_of(section(model_card(judged), "What it is worth"))
    others = [row for row in rows if len(row) == 7][1:]
    assert [(row[1], row[2], row[3], row[4]) for row in others] == [
        ("logistic probe on frozen features", "100 %", "F1", "0.66"),
        ("k nearest neighbours", "100 %", "AUROC", "0.73"),
        ("diagnostic", "–", "Site leakage", "0.52"),
    ]


@pytest.mark.parametrize("arm", ["federated", "local-only-Ashgrove", "random"])
def test_no_site_place_or_person_is_named(judged: Path, arm: str) -> None:
    card = model_card(judged, arm)
    for secret in SECRETS:
        assert secret.lower() not in card.lower()
    assert str(judged) not in card


def test_the_card_of_a_site_alone_marks_its_own_row(judged: Path) -> None:
    card = model_card(judged, "local-only-Ashgrove")
    assert card.startswith("# Brain MRI: One site, local-only, same passes\n")
    assert ["**S1 local-only, same passes**", "0.83", "0.77 to 0.87", "46"] in rows_of(card)
    assert "took part" not in section(card, "How it was trained")


def test_the_answer_comes_first_and_the_cautions_are_there(judged: Path) -> None:
    card = model_card(judged)
    head = card.split("\n## ")[0]
    assert "> **Not for clinical use.**" in head
    assert "> **A demonstration**" in head
    assert "Pretraining helped: on unseen patients the federated encoder’s AUROC is 0.84, 0.06 above" in head
    cautions = section(card, "What not to conclude")
    for heading in ("One task.", "Few to judge by.", "One training run per arm.", "One hospital outside.",
                    "Not every update was used."):  # fmt: skip
        assert f"- **{heading}**" in cautions


def test_training_data_and_cost_are_told(judged: Path) -> None:
    card = model_card(judged)
    trained = section(card, "How it was trained")
    for line in ("- **Pretext task:** mae; mask ratio 0.75\n", "- **Sites:** 2 took part\n", "- **Rounds:** 7\n",
                 "- **Algorithm:** fedprox; mu 0.1\n", "- **Privacy:** no differential privacy\n",
                 "- **Started from:** random initialisation\n"):  # fmt: skip
        assert line in trained
    assert "Training was not differentially private." in card
    # 6 of each site's 8 images are for training, two a patient; Cedarhill took no part.
    assert "The data set `lgg_mri`, in simulated hospitals. Of it, pretraining may have read 12 images of 6 pat" in card
    cost = section(card, "Cost")
    for line in ("- **Images seen, repeats counted:** 30,240\n", "- **Time:** 3 min\n"):
        assert line in cost
    repeat = section(card, "How to repeat it")
    for fact in ("9f2c", "4be1d0c", "c0ffee", "torch 2.13.0"):
        assert fact in repeat
    study = yaml.safe_load(repeat.split("```yaml\n")[1].split("```")[0])
    assert study["rounds"] == {"count": 7}
    assert "simulation" not in study
    assert study["training"] == {"batch": 4}


def test_of_hospitals_only_counts_are_known_and_only_if_all_tell(run: Path) -> None:
    (run / "study.yaml").write_text(yaml.safe_dump(STUDY | {"secure_aggregation": {"largest_value": 1.0}}))
    card = model_card(run)
    assert "Images of the hospitals that took part, 204 together. They never left the hospitals" in card  # 102 each
    assert "- **Privacy:** no differential privacy; the server saw sums of updates, no single one\n" in card
    metrics = run / "arms" / "federated" / "fold-0" / "seed-0" / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + json.dumps({"round": 2, "site": "Cedarhill"}) + "\n")
    assert "took part; how many, not all of them tell." in model_card(run)


PROMISE = {"unit": "patient", "epsilon": 8.0, "delta": 1e-5, "spent": 7.981, "spent_by": "Cedarhill", "trainings": 1,
           "meaning": ["The odds change by 2,981."], "not_covered": ["labels", "tuning"]}  # fmt: skip


def test_a_private_study_tells_promise_spending_and_what_is_not_covered(judged: Path) -> None:
    (judged / "study.yaml").write_text(yaml.safe_dump(STUDY | {"privacy": {"unit": "patient", "epsilon": 8.0}}))
    assert "- **Privacy:** promised in the study; what came of it is not on record\n" in model_card(judged)
    (judged / "privacy.json").write_text(json.dumps(PROMISE))
    card = model_card(judged)
    line = "epsilon 8 at delta 1e-05 for each patient with all images; spent 7.98"
    assert f"- **Privacy:** {line}\n" in section(card, "How it was trained")
    use = section(card, "What it is for")
    assert f"Promised: {line}. The odds change by 2,981. Not covered: labels. Not covered: tuning." in use
    assert "Cedarhill" not in use  # whose ledger it was
    (judged / "privacy.json").write_text(json.dumps(PROMISE | {"spent": None, "trainings": 3, "unit": "site"}))
    answer = "for each hospital with all it has; spent is told by the hospitals' ledgers, of one training; there are 3"
    assert answer in model_card(judged)


def test_the_promise_is_about_the_federated_encoder_only(judged: Path) -> None:
    (judged / "study.yaml").write_text(yaml.safe_dump(STUDY | {"privacy": {"unit": "patient", "epsilon": 8.0}}))
    (judged / "privacy.json").write_text(json.dumps(PROMISE))
    card = model_card(judged, "local-only-Ashgrove")
    assert "epsilon 8" not in card
    assert "about its federated encoder, and not about this one" in card


def test_a_run_without_evaluation_says_that_nothing_is_known(run: Path) -> None:
    card = model_card(run)
    assert "**In short.** Nothing is known of what this encoder is worth" in card
    assert "What not to conclude" not in card


def test_an_untrained_arm_says_so(judged: Path) -> None:
    card = model_card(judged, "random")
    assert "It was not pretrained in this run" in section(card, "How it was trained")
    assert "No image of this run was used to train it." in section(card, "On what")


def test_a_folder_with_nothing_but_encoders_has_a_card(run: Path) -> None:
    for name in ("run.json", "study.yaml"):
        (run / name).unlink()
    card = model_card(run)
    assert "The folder does not say what it was pretrained on." in card
    assert "Whether training was differentially private is not on record." in card
    assert "Started from" not in card
    assert card.startswith("# vit_tiny_patch16_224: Federated: images stay home\n")


def test_a_hostile_title_is_text(run: Path) -> None:
    hostile = "<script>x</script> [a](http://b) ![c](d)\n# e | f `g`"
    write_json(run / "run.json", {"title": hostile})
    line = model_card(run).splitlines()[0]
    assert not re.search(r"(?<!\\)[\[\]<>|`]", line)
    assert model_card(run).splitlines()[2].startswith("> **Not for clinical use.**")


def test_the_same_run_gives_the_same_card(judged: Path) -> None:
    assert model_card(judged) == model_card(judged)


def test_an_encoder_that_is_not_there_is_one_line(run: Path) -> None:
    with pytest.raises(RunError, match="has no arm 'centralised'; there are: federated, local-only-Ashgrove, random"):
        model_card(run, "centralised")


def test_the_code_in_the_runs_card_loads_the_encoder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run / "arms" / "federated" / "fold-0" / "seed-0")
    load, prepare = re.findall(r"```python\n(.*?)```", model_card(run), flags=re.S)
    names: dict[str, Any] = {}
    exec(f"{prepare}\npixels = np.ones((1, 20, 30), np.float32)\n{load}", names)
    assert names["features"].shape == (1, 16)


def test_markdown_is_what_it_says() -> None:
    assert plain("a | <b>\n[c](d) \\ `e`") == "a \\| \\<b\\> \\[c\\](d) \\\\ \\`e\\`"
    assert bullets([("a", "1"), ("b", "")]) == "- **a:** 1"
    assert table(["x", "y"], [["1", "2"]]) == "| x | y |\n| --- | --- |\n| 1 | 2 |"
