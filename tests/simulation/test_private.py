"""Private studies from end to end, small: what leaves a site, what is charged, what the run's record and report say."""

import importlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from flwr.app import Context, Message

from client.app import build_app
from evaluation.judge import Run
from federation.audit.log import AuditLog, verify
from federation.flower.records import content_to_instruction, record_to_weights
from federation.privacy.ledger import Ledger, read_charges
from federation.privacy.plan import plan_of
from federation.study import load_study, study_from
from foundation.files import read_json, read_jsonl
from foundation.tensor_files import load_tensors
from server.checkpoint import latest_checkpoint
from simulation.arms import plan_arms
from simulation.budgets import RoundWork, round_work
from simulation.runtimes import table as runtimes
from simulation.runtimes.table import run_in_process
from simulation.simulate import planned, simulate, simulation_config
from simulation.sites.site_folders import Federation
from ssl_methods import build_method

from ..programs import CONTEXT

PATIENT = {"unit": "patient", "epsilon": 40.0, "delta": 0.005, "patients": 4, "patients_per_step": 2}
SITE = {"unit": "site", "epsilon": 60.0, "delta": 0.005, "sites": 3, "clip": 0.2}
STEPS, ROUNDS = 3, 2


def private(raw: dict[str, Any], privacy: dict[str, Any], **rounds: Any) -> dict[str, Any]:
    """A raw study with this privacy."""
    raw["privacy"] = privacy
    raw["training"] |= {"epochs": None, "steps": STEPS, "learning_rate": 0.003}
    raw["rounds"] |= rounds
    return raw


def with_ledgers(federation: Federation) -> Federation:
    for site in federation.folder.glob("sites/*/site.yaml"):
        site.write_text(site.read_text() + "ledger: ledger.jsonl\n")
    return federation


def charged(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(Ledger(path).releases()) for path in sorted(folder.glob("sites/*/ledger.jsonl"))}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished: Any) -> Run:
    """The study of ``finished`` with privacy by patient, run once for this file's tests."""
    place = tmp_path_factory.mktemp("private")
    raw = private(yaml.safe_load(finished.study.read_text()), PATIENT)
    raw["simulation"]["arms"] = ["centralised"]
    (place / "study.yaml").write_text(yaml.safe_dump(raw))
    return simulate(place / "study.yaml", runs=place / "runs", device="cpu")


def federated(run: Run) -> Path:
    return run.folder / "arms" / "federated" / "fold-0" / "seed-0"


def test_every_site_charges_every_round_and_the_server_holds_the_ledgers_heads(run: Run) -> None:
    folder, study = federated(run), load_study(run.folder / "study.yaml")
    plan = plan_of(study)
    assert plan is not None
    assert charged(folder) == dict.fromkeys(("north", "small", "south"), ROUNDS)
    held = AuditLog(folder / "audit.jsonl", "server")
    for site in charged(folder):
        ledger = Ledger(folder / "sites" / site / "ledger.jsonl")
        assert held.known(f"{site}/ledger") == verify(ledger.path).head
        assert sum(release.steps for release in ledger.releases()) == STEPS * ROUNDS == plan.steps
        assert ledger.spent(plan.delta) == pytest.approx(plan.epsilon, rel=1e-6)


def test_the_journal_has_no_count_and_no_figure_of_a_site(run: Run) -> None:
    rows = read_jsonl(federated(run) / "metrics.jsonl")
    assert {(row["round"], row["site"]) for row in rows} == {
        (r, s) for r in (1, 2) for s in ("north", "small", "south")
    }
    assert {key for row in rows for key in row} == {"round", "site", "update_norm"}  # a length of noised weights


def test_the_record_says_what_was_promised_and_what_was_spent(run: Run) -> None:
    record, study = read_json(run.folder / "privacy.json"), load_study(run.folder / "study.yaml")
    plan = plan_of(study)
    assert plan is not None
    assert (record["unit"], record["epsilon"], record["delta"]) == ("patient", 40.0, 0.005)
    assert (record["noise"], record["rate"], record["steps"]) == (plan.noise, 0.5, STEPS * ROUNDS)
    assert record["spent"] == pytest.approx(plan.epsilon, rel=1e-6) == record["planned"]
    assert (record["ledgers"], record["trainings"]) == (3, 1)
    assert record["meaning"] and record["not_covered"]
    assert str(run.folder) not in (run.folder / "privacy.json").read_text()


