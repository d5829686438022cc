"""The report: its sentences follow the intervals, its figures are those of results.csv, and it opens from disk."""

import base64
import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.report.answers import verdict_of
from evaluation.report.feature_map import principal_components, scatter_panels
from evaluation.report.forest import ForestItem, forest, nice_ticks
from evaluation.report.page import write_report
from evaluation.report.sentences import Verdict
from evaluation.report.summary import summary_lines
from evaluation.statistics.metric_values import MetricValue, digits_for, fraction_size, fraction_title, number
from evaluation.statistics.results_schema import COMPARISONS, RESULTS, Statistic
from foundation.errors import RunError

Interval = tuple[float, float] | None
HOSTILE = "<script>alert('x')</script>"
VALUES = {
    "federated": 0.842,
    "random": 0.786,
    "local-only-DU": 0.829,
    "centralised": 0.851,
    "pixels": 0.813,
    "majority": 0.5,
}
ROLES = {"local-only-DU": "local-only"}
SITES = {"all": 46, "DU": 22, "HT": 12, "FG": 6, "CS": 26}


def result(encoder: str, value: float, bounds: Interval = (0.7, 0.9), **other: Any) -> dict[str, Any]:
    low, high = bounds or ("", "")
    row = {
        "task": "tumour in slice", "dataset": "LGG", "encoder": encoder, "role": ROLES.get(encoder, encoder),
        "protocol": "logistic", "label_fraction": "1", "site": "all", "seed": "0", "metric": "AUROC",
        "statistic": "estimate", "value": value, "ci_low": low, "ci_high": high, "n": 46, "unit": "patient",
        "interval": "" if bounds else "too few patients to say", "note": "",
    }  # fmt: skip
    return row | other


def comparison(other: str, value: float, interval: Interval, **more: Any) -> dict[str, Any]:
    low, high = interval or ("", "")
    chance = "" if not interval else 0.2 if interval[0] <= 0 <= interval[1] else 0.01
    row = {
        "task": "tumour in slice", "protocol": "logistic", "label_fraction": "1", "metric": "AUROC", "site": "all",
        "encoder_a": "federated", "role_a": "federated", "encoder_b": other, "role_b": ROLES.get(other, other),
        "value": value, "ci_low": low, "ci_high": high, "p": chance, "n": 46, "unit": "patient",
        "interval": "" if interval else "too few patients to say",
    }  # fmt: skip
    return row | more


