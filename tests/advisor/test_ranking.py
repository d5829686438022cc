"""What is suggested for what, with which evidence; numbers by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advisor.candidates import CANDIDATES
from advisor.evidence import CELLS, DATA, FINDINGS, NOTES, SWEEP, UNKNOWN
from advisor.ranking import best, left_out, rank, why_not
from benchmarks.comparisons import advisor_table
from benchmarks.throughput import batch_of, passes_a_image
from foundation.errors import StudyError
from imaging.config import ImageConfig
from ssl_methods import METHODS, build_method
from ssl_methods.encoders.table import EncoderConfig
from tests.advisor.conftest import PAIRS, setting

SETTINGS = st.builds(
    lambda pair, **answer: setting(*pair, **answer),
    st.sampled_from(PAIRS),
    labels=st.integers(0, 1000),
    sites=st.integers(1, 20),
    patients=st.integers(2, 300),
    images=st.integers(1, 5),
    volumes=st.booleans(),
    privacy=st.booleans(),
    different_sites=st.booleans(),
    pretrained_weights=st.booleans(),
)


def points(*pair: str, **answer: object) -> dict[str, float]:
    """Of all candidates that fit, by name."""
    return {each.candidate.name: each.points for each in rank(setting(*pair, **answer))}


def names(*pair: str, **answer: object) -> list[str]:
    return [each.candidate.name for each in best(setting(*pair, **answer))]


def test_every_method_is_a_candidate_and_no_other() -> None:
    assert {candidate.method for candidate in CANDIDATES} == set(METHODS)
    assert len({candidate.name for candidate in CANDIDATES}) == len(CANDIDATES)


@pytest.mark.parametrize(
    "candidate", [c for c in CANDIDATES if 2 in c.declared.dimensions], ids=lambda candidate: candidate.name
)
def test_passes_are_those_that_the_benchmark_counts(candidate: object) -> None:
    image = ImageConfig(modality="mri", size=64, channels=1)
    vit = EncoderConfig(name="vit_tiny_patch16_224", patch_size=8, depth=1, width=24, heads=2)
    encoder = vit if "vit" in candidate.declared.encoders else EncoderConfig(name="resnet10t")  # type: ignore[attr-defined]
    method = build_method(candidate.config, encoder, image, 0)  # type: ignore[attr-defined]
    counted = passes_a_image(method, batch_of(image, 4, torch.device("cpu")))
    line = f"write passes: {counted:.2f} for it under candidates in advisor/evidence.yaml"
    assert candidate.passes == pytest.approx(counted, rel=0.08), line  # type: ignore[attr-defined]


def test_our_own_cells_are_those_of_the_benchmarks() -> None:
    assert SWEEP.read_text() == advisor_table.written()
    assert {cell.method for cell in CELLS} <= set(METHODS)
    mae = next(cell for cell in CELLS if cell.method == "mae" and cell.dimensions == 2)
    assert (mae.difference, mae.low, mae.high, mae.units, mae.sign) == (0.144, 0.097, 0.190, 30, 1)
    gain, low, high = advisor_table.pretrained_gain()
    assert f"AUROC {gain:+.3f} ({low:+.3f} to {high:+.3f})" in FINDINGS["own weights"].says


def test_points_by_hand() -> None:
    # I-JEPA: direct comparison 4, review 3, own sweep below random on other images -1/2.
    assert points("ultrasound", "segmentation")["ijepa"] == 6.5
    # MAE: review 3, own sweep 1/2.
    assert points("ultrasound", "segmentation")["mae"] == 3.5
    # SimCLR on brain MRI: review 3, own sweep on just that 1; with few patients -1.
    assert points("mri", "classification")["simclr"] == 4
    assert points("mri", "classification", patients=15)["simclr"] == 3
    # DINO on tissue: 4, review 3, own sweep 1/2, more than two views' passes -1.
    assert points("histopathology", "classification")["dino"] == 6.5
    # Regression is carried over from classification: 3/2, and the sweep 1/2.
    assert points("fundus", "regression")["vicreg"] == 2
    # MAE with privacy and different sites: single study 2, own sweep 1/2, by construction 1.
    assert points("x-ray", "classification", privacy=True, different_sites=True)["mae"] == 3.5
    # iBOT for regression: the review by part and by task 3/4, combined strategies 3/4, cost -1.
    assert points("x-ray", "regression")["ibot"] == 0.5


@pytest.mark.parametrize("volumes", [False, True])
def test_few_patients_count_against_methods_with_negatives_only(volumes: bool) -> None:
    many, few = (points("mri", "classification", volumes=volumes, patients=patients) for patients in (100, 15))
    with_negatives = {each.name for each in CANDIDATES if each.declared.fewest_patients > 1}
    assert {name for name in few if few[name] != many[name]} == with_negatives & set(few)
    assert all(few[name] == many[name] - 1 for name in with_negatives & set(few))


def test_what_the_literature_says_comes_first() -> None:
    assert names("ultrasound", "segmentation")[0] == "ijepa"
    assert names("ultrasound", "classification")[0] == "ijepa"
    assert names("histopathology", "classification")[0] == "dino"
    assert names("x-ray", "classification")[0] == "simclr"
    assert names("fundus", "segmentation")[0] == names("endoscopy", "detection")[0] == "mae"
    assert names("x-ray", "classification", privacy=True)[0] == "mae"
    assert names("ct", "segmentation", volumes=True)[:2] == ["mae", "swin_unetr"]


def test_where_modality_and_task_speak_for_different_methods_both_are_shown() -> None:
    found = names("histopathology", "segmentation")
    assert found == ["dino", "mae", "ibot"]


@given(SETTINGS)
def test_only_what_fits_is_suggested_best_first(asked: object) -> None:
    found = best(asked)  # type: ignore[arg-type]
    assert 1 <= len(found) <= 3
    assert [each.points for each in found] == sorted((each.points for each in found), reverse=True)
    assert len({each.candidate.name for each in found}) == len(found)
    for each in found:
        assert why_not(asked, each.candidate) == ""  # type: ignore[arg-type]
        assert asked.dimensions in each.candidate.declared.dimensions  # type: ignore[attr-defined]
        assert each.candidate.declared.fewest_patients <= asked.patients  # type: ignore[attr-defined]
        assert each.candidate.declared.per_sample or not asked.privacy  # type: ignore[attr-defined]
        assert each.points == pytest.approx(math.fsum(reason.points for reason in each.reasons))
    left = [name for group in left_out(asked).values() for name in group]  # type: ignore[arg-type]
    assert len(left) + len(rank(asked)) == len(CANDIDATES)  # type: ignore[arg-type]


def test_constraints_come_first() -> None:
    one = setting("mri", "classification", patients=1, images=5)
    assert "needs 2 patients at every site" in left_out(one)
    assert {"simclr", "moco_v2", "moco_v3", "combine (mae + simclr)"} <= set(
        left_out(one)["needs 2 patients at every site"]
    )
    assert any("slice_order" in group for group in left_out(setting()).values())
    assert not any("slice_order" in group for group in left_out(setting(images=4)).values())


def test_a_carried_finding_counts_half_and_says_so() -> None:
    reason = next(r for e in rank(setting("x-ray", "regression")) if e.candidate.name == "simclr" for r in e.reasons)
    assert reason.points == 1.5
    assert reason.line() == (
        "for classification, contrastive methods and joint embedding "
        "[Task-Aligned SSL review 2026; review; no evidence here: extrapolated, classification to regression]"
    )


def test_every_finding_is_used() -> None:
    """Row by row, or as advice (tests/advisor/test_answer.py)."""
    asked = [
        setting(*pair, privacy=p, volumes=v, different_sites=True, patients=15, images=2)
        for pair in PAIRS
        for p in (False, True)
        for v in (False, True)
    ]
    used = {(r.finding.says, r.sign, r.carried) for each in asked for ranked in rank(each) for r in ranked.reasons}
    for name, finding in FINDINGS.items():
        assert bool(finding.when) != bool(finding.rows or name == "own")
        assert all((finding.says, row.sign, row.carried) in used for row in finding.rows), name


def test_findings_speak_of_methods_and_settings_that_there_are() -> None:
    groups = frozenset[str]().union(*(candidate.groups for candidate in CANDIDATES))
    for finding in FINDINGS.values():
        for row in finding.rows:
            assert row.methods <= groups
    for each in (*FINDINGS.values(), *NOTES, *UNKNOWN, *(row for f in FINDINGS.values() for row in f.rows)):
        assert isinstance(each.holds(setting()), bool)  # every attribute is the setting's


def test_a_method_of_which_nothing_is_known_is_a_candidate_without_evidence() -> None:
    """Adding a method needs no line here."""
    names = [each["method"] for each in DATA["candidates"]]
    assert {candidate.method for candidate in CANDIDATES} == {*names, *METHODS}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ({"modality": "ultrasond"}, "modality 'ultrasond' is not known; there are: ct,"),
        ({"task": "detecting"}, "did you mean 'detection'?"),
        ({"labels": -1}, "labels -1: give 0 or more"),
        ({"sites": 0}, "sites 0: give 1 or more"),
        ({"patients": 0}, "patients per site 0: give 1 or more"),
        ({"images": 0}, "images per patient 0: give 1 or more"),
        ({"patients": 1}, "1 patient a site with 1 image: pretraining needs 2 images at every site"),
    ],
)
def test_a_setting_that_cannot_be(answer: dict[str, object], said: str) -> None:
    with pytest.raises(StudyError) as error:
        setting(**answer)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
