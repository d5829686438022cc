"""The pilot: whom it may look at, its budget, its rule, and a whole small one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from advisor.candidates import CANDIDATES
from advisor.pilot_plan import (
    arm_name,
    fitting,
    has_partners,
    plan_pilot,
    rounds_for,
    spare_tested,
    vit_for,
)
from advisor.verdict import RULE, Findings, PilotEstimate, read_findings
from evaluation.statistics.results_schema import COMPARISONS, RESULTS
from federation.study import Study, load_study, study_from
from foundation.errors import RunError, StudyError
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.listing.splits import SplitConfig, draw_splits
from simulation.simulate import simulation_config
from simulation.validate import validate
from ssl_methods import usual_training
from ssl_methods.encoders.table import EncoderConfig
from ssl_methods.encoders.timm_encoders import build_encoder
from tests.advisor.conftest import setting

Advise = Callable[..., list[str]]
STUDY: dict[str, Any] = {
    "name": "tiny",
    "image": {"modality": "mri", "size": 32, "channels": 1},
    "encoder": {"name": "resnet10t"},
    "method": {"name": "simclr", "temperature": 0.3},
    "training": {"batch": 16, "learning_rate": 0.004},
    "algorithm": {"name": "fedavg"},
    "rounds": {"count": 7},
    "evaluation": {"protocols": ["knn"], "finetune": {"epochs": 1}},
    "simulation": {"dataset": "phantoms", "options": {"images": 64, "size": 32}, "splits": {"left_out": ["F"]}},
}


def study(**changes: Any) -> Study:
    return study_from(STUDY | changes, "test")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return plan_pilot(study(), tmp_path_factory.mktemp("plan") / "pilot", {}, "cpu", passes=600)


def test_nobody_whom_the_study_tests_is_opened(plan: Any) -> None:
    """The study's own split decides, as its full run would draw it."""
    kept = pd.read_csv(plan.folder / "evaluation" / "manifest.csv", dtype=str)
    whole = Manifest.read(plan.folder / "study" / "evaluation" / "manifest.csv")
    split = draw_splits(whole, simulation_config(plan.study).splits, plan.study.seed)
    roles = split.groupby("role")["patient"].agg(set)
    assert set(kept["patient"]) == roles["train"] | roles["validation"]
    assert not set(kept["patient"]) & (roles["test"] | roles["left-out"])
    assert plan.spared == len(roles["test"] | roles["left-out"]) > 10
    own = pd.read_csv(plan.folder / "evaluation" / "splits.csv", dtype=str)
    assert set(own["patient"]) == set(kept["patient"])
    assert set(own["role"]) == {"train", "validation", "test"}
    trained = {patient for arm in plan.arms.values() for patient in arm.sites.table["patient"]}
    assert trained == set(own.loc[own["role"] == "train", "patient"])


@given(
    patients=st.lists(st.integers(1, 9), min_size=2, max_size=4), folds=st.just(1), seed=st.integers(0, 99),
    share=st.sampled_from([0.2, 0.4]),
)  # fmt: skip
def test_a_tested_patient_is_spared_whatever_the_split(
    patients: list[int], folds: int, seed: int, share: float
) -> None:
    rows = [
        {"image": f"{site}-{patient}-{number}.png", "patient": f"{site}-{patient}", "site": str(site), "label": number}
        for site, count in enumerate(patients)
        for patient in range(count)
        for number in range(2)
    ]
    manifest = Manifest(pd.DataFrame(rows), Path())
    split = draw_splits(manifest, SplitConfig(folds=folds, test_share=share, left_out=("0",)), seed)
    kept, spared = spare_tested(manifest, split)
    role = dict(zip(split["patient"], split["role"], strict=True))
    assert {role[patient] for patient in kept.table["patient"]} <= {"train", "validation"}
    assert spared == sum(each in ("test", "left-out") for each in role.values())
    assert set(kept.table["patient"]) == {patient for patient, each in role.items() if each in ("train", "validation")}


def test_the_plan_gives_every_candidate_the_same(plan: Any) -> None:
    studies = [arm.study for arm in plan.arms.values()]
    assert len(studies) == 3
    assert len({one.encoder.model_dump_json() for one in studies}) == 1
    assert len({one.training.model_dump_json(exclude={"betas"}) for one in studies}) == 1
    for one in studies:  # the given rate is every candidate's own too; betas were left out
        assert one.training.betas == usual_training(one.method)["betas"]
    for each in plan.ranked:
        arm = plan.arms[each.candidate.name]
        assert arm.budget().images * each.candidate.passes == pytest.approx(600, rel=0.5)  # whole rounds
        assert arm.kind == "federated"
    assert plan.arms["simclr"].study.method.temperature == 0.3  # the study's own settings of its own method
    assert plan.setting.patients == 2  # of site E


