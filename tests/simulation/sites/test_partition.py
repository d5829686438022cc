"""Dividing patients among sites: every rule of the partition, for any manifest."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from simulation.sites.partition import BySite, Dirichlet, Iid, PartitionConfig, Quantity, assign_sites, quantity_shares

from ...tiers import examples

Config = Iid | Dirichlet | Quantity


def manifest(images: list[int], labels: list[int] | None = None) -> Manifest:
    """``images[i]`` images of patient i, all with the patient's label."""
    rows = [
        {"image": f"p{patient}_{index}.png", "patient": f"p{patient}"}
        | ({} if labels is None else {"label": labels[patient]})
        for patient, count in enumerate(images)
        for index in range(count)
    ]
    return Manifest(pd.DataFrame(rows), Path("/data"))


def site_of_patient(sited: Manifest) -> dict[str, str]:
    pairs = sited.table[["patient", "site"]].drop_duplicates()
    assert not pairs["patient"].duplicated().any()
    return dict(zip(pairs["patient"], pairs["site"], strict=True))


configs = st.integers(1, 6).flatmap(
    lambda sites: st.one_of(
        st.just(Iid(kind="iid", sites=sites)),
        st.floats(0.01, 1000).map(lambda alpha: Dirichlet(kind="dirichlet", sites=sites, alpha=alpha)),
        st.tuples(st.sampled_from(["power", "lognormal"]), st.floats(0, 10)).map(
            lambda pair: Quantity(kind="quantity", sites=sites, law=pair[0], skew=pair[1])
        ),
    )
)
patients = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 2)), min_size=6, max_size=40)


@examples(50)
@given(people=patients, config=configs, seed=st.integers(0, 2**31), shuffle=st.randoms(use_true_random=False))
def test_every_partition_keeps_the_rules(
    people: list[tuple[int, int]], config: Config, seed: int, shuffle: Any
) -> None:
    original = manifest([count for count, _ in people], [label for _, label in people])
    sited = assign_sites(original, config, seed)
    assert list(sited.table["image"]) == list(original.table["image"])  # rows and their order stay
    sites = site_of_patient(sited)  # one site a patient
    assert len(set(sites.values())) == config.sites  # no site empty
    order = list(range(len(original)))
    shuffle.shuffle(order)
    shuffled = Manifest(original.table.iloc[order], original.root)
    assert site_of_patient(assign_sites(shuffled, config, seed)) == sites


def test_another_seed_gives_another_partition() -> None:
    images = manifest([1] * 40)
    config = Iid(kind="iid", sites=4)
    assert site_of_patient(assign_sites(images, config, 1)) != site_of_patient(assign_sites(images, config, 2))


@pytest.mark.parametrize("seed", range(5))
def test_iid_sites_are_equal_to_within_a_patient(seed: int) -> None:
    sited = assign_sites(manifest([1] * 42), Iid(kind="iid", sites=4), seed)
    assert sorted(sited.table["site"].value_counts()) == [10, 10, 11, 11]


def label_skew(alpha: float, seed: int) -> float:
    """Mean over sites of the distance of the share of class 1 from one half, weighted by the site's size: 0 to 0.5."""
    config = Dirichlet(kind="dirichlet", sites=5, alpha=alpha)
    table = assign_sites(manifest([1] * 400, [0, 1] * 200), config, seed).table
    groups = table.groupby("site")["label"]
    return float((abs(groups.mean() - 0.5) * groups.size()).sum() / len(table))


def test_dirichlet_is_skewed_for_small_alpha_and_nearly_iid_for_large() -> None:
    # a single draw may send both classes to one site, so the mean of several is judged
    skew = {alpha: np.mean([label_skew(alpha, seed) for seed in range(8)]) for alpha in (0.05, 1.0, 1000.0)}
    assert skew[0.05] > 0.3 > skew[1.0] > 0.1 and skew[1000.0] < 0.03


def test_dirichlet_takes_a_patients_commonest_label() -> None:
    table = manifest([3] * 60).table.assign(label=["a", "a", "b"] * 30 + ["b", "b", "a"] * 30)
    sited = assign_sites(Manifest(table, Path("/data")), Dirichlet(kind="dirichlet", sites=2, alpha=0.001), 3).table
    commonest = {f"p{patient}": "a" if patient < 30 else "b" for patient in range(60)}
    by_site = sited.assign(kind=sited["patient"].map(commonest)).groupby(["site", "kind"])["patient"].nunique()
    # so small an alpha puts each class in one site; the rule of no empty site may have moved one patient
    assert (by_site.groupby("kind").max() >= 29).all()


def test_power_law_shares_are_those_worked_by_hand() -> None:
    config = Quantity(kind="quantity", sites=3, law="power", skew=1.0)
    # 1 : 1/2 : 1/3 = 6/11, 3/11, 2/11
    np.testing.assert_allclose(quantity_shares(config, np.random.default_rng(0)), [6 / 11, 3 / 11, 2 / 11])
    counts = assign_sites(manifest([1] * 110), config, 4).table["site"].value_counts()
    assert all(abs(counts[f"site-{i}"] - n) <= 1 for i, n in ((1, 60), (2, 30), (3, 20)))


def test_lognormal_skew_is_the_spread_of_the_log_shares() -> None:
    shares = quantity_shares(Quantity(kind="quantity", sites=4000, skew=1.5), np.random.default_rng(5))
    assert np.log(shares).std() == pytest.approx(1.5, rel=0.05)
    assert (np.diff(shares) <= 0).all()


def test_the_real_sites_are_kept_as_they_are() -> None:
    table = manifest([2, 1, 1]).table.assign(site=["X", "X", "Y", "Z"])
    sited = assign_sites(Manifest(table, Path("/data")), BySite(), 0)
    assert list(sited.table["site"]) == ["X", "X", "Y", "Z"]


def test_site_names_sort_as_their_numbers() -> None:
    names = sorted(set(assign_sites(manifest([1] * 12), Iid(kind="iid", sites=12), 0).table["site"]))
    assert names[0] == "site-01" and names[-1] == "site-12"


@pytest.mark.parametrize(
    ("table", "config", "message"),
    [
        (manifest([1, 1]), Iid(kind="iid", sites=3), "partition.sites is 3, but there are 2 patients .* set .* to 2"),
        (manifest([1, 1]), BySite(), "needs a column site"),
        (manifest([1, 1]), Dirichlet(kind="dirichlet", sites=2, alpha=1.0), "needs a label .* 2 of 2 have none"),
        (manifest([1, 1]).where([False, False]), Iid(kind="iid", sites=1), "there are no images"),
        (
            Manifest(manifest([1, 1]).table.assign(site=["X", ""]), Path("/data")),
            BySite(),
            r"1 images have no site \(p1_0.png first\)",
        ),
    ],
)
def test_impossible_partitions_are_refused_in_one_line(table: Manifest, config: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as error:
        assign_sites(table, config, 0)
    assert "\n" not in str(error.value)


def test_the_kind_decides_what_else_may_be_said() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(PartitionConfig)
    assert adapter.validate_python({"kind": "iid", "sites": 3}) == Iid(kind="iid", sites=3)
    assert adapter.validate_python({"kind": "site"}) == BySite()
    for wrong in ({"kind": "iid", "sites": 3, "alpha": 1.0}, {"kind": "dirichlet", "sites": 3}, {"kind": "shards"}):
        with pytest.raises(ValidationError):
            adapter.validate_python(wrong)
