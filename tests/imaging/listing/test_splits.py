"""Roles by patient, within sites, stratified, the same for a seed however the rows lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from foundation.errors import DataError
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig, check_splits, draw_splits

from ...tiers import examples


def study(sites: Mapping[str, Sequence[Sequence[Any]]]) -> Manifest:
    """A manifest with, per site, a list of labels for each patient."""
    rows = [
        {"image": f"{site}/{patient:03}/{image}.png", "patient": f"{site}-{patient}", "site": site, "label": label}
        for site, patients in sites.items()
        for patient, labels in enumerate(patients)
        for image, label in enumerate(labels)
    ]
    return Manifest(pd.DataFrame(rows), Path())


def patients(table: pd.DataFrame, site: str, role: str, fold: int = 0) -> set[str]:
    chosen = table[(table["site"] == site) & (table["role"] == role) & (table["fold"] == fold)]
    return set(chosen["patient"])


LABELS = st.lists(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=4), min_size=1, max_size=25)
SITES = st.dictionaries(st.sampled_from(["A", "B", "C", "D"]), LABELS, min_size=2)


@examples(30)
@given(SITES, st.integers(1, 6), st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_what_holds_of_every_split(sites: dict[str, list[list[int]]], folds: int, seed: int, chance: Any) -> None:
    manifest = study(sites)
    out = sorted(sites)[-1]
    config = SplitConfig(folds=folds, left_out=(out,))
    table = draw_splits(manifest, config, seed)
    assert list(table.columns) == ["image", "patient", "site", "label", "fold", "role"]
    assert len(table) == folds * len(manifest)
    assert (table.groupby(["fold", "patient"])["role"].nunique() == 1).all()
    assert set(table["role"][table["site"] == out]) == {"left-out"}
    assert "left-out" not in set(table["role"][table["site"] != out])
    for site in set(sites) - {out}:
        tested = [patients(table, site, "test", fold) for fold in range(folds)]
        if len(sites[site]) < 5:
            assert set(table["role"][table["site"] == site]) == {"train"}
        elif folds > 1:  # everyone exactly once
            assert sorted(p for hand in tested for p in hand) == sorted(
                {f"{site}-{i}" for i in range(len(sites[site]))}
            )
            assert max(map(len, tested)) - min(map(len, tested)) <= 1
        else:
            assert len(tested[0]) == max(1, round(0.2 * len(sites[site])))
        assert all(patients(table, site, "train", fold) for fold in range(folds))
        if len(sites[site]) >= 5:
            assert all(patients(table, site, "validation", fold) for fold in range(folds))
    order = list(range(len(manifest)))
    chance.shuffle(order)
    shuffled = Manifest(manifest.table.iloc[order], Path())
    pd.testing.assert_frame_equal(draw_splits(shuffled, config, seed), table)


def test_seeds_differ_and_sites_do_not_disturb_each_other() -> None:
    sites = {"A": [[0, 1]] * 20, "B": [[0]] * 10 + [[1]] * 10}
    draws = [draw_splits(study(sites), SplitConfig(), seed) for seed in range(10)]
    assert len({frozenset(patients(table, "A", "test")) for table in draws}) > 8
    local_only = draw_splits(study({"A": sites["A"]}), SplitConfig(), 3)
    assert patients(local_only, "A", "test") == patients(draws[3], "A", "test")
    tests = [patients(draw_splits(study({"A": [[0]] * 20}), SplitConfig(), seed), "A", "test") for seed in range(100)]
    times = pd.Series([p for hand in tests for p in hand]).value_counts()
    assert len(times) == 20 and times.min() >= 8 and times.max() <= 36  # 20 expected, sd 4: nobody is favoured


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("classes", [[0, 1], ["benign", "malignant"], ["a", "b", "c"]])
def test_labels_constant_in_the_patient_are_stratified(folds: int, classes: list[Any]) -> None:
    per_class = 40 // len(classes)
    labels = [[value] * 2 for value in classes for _ in range(per_class)]
    for seed in range(10):
        table = draw_splits(study({"A": labels}), SplitConfig(folds=folds, validation_share=0.2), seed)
        for fold in range(folds):
            for role in ("test", "validation"):
                chosen = table[(table["fold"] == fold) & (table["role"] == role)].drop_duplicates("patient")
                counts = chosen["label"].value_counts()
                off = (counts.reindex(classes, fill_value=0) - len(chosen) / len(classes)).abs()
                assert off.max() <= (1 if len(classes) == 2 else 1.7)


def test_shares_of_positives_are_stratified() -> None:
    rng = np.random.default_rng(0)
    shares = np.linspace(0, 1, 30)
    labels = [(rng.permutation(20) < round(share * 20)).astype(int).tolist() for share in shares]
    spread, unstratified = [], []
    for seed in range(20):
        table = draw_splits(study({"A": labels}), SplitConfig(), seed)
        spread.append(table.loc[table["role"] == "test", "label"].mean())
        unstratified.append(np.mean(rng.choice(shares, 6, replace=False)))
    assert np.std(spread) < 0.5 * np.std(unstratified) and abs(np.mean(spread) - 0.5) < 0.05


def test_missing_labels_are_a_stratum_and_no_labels_is_fine() -> None:
    manifest = study({"A": [[1.0]] * 10 + [[float("nan")]] * 10})
    table = draw_splits(manifest, SplitConfig(), 1)
    assert table[table["role"] == "test"]["label"].isna().sum() == 2
    bare = Manifest(manifest.table[["image", "patient"]], Path())
    table = draw_splits(bare, SplitConfig(), 1)
    assert table["site"].unique().tolist() == [""] and table["label"].isna().all()
    assert (table["role"] == "test").sum() == 4


def test_min_test_patients_and_shares() -> None:
    sites = {"A": [[0]] * 9, "B": [[0]] * 10}
    table = draw_splits(study(sites), SplitConfig(min_test_patients=10, test_share=0.5, validation_share=0.0), 0)
    assert patients(table, "A", "train") == {f"A-{i}" for i in range(9)}
    assert len(patients(table, "B", "test")) == 5 and len(patients(table, "B", "train")) == 5
    greedy = draw_splits(
        study({"A": [[0]] * 3}), SplitConfig(min_test_patients=3, test_share=0.9, validation_share=0.05), 0
    )
    assert [len(patients(greedy, "A", role)) for role in ("train", "validation", "test")] == [1, 1, 1]


def test_what_a_config_refuses() -> None:
    with pytest.raises(ValidationError, match=r"test_share 0.3 does nothing with folds 5"):
        SplitConfig(folds=5, test_share=0.3)
    assert SplitConfig(folds=5, test_share=0.2).folds == 5
    with pytest.raises(ValidationError, match="leave nobody to train on"):
        SplitConfig(test_share=0.5, validation_share=0.5)
    with pytest.raises(ValidationError, match="leave nobody to train on"):
        SplitConfig(folds=2, validation_share=0.6)


def test_left_out_sites_must_exist_and_leave_one() -> None:
    manifest = study({"DU": [[0]] * 6, "HT": [[0]] * 6})
    with pytest.raises(DataError, match="left_out site 'DV' has no images; there are: DU, HT; did you mean 'DU'"):
        draw_splits(manifest, SplitConfig(left_out=("DV",)), 0)
    with pytest.raises(DataError, match="names every site"):
        draw_splits(manifest, SplitConfig(left_out=("HT", "DU")), 0)


def test_check_splits_names_the_patient() -> None:
    table = draw_splits(study({"A": [[0, 1]] * 10}), SplitConfig(folds=2), 0)
    check_splits(table)
    marker = table[(table["fold"] == 1) & (table["role"] == "test")].index[0]
    name = table.loc[marker, "patient"]
    table.loc[marker, "role"] = "train"
    with pytest.raises(DataError, match=f"patient '{name}' is in test and train of fold 1; a patient has one role"):
        check_splits(table)
    table["role"] = table["role"].where(table.duplicated(["fold", "patient"]), "train")
    with pytest.raises(DataError, match=r"a patient has one role \(\d+ more such patients\)$"):
        check_splits(table)
    with pytest.raises(DataError, match="role 'tset' does not exist"):
        check_splits(table.assign(role="tset"))


def test_the_real_sites(shared: Path) -> None:
    index = pd.read_csv(shared / "data" / "lgg_mri_128" / "index.csv").rename(columns={"tumor": "label"})
    manifest = Manifest(index, shared)
    table = draw_splits(manifest, SplitConfig(left_out=("CS",), folds=5), 7)
    counts = table.groupby(["fold", "site", "role"])["patient"].nunique()
    assert [counts[fold, "DU", "test"] for fold in range(5)].count(7) == 4 and counts[0, "CS", "left-out"] == 13
    assert set(table["role"][table["site"] == "EZ"]) == {"train"}
    tested = table[table["role"] == "test"]
    assert tested["patient"].nunique() == 36 + 27 and not tested.duplicated("image").any()
    for site in ("DU", "HT"):
        share = tested[tested["site"] == site].groupby("fold")["label"].mean()
        assert share.max() - share.min() < 0.2


def test_what_folds_imply_is_written_out_and_read_back() -> None:
    config = SplitConfig.model_validate({"folds": 3})
    assert config.test_share == pytest.approx(1 / 3)
    assert SplitConfig.model_validate(config.model_dump(mode="json")) == config
