"""The metrics, scraped over a socket and read by a parser that forgives nothing."""

import http.client
import re
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import server.monitoring.metrics
from federation.records import Failure
from foundation.files import read_jsonl
from foundation.machine import versions
from foundation.service_log import ServiceLog
from server.monitoring.metrics import MetricsEndpoint, metrics_text
from server.monitoring.status_writer import STATES, SiteStatus, Status, StatusWriter

HASH = "ab" * 32
NOW = 1_000_000.0
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def status(**changed: Any) -> Status:
    """Round 3 of 9: a has answered, b is in work, c is gone and has failed."""
    facts: dict[str, Any] = {
        "study": "tiny", "study_hash": HASH, "rounds": 9,
        "phase": "round 3 of 9", "round": 3, "round_started": NOW - 90, "started": NOW - 5000, "updated": NOW - 1,
        "quorum": 2, "round_seconds": [100.0, 200.0],
        "sites": {
            "b": SiteStatus(True, NOW, "in work", NOW - 80, 0, 3, "", None, 4242, 300, 200),
            "a": SiteStatus(True, NOW, "answered", NOW - 80, NOW - 50, 3, "", 0.125, 4242, 300, 320),
            "c": SiteStatus(False, NOW - 70, "failed", NOW - 80, NOW - 75, 3, "disk-full", 1.5, 4242, 200, 100),
        },
    }  # fmt: skip
    return Status(**(facts | changed))


HELP = re.compile(r"# HELP ([a-zA-Z_:][a-zA-Z0-9_:]*) ((?:[^\\\n]|\\\\|\\n)+)")
TYPE = re.compile(r"# TYPE ([a-zA-Z_:][a-zA-Z0-9_:]*) (counter|gauge)")
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)", re.DOTALL)
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\\\|\\n|\\")*)"(,|$)', re.DOTALL)
UNESCAPED = {r"\\": "\\", r"\n": "\n", r"\"": '"'}


def parsed(text: str) -> Series:
    """Every sample. Each metric stands in one piece: its help, its type, its samples, none of them twice."""
    assert text.endswith("\n")
    found: Series = {}
    metrics: list[str] = []
    lines = text[:-1].split("\n")
    while lines:
        about, kind = HELP.fullmatch(lines.pop(0)), TYPE.fullmatch(lines.pop(0))
        assert about is not None
        assert kind is not None
        name = about[1]
        assert name == kind[1]
        assert name.startswith("fedpretext_")
        assert name not in metrics
        assert name.endswith("_total") == (kind[2] == "counter")
        metrics.append(name)
        assert lines
        assert not lines[0].startswith("#"), f"{name} has no sample"
        while lines and not lines[0].startswith("#"):
            sample = SAMPLE.fullmatch(lines.pop(0))
            assert sample is not None
            assert sample[1] == name
            series = name, tuple(labels_in(sample[2] or ""))
            assert series not in found
            found[series] = float(sample[3])
    return found


def labels_in(text: str) -> Iterator[tuple[str, str]]:
    place = 0
    while place < len(text):
        label = LABEL.match(text, place)
        assert label is not None, text[place:]
        yield label[1], re.sub(r"\\.", lambda escape: UNESCAPED[escape[0]], label[2], flags=re.DOTALL)
        place = label.end()


def of(series: Series, name: str, **labels: str) -> float:
    return series[f"fedpretext_{name}", tuple(labels.items())]


def named(series: Series, name: str) -> dict[str, float]:
    """A metric's values by the first label."""
    return {labels[0][1]: value for (found, labels), value in series.items() if found == f"fedpretext_{name}"}


@pytest.fixture
def log(tmp_path: Path) -> ServiceLog:
    return ServiceLog(tmp_path / "server.jsonl")


@pytest.fixture
def status_writer(tmp_path: Path) -> StatusWriter:
    return StatusWriter(tmp_path / "status.json", "tiny", HASH, 9)


