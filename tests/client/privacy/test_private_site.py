"""A private study at a site: charged before it is trained, told as noised weights alone, refused with a reason."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import client.training.site_training
from client.privacy.ledger import LedgerNotContinuedError
from client.privacy.rules import check_patients, fewer_patients
from client.privacy.training import train_private_round
from client.privacy.update import clipped_update, released, update_length
from client.site import Site
from client.site_file import load_site_file
from client.training.workbench import Workbench
from federation.audit.log import NOTHING, AuditHead, verify
from federation.privacy import noise
from federation.privacy.ledger import BudgetSpentError, Ledger, read_charges
from federation.privacy.plan import plan_of
from federation.records import TrainInstruction, TrainReply
from federation.study import Study
from foundation.errors import DataError, StudyError, TrainingError
from foundation.files import read_jsonl

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Instruct = Callable[..., TrainInstruction]
UNITS = ["patient", "site"]


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[..., Ledger]:
    """``ledger("A")``: that site's."""
    return lambda name="A": Ledger(tmp_path / "sites" / name / "ledger.jsonl")


def same(one: TrainReply, other: TrainReply) -> bool:
    return all(torch.equal(one.weights[name], value) for name, value in other.weights.items())


@pytest.mark.parametrize("unit", UNITS)
def test_a_reply_tells_weights_and_constants(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger],
    tmp_path: Path, unit: str,
) -> None:  # fmt: skip
    s = private_study(unit)
    here = private_site(s)
    assert here.describe().images == 1
    reply = here.allowed(here.train(instruction(s)), 1)
    assert (reply.images, reply.metrics) == (1, {})
    assert reply.ledger is not None
    assert reply.ledger.head == verify(ledger().path).head
    assert reply.ledger.follows(NOTHING)
    (row,) = read_jsonl(tmp_path / "sites" / "A" / "state" / s.training_hash()[:16] / "private.jsonl")
    assert row["round"] == 1 and row["steps"] == 2 and "rankme" in row and "seconds" in row


@pytest.mark.parametrize("unit", UNITS)
def test_each_round_is_charged_with_what_the_plan_says(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger], unit: str
) -> None:
    s = private_study(unit)
    plan, here = plan_of(s), private_site(s)
    assert plan is not None
    for round_ in (1, 2):
        here.train(instruction(s, round_))
    assert [(c.study, c.round, c.unit, c.release) for c in read_charges(ledger().path)] == [
        (s.training_hash(), round_, unit, plan.per_round) for round_ in (1, 2)
    ]
    assert plan.per_round.steps == (2 if unit == "patient" else 1)


def test_the_charge_is_on_the_disk_before_anything_is_drawn(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    charged: list[int] = []
    for name in ("noised", "poisson_sample", "secure_generator"):
        real = getattr(noise, name)

        def seen(*arguments: Any, real: Callable[..., Any] = real) -> Any:
            charged.append(len(read_charges(ledger().path)))
            return real(*arguments)

        monkeypatch.setattr(noise, name, seen)
    s = private_study()
    private_site(s).train(instruction(s))
    assert len(charged) > 6 and set(charged) == {1}


@pytest.mark.parametrize("unit", UNITS)
def test_an_update_that_is_asked_for_again_costs_nothing(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger],
    restart: Callable[[], None], unit: str,
) -> None:  # fmt: skip
    s = private_study(unit)
    first, again = private_site(s).training.trained_or_stored(instruction(s))
    assert not again
    restart()
    assert first.ledger is not None
    second, again = private_site(s).training.trained_or_stored(replace(instruction(s), ledger=first.ledger.head))
    assert again and same(first, second)
    assert (second.images, second.metrics) == (1, {})
    assert second.ledger is not None and second.ledger.head == first.ledger.head
    assert len(read_charges(ledger().path)) == 1
    other = {
        name: value + 0.01 if value.is_floating_point() else value for name, value in instruction(s).weights.items()
    }
    private_site(s).train(instruction(s, 1, other))  # another history, and another release
    assert len(read_charges(ledger().path)) == 2