def write_rows(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as handle:
        writer = csv.DictWriter(handle, columns)
        writer.writeheader()
        writer.writerows(rows)


def bare_run(run: Path, results: list[dict[str, Any]], comparisons: list[dict[str, Any]] | None = None) -> Path:
    """A run folder with results, and comparisons if given, and nothing else."""
    run.mkdir(exist_ok=True)
    RESULTS.write(run / "results.csv", RESULTS.frame(results))
    if comparisons is not None:
        COMPARISONS.write(run / "comparisons.csv", COMPARISONS.frame(comparisons))
    return run


def full_run(run: Path, demonstration: bool = True) -> Path:
    """Every file the report reads: three sites and one left out, two label fractions, two protocols, one skip."""
    rows = []
    for name, value in VALUES.items():
        for site, n in SITES.items():
            few = n < 10
            here = value - 0.01 * list(SITES).index(site)
            rows.append(result(name, here, None if few else (here - 0.04, here + 0.03), site=site, n=n))
        rows.append(result(name, value - 0.1, label_fraction="0.1"))
        rows.append(result(name, value - 0.2, metric="ECE"))
        rows.append(
            result(
                name,
                float("nan"),
                None,
                label_fraction="0.01",
                n=0,
                statistic="skipped",
                interval="1 of 74 training patients",
            )
        )
    rows.append(result("supervised", 0.805, protocol="finetune"))
    rows.append(result("federated", 0.777, protocol="knn"))
    rows.append(result("federated", 0.52, (0.45, 0.6), protocol="diagnostic", metric="site_leakage"))
    differences = [
        comparison(name, 0.842 - value, (0.02, 0.09)) for name, value in VALUES.items() if name != "federated"
    ]
    bare_run(run, rows, [*differences, comparison("random", 0.06, (-0.01, 0.13), site="CS", n=26)])
    arms = [
        {"arm": "federated", "title": "Federated: images stay home", "kind": "federated", "images": 30240},
        {"arm": "centralised", "title": "Pooled: one place, same passes", "kind": "centralised", "images": 30240},
        {"arm": "local-only-DU", "title": "DU alone, same passes", "kind": "local-only", "images": 30208},
        {"arm": "random", "title": "Random initialisation: no pretraining", "kind": "random", "images": 0},
    ]
    more = {
        "folds": [0],
        "seeds": [0],
        "optimiser_steps": 1000,
        "sequential_steps": 945,
        "passes": 560.0,
        "seconds": 183.2,
    }
    (run / "arms.json").write_text(json.dumps([arm | more for arm in arms]))
    facts = {
        "name": "brain", "title": "Brain MRI at three hospitals", "demonstration": demonstration, "seed": 0,
        "study_hash": "9f2c", "started": "2026-01-01", "finished": "2026-01-02", "commit": "4be1d0c",
        "versions": {"torch": "2.13.0"}, "machine": {"cores": 2, "gpus": []},
        "command": "fedpretext simulate brain.yaml",
    }  # fmt: skip
    (run / "run.json").write_text(json.dumps(facts))
    (run / "study.yaml").write_text("name: brain\nmethod: {name: mae, mask_ratio: 0.75}\nrounds: {count: 3}\n")
    splits = [
        {"image": f"{site}/{patient}-{i}.png", "patient": f"{site}{patient}", "site": site, "label": i, "fold": 0,
         "role": "left-out" if site == "CS" else ("train", "validation", "test")[patient % 3]}
        for site in ("DU", "HT", "FG", "CS") for patient in range(9) for i in range(2)
    ]  # fmt: skip
    write_rows(run / "evaluation" / "splits.csv", ("image", "patient", "site", "label", "fold", "role"), splits)
    metrics = run / "arms" / "federated" / "fold-0" / "seed-0" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    losses = [{"round": r, "site": s, "loss": 1 / r, "images": 18} for r in (1, 2, 3) for s in ("DU", "HT", "FG")]
    events = [{"round": 2, "event": "site left out", "site": "FG", "reason": "norm 83 is 112 times the median"}]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in [*losses, *events]) + '{"round": 3, "si')
    for entry in ("one", "two"):
        skipped = run / "store" / entry / "skipped.csv"
        write_rows(
            skipped, ("image", "slice", "reason"), [{"image": "/elsewhere/DU/4-1.png", "slice": "", "reason": "cut"}]
        )
    return run


def text_of(page: Path) -> str:
    """What a reader sees: no tags, no styles, single spaces."""
    body = re.sub(r"<(style|title)>.*?</\1>", "", page.read_text(), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).replace("\u00a0", " ").split())


def report_text(run: Path) -> str:
    return text_of(write_report(run))


