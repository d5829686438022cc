"""What a site tells of its labels: nothing without permission, nothing of few patients, not more often than agreed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto
from torch import Tensor

import client.app
import client.labels.labelled_images
from client.labels.labelled_images import TooFewLabelsError
from client.outgoing.statistics import checked_statistics
from client.policy import LabelsNotPermittedError, Policy
from client.site import Site
from client.site_file import load_site_file
from federation.audit.log import NOTHING, AuditLog
from federation.federated_evaluation import EvaluationRequest, Statistics, Step, answer_like, probe_like
from federation.flower.private_identity import assume_identity
from federation.flower.records import content_to_note, content_to_statistics, question_to_content, weights_to_record
from federation.records import AuditNote, Failure, TrainInstruction, WithheldError, weights_digest
from federation.study import Study, study_from
from foundation.errors import DataError, StudyError

MakeStudy = Callable[..., Study]
WIDTH = 24
SECTION = {"classes": ["0", "1"], "test_share": 0.4, "histogram": True}


class Hospital:
    """A site of 12 patients with two images each; ``labels`` by image."""

    def __init__(self, site_file: Path, study: Study, instruction: TrainInstruction) -> None:
        self.path, self.study = site_file, study
        self.encoder = {name: v for name, v in instruction.weights.items() if name.startswith("encoder.")}

    def label(self, labels: list[Any]) -> "Hospital":
        path = self.path.parent / "manifest.csv"
        pd.read_csv(path, dtype=str).assign(label=labels).to_csv(path, index=False)
        return self

    def permit(self, **policy: Any) -> "Hospital":
        raw = yaml.safe_load(self.path.read_text())
        raw["policy"] |= policy
        self.path.write_text(yaml.safe_dump(raw))
        return self

    @property
    def site(self) -> Site:
        return Site(load_site_file(self.path), self.study)

    def ask(self, step: Step, site: Site | None = None, **changes: Any) -> dict[str, Tensor]:
        """What leaves the site in answer to a question."""
        here = site or self.site
        tensors = self.encoder if step == "moments" else probe_like(WIDTH, 2) | {"spread": torch.ones(WIDTH).double()}
        asked = EvaluationRequest(self.study.training_hash(), step, weights_digest(self.encoder), tensors)
        return here.labels.allowed(here.labels.reported(replace(asked, **changes))).tensors


@pytest.fixture
def there(
    hospital: Callable[..., Path], study: MakeStudy, instruction: Callable[..., TrainInstruction]
) -> Callable[..., Hospital]:
    """``there(steps=4)``: the hospital, its image n of class n % 2, with the policy that permits all."""

    def make(**section: Any) -> Hospital:
        s = study(federated_evaluation=SECTION | section)
        made = Hospital(hospital("A", images=24, patients=12), s, instruction(s))
        return made.label([n % 2 for n in range(24)]).permit(allow_label_statistics=True, allow_score_histogram=True)

    return make


def test_all_four_steps(there: Callable[..., Hospital]) -> None:
    """12 patients in turn: the even ones all of class 0, so that there are 12 images of each class."""
    here = there()
    moments = here.ask("moments")
    assert moments["count"].item() == 14  # 7 of 12 patients are trained on
    assert moments["mean"].shape == (WIDTH,)
    gradient = here.ask("gradient")
    assert gradient["value"].item() == pytest.approx(14 * 0.6931471805599453)
    positives = 7 - 2 * gradient["gradient"][-1].item() / 2  # the bias at W = 0: half of all less the positives
    assert positives == pytest.approx(round(positives))
    figures = here.ask("figures")
    assert figures["patients"].item() == 5
    assert figures["figures"].shape == (4, 3)
    histogram = here.ask("histogram")
    assert histogram["positive"].sum() + histogram["negative"].sum() == 10
    assert histogram["positive"][0].nonzero().flatten().tolist() in ([50], [])  # every score is 1/2 at W = 0


@pytest.mark.parametrize("step", ["moments", "gradient", "figures", "histogram"])
def test_without_permission_nothing_is_told(there: Callable[..., Hospital], step: Step) -> None:
    here = there().permit(allow_label_statistics=False)
    with pytest.raises(LabelsNotPermittedError, match=r"^this site's policy.allow_label_statistics is false"):
        here.ask(step)
    assert not list(here.path.parent.rglob("evaluation"))
    assert Policy().allow_label_statistics is False
    assert Policy().allow_score_histogram is False


def test_a_histogram_needs_a_permission_of_its_own(there: Callable[..., Hospital]) -> None:
    here = there().permit(allow_score_histogram=False)
    here.ask("moments")
    here.ask("figures")
    with pytest.raises(LabelsNotPermittedError, match=r"^this site's policy.allow_score_histogram is false"):
        here.ask("histogram")


def test_a_study_without_an_evaluation_is_told_nothing(
    there: Callable[..., Hospital], study: MakeStudy, instruction: Callable[..., TrainInstruction]
) -> None:
    here = there()
    other = Hospital(here.path, study(), instruction(study()))
    with pytest.raises(StudyError, match="was asked about labels for a study that has no evaluation of them here"):
        other.ask("moments")


def test_a_rare_class_takes_no_part(there: Callable[..., Hospital]) -> None:
    """Of a class of one patient a gradient would be that patient's features: its images are left out of the sums."""
    here = there().label([1 if n % 12 == 0 else 0 for n in range(24)]).permit(smallest_count=3)
    whole = here.ask("moments")["count"].item()
    alone = there_patients(here)
    assert whole == 2 * len(alone - {"A-0"})
    gradient = here.ask("gradient")["gradient"][-1].item()
    assert gradient == pytest.approx(whole / 2)  # no positive is in the sum


