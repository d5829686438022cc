"""The client that stays in a federation: what it needs before it joins, and what it says when a line is lost."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import client.processes.service
from client.approval import approve, approved_study
from client.kit_keys import site_init
from client.processes.service import _Line, join, unit
from client.site_file import load_site_file
from federation.keys.certificates import CredentialError, ca_certificate, new_key
from federation.keys.kit import Kit, write_kit
from federation.study import study_from
from foundation.errors import FedpretextError, RunError, StudyError
from foundation.files import read_jsonl
from foundation.service_log import ServiceLog


class Ended(BaseException):
    """The test has seen enough."""


@pytest.fixture
def kit(tmp_path: Path, raw_study: dict[str, Any], hospital: Callable[..., Path]) -> Path:
    """A kit of site A with a key of its own; nothing is approved yet."""

    folder, study = tmp_path / "kit-A", study_from(raw_study, "test")
    folder.mkdir()
    about = Kit(site="A", federation="test", server="localhost:8443", study=study.training_hash())
    write_kit(folder, about, study.to_yaml(), ca_certificate(new_key(), "test", datetime.now(UTC), 30))
    site_init(folder, data=hospital("A").parent / "manifest.csv", device="cpu")
    return folder


@pytest.fixture
def lives(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-ins: each SuperNode lives a moment; the third start ends the test. What happened, in order."""
    answer: list[str] = []

    class Node:
        endpoint, secret = SimpleNamespace(), b""

        def __init__(self, *_: Any) -> None:
            if answer.count("start") == 2:
                raise Ended
            answer.append("start")

        def __enter__(self) -> "Node":
            return self

        def __exit__(self, *_: Any) -> None:
            answer.append("stop")

        def connected(self) -> bool:
            return answer.count("start") == 2

        def ended(self) -> bool:
            return True

        def reason(self) -> str:
            return "the server's certificate is not valid now"

    monkeypatch.setattr(client.processes.service, "SuperNode", Node)
    monkeypatch.setattr(
        client.processes.service, "serve", lambda endpoint, secret, site_file, authority, ended: ended()
    )
    clock = SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: answer.append(f"wait {seconds:.0f}"))
    monkeypatch.setattr(client.processes.service, "time", clock)
    return answer


def yes(kit: Path) -> None:
    approve(kit / "study.yaml", load_site_file(kit / "site.yaml"), "a test", lambda _: True)


def test_a_lost_line_is_one_line_and_another_try(kit: Path, lives: list[str]) -> None:
    yes(kit)
    with pytest.raises(Ended):
        join(kit)
    assert lives == ["start", "stop", "wait 5", "start", "stop", "wait 15"]
    said = [(row["level"], row["event"]) for row in read_jsonl(kit / "state" / "client.jsonl")]
    assert said == [
        ("info", "site A: joining the federation test at localhost:8443"),
        ("warning", "site A: the server's certificate is not valid now"),
        ("info", "trying again in 5 s"),
        ("info", "site A: connected; rounds are trained as the server asks for them"),
        ("warning", "site A: the server's certificate is not valid now"),
        ("info", "trying again in 15 s"),
    ]


def test_nothing_is_started_without_approval(kit: Path, lives: list[str]) -> None:
    with pytest.raises(StudyError, match=r"is not approved here; .* fedpretext site approve .*study.yaml --site"):
        join(kit)
    assert lives == []


def test_a_study_that_the_policy_lists_is_approved_by_it(kit: Path, lives: list[str]) -> None:
    path = kit / "site.yaml"
    raw = yaml.safe_load(path.read_text())
    hash_ = yaml.safe_load((kit / "kit.yaml").read_text())["study"]
    raw["policy"]["studies"] = [hash_[:12]]
    path.write_text(yaml.safe_dump(raw))
    with pytest.raises(Ended):
        join(kit)
    assert approved_study(load_site_file(path), hash_) is not None
    events = [row["event"] for row in read_jsonl(kit / "state" / "audit.jsonl")]
    assert events == ["log opened", "study approved", "connection lost"]  # one row, though it was lost twice


def test_two_clients_with_one_state(kit: Path, lives: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    yes(kit)

    def second(*_: Any) -> None:
        with pytest.raises(RunError, match="another client works with this state"):
            join(kit)
        raise Ended

    monkeypatch.setattr(client.processes.service, "serve", second)
    with pytest.raises(Ended):
        join(kit)


def damage_log(kit: Path) -> None:
    log = kit / "state" / "audit.jsonl"
    log.write_text(log.read_text().replace("a test", "no test"))


def open_key(kit: Path) -> None:
    (kit / "site.key").chmod(0o644)


def other_study(kit: Path) -> None:
    (kit / "study.yaml").write_text((kit / "study.yaml").read_text().replace("seed: 0", "seed: 1"))


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (damage_log, RunError, "chain is broken at row 2"),
        (open_key, CredentialError, "site.key"),
        (other_study, CredentialError, "is not the study that kit.yaml names"),
    ],
)
def test_what_was_tampered_with_ends_it_before_it_starts(
    kit: Path, lives: list[str], spoil: Callable[[Path], None], kind: type[FedpretextError], words: str
) -> None:
    yes(kit)
    spoil(kit)
    with pytest.raises(kind, match=words):
        join(kit)
    assert lives == []


def test_a_unit_for_systemd(kit: Path) -> None:
    text = unit(kit, Path("/opt/fed/bin/fedpretext"))
    assert f'ExecStart="/opt/fed/bin/fedpretext" client "{kit}"' in text
    assert f'ReadWritePaths="{kit / "state"}" "{kit / "cache"}"' in text
    assert "NoNewPrivileges=true" in text


def test_a_person_is_told_when_the_line_goes_and_comes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kit: Path
) -> None:
    """Flower's SuperNode tries again without a word; the site's log says what holds."""
    now, holds = [0.0], [False]
    monkeypatch.setattr(client.processes.service, "time", SimpleNamespace(monotonic=lambda: now[0]))
    node: Any = SimpleNamespace(connected=lambda: holds[0], ended=lambda: False)
    log = ServiceLog(tmp_path / "log.jsonl")
    line = _Line(node, Kit(site="A", federation="t", server="localhost:8443", study="0" * 64), log)

    def said_at(moment: float, there: bool) -> list[str]:
        now[0], holds[0] = moment, there
        before = len(read_jsonl(log.path))
        assert not line.ended()
        return [row["event"].removeprefix("site A: ").split(";")[0] for row in read_jsonl(log.path)[before:]]

    assert said_at(5, False) == []  # it takes a moment
    assert said_at(25, False) == ["no answer from localhost:8443"]
    assert said_at(30, False) == []  # once is enough
    assert said_at(40, True) == ["connected"]
    assert said_at(50, True) == []
    assert said_at(60, False) != []  # a line that was there and is gone is told at once
    assert said_at(70, False) == []
    assert said_at(700, False) != []  # and again after ten minutes