class Elements(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements(page: Path) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(page.read_text())
    return parser.found


# The answer.


@pytest.mark.parametrize(
    ("value", "interval", "sentence"),
    [
        (0.052, (0.021, 0.094), "Pretraining helped: on unseen patients the federated encoder’s AUROC is "
         "0.84, 0.05 above random initialisation (95 % interval 0.02 to 0.09)."),
        (0.012, (-0.03, 0.051), "We cannot say whether pretraining helped: on unseen patients the federated "
         "encoder’s AUROC is 0.84, 0.01 above random initialisation (95 % interval of the difference −0.03 to 0.05, "
         "so there may be none; one of 0.06 would be found four times in five)."),
        (-0.052, (-0.094, -0.021), "Pretraining made it worse: on unseen patients the federated encoder’s "
         "AUROC is 0.84, 0.05 below random initialisation (95 % interval of the difference −0.09 to −0.02)."),
        (0.052, None, "We cannot say whether pretraining helped: on unseen patients the federated encoder’s "
         "AUROC is 0.84, 0.05 above random initialisation, with no interval: too few patients to say."),
    ],
    ids=["helped", "cannot say", "worse", "no interval"],
)  # fmt: skip
def test_the_answer_follows_the_interval(tmp_path: Path, value: float, interval: Interval, sentence: str) -> None:
    run = bare_run(tmp_path, [result("federated", 0.842)], [comparison("random", value, interval)])
    text = report_text(run)
    assert sentence in text
    openings = (
        "Pretraining helped:",
        "We cannot say whether pretraining",
        "Pretraining made it worse",
    )
    assert [opening for opening in openings if opening in text] == [o for o in openings if sentence.startswith(o)]
    assert sentence in " ".join(summary_lines(run))


@pytest.mark.parametrize(
    ("other", "interval", "opening"),
    [
        ("pixels", (-0.09, -0.02), "Simple pixels do better: a logistic regression on raw pixels"),
        ("pixels", (-0.02, 0.05), "We cannot tell it from simple pixels: a logistic regression on raw pixels"),
        ("pixels", (0.02, 0.09), "It does better than simple pixels:"),
        (
            "local-only-DU",
            (-0.09, -0.02),
            "Training together did harm: against each site on its own the federated encoder is worse than "
            "local-only-DU.",
        ),
        ("local-only-DU", (-0.02, 0.05), "the federated encoder is not to be told apart from local-only-DU."),
        (
            "centralised",
            (-0.09, -0.02),
            "Centralised training did better: the federated encoder is 0.03 below",
        ),
        ("supervised", (-0.09, -0.02), "It did worse than supervised training from scratch with the same labels:"),
        ("majority", (-0.02, 0.05), "We cannot tell it from always answering the majority class:"),
    ],
)
def test_unflattering_comparisons_are_stated_as_plainly_as_others(
    tmp_path: Path, other: str, interval: tuple[float, float], opening: str
) -> None:
    middle = -0.03 if interval[1] < 0 else 0.03
    rows = [result("federated", 0.8), result(other, 0.8 - middle)]
    text = report_text(
        bare_run(tmp_path, rows, [comparison("random", 0.1, (0.05, 0.2)), comparison(other, middle, interval)])
    )
    assert opening in text
    assert "0.03" in text[text.index(opening) :]


@pytest.mark.parametrize(
    ("interval", "opening"),
    [
        ((0.01, 0.05), "Pretraining helped: on unseen patients the federated encoder’s AUROC is 0.80, 0.03 above the "),
        ((-0.02, 0.05), "We cannot say whether pretraining helped: on unseen patients"),
        ((-0.09, -0.02), "Pretraining made it worse: on unseen patients the federated encoder’s AUROC is 0.80, 0.03 b"),
    ],
)
def test_with_starting_weights_the_answer_is_what_pretraining_added_to_them(
    tmp_path: Path, interval: tuple[float, float], opening: str
) -> None:
    """That the encoder beats random initialisation is the starting weights' doing as well: it comes after."""
    middle = -0.03 if interval[1] < 0 else 0.03
    rows = [result("federated", 0.8), result("pretrained-init", 0.8 - middle), result("random", 0.6)]
    rows.append(result("supervised", 0.7, protocol="finetune"))
    apart = [comparison("pretrained-init", middle, interval), comparison("random", 0.2, (0.1, 0.3))]
    text = report_text(bare_run(tmp_path, rows, [*apart, comparison("supervised", 0.1, (0.05, 0.2))]))
    assert opening in text
    assert "the weights it started from" in text[text.index(opening) :][:200]
    assert "It did better than random initialisation: 0.20 above 0.60" in text
    assert "above random initialisation (" not in text
    assert "It did better than supervised training from the same starting weights with the same labels: 0.10" in text
    assert "Supervised from the starting weights" in text


def test_a_left_out_site_gets_its_own_answer(tmp_path: Path) -> None:
    text = report_text(full_run(tmp_path))
    assert (
        "At CS, which took no part in training, we cannot say whether pretraining helped: on unseen patients "
        "the federated encoder’s AUROC is 0.80, 0.06 above random initialisation" in text
    )


def test_without_a_comparison_nothing_is_claimed(tmp_path: Path) -> None:
    text = report_text(bare_run(tmp_path, [result("federated", 0.9), result("random", 0.5)]))
    assert "this run holds no comparison of the federated encoder with random initialisation." in text
    assert "Its AUROC on unseen patients is 0.90." in text
    assert "Pretraining helped" not in text


@given(
    low=st.floats(-1, 1), width=st.floats(0, 1), value=st.floats(-1, 1), less=st.booleans()
)  # fmt: skip
def test_verdicts_are_symmetric_and_agree_with_what_is_printed(
    low: float, width: float, value: float, less: bool
) -> None:
    figure, mirror = MetricValue(value, low, low + width), MetricValue(-value, -low - width, -low)
    opposite = {Verdict.BETTER: Verdict.WORSE, Verdict.WORSE: Verdict.BETTER, Verdict.UNCLEAR: Verdict.UNCLEAR}
    assert verdict_of(mirror, less) is opposite[verdict_of(figure, less)]
    printed = [float(f"{bound:.3f}") for bound in (low, low + width)]
    assert (verdict_of(figure) is Verdict.UNCLEAR) == (printed[0] <= 0 <= printed[1])


def test_the_main_question_is_the_probe_with_all_labels_not_the_nearest_neighbours(tmp_path: Path) -> None:
    rows = [
        result("federated", 0.91, protocol="knn"), result("federated", 0.65, metric="F1"),
        result("federated", 0.71, label_fraction="0.1"), result("federated", 0.84),
    ]  # fmt: skip
    differences = [
        comparison("random", 0.5, (0.4, 0.6), protocol="knn"),
        comparison("random", 0.3, (0.2, 0.4), label_fraction="0.1"),
        comparison("random", 0.01, (-0.1, 0.1)),
    ]  # fmt: skip
    assert "We cannot say whether pretraining helped" in report_text(bare_run(tmp_path, rows, differences))


# The page.


def test_the_banner_of_a_demonstration_stands_before_the_answer(tmp_path: Path) -> None:
    text = report_text(full_run(tmp_path / "demo"))
    assert text.index("This is a demonstration: one pretraining seed;") < text.index("Pretraining helped")
    assert "demonstration" not in report_text(full_run(tmp_path / "real", demonstration=False)).lower()


def test_clusters_as_units_are_said_on_top_and_in_the_answer(tmp_path: Path) -> None:
    unit = {"unit": "image cluster"}
    run = bare_run(tmp_path, [result("federated", 0.8, **unit)], [comparison("random", 0.1, (0.05, 0.2), **unit)])
    text = report_text(run)
    assert text.index("Unit: image cluster, interval optimistic.") < text.index("on unseen image clusters")
    assert "The intervals are optimistic." in text


def test_everything_but_results_may_be_missing_and_is_then_named(tmp_path: Path) -> None:
    text = report_text(bare_run(tmp_path, [result("federated", 0.8)]))
    for name in ("comparisons.csv", "run.json", "study.yaml", "arms.json", "evaluation/splits.csv", "metrics.jsonl"):
        assert name in text
    full = report_text(full_run(tmp_path / "full"))
    assert "not on record" not in full
    assert "Parts of the record are missing" not in full


def test_losses_that_sites_keep_are_no_missing_file(tmp_path: Path) -> None:
    """A site's policy may tell no figure of its rounds; the file is there all the same."""
    run = full_run(tmp_path)
    (run / "arms" / "federated" / "fold-0" / "seed-0" / "metrics.jsonl").write_text('{"round": 1, "site": "DU"}\n')
    text = report_text(run)
    assert "or its sites keep their losses to themselves" in text
    assert "Parts of the record are missing" not in text


def test_without_results_one_line_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        RunError, match=r"results\.csv: is missing, so there is nothing to report; run `fedpretext evaluate`"
    ):
        write_report(tmp_path)
    (tmp_path / "results.csv").write_text("encoder,value\nfederated,0.8\n")
    with pytest.raises(RunError, match="lacks the column task, dataset, role, protocol"):
        write_report(tmp_path)