@pytest.fixture
def endpoint(tmp_path: Path, status_writer: StatusWriter, log: ServiceLog) -> Iterator[MetricsEndpoint]:
    with MetricsEndpoint(0, tmp_path / "status.json", log) as made:
        yield made


Asked = Callable[..., tuple[int, str, dict[str, str]]]


@pytest.fixture
def ask(endpoint: MetricsEndpoint) -> Asked:
    """``ask("/metrics", "GET", Host=...)``: status, text and headers."""

    def make(target: str, method: str = "GET", **headers: str) -> tuple[int, str, dict[str, str]]:
        connection = http.client.HTTPConnection("127.0.0.1", endpoint.port, timeout=20)
        try:
            connection.request(method, target, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(), dict(answer.headers)
        finally:
            connection.close()

    return make


def test_the_studys_figures() -> None:
    series = parsed(metrics_text(status(), "0.1.0", NOW))
    assert of(series, "info", study="tiny", study_hash=HASH[:12], version="0.1.0") == 1
    assert of(series, "round") == 3
    assert of(series, "rounds") == 9
    assert of(series, "paused") == 0
    assert of(series, "quorum_sites") == 2
    assert of(series, "start_time_seconds") == NOW - 5000
    assert of(series, "since_start_seconds") == 5000
    assert of(series, "round_start_time_seconds") == NOW - 90
    assert of(series, "status_time_seconds") == NOW - 1
    assert of(series, "round_seconds_mean") == 150
    phases = named(series, "phase")
    assert [phase for phase, value in phases.items() if value] == ["training"]
    assert set(phases) == {
        "starting", "waiting for sites", "training", "paused", "estimating statistics", "evaluating at the sites",
        "delivering the weights",
        "finished",
    }  # fmt: skip


def test_the_sites_figures() -> None:
    series = parsed(metrics_text(status(), "0.1.0", NOW))
    assert named(series, "site_online") == {"a": 1, "b": 1, "c": 0}
    assert named(series, "site_loss") == {"a": 0.125, "c": 1.5}
    assert named(series, "site_sent_bytes_total") == {"a": 300, "b": 300, "c": 200}
    assert named(series, "site_received_bytes_total") == {"a": 320, "b": 200, "c": 100}
    assert named(series, "site_waiting_seconds") == {"a": 0, "b": 80, "c": 0}
    assert named(series, "site_late") == {"a": 0, "b": 1, "c": 0}  # a took 30 seconds
    for site, state in {"a": "answered", "b": "in work", "c": "failed"}.items():
        assert {one: of(series, "site_state", site=site, state=one) for one in STATES} == {
            one: float(one == state) for one in STATES
        }


def test_what_is_not_known_is_left_out() -> None:
    series = parsed(metrics_text(Status("tiny", HASH, 9, started=NOW + 5), "0.1.0", NOW))
    names = {name for name, _ in series}
    assert not any("site" in name or name.startswith("fedpretext_round_") for name in names)
    assert of(series, "round") == 0
    assert of(series, "since_start_seconds") == 0  # a clock that was set back
    assert [phase for phase, value in named(series, "phase").items() if value] == ["starting"]


@pytest.mark.parametrize("phase", ["paused", "finished", "something new"])
def test_one_phase_is_always_on(phase: str) -> None:
    series = parsed(metrics_text(status(phase=phase), "0.1.0", NOW))
    assert [name for name, value in named(series, "phase").items() if value] == [phase]
    assert of(series, "paused") == (phase == "paused")


def test_nothing_private_is_told() -> None:
    text = metrics_text(status(detail="/srv/kits/ca.key: could not be written"), "0.1.0", NOW)
    for word in ("4242", "/srv", "ca.key", "disk-full", HASH[:13]):
        assert word not in text


ODD = st.sampled_from(['a"b', "a\\", "a\nb", "\r", 'x",state="y', "}", "a b", "\u2028"])


@given(names=st.lists(ODD | st.text(), unique=True), study=ODD | st.text())
def test_any_name_comes_through(names: list[str], study: str) -> None:
    text = metrics_text(status(study=study, sites={name: SiteStatus() for name in names}), "0.1.0", NOW)
    series = parsed(text)
    assert named(series, "site_online") == dict.fromkeys(names, 0)
    assert of(series, "info", study=study, study_hash=HASH[:12], version="0.1.0") == 1


@given(loss=st.floats())
def test_any_number_comes_through(loss: float) -> None:
    series = parsed(metrics_text(status(sites={"a": SiteStatus(loss=loss)}), "0.1.0", NOW))
    assert repr(of(series, "site_loss", site="a")) == repr(loss)


def test_a_scrape_reads_the_status_anew(status_writer: StatusWriter, ask: Asked) -> None:
    code, text, headers = ask("/metrics")
    assert code == 200
    assert headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert headers["Content-Length"] == str(len(text.encode()))
    first = parsed(text)
    assert of(first, "round") == 0
    assert of(first, "info", study="tiny", study_hash=HASH[:12], version=versions()["fedpretext"]) == 1
    status_writer.round_started(4, ["a"])
    status_writer.answered(Failure(HASH, 4, "a", "disk-full"))
    second = parsed(ask("/metrics?x=1")[1])
    assert of(second, "round") == 4
    assert of(second, "site_state", site="a", state="failed") == 1


def test_odd_names_over_the_socket(status_writer: StatusWriter, ask: Asked) -> None:
    names = ['a"b', "Zürich\n", "病院\\", "lone \ud800 half"]
    status_writer.online(names, {})
    status_writer.phase("paused", "why")
    shown = {name.encode(errors="replace").decode() for name in names}
    assert set(named(parsed(ask("/metrics")[1]), "site_online")) == shown


def test_health(status_writer: StatusWriter, ask: Asked) -> None:
    assert ask("/health")[:2] == (200, "starting\n")
    status_writer.phase("paused", "/srv/kits: disk full")
    assert ask("/health")[:2] == (200, "paused\n")


@pytest.mark.parametrize("text", [None, "{", '{"study": "tiny"}'])
def test_without_a_status_there_is_nothing_to_scrape(
    text: str | None, ask: Asked, status_writer: StatusWriter, tmp_path: Path
) -> None:
    (tmp_path / "status.json").unlink()
    if text is not None:
        (tmp_path / "status.json").write_text(text)
    for target in ("/metrics", "/health"):
        assert ask(target)[:2] == (503, "the server has no status that can be read\n")
    status_writer.phase("paused")
    assert ask("/health")[0] == 200


@pytest.mark.parametrize(
    "target", ["/", "/metric", "/metrics/", "/metrics/x", "/../metrics", "/status.json", "//x/metrics"]
)
def test_nothing_else_is_there(target: str, ask: Asked) -> None:
    assert ask(target)[:2] == (404, "there are /metrics and /health\n")


def test_only_reading(ask: Asked) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert ask("/metrics", method)[0] == 501
    code, text, headers = ask("/metrics", "HEAD")
    assert (code, text) == (200, "")
    assert int(headers["Content-Length"]) > 1000


def test_headers_tell_no_version_and_forbid_guessing(ask: Asked) -> None:
    headers = ask("/metrics")[2]
    assert headers["Server"].strip() == "fedpretext"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert not any(name.lower().startswith("access-control") for name in headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost:9464", "127.0.0.1:1"])
def test_this_machine_is_answered(host: str, ask: Asked) -> None:
    assert ask("/health", Host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9464", "127.0.0.1.evil.example", "localhost.evil.example", "127.0.0.1@evil.example",
     "evil.example/127.0.0.1", "localhost:", "localhost:9464:1", "[::1]:9464", "0.0.0.0", "127.0.0.2", ""],
)  # fmt: skip
def test_a_page_that_points_its_own_name_here_is_not_answered(host: str, ask: Asked) -> None:
    for target in ("/metrics", "/health", "/"):
        code, text, _ = ask(target, Host=host)
        assert (code, text) == (421, "only 127.0.0.1 and localhost are answered\n")


@pytest.mark.parametrize(
    ("head", "code"),
    [
        ("GET /health HTTP/1.0", 421),
        ("GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example", 421),
        ("GET http://evil.example/health HTTP/1.1\r\nHost: localhost", 404),
        ("GET /health HTTP/1.1\r\nHost: localhost", 200),
        ("nonsense", 400),
    ],
)
def test_raw_requests(head: str, code: int, endpoint: MetricsEndpoint) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(4096), b"")).decode()
    assert f" {code} " in answer.splitlines()[0] or f"Error code: {code}" in answer


