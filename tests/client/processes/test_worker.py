"""A site's executor: what was shipped is never unpacked, installed, imported or run; the approved study is."""

import importlib.metadata
import io
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto

import client.processes.worker
import client.site
from client.approval import approve, withdraw
from client.processes.worker import answer_to, serve
from client.site_file import load_site_file
from federation.app_bundle import app_bundle
from federation.audit.log import verify
from federation.flower.private import Bundle, Endpoint
from federation.flower.private_identity import assume_identity, set_message_id
from federation.flower.records import content_to_note, content_to_reply, said, signed
from federation.keys.certificates import (
    PrivateKey,
    ca_certificate,
    certificate_pem,
    new_key,
    server_certificate,
    site_certificate,
)
from federation.keys.signing import Authority, Signer
from federation.records import Failure, TrainInstruction, TrainReply
from federation.study import Study
from foundation.errors import RunError
from foundation.files import read_jsonl

MakeStudy = Callable[..., Study]
SECRET = "Mustermann^Erika-1957"


@dataclass
class Task:
    """What came from a SuperNode, and what went back."""

    message: Message
    bundle: Bundle
    node_id: int = 2
    run_id: int = 1
    answers: list[Message] = field(default_factory=list)

    def answer(self, reply: Message) -> None:
        self.answers.append(reply)


@dataclass
class Place:
    """A hospital with an approved study, and everything that a program could write to on its machine."""

    root: Path
    site_file: Path
    study: Study
    ask: Callable[[], RecordDict]
    signer: Signer
    authority: Authority

    def task(self, content: bytes, **overrides: Any) -> Task:
        assume_identity(1)
        asked = self.ask()
        message = Message(signed(asked, self.signer.sign(said(asked, "train", "1", "A"))), 2, "train", group_id="1")
        set_message_id(message, "message-1")
        return Task(message, Bundle(content, overrides))

    def files(self) -> dict[str, bytes]:
        """All files and folders on the machine, but the site's own logs and the server's."""
        logs = {self.state / "site.log", self.state / "audit.jsonl", self.root / "server-audit.jsonl"}
        found = (path for path in self.root.rglob("*") if path not in logs)
        return {str(path): path.read_bytes() if path.is_file() else b"" for path in found}

    @property
    def state(self) -> Path:
        return load_site_file(self.site_file).state

    def refused(self) -> list[str]:
        """The categories of the refused apps in the audit log, which is whole."""
        assert verify(self.state / "audit.jsonl").fault == ""
        rows = read_jsonl(self.state / "audit.jsonl")
        return [row["category"] for row in rows if row["event"] == "app refused"]


@pytest.fixture
def place(
    tmp_path: Path, study: MakeStudy, hospital: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
    instruction: Callable[..., TrainInstruction], asked: Callable[[TrainInstruction], RecordDict],
) -> Place:  # fmt: skip
    """A hospital whose home, temporary and working folders are the test's own."""
    site_file = hospital("A")
    site_file.write_text(site_file.read_text().replace("studies: any", "studies: approved"))
    for name, variable in (("home", "HOME"), ("flower", "FLWR_HOME"), ("temporary", "TMPDIR"), ("work", None)):
        (tmp_path / name).mkdir()
        if variable is not None:
            monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.chdir(tmp_path / "work")
    (tmp_path / "to-read.yaml").write_text(study().to_yaml())
    approve(tmp_path / "to-read.yaml", load_site_file(site_file), "Dr. Ada Klein", lambda _: True)
    ask = lambda: asked(instruction(study()))  # noqa: E731
    return Place(tmp_path, site_file, study(), ask, *server_of("fl.example.org"))


def server_of(
    host: str, ca_key: PrivateKey | None = None, ca: x509.Certificate | None = None
) -> tuple[Signer, Authority]:
    """A server at a host and what a site knows of it; by a CA of its own unless one is given."""
    now, key = datetime.now(UTC), new_key()
    ca_key = ca_key or new_key()
    ca = ca or ca_certificate(ca_key, "test", now, 30)
    certificate = server_certificate(ca, ca_key, key.public_key(), [host], now, 7)
    return Signer(key, certificate_pem(certificate)), Authority(ca, host)


def archive(files: dict[str, bytes], base: bytes | None = None) -> bytes:
    """A bundle with these files, added to those of ``base``."""
    buffer = io.BytesIO(base or b"")
    with zipfile.ZipFile(buffer, "a" if base else "w", zipfile.ZIP_DEFLATED) as made:
        for name, data in files.items():
            made.writestr(name, data)
    return buffer.getvalue()