def test_the_report_shows_it_and_stands_without_the_sites_figures(run: Run) -> None:
    page, record = run.report.read_text(), read_json(run.folder / "privacy.json")
    section = page.partition('<h3 id="privacy">')[2].partition("<h3>")[0]
    assert "epsilon 40 at delta 0.005" in section
    assert f"epsilon {record['spent']:.2f} by the ledger of" in section
    assert "one patient with all images" in section
    for line in record["not_covered"]:
        assert line.split("<")[0][:30] in section
    assert "No noise and no promise: Centralised." in section
    assert "the number that was to be expected" in page
    assert "of weights in each of 2 rounds" in page  # though no site told a curve
    assert "No learning curve is on record" in page


def test_the_other_arms_share_nothing_and_have_no_privacy(run: Run) -> None:
    pooled = run.folder / "arms" / "centralised" / "fold-0" / "seed-0"
    study = load_study(pooled / "study.yaml")
    assert study.privacy is None
    assert not list(pooled.glob("sites/*/ledger.jsonl"))
    assert (
        read_json(pooled / "encoder.json")["title"]
        == "Centralised: all images in one place, same passes over its images, without privacy"
    )
    assert all("loss" in row for row in read_jsonl(pooled / "metrics.jsonl"))


def test_budgets_are_equal_in_expectation(run: Run) -> None:
    """Of a site of 6 patients a step sees each with probability 1/2, and one of its images: 3 a step."""
    splits = pd.read_csv(run.folder / "evaluation" / "splits.csv", dtype=str)
    patients = splits[splits["role"] == "train"].groupby("site")["patient"].nunique()
    a_round = sum(round(STEPS * 0.5 * n) for n in patients)
    arms = {row["arm"]: row for row in read_json(run.folder / "arms.json")}
    assert arms["federated"]["images"] == ROUNDS * a_round
    assert arms["federated"]["optimiser_steps"] == ROUNDS * STEPS * len(patients)
    assert abs(arms["centralised"]["images"] - arms["federated"]["images"]) <= ROUNDS * 4


def test_round_work_by_hand(raw_study: dict[str, Any]) -> None:
    patients = ["a"] * 5 + ["b"] * 2 + ["c"]
    two = PATIENT | {"images_per_patient": 2}
    assert round_work(study_from(private(raw_study, two), "test"), patients) == RoundWork(
        3, round(3 * 0.5 * (2 + 2 + 1))
    )
    assert round_work(study_from(private(raw_study, PATIENT), "test"), patients) == RoundWork(3, round(3 * 0.5 * 3))
    raw_study["privacy"] = None
    assert round_work(study_from(raw_study, "test"), patients) == RoundWork(3, 12)  # three batches of 4


def test_local_only_is_called_what_it_is(finished: Any, tmp_path: Path) -> None:
    raw = private(yaml.safe_load(finished.study.read_text()), PATIENT)
    study = study_from(raw, "test")
    config = simulation_config(study)
    images, _ = planned(tmp_path, study, config)
    splits = pd.read_csv(tmp_path / "evaluation" / "splits.csv", dtype=str, keep_default_na=False)
    splits["fold"] = splits["fold"].astype(int)
    arms = {arm.name: arm for arm in plan_arms(study, config, images, splits)}
    assert arms["local-only-north"].title == "north local-only, same passes over its images, without privacy"
    assert arms["local-only-north"].study.privacy is None
    assert arms["federated"].study.privacy == study.privacy


class Recorder:
    """Stands for the sites' app and keeps what every site was told and what it said."""

    def __init__(self, app: Callable[[Message, Context], Message]) -> None:
        self._app = app
        self.seen: list[tuple[str, Message, Message]] = []

    def __call__(self, message: Message, context: Context) -> Message:
        answer = self._app(message, context)
        self.seen.append((message.metadata.message_type, message, answer))
        return answer


