"""The site's Flower app answers with a category and never with a text, a path or a name."""

import errno
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.serde import recorddict_to_proto

import client.app
import client.site
from client.labels.labelled_images import TooFewLabelsError
from client.policy import LabelsNotPermittedError
from client.privacy.ledger import LedgerNotContinuedError
from client.refusals import category_of
from client.site_log import LogNotContinuedError
from federation.audit.log import NOTHING, AuditHead, Extension
from federation.flower.private_identity import assume_identity
from federation.flower.records import content_to_reply, failure_of, question
from federation.privacy.ledger import BudgetSpentError
from federation.privacy.plan import plan_of
from federation.records import CATEGORIES, AuditNote, Failure, TrainInstruction, TrainReply, WithheldError
from federation.secure_aggregation.messages import SecureAggregationError
from federation.study import Study
from foundation.errors import DataError, QuorumError, RunError, StudyError, TrainingError
from foundation.files import read_jsonl
from ssl_methods.reconstruction.mae import MAE

MakeStudy = Callable[..., Study]
Instruct = Callable[..., TrainInstruction]
Ask = Callable[[TrainInstruction], RecordDict]
SECRET = "Erika-Mustermann-1957"


def failure_in(content: RecordDict) -> str | None:
    """The category that a site answered with, if it did not do what it was asked."""
    failure = failure_of(content)
    return None if failure is None else failure.category


class Node:
    """One SuperNode: hands messages to the app as Flower does."""

    def __init__(self, study_path: Path, site_file: Path | None, **node_config: Any) -> None:
        assume_identity(1)
        config = {"site-file": str(site_file)} if site_file else node_config
        run = {"study": str(study_path), "site-files": str(study_path.parent / "sites")}
        self.context = Context(1, 2, config, RecordDict(), run)

    def ask(self, content: RecordDict, kind: str = "train", group: str = "1") -> RecordDict:
        """The content of the answer."""
        reply = client.app.app(Message(content, 2, kind, group_id=group), self.context)
        assert not reply.has_error()
        return reply.content


@pytest.fixture
def node(tmp_path: Path, study: MakeStudy, hospital: Callable[..., Path]) -> Node:
    path = tmp_path / "study.yaml"
    path.write_text(study().to_yaml())
    return Node(path, hospital("A"))


@pytest.fixture
def log(tmp_path: Path) -> Callable[[], str]:
    return lambda: (tmp_path / "sites" / "A" / "state" / "site.log").read_text()


def leaks(content: RecordDict, *words: str) -> list[str]:
    """Which of the words are in the bytes that would leave the site."""
    sent = recorddict_to_proto(content).SerializeToString()
    return [word for word in words if word.encode() in sent]


def test_who_and_train(node: Node, study: MakeStudy, instruction: Instruct, asked: Ask) -> None:
    who = node.ask(question(study().training_hash()), "query")["config"]
    assert dict(who) == {"site": "A", "study": study().training_hash(), "images": 9}
    reply = content_to_reply(node.ask(asked(instruction(study()))))
    assert isinstance(reply, TrainReply)
    assert (reply.site, reply.round, reply.images) == ("A", 1, 9)


def test_a_good_reply_holds_no_path_and_no_patient(
    node: Node, study: MakeStudy, instruction: Instruct, asked: Ask, tmp_path: Path
) -> None:
    for content in (node.ask(question(study().training_hash()), "query"), node.ask(asked(instruction(study())))):
        assert leaks(content, str(tmp_path), "A-0", ".png", "manifest") == []
        assert leaks(content, study().training_hash()) != []  # the search finds what is there


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


FULL = OSError(errno.ENOSPC, f"No space left on /data/{SECRET}")
ERRORS: dict[str, tuple[BaseException, str]] = {
    "study": (StudyError(f"{SECRET}: refused"), "study-not-approved"),
    "data": (DataError(f"/data/{SECRET}.dcm: cannot be read"), "data-not-usable"),
    "training": (TrainingError(f"{SECRET}: not finite"), "loss-not-finite"),
    "run": (RunError(f"/state/{SECRET}: is damaged"), "state-damaged"),
    "full": (FULL, "disk-full"),
    "quota": (OSError(errno.EDQUOT, SECRET), "disk-full"),
    "full, told by us": (caused(RunError(SECRET), FULL), "disk-full"),
    "memory": (MemoryError(SECRET), "out-of-memory"),
    "GPU memory": (torch.OutOfMemoryError(SECRET), "out-of-memory"),
    "permission": (PermissionError(errno.EACCES, SECRET, f"/data/{SECRET}"), "internal-error"),
    "a bug": (KeyError(SECRET), "internal-error"),
    "audit": (LogNotContinuedError(SECRET), "log-not-continued"),
    "policy on labels": (LabelsNotPermittedError(SECRET), "labels-not-permitted"),
    "few labels": (TooFewLabelsError(SECRET), "labels-too-few"),
    "budget": (BudgetSpentError(SECRET), "budget-spent"),
    "ledger": (LedgerNotContinuedError(SECRET), "ledger-not-continued"),
    "a secure sum": (SecureAggregationError(SECRET), "secure-sum-refused"),
    "another of ours": (QuorumError(SECRET), "internal-error"),
}