def shown(**columns: Any) -> Manifest:
    """40 images of site A and 8 of B, four of a patient."""
    table = pd.DataFrame({"image": map(str, range(48)), "patient": [f"{n // 4}" for n in range(48)]})
    return Manifest(table.assign(site=["A"] * 40 + ["B"] * 8, **columns), Path())


def test_rounds_by_hand() -> None:
    # A sees 2 batches of 16, B one of 8: 40 images a round; at two passes each 80.
    assert rounds_for(study(), shown(), 800, 2.0) == 10
    assert rounds_for(study(), shown(), 1, 2.0) == 1


def test_the_order_of_slices_is_tried_where_there_is_one() -> None:
    slice_order = next(candidate for candidate in CANDIDATES if candidate.method == "slice_order")
    series = [f"{n // 4}" for n in range(48)]
    ordered = shown(series=series, position=[n % 4 for n in range(48)])
    assert has_partners(slice_order, ordered)
    assert not has_partners(slice_order, shown())
    assert not has_partners(slice_order, shown(series=series, position=[n % 4 for n in range(40)] + [0] * 8))
    private = setting("mri", images=4, privacy=True)
    answer = study(encoder={"name": "vit_tiny_patch16_224"})
    names = [
        [each.candidate.name for each in fitting(answer, simulation_config(answer), private, images)[0]]
        for images in (ordered, shown())
    ]
    assert names == [["mae", "combine (mae + ijepa)", "slice_order"], ["mae", "combine (mae + ijepa)", "ijepa"]]


def test_one_encoder_for_all() -> None:
    answer = study()
    config = simulation_config(answer)
    kept, studies = fitting(answer, config, setting("mri", "classification"), shown())  # iBOT takes no ResNet
    assert [each.candidate.name for each in kept] == ["simclr", "vicreg", "ibot"]
    assert {one.encoder.name for one in studies.values()} == {"vit_tiny_patch16_224"}
    own = study(encoder={"name": "vit_tiny_patch16_224", "patch_size": 16, "depth": 2})
    assert {one.encoder.patch_size for one in fitting(own, config, setting("mri"), shown())[1].values()} == {16}
    started = config.model_copy(update={"weights": Path("weights.pth")})
    assert {one.encoder.name for one in fitting(answer, started, setting("mri"), shown())[1].values()} == {"resnet10t"}
    with pytest.raises(StudyError, match=r"encoder 'resnet10t' takes 0 of the candidates \(mae, "):
        fitting(answer, started, setting("mri", "segmentation"), shown())


@given(size=st.integers(16, 160), depth=st.none() | st.integers(8, 64))
def test_the_small_vit_tiles_every_image(size: int, depth: int | None) -> None:
    encoder = vit_for(ImageConfig(modality="mri", size=size, depth=depth, channels=1))
    sides = [size, size] if depth is None else [depth, size, size]
    patch = encoder["patch_size"]
    for side, part in zip(sides, patch if isinstance(patch, list) else [patch] * 2, strict=True):
        assert side % part == 0
        assert side // part >= 2


def test_the_small_vit_can_be_built() -> None:
    for image in (
        ImageConfig(modality="mri", size=28, channels=1),
        ImageConfig(modality="ct", size=28, depth=20, channels=1),
    ):
        build_encoder(EncoderConfig(**vit_for(image)), image)


def test_folds_leave_nobody_for_a_pilot(tmp_path: Path) -> None:
    folds = STUDY["simulation"] | {"splits": {"folds": 5}}
    with pytest.raises(StudyError, match=r"folds 5 tests every patient, .* --set simulation.splits.folds=1"):
        plan_pilot(study(simulation=folds), tmp_path / "pilot", {}, "cpu")
    with pytest.raises(StudyError, match="passes 0: give 1 or more"):
        plan_pilot(study(), tmp_path / "pilot", {}, "cpu", passes=0)
    assert list(tmp_path.iterdir()) == []


def found(
    *against: tuple[float, float, float], values: tuple[float, ...] = (0.8, 0.7, 0.6), gain: float = 0.2
) -> Findings:
    named = ("first", "second", "third")
    return Findings(
        "AUROC",
        20,
        {name: PilotEstimate(value, value - 0.1, value + 0.1) for name, value in zip(named, values, strict=False)},
        {name: PilotEstimate(gain, gain - 0.1, gain + 0.1) for name in named},
        {name: PilotEstimate(*each) for name, each in zip(named[1:], against, strict=False)},
    )


NAN = float("nan")


