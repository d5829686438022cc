"""What is said of a lag: by the interval alone whether there is one, and then only what stands out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

from evaluation.inputs import read_inputs
from evaluation.report import explain_lag as module
from evaluation.report.explain_lag import (
    BINS,
    Evidence,
    SiteLayer,
    explain_lag,
    intensity_distances,
    intensity_histograms,
    read_divergence,
    reasons,
    wasserstein,
)
from evaluation.report.run_folder import RunFolder
from evaluation.statistics.results_schema import COMPARISONS, RESULTS
from foundation.events import DIVERGENCE_NAME

from ..conftest import role_in

LAYERS = ("stem", "block 1", "block 2", "head")
WHY = "Scanners, patients and findings differ together, so this says that the site is different, not why."


def result(encoder: str, value: float, metric: str = "AUROC") -> dict[str, object]:
    protocol = "logistic" if metric in ("AUROC", "MAE") else "diagnostic"
    row = {"task": "t", "encoder": encoder, "role": role_in(encoder), "protocol": protocol, "site": "all"}
    row |= {"statistic": "estimate", "unit": "patient"}
    return row | {"label_fraction": "1", "metric": metric, "value": value, "ci_low": np.nan, "ci_high": np.nan, "n": 80}


def run(
    path: Path, value: float, interval: tuple[float, float] | None, metric: str = "AUROC", against: str = "centralised"
) -> RunFolder:
    """A run whose federated encoder differs by so much from that of ``against``."""
    low, high = interval or (np.nan, np.nan)
    row = {"task": "t", "protocol": "logistic", "metric": metric, "site": "all"}
    row |= {
        "encoder_a": "federated",
        "role_a": "federated",
        "encoder_b": against,
        "role_b": role_in(against),
        "value": value,
        "ci_low": low,
        "ci_high": high,
    }
    row |= {
        "p": 0.5,
        "n": 80,
        "label_fraction": "1",
        "unit": "patient",
        "interval": "" if interval else "too few patients to say",
    }
    rows = [result("federated", 0.8, metric), result(against, 0.8 - value, metric)]
    return RunFolder(path, RESULTS.frame(rows), COMPARISONS.frame([row]))


def agreeing(*sites: str, cosine: float = 0.5) -> dict[str, dict[str, SiteLayer]]:
    return {site: dict.fromkeys(LAYERS, SiteLayer(cosine, 1.0)) for site in sites}


def grey(level: int) -> np.ndarray:
    shares = np.zeros(BINS)
    shares[level] = 1.0
    return shares


@pytest.mark.parametrize(
    ("value", "interval", "metric", "said"),
    [
        (0.05, (0.01, 0.09), "AUROC", "Federated does not lag: AUROC +0.05 against centralised (95 % interval +0.01 to "
         "+0.09)."),
        (-0.05, (-0.12, 0.02), "AUROC", "No lag is shown for Federated: AUROC −0.05 against centralised (95 % interval "
         "−0.12 to +0.02, which contains zero)."),
        (-0.05, None, "AUROC", "Whether Federated lags cannot be said: AUROC −0.05 against centralised, with no "
         "interval: too few patients to say."),
        (-0.05, (-0.09, -0.01), "MAE", "Federated does not lag: Mean absolute error −0.05 against centralised (95 % "
         "interval −0.09 to −0.01)."),
    ],
    ids=["better", "around zero", "no interval", "less is better"],
)  # fmt: skip
def test_without_a_lag_no_reasons_are_given(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    value: float,
    interval: tuple[float, float] | None,
    metric: str,
    said: str,
) -> None:
    monkeypatch.setattr(module, "reasons", lambda _: pytest.fail("looked for reasons"))
    assert explain_lag(run(tmp_path, value, interval, metric)) == [said]


@pytest.mark.parametrize(("value", "interval", "metric"), [(-0.05, (-0.09, -0.01), "AUROC"), (5.0, (1.0, 9.0), "MAE")])
def test_a_lag_is_said_with_what_stands_out(
    tmp_path: Path, value: float, interval: tuple[float, float], metric: str
) -> None:
    folder = run(tmp_path, value, interval, metric)
    curves = pd.DataFrame({"arm": "federated", "site": ["A", "B", "A"], "images": [900, 30, 900]})
    first, second = explain_lag(replace(folder, curves=curves))
    assert first.startswith("Federated lags: ")
    assert first.endswith("it goes with the lag, and none of it is shown to be the cause.")
    assert second.startswith("The sites' sizes are far apart: A has 900 images, B 30.")


@pytest.mark.parametrize("against", ["random", "local-only-A"])
def test_without_a_pooled_encoder_nothing_is_said(tmp_path: Path, against: str) -> None:
    assert explain_lag(run(tmp_path, -0.05, (-0.09, -0.01), against=against)) == []


def test_a_site_whose_last_layers_point_away_and_whose_images_differ() -> None:
    layers = agreeing("A", "B", "C")
    layers["A"]["head"] = SiteLayer(0.4, 1.0)
    layers["C"] |= {"block 2": SiteLayer(-0.1, 1.0), "head": SiteLayer(-0.2, 1.0)}
    found = reasons(Evidence(layers, {"A": grey(4), "B": grey(4), "C": grey(12)}))
    assert found == [
        "Site C: its updates point away from the rest in the last 2 layers, block 2 to head (cosine −0.15, others "
        f"0.40 or more); its grey values differ (distance 0.25 from the site most like it; see its histogram). {WHY}"
    ]


def test_a_site_that_agrees_less_is_not_said_to_point_away() -> None:
    layers = agreeing("A", "B", "C")
    layers["C"]["stem"] = SiteLayer(0.3, 1.0)
    (line,) = reasons(Evidence(layers))
    assert line == (
        f"Site C: its updates agree less with the rest than any other site's in stem (cosine 0.30, others 0.50 or "
        f"more). {WHY}"
    )
    layers["C"]["stem"] = SiteLayer(0.45, 1.0)
    assert reasons(Evidence(layers))[0].startswith("Nothing stands out among the sites: looked at were directions")


def test_two_sites_have_one_angle() -> None:
    (line,) = reasons(Evidence(agreeing("A", "B", cosine=-0.3)))
    assert line == (
        "The updates of A and B point away from each other in all layers (cosine −0.30). With two sites it cannot be "
        "said which of them is unlike the others."
    )
    assert reasons(Evidence(agreeing("A", "B", cosine=0.1)))[0].startswith("Nothing stands out")


@pytest.mark.parametrize(("ratio", "said"), [(3.4, "3.4"), (0.2, "0.2"), (2.9, ""), (0.4, "")])
def test_updates_of_another_length(ratio: float, said: str) -> None:
    layers = agreeing("A", "B", "C")
    layers["B"] = dict.fromkeys(LAYERS, SiteLayer(0.5, ratio))
    (line,) = reasons(Evidence(layers))
    assert ("Site B: its updates are" in line) == bool(said)
    few = "Few steps alone make an update short, and its direction uncertain."
    assert f"{said} times as long as the others' on average. {few} {WHY}" in line or not said


def test_collapse_leakage_and_sizes_are_told() -> None:
    evidence = Evidence(leakage=(0.82, 0.6), collapsing=frozenset("BA"), sizes={"A": 12, "B": 700, "C": 300})
    collapse, leakage, sizes = reasons(evidence)
    assert collapse.startswith("In training the features of A, B were becoming all alike in some rounds.")
    assert "(balanced accuracy 0.82, centralised 0.60)" in leakage
    assert sizes.startswith("The sites' sizes are far apart: B has 700 images, A 12.")


def test_what_does_not_stand_out_is_not_told_and_what_is_missing_is() -> None:
    evidence = Evidence(leakage=(0.65, 0.6), sizes={"A": 100, "B": 700})
    assert reasons(evidence) == [
        "Nothing stands out among the sites: looked at were site leakage, sizes. Not recorded in this run: directions "
        "and lengths of updates, grey values."
    ]
    assert reasons(Evidence())[0].startswith("Not recorded in this run: directions")


def test_divergence_is_the_mean_over_rounds_folds_and_seeds(tmp_path: Path) -> None:
    values = {"fold-0": [(1, 0.2, 4.0), (2, 0.6, 1.0)], "fold-1": [(1, 0.7, 2.0)]}
    for fold, rows in values.items():
        place = tmp_path / "arms" / "federated" / fold / "seed-0"
        place.mkdir(parents=True)
        answer = [
            {"round": round_, "site": "A", "layers": [{"name": "stem", "cosine": cosine, "norm_ratio": ratio}]}
            for round_, cosine, ratio in rows
        ]
        (place / DIVERGENCE_NAME).write_text("".join(json.dumps(row) + "\n" for row in answer))
    found = read_divergence(run(tmp_path, 0, None), "federated")
    assert found == {"A": {"stem": SiteLayer(pytest.approx(0.5), pytest.approx(2.0))}}


shares = st.lists(st.integers(0, 100), min_size=BINS, max_size=BINS).filter(any).map(lambda n: np.array(n) / sum(n))


@given(shares, shares)
def test_distance_is_that_of_scipy(first: np.ndarray, second: np.ndarray) -> None:
    places = (np.arange(BINS) + 0.5) / BINS
    expected = wasserstein_distance(places, places, first, second)
    assert wasserstein(first, second) == pytest.approx(expected, abs=1e-12)
    assert wasserstein(first, second) == pytest.approx(wasserstein(second, first))


def test_one_odd_site_does_not_make_the_others_odd() -> None:
    found = intensity_distances({"A": grey(4), "B": grey(5), "C": grey(20)})
    assert found == {"A": pytest.approx(1 / 32), "B": pytest.approx(1 / 32), "C": pytest.approx(15 / 32)}
    assert intensity_distances({"A": grey(4)}) == {}


def test_histograms_are_those_of_each_sites_images(
    make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = read_inputs(make_run(), show=False)
    found = intensity_histograms(inputs)
    assert set(found) == {"north", "south", "away"}
    south = np.flatnonzero(inputs.images.site == "south")
    counts = np.histogram(inputs.view().read(south).numpy(), BINS, (0, 1))[0]
    assert found["south"] == pytest.approx(counts / counts.sum())
    monkeypatch.setattr(module, "_IMAGES", 2)
    few = intensity_histograms(inputs)["south"]
    ends = np.histogram(inputs.view().read(south[[0, -1]]).numpy(), BINS, (0, 1))[0]
    assert few == pytest.approx(ends / ends.sum())