@pytest.mark.parametrize("kind", ["train", "query"])
@pytest.mark.parametrize("case", ERRORS)
def test_an_error_is_one_word_outside_and_a_traceback_inside(
    node: Node, study: MakeStudy, instruction: Instruct, asked: Ask, monkeypatch: pytest.MonkeyPatch,
    log: Callable[[], str], case: str, kind: str,
) -> None:  # fmt: skip
    error, category = ERRORS[case]

    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(client.site.SiteTraining, "trained_or_stored", fail)
    monkeypatch.setattr(client.site.Site, "describe", fail)
    content = node.ask(asked(instruction(study(), 2)), kind, group="2")
    assert failure_in(content) == category
    assert category in CATEGORIES
    assert content_to_reply(content) == Failure("", 2, "A", category)
    assert set(content) <= {"config", "audit"}
    assert leaks(content, SECRET, "/data", "Error", "Traceback") == []
    assert SECRET in log()
    assert "Traceback (most recent call last)" in log()
    assert " round 2\n" in log()


def test_every_category_of_the_site_has_its_error() -> None:
    reached = {category_of(error) for error, _ in ERRORS.values()}
    assert reached == set(CATEGORIES) - {
        "offline",
        "app-not-approved",
        "not-the-server",
    }  # the server's own, and the worker's