@pytest.mark.parametrize(
    ("findings", "agreement", "winner"),
    [
        (found((0.1, 0.05, 0.15), (0.2, 0.1, 0.3)), "agrees", "first"),
        (found((0.1, -0.05, 0.25), (0.2, 0.1, 0.3)), "cannot tell", "first"),
        (found((-0.1, -0.25, 0.05), (0.2, 0.1, 0.3), values=(0.7, 0.8, 0.5)), "cannot tell", "first"),
        (found((-0.1, -0.15, -0.05), (0.2, 0.1, 0.3), values=(0.7, 0.8, 0.5)), "disagrees", "second"),
        (found((-0.1, -0.15, -0.05), (-0.2, -0.3, -0.1), values=(0.6, 0.7, 0.8)), "disagrees", "third"),
        (
            found((-0.1, -0.15, -0.05), (0.2, 0.1, 0.3), values=(0.7, 0.8, 0.5), gain=0.05),
            "cannot tell",
            "first",
        ),
        (found((0.1, NAN, NAN), (0.2, NAN, NAN)), "cannot tell", "first"),
        (found((-0.1, NAN, NAN), (0.2, NAN, NAN), values=(0.7, 0.8, 0.5)), "cannot tell", "first"),
    ],
)
def test_one_rule(findings: Findings, agreement: str, winner: str) -> None:
    assert (findings.agreement, findings.winner) == (agreement, winner)


def test_findings_are_read_whichever_way_round_a_pair_stands(tmp_path: Path) -> None:
    fixed = {"protocol": "finetune", "site": "all", "metric": "AUROC", "unit": "patient", "n": 12}
    own = fixed | {"statistic": "estimate", "role": "federated"}
    rows = [
        own | {"encoder": name, "value": value, "ci_low": value - 0.1}
        for name, value in (("one", 0.7), ("two", 0.8), ("scratch", 0.6))
    ]
    rows[-1]["role"] = "supervised"
    others = [{"site": "A"}, {"metric": "F1"}, {"statistic": "seed sd"}]
    rows += [own | {"encoder": "one", "value": 0.1, "n": 3} | other for other in others]
    RESULTS.write(tmp_path / "results.csv", RESULTS.frame(rows))
    pairs = [("two", "one", 0.1, 0.05, 0.15), ("one", "scratch", 0.1, -0.1, 0.3), ("two", "scratch", 0.2, 0.1, 0.3)]
    apart = [
        fixed | {"role_a": "federated", "role_b": "other"}
        | dict(zip(("encoder_a", "encoder_b", "value", "ci_low", "ci_high"), pair, strict=True))
        for pair in pairs
    ]  # fmt: skip
    COMPARISONS.write(tmp_path / "comparisons.csv", COMPARISONS.frame(apart))
    findings = read_findings(tmp_path, {"one": "one", "two": "two"}, "finetune")
    assert findings.metric == "AUROC" and findings.patients == 12
    assert findings.against["two"] == PilotEstimate(-0.1, -0.15, -0.05)
    assert findings.gain["two"] == PilotEstimate(0.2, 0.1, 0.3)
    assert findings.ranked() == ["two", "one"]
    assert (findings.agreement, findings.winner) == ("disagrees", "two")
    with pytest.raises(RunError, match="no encoder could be compared"):
        read_findings(tmp_path, {"one": "one", "two": "two"}, "logistic")


@pytest.mark.slow
def test_a_whole_pilot(advise: Advise, tmp_path: Path) -> None:
    raw = STUDY | {"encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw))
    lines = advise("study.yaml", "--pilot", "--passes", "200", "--device", "cpu", "--privacy")
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert RULE in text
    assert "200 encoder passes for each of 3 candidates" in text
    folder = next((tmp_path / "runs").glob("pilot-tiny-*"))
    record = json.loads((folder / "pilot.json").read_text())
    assert record["passes"] == 200
    assert {each["name"] for each in record["candidates"]} == {"mae", "ijepa", "combine (mae + ijepa)"}
    assert record["agreement"] in ("agrees", "cannot tell", "disagrees")
    assert all(0 <= each["figure"][0] <= 1 for each in record["candidates"])
    assert record["candidates"][0]["first_minus_it"] is None
    for name in record["candidates"]:
        assert name["images"] > 0 and name["failed"] == ""
    chosen = load_study(tmp_path / "advise-tiny.yaml")
    winner = next(each for each in record["candidates"] if each["name"] == record["winner"])
    assert chosen.method.name == winner["method"]["name"]
    assert chosen.rounds.count == 7  # the study's own, not the pilot's
    assert chosen.simulation is not None and chosen.simulation["dataset"] == "phantoms"
    assert "is valid" in validate(tmp_path / "advise-tiny.yaml")[-1]
    assert (folder / "report.html").is_file()
    with pytest.raises(StudyError, match="exists already and is not overwritten"):
        advise("study.yaml", "--pilot")


def test_names_of_arms() -> None:
    assert len({arm_name(candidate) for candidate in CANDIDATES}) == len(CANDIDATES)
    assert {arm_name(c) for c in CANDIDATES if c.method == "combine"} == {"combine-mae-simclr", "combine-mae-ijepa"}
