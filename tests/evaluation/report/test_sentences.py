"""Every sentence of the report over a grid of results: none claims more, or the other way, than its interval does."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.report.answers import answer, at_single_sites, contrasts, detectable, outside_sentences, tally
from evaluation.report.cautions import cautions
from evaluation.report.page import sentences
from evaluation.report.run_folder import Arm, RunFolder
from evaluation.statistics.metric_values import MetricQuery, main_question, number
from evaluation.statistics.results_schema import COMPARISONS, RESULTS, Role

from ..conftest import role_in

Interval = tuple[float, float] | None
METRICS = {"AUROC": "logistic", "MAE": "ridge"}
GRID = [
    (value, bounds)
    for value in (-0.45, -0.05, -0.004, 0.0, 0.0004, 0.004, 0.05, 0.23)
    for bounds in (
        None, (value - 0.5, value + 0.5), (value - 0.003, value + 0.003), (value - 0.0001, value + 0.0001),
    )
]  # fmt: skip
QUAINT = re.compile(r"nought|may do as well|None\b|\bnan\b|[{}]|  |\.\.|not known")


def folder(
    pairs: list[tuple[str, float, Interval]], metric: str = "AUROC", about: str = "federated", **more: Any
) -> RunFolder:
    """A run whose encoder ``about`` differs so from the others; each other's name starts with its role."""
    fixed = {
        "task": "t",
        "protocol": METRICS[metric],
        "label_fraction": "1",
        "metric": metric,
        "n": 60,
        "unit": "patient",
    }
    values = {about: 0.7} | {other: 0.7 - value for other, value, _ in pairs}
    rows = [
        fixed | {"encoder": name, "role": role_in(name), "site": "all", "seed": "0", "statistic": "estimate",
                 "value": value, "interval": "too few patients to say"}
        for name, value in values.items()
    ]  # fmt: skip
    apart = [
        fixed | {"site": site, "encoder_a": about, "role_a": role_in(about), "encoder_b": other,
                 "role_b": role_in(other), "value": value, "p": 0.2 if bounds else "",
                 "ci_low": bounds[0] if bounds else "", "ci_high": bounds[1] if bounds else "",
                 "interval": "" if bounds else "no patient changes the figure"}
        for other, value, bounds in pairs for site in ("all", "A")
    ]  # fmt: skip
    return RunFolder(Path(), RESULTS.frame(rows), COMPARISONS.frame(apart), task={"kind": "classification"}, **more)


def verdict(bounds: Interval, metric: str) -> str:
    """By hand: a bound that prints as zero in three digits is zero."""
    if bounds is None:
        return "none"
    low, high = (round(bound, 3) for bound in bounds)
    if low <= 0 <= high:
        return "unclear"
    return "better" if (low > 0) != (metric == "MAE") else "worse"


def check_difference(sentence: str, value: float, bounds: Interval) -> None:
    """Its size and direction are those of the figure, and its interval or the reason for none is there."""
    digits = 3 if any(part and float(f"{part:.2f}") == 0 for part in (value, *(bounds or ()))) else 2
    shown = number(abs(value), digits=digits)
    if float(shown) == 0:
        assert "level with" in sentence and "above" not in sentence and "below" not in sentence, sentence
    else:
        assert f"{shown} {'above' if value > 0 else 'below'}" in sentence, sentence
    if bounds is None:
        assert "with no interval: no patient changes the figure" in sentence
    else:
        assert f"{number(bounds[0], digits=digits)} to {number(bounds[1], digits=digits)}" in sentence


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("other", [role.value for role in Role if role not in (Role.FEDERATED, Role.PRETRAINED)])
def test_a_comparison_says_what_its_interval_says(other: str, metric: str) -> None:
    for value, bounds in GRID:
        run = folder([(other, value, bounds)], metric)
        query = main_question(run)
        (found,) = contrasts(run, query)
        check_difference(found.sentence, value, bounds)
        expected = verdict(bounds, metric)
        worse = re.search(
            "made it worse|do better:|alone does better:|Centralised training did better|It did worse than",
            found.sentence,
        )
        better = re.search("Pretraining helped:|does better than|It did better", found.sentence)
        untold = re.search("We cannot", found.sentence)
        assert [bool(worse), bool(better), bool(untold)] == [
            expected == "worse", expected == "better", expected in ("unclear", "none"),
        ], found.sentence  # fmt: skip
        assert ("would be found four times in five" in found.sentence) == (expected == "unclear")
        lines = [
            *answer([found], run, query),
            *sentences(run, query, [found]),
            *outside_sentences(run, query, "A"),
        ]
        assert lines
        for line in lines:
            assert not QUAINT.search(line), line
            assert line.endswith("."), line