def there_patients(here: Hospital) -> set[str]:
    return set(here.site.images.store().table["patient"])


def test_too_few_labelled_patients(there: Callable[..., Hospital]) -> None:
    here = there().label([n % 2 if n % 12 < 4 else None for n in range(24)]).permit(smallest_count=5)
    with pytest.raises(TooFewLabelsError, match=r"^4 patients that are trained on have a 'label', and policy"):
        here.ask("moments")


def test_as_many_labelled_patients_as_the_policy_asks_for_are_enough(there: Callable[..., Hospital]) -> None:
    """Every patient has an image of each class, so that no class is rarer than labelled patients are."""
    here = there().label([n // 12 for n in range(24)])
    trained_on = len(there_patients(here))
    moments = here.permit(smallest_count=trained_on).ask("moments")
    assert moments["count"].item() == 2 * trained_on
    with pytest.raises(TooFewLabelsError, match=rf"^{trained_on} patients that are trained on have a 'label'"):
        here.permit(smallest_count=trained_on + 1).ask("moments")


def test_no_class_of_enough_patients(there: Callable[..., Hospital]) -> None:
    here = there().permit(smallest_count=6)
    with pytest.raises(TooFewLabelsError, match=r"no class has as many patients here"):
        here.ask("moments")


def test_figures_need_enough_test_patients_of_each_class(there: Callable[..., Hospital]) -> None:
    here = there(test_share=0.2).permit(smallest_count=3)  # two test patients
    here.ask("moments")
    here.ask("gradient")
    for step in ("figures", "histogram"):
        with pytest.raises(TooFewLabelsError, match=r"a class has fewer test patients here than"):
            here.ask(step)  # type: ignore[arg-type]


def test_a_site_without_labels(there: Callable[..., Hospital]) -> None:
    here = there()
    path = here.path.parent / "manifest.csv"
    pd.read_csv(path, dtype=str).drop(columns="label").to_csv(path, index=False)
    with pytest.raises(TooFewLabelsError):
        here.ask("moments")
    assert len(here.site.images.store()) == 24  # it trains on all it has


def probe(first: float) -> dict[str, Tensor]:
    tensors = probe_like(WIDTH, 2) | {"spread": torch.ones(WIDTH).double()}
    tensors["weights"][0] = first
    return tensors


def test_questions_are_counted_and_the_same_one_is_free(there: Callable[..., Hospital]) -> None:
    here = there(steps=3)
    here.ask("moments")
    for first in (0.0, 1.0, 2.0, 1.0, 0.0):
        here.ask("gradient", tensors=probe(first))
    with pytest.raises(StudyError, match=r"^was asked more than federated_evaluation.steps \(3\) questions$"):
        here.ask("gradient", tensors=probe(3.0))
    here.ask("gradient", tensors=probe(2.0))


def test_two_encoders_and_no_third(there: Callable[..., Hospital]) -> None:
    here = there()
    own = dict(here.encoder)
    for number in range(3):
        here.encoder = {name: v + number / 8 if v.is_floating_point() else v for name, v in own.items()}
        if number < 2:
            here.ask("moments")
    with pytest.raises(StudyError, match="for more than 2 encoders"):
        here.ask("moments")


def test_the_same_encoder_is_not_computed_again_until_a_label_changes(
    there: Callable[..., Hospital], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = there()
    calls: list[int] = []
    original = client.labels.labelled_images._features

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr("client.labels.labelled_images._features", counted)
    first = here.ask("moments")
    assert torch.equal(here.ask("moments")["mean"], first["mean"])
    assert len(calls) == 2  # training and test images
    here.label([(n // 12) % 2 for n in range(24)])
    here.ask("moments")
    assert len(calls) == 4


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        probe(0.0) | {"more": torch.zeros(1)},
        probe(0.0) | {"weights": torch.zeros(WIDTH, 1).double()},
        probe(float("nan")),
        probe(0.0) | {"spread": torch.zeros(WIDTH).double()},
    ],
    ids=["nothing", "one more", "another width", "NaN", "no spread"],
)
def test_a_probe_of_another_form(there: Callable[..., Hospital], tensors: dict[str, Tensor]) -> None:
    here = there()
    here.ask("moments")
    with pytest.raises(StudyError, match="was sent a probe that is not of the form"):
        here.ask("gradient", tensors=tensors)


def test_an_encoder_that_is_not_the_studys(there: Callable[..., Hospital]) -> None:
    here = there()
    for tensors in ({}, here.encoder | {"encoder.more": torch.zeros(1)}):
        with pytest.raises(StudyError, match="was sent an encoder that is not of the study"):
            here.ask("moments", tensors=tensors, encoder=weights_digest(tensors))
    with pytest.raises(StudyError, match="was sent an encoder that is not of the study"):
        here.ask("moments", encoder=64 * "a")


def test_an_unknown_label_stops_a_site_that_would_tell_of_it(there: Callable[..., Hospital]) -> None:
    here = there().label(["2"] * 24)
    with pytest.raises(DataError, match="has the label '2'"):
        here.site.describe()
    here.permit(allow_label_statistics=False).site.describe()


# What is held against the list right before it is sent, whatever came before.

RAW: dict[str, Any] = {
    "name": "tiny", "image": {"modality": "mri", "size": 32, "channels": 1},
    "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8, "depth": 1, "width": 24, "heads": 2},
    "method": {"name": "mae"}, "algorithm": {"name": "fedavg"}, "rounds": {"count": 3},
}  # fmt: skip
STUDY = study_from(RAW | {"federated_evaluation": SECTION}, "test")
OPEN = Policy(allow_label_statistics=True, allow_score_histogram=True)


def answer(step: Step, **tensors: Tensor) -> Statistics:
    return Statistics(STUDY.training_hash(), "A", step, 64 * "a", answer_like(step, 2, 2) | tensors)


def allowed(reported: Statistics, policy: Policy = OPEN) -> Statistics:
    return checked_statistics(STUDY, reported, answer_like(reported.step, 2, 2), policy, "A")


def number(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


GOOD = {
    "moments": answer("moments", count=number(5)),
    "gradient": answer("gradient", value=number(1 / 3)),
    "figures": answer("figures", patients=number(9), fewest=number(5), figures=torch.full((4, 3), 1 / 3).double()),
    "histogram": answer("histogram"),
}


def test_what_may_leave() -> None:
    assert allowed(GOOD["gradient"]).tensors["value"].item() == 1 / 3
    assert allowed(GOOD["figures"]).tensors["figures"][0, 0].item() == 0.333333
    assert allowed(GOOD["moments"]) is GOOD["moments"]
    assert allowed(GOOD["histogram"]) is GOOD["histogram"]


one = torch.zeros(1, 100, dtype=torch.int64)
one[0, 3] = 4


@pytest.mark.parametrize(
    ("reported", "policy"),
    [
        (answer("moments", count=number(4)), OPEN),
        (answer("moments", count=number(float("nan"))), OPEN),
        (answer("moments", more=number(1)), OPEN),
        (answer("gradient", value=torch.zeros(1)), OPEN),
        (answer("figures", patients=number(4), fewest=number(5)), OPEN),
        (answer("figures", patients=number(9), fewest=number(4)), OPEN),
        (answer("figures", patients=number(9.5), fewest=number(5)), OPEN),
        (answer("histogram", positive=one), OPEN),
        (answer("histogram", negative=one), OPEN),
        (GOOD["histogram"], Policy(allow_label_statistics=True)),
        (GOOD["gradient"], Policy()),
        (replace(GOOD["gradient"], site="B"), OPEN),
        (replace(GOOD["gradient"], study_hash=64 * "b"), OPEN),
    ],
)
def test_what_may_not(reported: Statistics, policy: Policy) -> None:
    with pytest.raises(WithheldError):
        allowed(reported, policy)


# Through the app, as bytes.


def test_what_leaves_through_the_app_names_nobody(there: Callable[..., Hospital], tmp_path: Path) -> None:
    """Every answer, with its note on the audit log: no patient, path or class name; and a row in the site's log."""
    here = there(classes=["benign", "malignant"]).label([["benign", "malignant"][n % 2] for n in range(24)])
    study_file = tmp_path / "study.yaml"
    study_file.write_text(here.study.to_yaml())
    assume_identity(1)
    context = Context(1, 2, {"site-file": str(here.path)}, RecordDict(), {"study": str(study_file)})
    log, known = AuditLog(tmp_path / "server.jsonl", "server"), NOTHING
    steps: tuple[Step, ...] = ("moments", "gradient", "figures", "histogram")
    for step in steps:
        tensors = here.encoder if step == "moments" else probe(0.5)
        asked = EvaluationRequest(here.study.training_hash(), step, weights_digest(here.encoder), tensors)
        log.append("statistics asked", step=step)
        note = AuditNote(log.extension(NOTHING), known)
        message = Message(
            question_to_content(asked, weights_to_record(tensors), note), 2, "query.evaluate", group_id="3"
        )
        content = client.app.app(message, context).content
        reported, proof = content_to_statistics(content), content_to_note(content)
        assert isinstance(reported, Statistics), reported
        assert reported.step == step
        assert proof is not None
        known = proof.extension.head
        sent = recorddict_to_proto(content).SerializeToString()
        assert [word for word in (b"A-", b".png", b"malignant", str(tmp_path).encode()) if word in sent] == []
        assert here.study.training_hash().encode() in sent  # the search finds what is there
    rows = [json.loads(line) for line in (here.path.parent / "state" / "audit.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["event"] == "statistics released"] == list(steps)


def test_a_refusal_through_the_app_is_a_category(there: Callable[..., Hospital], tmp_path: Path) -> None:
    here = there().permit(allow_label_statistics=False)
    study_file = tmp_path / "study.yaml"
    study_file.write_text(here.study.to_yaml())
    assume_identity(1)
    context = Context(1, 2, {"site-file": str(here.path)}, RecordDict(), {"study": str(study_file)})
    log = AuditLog(tmp_path / "server.jsonl", "server")
    asked = EvaluationRequest(here.study.training_hash(), "moments", weights_digest(here.encoder), here.encoder)
    note = AuditNote(log.extension(NOTHING), NOTHING)
    content = question_to_content(asked, weights_to_record(asked.tensors), note)
    answer_ = content_to_statistics(
        client.app.app(Message(content, 2, "query.evaluate", group_id="3"), context).content
    )
    assert answer_ == Failure("", 0, "A", "labels-not-permitted")
    assert "allow_label_statistics is false" in (here.path.parent / "state" / "site.log").read_text()