def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    page = write_report(full_run(tmp_path))
    found = elements(page)
    assert not {tag for tag, _ in found} & {"script", "link", "iframe", "object", "embed", "base"}
    addresses = [
        value or ""
        for _, attributes in found
        for name, value in attributes.items()
        if name in ("src", "href", "srcset")
    ]
    assert addresses
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in addresses)
    assert not re.search(r"url\(|@import", page.read_text())
    drawn = [base64.b64decode(a.partition(",")[2]).decode() for a in addresses if a.startswith("data:")]
    assert all(not re.search(r'(?:href|src)="(?!#|data:)', image) for image in drawn)


def test_images_have_words_and_tables_have_headers(tmp_path: Path) -> None:
    found = elements(write_report(full_run(tmp_path)))
    images = [attributes for tag, attributes in found if tag == "img"]
    assert len(images) == 4  # three learning curves, one label-efficiency curve
    assert all(attributes["alt"] for attributes in images)
    assert "Pretraining loss at DU: 1 in round 1, 0.333 in round 3." in {attributes["alt"] for attributes in images}
    assert all("scope" in attributes for tag, attributes in found if tag == "th")


def test_a_hostile_title_is_text(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    arm = {"arm": "random", "title": HOSTILE, "kind": "random", "folds": [0], "seeds": [0]}
    (run / "arms.json").write_text(json.dumps([arm]))
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(facts | {"title": HOSTILE}))
    (run / "study.yaml").write_text(f"name: {HOSTILE}\n")
    page = write_report(run)
    assert "<script" not in page.read_text()
    assert HOSTILE in text_of(page)


