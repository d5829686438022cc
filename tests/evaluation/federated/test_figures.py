"""Rows made of what sites tell are those that the table would have with their patients at hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.federated.figures import FIGURES, SiteEstimate, SiteFigures, rows, site_figures, stand_in
from evaluation.federated.score_histogram import PooledArea
from evaluation.statistics.intervals import Estimate, Scored, interval, mean


def scored_images(seed: int, site: str, patients: int, each: int = 2) -> Scored:
    """Test images of one site, with scores that go with the labels a little."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, patients * each)
    positive = 1 / (1 + np.exp(-draw.normal(size=len(labels)) - 0.7 * labels))
    names = np.array([f"{site}-{number}" for number in np.repeat(np.arange(patients), each)])
    return Scored(labels, np.stack([1 - positive, positive], 1), names, np.full(len(labels), site))


def same(found: Estimate | None, expected: Estimate) -> None:
    assert found is not None
    assert found.value == expected.value
    own, other = interval(found), interval(expected)
    assert (own.low, own.high) == pytest.approx((other.low, other.high), nan_ok=True, abs=1e-12)
    assert own.how == other.how


@given(seed=st.integers(0, 1000), patients=st.integers(2, 40), name=st.sampled_from(sorted(FIGURES)))
def test_a_stand_in_has_the_interval_of_the_sites_own_estimate(seed: int, patients: int, name: str) -> None:
    data = scored_images(seed, "a", patients)
    expected = FIGURES[name](data)
    found = stand_in("a", site_figures(data), name)
    if math.isnan(expected.value):
        assert found is None
        return
    same(found, expected)


def test_many_patients_are_counted_in_groups_as_the_table_does() -> None:
    data = scored_images(1, "a", 450, each=1)
    answer = site_figures(data)
    assert answer.patients == 450
    same(stand_in("a", answer, "AUROC"), FIGURES["AUROC"](data))


def test_the_mean_over_sites_has_the_interval_of_the_patients_own() -> None:
    parts = {site: scored_images(seed, site, 10 + 5 * seed) for seed, site in enumerate("abc")}
    found = rows({site: site_figures(data) for site, data in parts.items()}, None, ())
    expected = mean([FIGURES["AUROC"](data) for data in parts.values()], [10, 15, 20])
    (row,) = (row for row in found if (row["statistic"], row["metric"]) == ("site mean", "AUROC"))
    assert row["value"] == pytest.approx(expected.value)
    bounds = interval(expected)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((bounds.low, bounds.high))
    assert (row["n"], row["note"]) == (45, "mean over 3 sites, weighted by patients")


def answer(value: float, patients: int, units: int = 12) -> SiteFigures:
    return SiteFigures(patients, 5, {name: SiteEstimate(value, 0.01, units) for name in FIGURES})


def of(found: list[dict[str, Any]], statistic: str) -> dict[str, tuple[float, int]]:
    asked = [row for row in found if (row["metric"], row["statistic"]) == ("AUROC", statistic)]
    return {row["site"]: (row["value"], row["n"]) for row in asked}


def test_rows_by_hand() -> None:
    """.6 of 30 patients and .9 of 10: .675; the site of one class is shown without a figure and weighs nothing."""
    sites = {"b": answer(0.9, 10), "a": answer(0.6, 30), "one class": answer(0.0, 8, units=0)}
    found = rows(sites, PooledArea(0.7, 0.0123), ["a", "b", "no figures"])
    auroc = of(found, "estimate")
    assert list(auroc) == ["a", "b", "one class"]
    assert of(found, "site mean") == {"all": (pytest.approx(0.675), 40)}
    assert math.isnan(auroc["one class"][0])
    assert of(found, "worst site") == {"a": (0.6, 30)}
    assert of(found, "from histograms") == {"all": (0.7, 40)}
    assert found[-1]["note"] == "from histograms of 3 sites, off by at most 0.012"
    assert found[-1]["interval"] == "labels stay there"


def test_one_site_has_no_mean_and_no_worst() -> None:
    found = rows({"a": answer(0.6, 30)}, PooledArea(math.nan, math.nan), ["a"])
    assert [(row["site"], row["metric"]) for row in found] == [("a", name) for name in FIGURES]


def test_nobody_tells_anything() -> None:
    assert rows({}, None, ()) == []