def edited(bundle: bytes, old: str, new: str) -> bytes:
    """The bundle with its pyproject changed; the rest as it was."""
    with zipfile.ZipFile(io.BytesIO(bundle)) as whole:
        text = whole.read("pyproject.toml").decode()
        rest = {name: whole.read(name) for name in whole.namelist() if name != "pyproject.toml"}
    assert old in text
    return archive({"pyproject.toml": text.replace(old, new).encode()} | rest)


TOUCH = b"import os, pathlib\npathlib.Path(os.environ['HOME'], 'was-here').write_text('x')\n"


def of_another_version(study: Study) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.metadata, "version", lambda _: "9.9.9")
        return app_bundle(study)


def with_a_link(bundle: bytes) -> bytes:
    link = zipfile.ZipInfo("client")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(bundle)
    with zipfile.ZipFile(buffer, "a") as made:
        made.writestr(link, "/tmp")
    return buffer.getvalue()


HOSTILE: dict[str, Callable[[Study], bytes]] = {
    "a module that shadows torch": lambda s: archive({"torch/__init__.py": TOUCH}, app_bundle(s)),
    "a module that shadows our app": lambda s: archive({"client/app.py": TOUCH}, app_bundle(s)),
    "another installed callable": lambda s: edited(app_bundle(s), '"client.app:app"', '"os:system"'),
    "a dependency to install": lambda s: edited(
        app_bundle(s), "dependencies = []", 'dependencies = ["was-here @ file:///tmp/was-here"]'
    ),
    "a build hook": lambda s: archive({"setup.py": TOUCH, "conftest.py": TOUCH}, app_bundle(s)),
    "a path out of the archive": lambda s: archive({"../../home/was-here": TOUCH}, app_bundle(s)),
    "an absolute path": lambda s: archive({"/tmp/was-here": TOUCH}, app_bundle(s)),
    "a link": lambda s: with_a_link(app_bundle(s)),
    "code that writes a file": lambda s: archive({"sitecustomize.py": TOUCH, "x.pth": TOUCH}, app_bundle(s)),
    "settings of its own": lambda s: edited(app_bundle(s), "training-hash", 'study = "/etc/passwd"\ntraining-hash'),
    "a zip bomb": lambda s: archive({"pyproject.toml": bytes(100_000_000)}),
    "not an archive": lambda s: b"PK\x03\x04" + bytes(range(256)) * 40,
    "nothing": lambda s: b"",
    "the approved app and a byte": lambda s: app_bundle(s) + b"\0",
    "the approved app without its last byte": lambda s: app_bundle(s)[:-1],
    "the approved study in another version of the program": of_another_version,
    "a study that nobody approved": lambda s: app_bundle(s.model_copy(update={"seed": s.seed + 1})),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_app_is_answered_with_a_category_and_leaves_no_trace(place: Place, case: str) -> None:
    """Defends a hospital's machine against code from elsewhere: compared as bytes, an app is never opened.

    No file appears but in the site's log and audit log, no module is imported, and one line each says what happened.
    """
    content = HOSTILE[case](place.study)
    answer_to(place.task(b"warm up"), place.site_file, place.authority)
    before, modules = place.files(), set(sys.modules)
    log = (place.state / "site.log").read_text()
    answer = answer_to(place.task(content), place.site_file, place.authority)
    assert content_to_reply(answer.content) == Failure("", 1, "A", "app-not-approved")
    assert set(answer.content) == {"config"}
    assert place.files() == before and not Path("/tmp/was-here").exists()
    assert set(sys.modules) == modules
    assert place.refused() == 2 * ["app-not-approved"]
    (head, line, rest) = (place.state / "site.log").read_text().removeprefix(log).split("\n")
    assert head.endswith(" round 1") and rest == ""
    assert line == (
        f"the app shipped with the run ({len(content)} bytes) is not that of a study approved here, made by this "
        "version of the program; compare the study file and the versions with the study lead's"
    )


def test_settings_that_a_run_overrides_are_refused(place: Place) -> None:
    """Defends the approval: even the approved app is not run with a setting that the hospital did not read."""
    task = place.task(app_bundle(place.study), **{"training-hash": "0" * 64, "study": f"/data/{SECRET}"})
    assert content_to_reply(answer_to(task, place.site_file, place.authority).content) == Failure(
        "", 1, "A", "app-not-approved"
    )
    line = (place.state / "site.log").read_text().splitlines()[-1]
    assert line == "the run overrides 2 settings of its app; an approved study has none"
    assert place.refused() == ["app-not-approved"]


def test_the_approved_study_is_trained_until_the_approval_is_withdrawn(place: Place) -> None:
    """The refusals above are for what was changed in the app; a withdrawal counts from the next message on."""
    answer = answer_to(place.task(app_bundle(place.study)), place.site_file, place.authority)
    reply = content_to_reply(answer.content)
    assert isinstance(reply, TrainReply) and (reply.site, reply.round) == ("A", 1)
    assert content_to_note(answer.content) is not None
    assert place.refused() == []
    withdraw(load_site_file(place.site_file), place.study.training_hash())
    answer = answer_to(place.task(app_bundle(place.study)), place.site_file, place.authority)
    assert content_to_reply(answer.content) == Failure("", 1, "A", "app-not-approved")
    assert "no study is approved at this site" in (place.state / "site.log").read_text()


def test_an_approved_app_does_not_open_the_door_to_another_studys_message(place: Place, study: MakeStudy) -> None:
    """Defends the approval at the message too: the app is right, but what is asked for was never read here."""
    other = study(training={"learning_rate": 0.5})
    task = place.task(app_bundle(place.study))
    content = task.message.content
    content["config"]["study"] = other.training_hash()  # type: ignore[index, call-overload]
    signed(content, place.signer.sign(said(content, "train", "1", "A")))
    assert content_to_reply(answer_to(task, place.site_file, place.authority).content) == Failure(
        "", 1, "A", "study-not-approved"
    )


def crash(*_: Any, **__: Any) -> Any:
    raise ValueError(f"patient {SECRET} in /data/{SECRET}.dcm")


@pytest.mark.parametrize(
    "where",
    [
        "client.site.SiteTraining.trained_or_stored",
        "client.processes.worker.app",
        "client.processes.worker.difference_of",
    ],
)
def test_an_exception_with_a_patients_name_is_a_category(
    place: Place, monkeypatch: pytest.MonkeyPatch, where: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Defends patients against an error's text: Flower would send ``str(exception)`` to the server."""
    monkeypatch.setattr(where, crash)
    answer = answer_to(place.task(app_bundle(place.study)), place.site_file, place.authority)
    reply = content_to_reply(answer.content)
    assert isinstance(reply, Failure) and reply.category == "internal-error"
    assert not answer.has_error()
    sent = message_to_proto(answer).SerializeToString()
    for word in (SECRET, "Mustermann", "/data", "ValueError", "Traceback", str(place.root), "Ada Klein"):
        assert word.encode() not in sent
    assert b"internal-error" in sent  # the search finds what is there
    assert SECRET in (place.state / "site.log").read_text()
    assert SECRET not in "".join(capfd.readouterr())


def test_a_broken_site_file_is_a_category_without_a_name(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is known of the site then, not even where its log is: the traceback goes to this machine's screen."""
    place.site_file.write_text(f"site: {SECRET}\n")
    answer = answer_to(place.task(app_bundle(place.study)), place.site_file, place.authority)
    assert content_to_reply(answer.content) == Failure("", 1, "unknown", "internal-error")
    assert SECRET.encode() not in message_to_proto(answer).SerializeToString()
    assert "Traceback" in capsys.readouterr().err


# ---- the loop around it


class Queue:
    """Hands out tokens, one after another."""

    def __init__(self, tokens: list[str | None]) -> None:
        self.tokens, self.closed = tokens, False

    def next(self, kind: str) -> str | None:
        assert kind == "client"
        return self.tokens.pop(0)

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Queue]:
    """``loop(["x", None], tasks)``: the worker's loop over these tokens, until they are used up."""

    def run(tokens: list[str | None], tasks: dict[str, Any], place: Place) -> Queue:
        queue = Queue(tokens)

        class Lent:
            def __init__(self, token: str) -> None:
                self.token = token

            def __enter__(self) -> Any:
                if isinstance(tasks[self.token], Exception):
                    raise tasks[self.token]
                return tasks[self.token]

            def __exit__(self, *_: object) -> None:
                """Nothing to give back."""

        monkeypatch.setattr(client.processes.worker, "TaskQueue", lambda endpoint, secret: queue)
        monkeypatch.setattr(client.processes.worker, "client_task", lambda endpoint, token, given_up: Lent(token))
        monkeypatch.setattr(client.processes.worker, "sleep", lambda _: None)
        serve(Endpoint("127.0.0.1:1"), b"", place.site_file, place.authority, lambda: not queue.tokens)
        return queue

    return run


def test_a_lost_task_is_one_line_and_the_next_is_served(
    place: Place, loop: Callable[..., Queue], capsys: pytest.CaptureFixture[str]
) -> None:
    """Defends a round's work against a SuperNode that goes away: the site goes on, the update is on its disk."""
    good = place.task(b"not an app")
    tasks = {"lost": RunError("the SuperNode no longer waits for this task (ConnectError)"), "good": good}
    queue = loop([None, "lost", "good", None], tasks, place)
    assert queue.closed
    assert len(good.answers) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if "could not be handed over" in line]
    assert len(said) == 1 and "waiting for the server to ask again" in said[0]


@pytest.fixture(autouse=True)
def no_bytecode(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An import would leave a file of its own."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    yield


def by_nobody(place: Place, asked: RecordDict) -> RecordDict:
    return asked


def by_another_ca(place: Place, asked: RecordDict) -> RecordDict:
    return signed(asked, server_of("fl.example.org")[0].sign(said(asked, "train", "1", "A")))


def by_an_admitted_site(place: Place, asked: RecordDict) -> RecordDict:
    """With a certificate of the federation's own CA, which is a site's."""
    now, key, ca_key = datetime.now(UTC), new_key(), new_key()
    ca = ca_certificate(ca_key, "test", now, 30)
    certificate = certificate_pem(site_certificate(ca, ca_key, key.public_key(), "B", now, 7))
    place.authority = Authority(ca, "fl.example.org")
    return signed(asked, Signer(key, certificate).sign(said(asked, "train", "1", "A")))


def by_a_server_elsewhere(place: Place, asked: RecordDict) -> RecordDict:
    now, ca_key = datetime.now(UTC), new_key()
    ca = ca_certificate(ca_key, "test", now, 30)
    place.authority = Authority(ca, "fl.example.org")
    return signed(asked, server_of("other.example.org", ca_key, ca)[0].sign(said(asked, "train", "1", "A")))


def for_another_site(place: Place, asked: RecordDict) -> RecordDict:
    return signed(asked, place.signer.sign(said(asked, "train", "1", "B")))


def of_another_round(place: Place, asked: RecordDict) -> RecordDict:
    return signed(asked, place.signer.sign(said(asked, "train", "2", "A")))


def of_another_kind(place: Place, asked: RecordDict) -> RecordDict:
    return signed(asked, place.signer.sign(said(asked, "query.deliver", "1", "A")))


def changed_since(place: Place, asked: RecordDict) -> RecordDict:
    signature = place.signer.sign(said(asked, "train", "1", "A"))
    asked["config"]["round"] = 2  # type: ignore[index, assignment]
    return signed(asked, signature)


def other_weights(place: Place, asked: RecordDict) -> RecordDict:
    signature = place.signer.sign(said(asked, "train", "1", "A"))
    array = asked.array_records["arrays"]["weights"]
    data = array.data[:-1] + bytes([array.data[-1] ^ 1])
    asked.array_records["arrays"]["weights"] = Array(array.dtype, array.shape, array.stype, data)
    return signed(asked, signature)


def with_a_record_more(place: Place, asked: RecordDict) -> RecordDict:
    signature = place.signer.sign(said(asked, "train", "1", "A"))
    asked["more"] = ConfigRecord({"x": 1})
    return signed(asked, signature)


FORGERIES = [
    by_nobody, by_another_ca, by_an_admitted_site, by_a_server_elsewhere, for_another_site, of_another_round,
    of_another_kind, changed_since, other_weights, with_a_record_more,
]  # fmt: skip


@pytest.mark.parametrize("forge", FORGERIES)
def test_only_the_server_can_ask(place: Place, forge: Callable[[Place, RecordDict], RecordDict]) -> None:
    """Defends against an admitted site that writes to another in the server's name: Flower delivers such a message."""
    task = place.task(app_bundle(place.study))
    task.message = Message(forge(place, place.ask()), 2, "train", group_id="1")
    set_message_id(task.message, "message-1")
    answer = answer_to(task, place.site_file, place.authority)
    assert content_to_reply(answer.content) == Failure("", 1, "A", "not-the-server")
    rows = read_jsonl(place.state / "audit.jsonl")
    assert (rows[-1]["event"], rows[-1]["category"]) == ("request refused", "not-the-server")
    assert "it is not this federation's server's" in (place.state / "site.log").read_text()
    assert not list(place.state.glob("*/round-*"))