def test_every_row_of_the_results_is_on_the_page_with_its_figures(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    page = write_report(run)
    table = page.read_text()[page.read_text().index('id="all"') :]
    cells = [
        [html.unescape(re.sub(r"<[^>]+>", "", cell)) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)]
        for row in re.findall(r"<tr>(.*?)</tr>", table, flags=re.S)
    ][1:]
    with (run / "results.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    finite = [row for row in rows if row["value"]]
    expected = sorted(
        (
            f"{float(r['value']):.3f}",
            f"{float(r['ci_low']):.3f} to {float(r['ci_high']):.3f}" if r["ci_low"] else "–",
            r["n"],
        )
        for r in finite
    )
    assert len(cells) == len(rows)
    assert sorted((c[6].replace("−", "-"), c[7].replace("−", "-"), c[8]) for c in cells if c[6] != "–") == expected
    titles = {c[0] for c in cells}
    assert titles == {
        "Federated", "Pooled", "DU alone", "Random initialisation", "Raw pixels", "Majority class",
        "Supervised from scratch",
    }  # fmt: skip


def test_the_tables_say_who_was_where_and_what_it_cost(tmp_path: Path) -> None:
    text = report_text(full_run(tmp_path))
    assert "Every pretrained encoder saw the same number of images over the whole study (30,208 to 30,240" in text
    assert "DU 3 / 6 3 / 6 3 / 6 – 1" in text  # 3 patients with 2 images in each role, one unreadable image
    assert "CS left out of training – – – 9 / 18 0" in text
    assert "Federated images stay home 1 1 30,240 560 1,000 945 3 min" in text
    assert "FG, round 2 (federated): norm 83 is 112 times the median" in text
    assert "Not measured: 1 % of the labels (1 of 74 training patients)." in text
    assert "fedpretext simulate brain.yaml" in text
    assert "mae; mask ratio 0.75" in text


def test_site_by_site_names_the_worst_and_the_left_out(tmp_path: Path) -> None:
    text = report_text(full_run(tmp_path))
    # Federated: DU .832, HT .822, FG .812 (too few), CS .802 took no part: not the worst of the federation.
    assert "0.81 (FG) 0.02" in text
    assert "0.81 † " in text
    assert "CS n = 26 left out" in text


def test_unequal_budgets_are_said(tmp_path: Path) -> None:
    run = bare_run(tmp_path, [result("federated", 0.8)])
    arms = [
        {"arm": arm, "title": arm, "kind": arm, "folds": [0], "seeds": [0], "images": images}
        for arm, images in (("federated", 1000), ("centralised", 1500))
    ]
    (run / "arms.json").write_text(json.dumps(arms))
    assert "Budgets were not equal: the pretrained encoders saw 1,000 to 1,500 images." in report_text(run)


def test_equal_passes_are_said(tmp_path: Path) -> None:
    """Also where the federated encoder is held against a site alone, which saw fewer images, each as often."""
    run = full_run(tmp_path)
    arms = json.loads((run / "arms.json").read_text())
    for row, (images, passes) in zip(arms, [(1000, 8.0), (1010, 8.08), (250, 7.2), (0, 0.0)], strict=True):
        row |= {"images": images, "passes": passes}
    (run / "arms.json").write_text(json.dumps(arms))
    text = report_text(run)
    assert (
        "Every pretrained encoder saw each of its images about equally often (7.2 to 8.08 times over the whole "
        "study; only whole batches are counted). A local-only arm has fewer images and so saw "
        "fewer: 250 to 1,010 in all."
    ) in text
    assert "against each site on its own, with each image seen as often, the federated encoder is" in text
    arms[2]["passes"] = 28.8
    (run / "arms.json").write_text(json.dumps(arms))
    assert "Budgets were not equal: the pretrained encoders saw 250 to 1,010 images." in report_text(run)


def test_a_point_without_interval_is_hollow_and_says_why(tmp_path: Path) -> None:
    page = write_report(bare_run(tmp_path, [result("federated", 0.8, None)]))
    assert 'class="dot hollow"' in page.read_text()
    assert 'class="ci"' not in page.read_text()
    assert "0.80 no interval: too few patients to say" in text_of(page)


def test_training_seeds_are_shown_apart_from_the_interval(tmp_path: Path) -> None:
    rows = [
        result("federated", 0.84, seed="all"),
        result("federated", 0.82, seed="0"),
        result("federated", 0.86, seed="1"),
    ]
    rows.append(result("federated", 0.028, None, seed="all", statistic=Statistic.SEED_SD, unit="training seed",
                       interval="spread over 2 training seeds, fold 0"))  # fmt: skip
    page = write_report(bare_run(tmp_path, rows))
    assert page.read_text().count('class="seed"') == 2
    text = text_of(page)
    assert "Standard deviation of AUROC (spread over 2 training seeds, fold 0): Federated 0.028." in text
    assert "Federated 0.84 0.70 to 0.90" in text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = full_run(tmp_path)
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_cautions_follow_what_applies(tmp_path: Path) -> None:
    text = report_text(full_run(tmp_path))
    for heading in (
        "Not for clinical use.", "A demonstration.", "One task.", "Few to judge by.", "One training run per arm.",
        "Centralised is a reference, not a ceiling.", "Nearest neighbours understate masked autoencoders.",
        "One hospital outside.",
    ):  # fmt: skip
        assert heading in text
    plain = report_text(bare_run(tmp_path / "plain", [result("federated", 0.8, n=400)]))
    for absent in ("Few to judge by.", "Centralised is a reference", "Nearest neighbours", "One hospital outside."):
        assert absent not in plain


# The pieces.


def test_summary_lines_fit_a_terminal(tmp_path: Path) -> None:
    lines = summary_lines(full_run(tmp_path))
    assert max(map(len, lines)) <= 80
    table = "\n".join(lines)
    assert re.search(r"Federated +0\.84 +0\.80 to 0\.87", table)
    assert re.search(r"Raw pixels +0\.81 +0\.77 to 0\.84 +\+0\.03 +better", table)


def test_numbers_as_printed() -> None:
    assert [number(-0.004), number(-0.05), number(0.05, signed=True), number(0.0, signed=True)] == [
        "0.00", "−0.05", "+0.05", "0.00",
    ]  # fmt: skip
    assert digits_for(MetricValue(0.05, 0.003, 0.09)) == 3
    assert digits_for(MetricValue(0.05, 0.02, 0.09)) == 2


def test_shares_of_labels_are_ordered_and_named() -> None:
    names = ["1", "k=10", "0.1", "k=1", "0.01"]
    assert sorted(names, key=fraction_size) == ["k=1", "k=10", "0.01", "0.1", "1"]
    assert [fraction_title(name) for name in names] == ["100 %", "10 per class", "10 %", "1 per class", "1 %"]


@given(st.floats(-1, 1), st.floats(0, 2))
def test_ticks_are_few_and_enclose(low: float, width: float) -> None:
    ticks = nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low + 1e-6
    assert ticks[-1] >= low + width - 1e-6


def test_a_forest_is_drawn_to_scale() -> None:
    drawn = forest([ForestItem("a", "federated", MetricValue(0.05, -0.1, 0.2))], 0.0, "no difference", signed=True)
    row = drawn.rows[0]
    assert (drawn.ticks[0].text, drawn.ticks[-1].text) == ("−0.10", "+0.20")
    assert (row.low, row.x, row.high, drawn.reference) == (0.0, 50.0, 100.0, 33.33)


def test_a_role_is_stated_and_not_read_out_of_a_name(tmp_path: Path) -> None:
    """An encoder called imagenet-vit once made of training from scratch "from the starting weights"."""
    rows = [
        result("imagenet-vit", 0.8, role="pretrained"), result("pooled-random-pixels", 0.7, role="federated"),
        result("random", 0.6), result("supervised", 0.7, protocol="finetune"),
    ]  # fmt: skip
    text = report_text(bare_run(tmp_path, rows))
    assert "Supervised from scratch" in text
    assert "starting weights" not in text
    assert "Of 2 pretrained encoders" in text
    rows.append(result("w0", 0.5, role="pretrained-init"))
    assert "Supervised from the starting weights" in report_text(bare_run(tmp_path, rows))


def test_a_role_or_figure_of_another_kind_is_one_line(tmp_path: Path) -> None:
    for column, wrong in (("role", "imagenet"), ("value", "good"), ("n", ""), ("statistic", "AUROC seed sd")):
        bare_run(tmp_path, [result("federated", 0.8)])
        table = pd.read_csv(tmp_path / "results.csv", dtype=str, keep_default_na=False)
        table.assign(**{column: wrong}).to_csv(tmp_path / "results.csv", index=False)
        with pytest.raises(RunError, match=r"results\.csv: .*evaluate the run again"):
            write_report(tmp_path)


def test_principal_components_find_the_widest_direction() -> None:
    rng = np.random.default_rng(0)
    widths = np.array([1.0, 9.0, 3.0])
    points = principal_components(rng.standard_normal((400, 3)) * widths + 5.0)
    assert points.mean(axis=0) == pytest.approx([0.0, 0.0], abs=1e-9)
    assert points.std(axis=0) == pytest.approx([9.0, 3.0], rel=0.1)


def test_the_scatter_shows_label_and_site_and_needs_points() -> None:
    features = np.random.default_rng(0).standard_normal((2000, 8))
    panels = scatter_panels(features, ["a", "b"] * 1000, ["DU"] * 2000)
    assert [panel.title for panel in panels] == ["By label", "By site"]
    assert panels[0].alt == "Scatter of 1500 images’ features on two principal components, by label: a, b."
    assert scatter_panels(features[:2], ["a", "b"], ["DU", "DU"]) == []
