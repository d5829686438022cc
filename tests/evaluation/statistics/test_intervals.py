"""Intervals over patients: against DeLong's formula, brute force, hand-made pairs and a small coverage study."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.statistics.interval_coverage import coverage
from benchmarks.statistics.simulated_patients import Case, average_precision, classified, dice_means, measured
from evaluation.statistics.intervals import (
    AT_BOUND,
    NO_SPREAD,
    TOO_FEW,
    Estimate,
    Scored,
    auc,
    difference,
    difference_interval,
    interval,
    jackknife,
    leave_out,
    mean,
    p_value,
    patient_mean,
    variance,
)
from evaluation.statistics.results_schema import LOGIT
from evaluation.tasks.metrics import auprc, auroc, balanced_accuracy
from foundation.randomness import numpy_generator

from ...tiers import examples, slow


def scored(labels: list[int], scores: list[float], patients: list[str], strata: list[str] | None = None) -> Scored:
    p = np.array(scores, dtype=np.float64)
    return Scored(
        np.array(labels, dtype=np.int64),
        np.stack([1 - p, p], axis=1),
        np.array(patients, dtype=np.str_),
        np.array(strata or ["s"] * len(labels), dtype=np.str_),
    )


def random_case(seed: int, patients: int, images: int, grid: int = 6) -> Scored:
    """Images with ties, labels and patients drawn at random, both classes present."""
    rng = numpy_generator(seed, "case")
    labels = rng.integers(0, 2, images)
    labels[:2] = [0, 1]
    scores = rng.integers(0, grid, images) / grid + 0.05 * labels
    names = [f"p{i}" for i in rng.integers(0, patients, images)]
    return scored(labels.tolist(), scores.tolist(), names, [f"s{int(n[1:]) % 2}" for n in names])


def delong_parts(labels: np.ndarray, score: np.ndarray) -> tuple[float, float]:
    """DeLong, DeLong and Clarke-Pearson 1988 from their kernel psi, with two loops: what each class adds."""
    x, y = score[labels == 1], score[labels == 0]
    psi = np.array([[1.0 if a > b else 0.5 if a == b else 0.0 for b in y] for a in x])
    return float(psi.mean(1).var(ddof=1) / len(x)), float(psi.mean(0).var(ddof=1) / len(y))


def test_one_image_a_patient_strata_by_class_is_delong() -> None:
    """Leaving one image out within its class is DeLong's variance but for (P-1)/P in place of the class's (m-1)/m."""
    rng = numpy_generator(1, "delong")
    labels = np.repeat([1, 0], [13, 21])
    score = 1 / (1 + np.exp(-rng.normal(labels * 1.2, 1.0)))
    data = scored(labels.tolist(), score.tolist(), [f"p{i:02d}" for i in range(34)], [f"class {k}" for k in labels])
    estimate = auc(data)
    parts = delong_parts(labels, score)
    expected = sum(part * (33 / 34 * m / (m - 1)) ** 2 for part, m in zip(parts, (13, 21), strict=True))
    assert variance(estimate)[0] == pytest.approx(expected, rel=1e-12)
    assert variance(estimate)[0] == pytest.approx(sum(parts), rel=0.1)
    assert variance(estimate)[1] == 32


@examples(40)
@given(seed=st.integers(0, 10_000), patients=st.integers(2, 12), images=st.integers(4, 60))
def test_closed_form_is_the_brute_force_jackknife(seed: int, patients: int, images: int) -> None:
    data = random_case(seed, patients, images)
    fast, slow = auc(data), jackknife(data, auroc)
    assert fast.value == pytest.approx(slow.value, abs=1e-12)
    assert fast.patients == slow.patients
    np.testing.assert_allclose(fast.influence, slow.influence, atol=1e-12)


def test_closed_form_with_three_classes() -> None:
    rng = numpy_generator(2, "three")
    scores = rng.dirichlet([1, 1, 1], 60)
    labels = rng.integers(0, 3, 60)
    names = np.array([f"p{i}" for i in rng.integers(0, 15, 60)])
    data = Scored(labels, scores, names, np.array(["s"] * 60))
    np.testing.assert_allclose(auc(data).influence, jackknife(data, auroc).influence, atol=1e-12)


def test_repeating_every_image_changes_nothing() -> None:
    """Ten copies of an image say no more about the population than one: the interval stays."""
    one = random_case(5, 15, 60)
    ten = Scored(*(np.repeat(part, 10, axis=0) for part in (one.labels, one.scores, one.patients, one.strata)))
    first, second = interval(auc(one)), interval(auc(ten))
    assert first.low == pytest.approx(second.low, abs=1e-9)
    assert first.high == pytest.approx(second.high, abs=1e-9)


def test_interval_by_hand() -> None:
    influence = np.array([0.02, -0.02] * 6)
    estimate = Estimate(0.8, tuple(f"p{i}" for i in range(12)), ("s",) * 12, influence, (12, 12))
    spread = np.sqrt(12 / 11 * 12 * 0.02**2)
    half = stats.t.ppf(0.975, 11) * spread / (0.8 * 0.2)
    found = interval(estimate)
    assert found.low == pytest.approx(1 / (1 + np.exp(-(np.log(4) - half))))
    assert found.high == pytest.approx(1 / (1 + np.exp(-(np.log(4) + half))))
    apart = difference_interval(estimate)
    assert apart.high - 0.8 == pytest.approx(stats.t.ppf(0.975, 11) * spread)
    assert 0.8 - apart.low == pytest.approx(apart.high - 0.8)


def test_strata_take_out_what_lies_between_sites() -> None:
    influence = np.array([0.1] * 6 + [-0.1] * 6) + np.tile([0.01, -0.01], 6)
    names = tuple(f"p{i}" for i in range(12))
    together = Estimate(0.7, names, ("s",) * 12, influence, (12, 12))
    apart = Estimate(0.7, names, ("a",) * 6 + ("b",) * 6, influence, (12, 12))
    assert variance(apart)[0] == pytest.approx(2 * 6 / 5 * 6 * 0.01**2)
    assert variance(apart)[1] == 10
    assert variance(together)[0] > 50 * variance(apart)[0]


def test_a_site_of_one_patient_joins_the_smallest() -> None:
    influence = np.array([0.03, 0.01, -0.01, 0.02, -0.02, 0.01, -0.01, 0.0])
    names = tuple(f"p{i}" for i in range(8))
    lone = Estimate(0.7, names, ("x", "a", "a", "b", "b", "b", "b", "b"), influence, (8, 8))
    merged = Estimate(0.7, names, ("a", "a", "a", "b", "b", "b", "b", "b"), influence, (8, 8))
    assert variance(lone) == variance(merged)


def test_mean_over_folds_adds_variances() -> None:
    folds = [random_case(seed, 12, 80) for seed in (1, 2, 3)]
    renamed = [
        Scored(f.labels, f.scores, np.array([f"{k}{p}" for p in f.patients]), np.array([f"{k}{s}" for s in f.strata]))
        for k, f in enumerate(folds)
    ]
    estimates = [auc(fold) for fold in renamed]
    pooled = mean(estimates)
    assert pooled.value == pytest.approx(np.mean([e.value for e in estimates]))
    assert variance(pooled)[0] == pytest.approx(sum(variance(e)[0] for e in estimates) / 9)


def test_paired_difference_uses_the_covariance() -> None:
    """Two scores that differ little: far narrower than two intervals of independent studies; equal scores: none."""
    data = random_case(9, 20, 200, grid=50)
    rng = numpy_generator(4, "other")
    near = data.scores[:, 1] + rng.normal(0, 0.02, 200)
    other = Scored(data.labels, np.stack([1 - near, near], 1), data.patients, data.strata)
    first, second = auc(data), auc(other)
    apart = variance(difference(first, second))[0]
    assert apart < 0.2 * (variance(first)[0] + variance(second)[0])
    covariance = (variance(first)[0] + variance(second)[0] - apart) / 2
    again = variance(difference(second, first))[0]
    assert again == pytest.approx(variance(first)[0] + variance(second)[0] - 2 * covariance)
    assert difference_interval(difference(first, first)).how == NO_SPREAD


def test_a_difference_of_other_patients_is_refused() -> None:
    with pytest.raises(ValueError, match="same patients"):
        difference(auc(random_case(1, 10, 50)), auc(random_case(1, 5, 50)))


@pytest.mark.parametrize(("patients", "positive", "note"), [(9, 5, TOO_FEW), (12, 4, TOO_FEW), (12, 5, LOGIT)])
def test_too_few_patients_to_say(patients: int, positive: int, note: str) -> None:
    rng = numpy_generator(patients, "few")
    labels = [int(i < positive) for i in range(patients) for _ in range(3)]
    scores = (0.4 * np.array(labels) + 0.6 * rng.random(len(labels))).tolist()
    names = [f"p{i:02d}" for i in range(patients) for _ in range(3)]
    found = interval(auc(scored(labels, scores, names)))
    assert found.how == note
    assert np.isnan(found.low) == (note == TOO_FEW)


def test_a_perfect_score_has_no_interval() -> None:
    labels = [0, 1] * 15
    names = [f"p{i}" for i in range(15) for _ in range(2)]
    found = interval(auc(scored(labels, [float(k) for k in labels], names)))
    assert found.how in (AT_BOUND, NO_SPREAD)


def test_many_patients_are_left_out_in_groups() -> None:
    rng = numpy_generator(8, "many")
    labels = rng.integers(0, 2, 1200)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + rng.normal(0, 0.2, 1200), 0, 1)
    data = scored(labels.tolist(), scores.tolist(), [f"p{i:04d}" for i in range(1200)])
    grouped = jackknife(data, balanced_accuracy)
    right = (scores > 0.5) == labels
    expected = sum(right[labels == k].var() / (labels == k).sum() for k in (0, 1)) / 4
    assert len(grouped.patients) == 200
    assert variance(grouped)[0] == pytest.approx(expected, rel=0.3)


def sites_of_four(values: np.ndarray) -> tuple[list[str], list[str]]:
    return [f"p{i:02d}" for i in range(len(values))], [f"s{i // 4}" for i in range(len(values))]


def test_a_mean_over_patients_is_that_of_survey_textbooks() -> None:
    """Sites as strata with their share of patients: variance sum (n_h / P)^2 s_h^2 / n_h (Cochran 1977, 5.3)."""
    values = numpy_generator(1, "dice").random(12)
    patients, sites = sites_of_four(values)
    estimate = patient_mean(values, patients, sites)
    expected = sum((4 / 12) ** 2 * part.var(ddof=1) / 4 for part in values.reshape(3, 4))
    assert estimate.value == pytest.approx(values.mean())
    assert variance(estimate) == (pytest.approx(expected, rel=1e-12), 9)
    single = patient_mean(values, patients, ["s"] * 12)
    assert variance(single) == (pytest.approx(values.var(ddof=1) / 12, rel=1e-12), 11)
    found = difference_interval(single)
    low, high = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


@examples(30)
@given(seed=st.integers(0, 10_000), patients=st.integers(1, 30), sites=st.integers(1, 5))
def test_closed_form_of_a_mean_is_the_brute_force_jackknife(seed: int, patients: int, sites: int) -> None:
    rng = numpy_generator(seed, "mean")
    values, names = rng.random(patients), np.array([f"p{i}" for i in rng.permutation(patients)])
    strata = np.array([f"s{i}" for i in rng.integers(0, sites, patients)])
    fast = patient_mean(values, names.tolist(), strata.tolist(), (3,))
    slow = leave_out(names, strata, lambda keep: float(values[keep].mean()) if keep.any() else np.nan, (3,))
    assert (fast.patients, fast.strata, fast.carriers) == (slow.patients, slow.strata, slow.carriers)
    assert fast.value == pytest.approx(slow.value)
    np.testing.assert_allclose(fast.influence, slow.influence, atol=1e-12)


def test_a_mean_of_nobody_and_of_somebody_twice() -> None:
    nobody = patient_mean(np.array([]), [], [])
    assert np.isnan(nobody.value) and interval(nobody).how == TOO_FEW
    with pytest.raises(ValueError, match="one value of each"):
        patient_mean(np.array([0.1, 0.2]), ["a", "a"], ["s", "s"])


def test_small_sites_do_not_make_an_interval_narrow() -> None:
    """Patients dealt to sites at random are no other patients: about the same variance, not half of it."""
    ratios = []
    for seed in range(30):
        data = random_case(seed, 24, 240, grid=50)
        sites = np.array([f"s{int(name[1:]) // 3}" for name in data.patients])
        alone = Scored(data.labels, data.scores, data.patients, np.full(240, "s"))
        apart = Scored(data.labels, data.scores, data.patients, sites)
        ratios.append(variance(auc(apart))[0] / variance(auc(alone))[0])
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.1)


@given(value=st.floats(-0.2, 0.2), seed=st.integers(0, 1000))
def test_p_is_below_five_percent_where_the_interval_leaves_out_nought(value: float, seed: int) -> None:
    influence = numpy_generator(seed, "p").normal(0, 0.02, 14)
    names = tuple(f"p{i}" for i in range(14))
    estimate = Estimate(value, names, ("a",) * 8 + ("b",) * 6, influence, (14,))
    found = difference_interval(estimate)
    assert (p_value(estimate) < 0.05) == (found.low > 0 or found.high < 0)


def test_p_of_one_mean_is_the_t_test() -> None:
    values = numpy_generator(3, "t").normal(0.3, 1.0, 15)
    estimate = patient_mean(values, [f"p{i:02d}" for i in range(15)], ["s"] * 15)
    assert p_value(estimate) == pytest.approx(stats.ttest_1samp(values, 0.0).pvalue)
    few = patient_mean(values[:9], [f"p{i}" for i in range(9)], ["s"] * 9)
    assert np.isnan(p_value(few))


@pytest.mark.parametrize(
    "case", [slow(Case("slice", 20, 0.4)), slow(Case("patient", 20, 0.1)), Case("slice", 20, 0.4, sites=5)]
)
def test_coverage_is_near_what_it_says(case: Case) -> None:
    """300 simulated studies: .95 give or take four standard errors (.05); the percentile bootstrap is not near."""
    found = coverage(case, 300)
    assert found["single"] == pytest.approx(0.95, abs=0.05)
    assert found["paired"] == pytest.approx(0.95, abs=0.05)
    if case.sites == 1:
        assert found["single"] > found["percentile"]


@pytest.mark.parametrize("sites", [slow(1), 4])
def test_coverage_of_dice_and_errors(sites: int) -> None:
    found = coverage(Case("numbers", 40, 0.1, sites=sites), 300)
    assert found.keys() == {"Dice", "Dice paired", "MAE", "MAE paired", "R2"}
    assert min(found.values()) > 0.9 and np.mean(list(found.values())) == pytest.approx(0.95, abs=0.02)


def test_truths_that_are_simulated_against() -> None:
    """Average precision and the mean Dice, from one large study in place of the closed forms."""
    data = classified(Case("slice", 4000, 0.1), numpy_generator(0, "truth"))[0]
    assert auprc(data.labels, data.scores) == pytest.approx(average_precision(), abs=0.01)
    dice = measured(Case("numbers", 4000, 0.4), numpy_generator(1, "truth")).dice
    assert [own.mean() for own in dice] == [pytest.approx(mean, abs=0.01) for mean in dice_means()]