def test_it_listens_on_one_address_of_this_machine_alone(endpoint: MetricsEndpoint) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", endpoint.port), timeout=20)


def test_a_client_that_says_nothing_holds_up_nobody(
    endpoint: MetricsEndpoint, ask: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.monitoring.metrics._Request, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as silent:
        assert ask("/health")[0] == 200
        assert silent.recv(1) == b""  # and is sent away


def test_a_client_that_goes_away_is_not_worth_a_word(
    endpoint: MetricsEndpoint, ask: Asked, log: ServiceLog, capfd: pytest.CaptureFixture[str]
) -> None:
    capfd.readouterr()
    rows = read_jsonl(log.path)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", endpoint.port), timeout=20) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
            connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert ask("/metrics")[0] == 200
    assert capfd.readouterr().err == ""
    assert read_jsonl(log.path) == rows


def test_a_fault_of_ours_is_in_the_log(ask: Asked, log: ServiceLog, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(*_: object) -> str:
        raise TypeError("/srv/secret")

    monkeypatch.setattr(server.monitoring.metrics, "metrics_text", faulty)
    with pytest.raises(http.client.RemoteDisconnected):
        ask("/metrics")
    deadline = time.monotonic() + 20
    while (reported := read_jsonl(log.path)[-1]["event"]).startswith("metrics: http") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert reported == "metrics: a request could not be answered (TypeError)"
    assert ask("/health")[0] == 200


def test_where_it_is_served_is_said(endpoint: MetricsEndpoint, log: ServiceLog) -> None:
    (row,) = read_jsonl(log.path)
    assert row["level"] == "info"
    assert row["event"] == f"metrics: http://127.0.0.1:{endpoint.port}/metrics, from this machine only"


def test_a_busy_port_is_a_warning(endpoint: MetricsEndpoint, tmp_path: Path, log: ServiceLog, ask: Asked) -> None:
    with MetricsEndpoint(endpoint.port, tmp_path / "status.json", log) as second:
        assert second.port == 0
    row = read_jsonl(log.path)[-1]
    assert row["level"] == "warning"
    assert row["event"].startswith(f"metrics: port {endpoint.port} of 127.0.0.1 cannot be used (")
    assert row["event"].endswith("); the server runs without them; choose another with --metrics-port")
    assert ask("/health")[0] == 200  # the first is not harmed


def test_a_port_that_does_not_exist_is_a_warning(tmp_path: Path, log: ServiceLog) -> None:
    with MetricsEndpoint(70000, tmp_path / "status.json", log) as made:
        assert made.port == 0
    assert read_jsonl(log.path)[-1]["level"] == "warning"


def test_it_ends_with_the_block_and_can_be_had_again(
    tmp_path: Path, status_writer: StatusWriter, log: ServiceLog
) -> None:
    with MetricsEndpoint(0, tmp_path / "status.json", log) as made:
        port = made.port
        assert port > 0
    assert made.port == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=20)
    with MetricsEndpoint(port, tmp_path / "status.json", log) as again:
        assert again.port == port