@pytest.mark.parametrize("privacy", [PATIENT, SITE], ids=["patient", "site"])
def test_nothing_leaves_but_tensors_constants_and_heads(
    privacy: dict[str, Any], raw_study: dict[str, Any], federation: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything that every site says in a whole study, record by record."""
    recorder = Recorder(build_app())
    monkeypatch.setattr(runtimes, "build_app", lambda: recorder)
    place = with_ledgers(federation(private(raw_study, privacy, count=2)))
    run_in_process(place)
    study = study_from(raw_study, "test")
    kinds = [kind for kind, _, _ in recorder.seen]
    assert sorted(set(kinds)) == ["query", "train"]
    assert kinds.count("train") == 2 * 3
    reported: list[dict[str, torch.Tensor]] = []
    for kind, message, answer in recorder.seen:
        content = answer.content
        config = dict(content["config"])
        assert config["study"] == study.training_hash()
        if kind == "query":
            assert set(content) == {"config"}
            assert config == {"site": config["site"], "study": config["study"], "images": 1}
            continue
        assert set(content) == {"arrays", "config", "metrics", "audit", "ledger"}
        assert set(config) == {"study", "round", "site"}
        assert dict(content["metrics"]) == {"num-examples": 1}
        assert set(content["ledger"]) == {"count", "head", "digests"}
        sent, got = record_to_weights(content["arrays"]), content_to_instruction(message.content).weights
        reported.append(sent)
        for name, value in sent.items():
            if not value.is_floating_point():
                assert torch.equal(value, got[name])
        if privacy is SITE:
            changes = [(sent[name].double() - got[name].double()).square().sum() for name in sent]
            assert float(torch.stack(changes).sum().sqrt()) <= 0.2 * (1 + 1e-4)
        else:
            # AdamW moves a number by its learning rate wherever there is a gradient: with noise on all, that is all.
            moved = [name for name in sent if not torch.equal(sent[name], got[name])]
            assert len(moved) >= 0.9 * sum(value.is_floating_point() for value in sent.values())
    rounds = [row["round"] for row in read_jsonl(place.folder / "metrics.jsonl")]
    assert rounds == [1, 1, 1, 2, 2, 2]


def test_the_same_private_study_twice_gives_other_weights(raw_study: dict[str, Any], federation: Any) -> None:
    private(raw_study, PATIENT, count=1)
    both = []
    for name in ("one", "other"):
        place = with_ledgers(federation(raw_study, name))
        run_in_process(place)
        both.append(load_tensors(place.folder / "global.safetensors")[0])
    name = "encoder.patch_embed.proj.weight"
    assert not torch.equal(both[0][name], both[1][name])


def test_site_level_over_real_sites(raw_study: dict[str, Any], federation: Any) -> None:
    """Any method: the server's ledger has a charge a round, each site's too, and no update's figure is written down."""
    place = with_ledgers(federation(private(raw_study, SITE, count=2)))
    run_in_process(place)
    study = study_from(raw_study, "test")
    plan = plan_of(study)
    assert plan is not None
    server = Ledger(place.folder / "privacy.jsonl")
    assert [(charge.round, charge.unit) for charge in read_charges(server.path)] == [(1, "site"), (2, "site")]
    assert server.spent(plan.delta) == pytest.approx(plan.epsilon, rel=1e-6)
    assert charged(place.folder) == {"A": 2, "B": 2, "C": 2}
    assert read_jsonl(place.folder / "metrics.jsonl") == [{"round": r, "site": s} for r in (1, 2) for s in "ABC"]
    assert not (place.folder / "divergence.jsonl").exists()
    method = build_method(study.method, study.encoder, study.image, study.seed)
    weights = load_tensors(place.folder / "global.safetensors")[0]
    fixed = {name for name, value in method.named_parameters() if not value.requires_grad}
    assert "encoder.pos_embed" in fixed
    assert {name for name, value in method.shared_state().items() if torch.equal(weights[name], value)} == fixed


def _run_and_die(federation: Federation, target: str, call: int) -> None:
    """Run the federation; the ``call``-th call of ``target`` kills the process as a power cut would."""
    *owner_path, name = target.split(".")
    owner: Any = importlib.import_module(".".join(owner_path[:2]))
    for part in owner_path[2:]:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), 0

    def dying(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(owner, name, dying)
    run_in_process(federation)


def test_a_killed_study_goes_on_from_what_was_released_and_the_lost_attempt_stays_charged(
    raw_study: dict[str, Any], federation: Any
) -> None:
    """Killed before site A stores its second round: round 1 is as it was, round 2 of A is paid for twice."""
    place = with_ledgers(federation(private(raw_study, PATIENT, count=2)))
    process = CONTEXT.Process(target=_run_and_die, args=(place, "client.training.stored_rounds.StoredRounds.keep", 4))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    study_hash = load_study(place.folder / "study.yaml").training_hash()
    before = latest_checkpoint(place.folder / "checkpoints", study_hash)
    assert before is not None
    assert before.round == 1
    assert charged(place.folder) == {"A": 2, "B": 1, "C": 1}
    recorder = Recorder(build_app())
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(runtimes, "build_app", lambda: recorder)
        run_in_process(place)
    trained = [content_to_instruction(message.content) for kind, message, _ in recorder.seen if kind == "train"]
    assert {instruction.round for instruction in trained} == {2}
    assert all(torch.equal(value, trained[0].weights[name]) for name, value in before.weights.items())
    assert charged(place.folder) == {"A": 3, "B": 2, "C": 2}