def test_a_loss_that_is_not_finite_is_withheld(
    node: Node, study: MakeStudy, instruction: Instruct, asked: Ask, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    original = MAE.loss
    monkeypatch.setattr(MAE, "loss", lambda self, views: (original(self, views)[0] * float("inf"), {}))
    content = node.ask(asked(instruction(study())))
    assert content_to_reply(content) == Failure("", 1, "A", "loss-not-finite")
    assert set(content) <= {"config", "audit"}
    assert not list(tmp_path.glob("sites/A/state/*/round-*"))


@pytest.mark.parametrize(
    ("content", "category"),
    [
        (RecordDict(), "study-not-approved"),
        (RecordDict({"config": ConfigRecord({"study": "x", "round": SECRET})}), "log-not-continued"),
        (
            RecordDict({"config": ConfigRecord({"study": "x"}), "audit": ConfigRecord({"count": SECRET})}),
            "state-damaged",
        ),
    ],
)
def test_an_instruction_that_cannot_be_read(
    node: Node, content: RecordDict, category: str, log: Callable[[], str]
) -> None:
    """Flower would send the exception's text back."""
    answer = node.ask(content, group="4")
    assert content_to_reply(answer) == Failure("", 4, "A", category)
    assert leaks(answer, SECRET) == []
    assert "Traceback" in log()


def test_a_study_with_a_simulation_section_is_refused(
    node: Node, study: MakeStudy, instruction: Instruct, asked: Ask, tmp_path: Path, log: Callable[[], str]
) -> None:
    s = study(simulation={"dataset": "folder", "root": f"/data/{SECRET}"})
    (tmp_path / "study.yaml").write_text(s.to_yaml())
    for kind, content in (("query", question(s.training_hash())), ("train", asked(instruction(s)))):
        answer = node.ask(content, kind)
        assert failure_in(answer) == "study-not-approved"
        assert leaks(answer, SECRET) == []
    assert "has a `simulation` section, which only `fedpretext simulate` acts on" in log()
    assert not list(tmp_path.glob("sites/A/state/*/round-*"))


def test_another_studys_instruction_is_refused(node: Node, study: MakeStudy, instruction: Instruct, asked: Ask) -> None:
    other = study(training={"learning_rate": 0.5})
    assert failure_in(node.ask(asked(instruction(other)))) == "study-not-approved"


def test_a_site_file_that_is_not_there_or_not_right(node: Node, study: MakeStudy, tmp_path: Path) -> None:
    site_file = tmp_path / "sites" / "A" / "site.yaml"
    site_file.write_text(site_file.read_text() + f"pasword: {SECRET}\n")
    for _ in range(2):
        answer = node.ask(question(study().training_hash()), "query")
        assert content_to_reply(answer) == Failure("", 1, "unknown", "study-not-approved")
        assert leaks(answer, SECRET, str(tmp_path)) == []
        site_file.unlink(missing_ok=True)


def test_a_log_that_cannot_be_written_is_no_crash(node: Node, tmp_path: Path) -> None:
    (tmp_path / "sites" / "A" / "state").write_text("in the way")
    assert failure_in(node.ask(RecordDict({"config": ConfigRecord({})}))) is not None


def test_in_flowers_simulation_a_node_is_the_number_of_a_site(
    node: Node, study: MakeStudy, hospital: Callable[..., Path], tmp_path: Path
) -> None:
    hospital("B", images=5)
    numbered = Node(tmp_path / "study.yaml", None, **{"partition-id": 1})
    assert numbered.ask(question(study().training_hash()), "query")["config"]["site"] == "B"


def test_sites_of_one_study_that_take_turns_are_made_once(
    tmp_path: Path, study: MakeStudy, hospital: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    class Counted(client.site.Site):
        def __init__(self, site_file: Any, study: Study, vault: Any, workbench: Any) -> None:
            made.append(site_file.site)
            super().__init__(site_file, study, vault, workbench)

    monkeypatch.setattr("client.sites.Site", Counted)
    for name in ("first.yaml", "second.yaml"):
        (tmp_path / name).write_text(study().to_yaml())
    files = [hospital("A"), hospital("B")]
    first, second = ([Node(tmp_path / name, file) for file in files] for name in ("first.yaml", "second.yaml"))
    for node in (*first, *first, second[0], *first):
        node.ask(question(study().training_hash()), "query")
    assert made == ["A", "B", "A", "A", "B"]  # another study's sites are let go


def test_a_private_study_through_the_app(
    private_study: MakeStudy, private_site: Callable[..., Any], instruction: Instruct, asked: Ask, tmp_path: Path
) -> None:
    """Answered while there is budget, with the ledger's head; then one word, and what was released still comes."""
    s = private_study()
    plan = plan_of(s)
    assert plan is not None
    private_site(s, policy={"privacy_budget": {"epsilon": round(plan.epsilon * 0.7, 3), "delta": 1e-3}})
    (tmp_path / "study.yaml").write_text(s.to_yaml())
    node = Node(tmp_path / "study.yaml", tmp_path / "sites" / "A" / "site.yaml")
    assert dict(node.ask(question(s.training_hash()), "query")["config"])["images"] == 1  # type: ignore[call-overload]
    first = content_to_reply(node.ask(asked(instruction(s))))
    assert isinstance(first, TrainReply) and first.ledger is not None
    assert (first.images, first.metrics) == (1, {})
    charged = first.ledger.head.count
    stopped = [failure_in(node.ask(asked(instruction(s, round_)), group=str(round_))) for round_ in (2, 3)]
    assert stopped[-1] == "budget-spent"
    again = content_to_reply(node.ask(asked(replace(instruction(s), ledger=first.ledger.head))))
    assert isinstance(again, TrainReply) and again.ledger is not None
    assert again.ledger.head.count == charged + stopped.count(None)
    false = asked(replace(instruction(s), ledger=AuditHead(99, "ab" * 32)))
    assert failure_in(node.ask(false)) == "ledger-not-continued"
    rows = read_jsonl(tmp_path / "sites" / "A" / "state" / "audit.jsonl")
    assert next(row["ledger"] for row in rows if row["event"] == "update released") == first.ledger.head.hash
    refusals = {row["category"]: row["event"] for row in rows if "category" in row}
    assert refusals == {"budget-spent": "policy refused", "ledger-not-continued": "request refused"}


@pytest.mark.parametrize("withheld_at", [None, 1, 2])
def test_an_answer_is_checked_logged_noted_and_checked_again(withheld_at: int | None) -> None:
    """Nothing that either check withholds leaves, and what the first one withholds is not logged as released."""
    done: list[str] = []
    note = AuditNote(Extension(AuditHead(1, "ab" * 32), ()), NOTHING)

    def check(content: RecordDict) -> None:
        done.append(f"checked {sorted(content)}")
        if sum(one.startswith("checked") for one in done) == withheld_at:
            raise WithheldError("not on the list")

    class Log:
        def note(self) -> AuditNote:
            done.append("noted")
            return note

    answer = client.app.Answer(RecordDict({"config": ConfigRecord({})}), check, lambda: done.append("logged"))
    steps = ["checked ['config']", "logged", "noted", "checked ['audit', 'config']"]
    if withheld_at is None:
        assert sorted(client.app.release(answer, Log())) == ["audit", "config"]  # type: ignore[arg-type]
        assert done == steps
        return
    with pytest.raises(WithheldError):
        client.app.release(answer, Log())  # type: ignore[arg-type]
    assert done == (steps[:1] if withheld_at == 1 else steps)