def test_an_attempt_that_fails_stays_charged(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    s = private_study()

    def fail(*_: Any) -> Any:
        raise TrainingError("the weights are not finite")

    with monkeypatch.context() as patch, pytest.raises(TrainingError):
        patch.setattr(client.training.site_training, "train_private_round", fail)
        private_site(s).train(instruction(s))
    assert len(read_charges(ledger().path)) == 1
    private_site(s).train(instruction(s))
    assert len(read_charges(ledger().path)) == 2


@pytest.mark.parametrize("refusal", ["max_rounds", "another study's tensors", "a round too many"])
def test_what_is_refused_costs_nothing(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger], refusal: str
) -> None:
    s = private_study()
    asked = instruction(s)
    here = private_site(s, policy={"max_rounds": 3})
    if refusal == "max_rounds":
        trained = here.rounds._folder / "trained"
        trained.parent.mkdir(parents=True)
        trained.write_text("3\n")
    elif refusal == "a round too many":
        asked = instruction(s, 4)
    else:
        asked = replace(asked, weights={"encoder.other": torch.zeros(1)})
    for _ in range(2):
        with pytest.raises(StudyError):
            here.train(asked)
    assert read_charges(ledger().path) == []


def test_a_budget_stops_a_site_before_it_is_passed(
    private_study: MakeStudy,
    private_site: MakeSite,
    instruction: Instruct,
    ledger: Callable[..., Ledger],
    tmp_path: Path,
) -> None:
    s = private_study(rounds={"count": 3})
    plan = plan_of(s)
    assert plan is not None
    bound = {"epsilon": round(plan.epsilon * 0.8, 3), "delta": 1e-3}
    here = private_site(s, policy={"privacy_budget": bound})
    done = 0
    with pytest.raises(BudgetSpentError, match=r"raise policy\.privacy_budget") as caught:
        for round_ in (1, 2, 3):
            here.train(instruction(s, round_))
            done = round_
    assert done in (1, 2)
    assert len(read_charges(ledger().path)) == done and ledger().spent(1e-3) <= bound["epsilon"]
    assert "\n" not in str(caught.value)
    assert not (here.rounds._folder / f"round-{done + 1:05d}").exists()
    assert (here.rounds._folder / "trained").read_text() == f"{done}\n"  # what was not trained is not counted
    reply, again = here.training.trained_or_stored(instruction(s, done))  # what was released can still be sent
    assert again and reply.ledger is not None


def test_two_studies_are_one_pool(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger]
) -> None:
    one, other = private_study(), private_study("site", privacy={"epsilon": 5})
    for s in (one, other):
        private_site(s).train(instruction(s))
    assert {charge.study for charge in read_charges(ledger().path)} == {one.training_hash(), other.training_hash()}
    reply = private_site(one).train(instruction(one))
    assert reply.ledger is not None and reply.ledger.head.count == 3  # the row that opens it, and two charges


def test_a_ledger_from_a_backup_is_refused_before_anything_is_spent(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger]
) -> None:
    s = private_study()
    private_site(s).train(instruction(s, 1))
    backup = ledger().path.with_suffix(".backup")
    shutil.copy(ledger().path, backup)
    reply = private_site(s).train(instruction(s, 2))
    assert reply.ledger is not None
    held = reply.ledger.head
    private_site(s).train(replace(instruction(s, 2), ledger=held))
    shutil.copy(backup, ledger().path)
    for round_ in (2, 3):  # also for an update that lies on the disk
        with pytest.raises(LedgerNotContinuedError, match="not in this log"):
            private_site(s).train(replace(instruction(s, round_), ledger=held))
    assert len(read_charges(ledger().path)) == 1


def test_a_ledger_that_is_gone_is_refused(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ledger: Callable[..., Ledger]
) -> None:
    s = private_study()
    reply = private_site(s).train(instruction(s, 1))
    assert reply.ledger is not None
    ledger().path.unlink()
    with pytest.raises(LedgerNotContinuedError, match="not in this log"):
        private_site(s).train(replace(instruction(s, 2), ledger=reply.ledger.head))
    with pytest.raises(LedgerNotContinuedError):
        private_site(s).train(replace(instruction(s, 2), ledger=AuditHead(7, "ab" * 32)))


@pytest.mark.parametrize("unit", UNITS)
def test_a_site_without_a_ledger_is_told(
    private_study: MakeStudy, site: MakeSite, instruction: Instruct, unit: str
) -> None:
    s = private_study(unit)
    for act in (lambda: site(s).describe(), lambda: site(s).train(instruction(s))):
        with pytest.raises(
            StudyError, match=r"^site A: the study tiny is private, and this site file has no `ledger`: "
        ):
            act()


