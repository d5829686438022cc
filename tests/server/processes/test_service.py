"""The server that goes on by itself: what is a pause, what is an end, and what a person is told."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from flwr.supercore.run import RunNotRunningException

import server.processes.service
from foundation.errors import QuorumError, RunError, StudyError
from foundation.files import read_json, read_jsonl
from server.enrolment.provision import provision
from server.enrolment.registry import Registry
from server.monitoring.status_writer import latest_status, read_status
from server.processes.service import ServerOptions, checked_study, serve, unit

SETTINGS = ServerOptions(host="127.0.0.1", metrics_port=0, pause_s=0.0)


@pytest.fixture
def federation(tmp_path: Path, raw_study: dict[str, Any]) -> Path:
    """A provisioned federation of one site; its folder."""
    import yaml

    (tmp_path / "study.yaml").write_text(yaml.safe_dump(raw_study))
    provision(tmp_path / "study.yaml", server="localhost:8443", sites=["a"], out=tmp_path / "kits")
    return tmp_path / "kits" / "server"


Fail = Callable[..., list[str]]


@pytest.fixture
def mishaps(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """``mishaps(error, error)``: stand-ins for SuperLink and proxy; each run ends with the next error, then well."""

    def make(*errors: BaseException) -> list[str]:
        answer: list[str] = []
        coming = iter(errors)

        class Link:
            endpoint = SimpleNamespace(address="127.0.0.1:1", root=b"")

            def __init__(self, *_: Any) -> None:
                answer.append("start")

            def __enter__(self) -> "Link":
                return self

            def __exit__(self, *_: Any) -> None:
                answer.append("stop")

            def open_door(self) -> None:
                answer.append("open")

        def run(*_: Any) -> None:
            answer.append("run")
            error = next(coming, None)
            if error is not None:
                raise error

        monkeypatch.setattr(server.processes.service, "needed_nginx", lambda: "nginx")
        monkeypatch.setattr(server.processes.service, "SuperLink", Link)
        monkeypatch.setattr(server.processes.service, "_admit", lambda *_: None)
        monkeypatch.setattr(server.processes.service, "_run", run)
        monkeypatch.setattr(server.processes.service, "write_encoder", lambda *_: None)
        return answer

    return make


def full_disk() -> RunError:
    error = RunError("x/weights.safetensors: could not be written (No space left on device); free space, then go on")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    return error


def test_a_lost_quorum_pauses_the_run_and_leaves_the_door_open(federation: Path, mishaps: Fail) -> None:
    answer = mishaps(QuorumError("round 1: fewer than 2 of 3 sites"), QuorumError("again"))
    run = serve(federation.parent.parent / "study.yaml", (), federation, SETTINGS)
    assert answer == ["start", "open", "run", "run", "run", "stop"]
    study = checked_study(federation.parent.parent / "study.yaml", (), Registry(federation))
    assert run == federation / "runs" / f"{study.name}-{study.training_hash()[:12]}"
    events = [row["event"] for row in read_jsonl(run / "server.jsonl")]
    assert "paused: round 1: fewer than 2 of 3 sites; goes on by itself from the last round" in events
    audit = read_jsonl(federation / "audit.jsonl")
    assert [row["reason"] for row in audit if row["event"] == "paused"] == ["round 1: fewer than 2 of 3 sites", "again"]
    assert read_json(run / "run.json")["finished"]


@pytest.mark.parametrize(
    "error",
    [
        full_disk(), RunError("SuperLink ended: x"), OSError(errno.EIO, "broken"), httpx.ConnectError("refused"),
        RunNotRunningException(),
    ],
)  # fmt: skip
def test_what_may_pass_starts_all_programs_anew(federation: Path, mishaps: Fail, error: BaseException) -> None:
    answer = mishaps(error)
    serve(federation.parent.parent / "study.yaml", (), federation, SETTINGS)
    assert answer == ["start", "open", "run", "stop", "start", "open", "run", "stop"]


def test_the_status_says_why_it_is_paused(federation: Path, mishaps: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    mishaps(full_disk())
    seen = []

    def sleep(_: float) -> None:
        seen.append(read_status(latest_status(federation)))

    monkeypatch.setattr(server.processes.service, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: 0.0))
    serve(federation.parent.parent / "study.yaml", (), federation, SETTINGS)
    assert (seen[0].phase, "No space left on device" in seen[0].detail) == ("paused", True)


def test_a_study_that_cannot_be_run_ends_the_server(federation: Path, mishaps: Fail) -> None:
    answer = mishaps(StudyError("algorithm 'fedmedian' needs at least 3 sites; there are 1"))
    with pytest.raises(StudyError, match="fedmedian"):
        serve(federation.parent.parent / "study.yaml", (), federation, SETTINGS)
    assert answer == ["start", "open", "run", "stop"]


def test_another_study_than_the_kits_is_refused_before_anything_starts(federation: Path, mishaps: Fail) -> None:
    answer = mishaps()
    study = federation.parent.parent / "study.yaml"
    with pytest.raises(StudyError, match=r"the kits of this federation were made for .*provision the new study$"):
        serve(study, ("rounds.count=9",), federation, SETTINGS)
    assert answer == []
    assert not (federation / "runs").exists()
    assert checked_study(study, ("title=another title",), Registry(federation)).title == "another title"


def test_two_servers_of_one_study(federation: Path, mishaps: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    mishaps(QuorumError("x"))
    study = federation.parent.parent / "study.yaml"

    def second(_: float) -> None:
        with pytest.raises(RunError, match="another server works on this study"):
            serve(study, (), federation, SETTINGS)

    monkeypatch.setattr(server.processes.service, "time", SimpleNamespace(sleep=second, monotonic=lambda: 0.0))
    serve(study, (), federation, SETTINGS)


def test_starting_weights_are_the_servers_affair(
    federation: Path, mishaps: Fail, raw_study: dict[str, Any], tmp_path: Path
) -> None:
    from federation.study import study_from
    from foundation.tensor_files import load_tensors, save_tensors
    from ssl_methods import build_method

    study = study_from(raw_study, "test")
    other = build_method(study.method, study.encoder, study.image, 7).shared_state()
    save_tensors(tmp_path / "given.safetensors", {k[8:]: v for k, v in other.items() if k.startswith("encoder.")})
    mishaps()
    settings = ServerOptions("127.0.0.1", tmp_path / "given.safetensors", 0, 0.0)
    run = serve(tmp_path / "study.yaml", (), federation, settings)
    start = load_tensors(run / "arms" / "federated" / "fold-0" / "seed-0" / "initial.safetensors")[0]
    assert all(start[name].equal(value) for name, value in other.items() if name.startswith("encoder."))
    assert "given.safetensors" in read_json(run / "run.json")["starting_weights"]


def test_a_unit_for_systemd(federation: Path, tmp_path: Path) -> None:
    text = unit(federation, tmp_path / "study.yaml", Path("/opt/fed/bin/fedpretext"))
    assert f'ExecStart="/opt/fed/bin/fedpretext" server "{tmp_path / "study.yaml"}" --federation "{federation}"' in text
    assert "Restart=always" in text
    assert f'ReadWritePaths="{federation}"' in text


def test_no_server_has_run(federation: Path) -> None:
    with pytest.raises(RunError, match="no server has run here yet"):
        latest_status(federation)


def test_without_nginx_nothing_is_started(federation: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pause would not mend that: a person has to install it."""
    monkeypatch.setattr("server.processes.proxy.nginx", lambda: None)
    with pytest.raises(RunError, match=r"^nginx is not installed, .*apt install nginx-light"):
        serve(federation.parent.parent / "study.yaml", (), federation, SETTINGS)
    assert not (federation / "runs").exists()


def test_a_bug_is_no_pause(federation: Path, mishaps: Fail) -> None:
    """It would never pass, and its traceback is what mends it."""
    mishaps(ZeroDivisionError("bug"))
    with pytest.raises(ZeroDivisionError):
        serve(federation.parent.parent / "study.yaml", (), federation, SETTINGS)


def test_pauses_grow_while_nothing_lasts(federation: Path, mishaps: Fail, monkeypatch: pytest.MonkeyPatch) -> None:
    mishaps(*[RunError("x")] * 5)
    slept: list[float] = []
    monkeypatch.setattr(server.processes.service, "time", SimpleNamespace(sleep=slept.append, monotonic=lambda: 0.0))
    serve(
        federation.parent.parent / "study.yaml",
        (),
        federation,
        ServerOptions("127.0.0.1", metrics_port=0, pause_s=20.0),
    )
    assert slept == [5.0, 15.0, 20.0, 20.0, 20.0]