@pytest.mark.parametrize("metric", METRICS)
def test_named_encoders_are_told_apart_by_the_same_rule(metric: str) -> None:
    for (value, bounds), other in product(GRID, ("random", "pretrained-b", "pixels")):
        run = folder([(other, value, bounds)], metric, about="pretrained-a")
        query = main_question(run)
        (found,) = contrasts(run, query)
        turned = found.own != "pretrained-a"
        check_difference(
            found.sentence,
            -value if turned else value,
            None if not bounds else bounds if not turned else (-bounds[1], -bounds[0]),
        )
        clear = verdict(bounds, metric) in ("better", "worse")
        assert bool(re.search("did (better|worse) than", found.sentence)) == clear
        assert ("We cannot tell" in found.sentence) != clear
        lines = [*answer([found], run, query), at_single_sites(run, query, found, ["A"])]
        for line in lines:
            assert not QUAINT.search(line), line
            assert line.endswith("."), line
        if other == "pretrained-b":
            assert ("did better than" in lines[1]) == clear
            assert ("is ahead at A" in lines[-1]) == clear


@pytest.mark.parametrize(
    ("verdicts", "lead"),
    [
        ("++", "Training together helped:"),
        ("--", "Training together did harm:"),
        ("+-", "Training together was better than some sites and worse than others:"),
        ("+0", "Training together was better than some sites only:"),
        ("-n", "Training together was worse than some sites only:"),
        ("0n", "Whether training together helped is not clear:"),
        ("nn", "Whether training together helped is not clear:"),
    ],
)
def test_training_together_is_said_to_help_only_where_it_did(verdicts: str, lead: str) -> None:
    bounds: dict[str, tuple[float, Interval]] = {
        "+": (0.1, (0.05, 0.15)), "-": (-0.1, (-0.15, -0.05)), "0": (0.01, (-0.1, 0.1)), "n": (0.2, None),
    }  # fmt: skip
    run = folder([(f"local-only-{number}", *bounds[mark]) for number, mark in enumerate(verdicts)])
    said = tally(contrasts(run, main_question(run)), "passes")
    assert said.startswith(lead)
    assert said.count("local-only-") == 2
    for mark, words in {"+": "better than", "-": "worse than", "0": "told apart from"}.items():
        assert (f"{words} local-only" in said) == (mark in verdicts)
    assert ("without an interval with local-only" in said) == ("n" in verdicts)


@pytest.mark.parametrize("seeds", [None, 1, 3])
@pytest.mark.parametrize("demonstration", [True, False])
def test_cautions_are_whole_sentences_that_apply(seeds: int | None, demonstration: bool) -> None:
    arms = () if seeds is None else (Arm("federated", "Federated", Role.FEDERATED, seeds=seeds),)
    run = folder([("random", 0.1, (0.05, 0.15))], arms=arms, info={"demonstration": demonstration})
    found = dict(cautions(run, main_question(run), contrasts(run, main_question(run))))
    for heading, text in found.items():
        assert heading.endswith(".") and text.endswith(".") and text[0] in "“ABCDEFGHIJKLMNOPQRSTUVWXYZ3", (
            heading,
            text,
        )
        assert not QUAINT.search(text), text
    assert ("A demonstration." in found) == demonstration
    headings = {None: "Training seeds are not on record.", 1: "One training run per arm.", 3: "Two sources of chance."}
    assert [heading for heading in headings.values() if heading in found] == [headings[seeds]]


def test_only_fine_tuning_of_an_encoder_in_question_is_called_fine_tuning() -> None:
    run = folder([("random", 0.1, None)])
    query = MetricQuery("t", "logistic", "AUROC", "1")
    tuned = run.results.assign(protocol="finetune")
    for role, heading in (("random", "Frozen features only."), ("federated", "Frozen features in front.")):
        more = tuned[tuned["role"] == role]
        frame = RESULTS.frame([*run.results.to_dict("records"), *more.to_dict("records")])
        both = RunFolder(Path(), frame, run.comparisons)
        assert heading in dict(cautions(both, query, []))


def test_a_difference_of_the_detectable_size_is_found_four_times_in_five() -> None:
    error, draws = 0.02, np.random.default_rng(0).normal(size=20_000)
    half = 1.96 * error
    found = detectable(-half, half) + error * draws
    assert np.mean(found - half > 0) == pytest.approx(0.8, abs=0.01)