def test_images_that_do_not_say_whose_they_are(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, tmp_path: Path
) -> None:
    s = private_study()
    here = private_site(s)
    (tmp_path / "sites" / "A" / "manifest.csv").unlink()
    path = tmp_path / "sites" / "A" / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": "."}))
    here = Site(load_site_file(path), s)
    with pytest.raises(DataError, match="do not say whose they are: list them in a manifest with a `patient` column"):
        here.describe()
    Site(load_site_file(path), private_study("site")).describe()  # a site's own privacy needs no patients


def test_delta_is_for_the_patients_that_are_here(private_study: MakeStudy, private_site: MakeSite) -> None:
    s = private_study(privacy={"patients": 2, "patients_per_step": 1, "delta": 9e-3})
    check_patients(s, 11)
    with pytest.raises(
        DataError, match=r"^this site has 12 patients, and privacy.delta 0.009 is above 1 / \(10 x patie"
    ):
        private_site(s, images=12, patients=12).describe()


def test_a_site_with_fewer_patients_is_told_and_takes_part(
    private_study: MakeStudy, private_site: MakeSite, capfd: pytest.CaptureFixture[str]
) -> None:
    s = private_study()
    private_site(s, patients=3).describe()
    answer = "this site has 3 patients, and the study takes it to have 4: its steps are 75% of the size"
    assert answer in capfd.readouterr().err
    assert fewer_patients(s, 4) == fewer_patients(private_study("site"), 1) == ""


def test_the_same_study_twice_gives_other_noise_and_other_weights(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, tmp_path: Path
) -> None:
    s = private_study()
    replies = []
    for _ in range(2):
        torch.manual_seed(0)
        replies.append(private_site(s).train(instruction(s)))
        shutil.rmtree(tmp_path / "sites" / "A" / "state")
    trained = {name for name, weight in Workbench().of(s)[0].named_parameters() if weight.requires_grad}
    assert len(trained) > 20
    for name in trained:
        assert not torch.equal(replies[0].weights[name], replies[1].weights[name]), name


def test_without_noise_and_chance_the_rounds_are_alike(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What the test above saw was that chance, and nothing else."""
    monkeypatch.setattr(noise, "noised", lambda total, std: total)
    monkeypatch.setattr(noise, "poisson_sample", lambda count, rate: torch.arange(count))
    monkeypatch.setattr(noise, "secure_generator", lambda: torch.Generator().manual_seed(1))
    s = private_study()
    replies = []
    for _ in range(2):
        replies.append(private_site(s).train(instruction(s)))
        shutil.rmtree(tmp_path / "sites" / "A" / "state")
    assert same(*replies)


@pytest.mark.parametrize("method", ["mae", "ijepa"])
def test_all_that_leaves_comes_through_the_noise(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, ijepa: dict[str, Any], method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Where the noise drowns the sum, two hospitals of other images and patients say the same, bit for bit."""
    s = private_study(**({"method": ijepa} if method == "ijepa" else {}))
    draw = torch.Generator()
    monkeypatch.setattr(noise, "noised", lambda total, std: std * torch.randn(total.shape, generator=draw))
    last: dict[str, dict[str, Tensor]] = {}
    for name, images, patients in (("A", 9, 3), ("B", 14, 5)):
        draw.manual_seed(5)
        weights, here = None, private_site(s, name, images=images, patients=patients)
        for round_ in (1, 2):
            reply = here.allowed(here.train(instruction(s, round_, weights)), round_)
            assert (reply.images, reply.metrics) == (1, {})
            weights = reply.weights
        assert weights is not None
        last[name] = weights
    started = instruction(s).weights
    assert any(not torch.equal(value, started[name]) for name, value in last["A"].items())
    for name, value in last["A"].items():
        assert torch.equal(value, last["B"][name]), name


def test_a_site_s_update_is_clipped_and_its_statistics_stay(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct
) -> None:
    s = private_study("site", method={"name": "simsiam"}, privacy={"clip": 0.01})
    asked = instruction(s)
    reply = private_site(s).train(asked)
    moved = {name for name, value in reply.weights.items() if not torch.equal(value, asked.weights[name])}
    answer = [name for name in reply.weights if name.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert answer and moved.isdisjoint(answer)
    assert 0.0099 < update_length(reply.weights, asked.weights) <= 0.01


RECEIVED = {
    "w": torch.tensor([1.0, 2.0]), "b": torch.tensor([0.5]), "n.running_mean": torch.tensor([3.0]),
    "n.num_batches_tracked": torch.tensor(4), "half": torch.tensor([0.25], dtype=torch.bfloat16),
}  # fmt: skip
TRAINED = {
    "w": torch.tensor([4.0, 2.0]), "b": torch.tensor([4.5]), "n.running_mean": torch.tensor([9.0]),
    "n.num_batches_tracked": torch.tensor(7), "half": torch.tensor([0.25], dtype=torch.bfloat16),
}  # fmt: skip


def test_an_update_by_hand() -> None:
    """The difference (3, 0, 4) has length 5: to 1 it is a fifth."""
    sent = clipped_update(TRAINED, RECEIVED, 1.0)
    assert torch.allclose(sent["w"], torch.tensor([1.6, 2.0])) and torch.allclose(sent["b"], torch.tensor([1.3]))
    assert float(sent["n.running_mean"]) == 3.0 and int(sent["n.num_batches_tracked"]) == 4
    assert sent["half"].dtype == torch.bfloat16
    assert update_length(sent, RECEIVED) <= 1.0
    assert sent.keys() == RECEIVED.keys()
    whole = clipped_update(TRAINED, RECEIVED, 5.0)
    assert torch.equal(whole["w"], TRAINED["w"]) and torch.equal(whole["b"], TRAINED["b"])


def test_rounding_does_not_lengthen_an_update() -> None:
    """Weights of 1000 are rounded by up to 3e-5 each; the update is within its clip all the same."""
    draw = torch.Generator().manual_seed(0)
    received = {"w": 1000 * torch.randn(5000, generator=draw)}
    for clip in (0.01, 0.1, 1.0):
        sent = clipped_update({"w": received["w"] + torch.randn(5000, generator=draw)}, received, clip)
        assert 0 < update_length(sent, received) <= clip
    assert update_length(clipped_update({"w": received["w"] + 1.0}, received, 1e-6), received) <= 1e-6
    with pytest.raises(TrainingError, match=r"of length nan cannot be shortened to privacy\.clip 1"):
        clipped_update({"w": received["w"] * torch.nan}, received, 1.0)


def test_a_patients_study_sends_counters_as_received(private_study: MakeStudy) -> None:
    sent = released(private_study(), TRAINED, RECEIVED)
    assert float(sent["n.running_mean"]) == 3.0 and int(sent["n.num_batches_tracked"]) == 4
    assert torch.equal(sent["w"], TRAINED["w"])


def test_a_private_round_s_rates_follow_public_numbers(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Learning rate and hooks see patients_per_step x images_per_patient, not the batch and not what was drawn."""
    answer: list[float] = []
    s = private_study(
        privacy={"images_per_patient": 3, "patients": 4, "patients_per_step": 2}, training={"warmup": 0.0}
    )
    here = private_site(s)
    method = here._here.model()
    monkeypatch.setattr(method, "after_step", lambda progress, images: answer.append(images))
    monkeypatch.setattr(noise, "poisson_sample", lambda count, rate: torch.arange(1))
    here.train(instruction(s))
    assert answer == [6, 6]
    (row,) = read_jsonl(here.rounds._folder / "private.jsonl")
    progress = 1.5 / 2 / 3  # the middle of the second of two steps, of the first of three rounds
    rate = 0.01 * 6 / 256 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)))
    assert row["learning_rate"] == pytest.approx(float(rate), rel=1e-5)
    assert row["patients_a_step"] == 1.0 and row["images_seen"] == 6.0


def test_weights_that_are_not_finite_are_withheld(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "noised", lambda total, std: torch.full_like(total, torch.nan))
    s = private_study()
    with pytest.raises(TrainingError, match=r"not finite after the last step; lower training\.learning_rate$"):
        private_site(s).train(instruction(s))


def test_what_training_looked_like_is_kept_in_no_reply(
    private_study: MakeStudy, private_site: MakeSite, instruction: Instruct, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = train_private_round

    def answer(*arguments: Any) -> Any:
        outcome = real(*arguments)
        return replace(outcome, metrics=outcome.metrics | {"loss": 0.123456})

    monkeypatch.setattr(client.training.site_training, "train_private_round", answer)
    s = private_study()
    here = private_site(s)
    reply = here.train(instruction(s))
    assert reply.metrics == {}
    assert read_jsonl(here.rounds._folder / "private.jsonl")[0]["loss"] == 0.123456
    stored = here._here.vault.at("1").load_tensors(here.rounds._folder / "round-00001" / "update.safetensors")[1]
    assert json.loads(stored["metrics"]) == {} and stored["images"] == "1"
