"""Figures of a running server for Prometheus, on this machine only: ``/metrics`` and ``/health``.

The text format is Prometheus' 0.0.4. It is made from ``status.json`` at each request, and holds nothing secret: no
count of pictures, no key, no path, and of a site's error its state alone.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import Literal, Self, cast

from foundation.errors import RunError
from foundation.machine import versions
from foundation.service_log import ServiceLog
from server.status_board import PAUSED, STAGES, STATES, SiteStatus, Status, read_status

_HOST = "127.0.0.1"
_NAMES = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
_PLAIN = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_SLOWEST_S = 5.0  # a client that says nothing for so long is sent away
_POLL_S = 0.1  # how long an end of the server waits for this
_Kind = Literal["gauge", "counter"]
_Sample = tuple[dict[str, str], float]
_Answer = tuple[HTTPStatus, str, str]  # status, content type, text


@dataclass(frozen=True)
class _Metric:
    """One metric with its samples, by labels."""

    name: str
    kind: _Kind
    about: str
    samples: list[_Sample]

    def text(self) -> str:
        lines = [f"# HELP fedpretext_{self.name} {self.about}", f"# TYPE fedpretext_{self.name} {self.kind}"]
        lines += [f"fedpretext_{self.name}{_labels(labels)} {value!r}" for labels, value in self.samples]
        return "".join(f"{line}\n" for line in lines)


def metrics_text(status: Status, version: str, now: float) -> str:
    """All metrics in Prometheus' text format; ``now`` in seconds since 1970. What is not known yet is left out."""
    return "".join(metric.text() for metric in (*_of_study(status, version, now), *_of_sites(status, now)))


def _of_study(status: Status, version: str, now: float) -> Iterator[_Metric]:
    info = {"study": status.study, "study_hash": status.study_hash[:12], "version": version}
    yield _Metric("info", "gauge", "The study and the version of the program; always 1.", [(info, 1)])
    stages = dict.fromkeys((*STAGES, status.stage))
    said = [({"phase": stage}, int(stage == status.stage)) for stage in stages]
    yield _Metric("phase", "gauge", "1 for what the server does now, 0 for all else.", [*said])
    yield _single("paused", "1 while the server is paused; fedpretext status says why.", int(status.stage == PAUSED))
    yield _single("round", "The round in work, from 1; 0 before the first.", status.round)
    yield _single("rounds", "Rounds of the study.", status.rounds)
    yield _single("start_time_seconds", "When the study was first started, since 1970.", status.started)
    yield _single("since_start_seconds", "Seconds since the study was first started.", max(0.0, now - status.started))
    yield _single("status_time_seconds", "When the status was last written, since 1970.", status.updated)
    if status.round_started:
        yield _single("round_start_time_seconds", "When the round in work was begun, since 1970.", status.round_started)
    if status.mean_round is not None:
        yield _single("round_seconds_mean", "Mean duration of the last rounds, 20 at most.", status.mean_round)
    if status.quorum:
        yield _single("quorum_sites", "Sites that a round needs.", status.quorum)


def _of_sites(status: Status, now: float) -> Iterator[_Metric]:
    late = status.late(now)

    def each(name: str, about: str, values: dict[str, float], kind: _Kind = "gauge") -> _Metric:
        return _Metric(f"site_{name}", kind, about, [({"site": site}, value) for site, value in values.items()])

    sites = dict(sorted(status.sites.items()))
    if not sites:
        return
    yield each("online", "1 while the site is connected.", {name: int(site.online) for name, site in sites.items()})
    yield _Metric("site_state", "gauge", "1 for the site's state in the round in work.", [*_states(sites)])
    losses = {name: site.loss for name, site in sites.items() if site.loss is not None}
    if losses:
        yield each("loss", "Training loss of the site's last update.", losses)
    sent = {name: site.bytes_sent for name, site in sites.items()}
    yield each("sent_bytes_total", "Bytes of weights sent to the site.", {**sent}, "counter")
    received = {name: site.bytes_received for name, site in sites.items()}
    yield each("received_bytes_total", "Bytes of weights received from the site.", {**received}, "counter")
    waiting = {name: site.waiting(now) for name, site in sites.items()}
    yield each("waiting_seconds", "Seconds for which the site's update is waited for; 0: it is not.", waiting)
    yield each("late", "1 when the site takes more than twice as long as others.", {n: int(n in late) for n in sites})


def _states(sites: dict[str, SiteStatus]) -> Iterator[_Sample]:
    for name, site in sites.items():
        for state in STATES:
            yield {"site": name, "state": state}, int(site.state == state)


def _single(name: str, about: str, value: float) -> _Metric:
    return _Metric(name, "gauge", about, [({}, value)])


def _labels(labels: dict[str, str]) -> str:
    pairs = [f'{name}="{_escaped(value)}"' for name, value in labels.items()]
    return f"{{{','.join(pairs)}}}" if pairs else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


class MetricsEndpoint:
    """Serves a status file's metrics while the ``with`` block runs; ``port`` 0 takes any free one.

    A port that cannot be had is a warning in the log, and the server runs without: ``self.port`` is then 0.
    """

    def __init__(self, port: int, status: Path, log: ServiceLog) -> None:
        self.port = 0
        self._wanted, self._status, self._log = port, status, log
        self._version = versions()["fedpretext"]
        self._server: _Server | None = None

    def __enter__(self) -> Self:
        try:
            self._server = _Server(self._wanted, self._answer, self._log)
        except (OSError, OverflowError) as error:
            self._log.write(
                "warning",
                f"metrics: port {self._wanted} of {_HOST} cannot be used ({error}); the server runs without them; "
                "choose another with --metrics-port",
            )
            return self
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True).start()
        self._log.write("info", f"metrics: http://{_HOST}:{self.port}/metrics, from this machine only")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server, self.port = None, 0

    def _answer(self, hosts: list[str], target: str) -> _Answer:
        # A page on the web can make a browser here ask for its own name at this address (DNS rebinding).
        if len(hosts) != 1 or not _NAMES.fullmatch(hosts[0].strip()):
            return HTTPStatus.MISDIRECTED_REQUEST, _PLAIN, "only 127.0.0.1 and localhost are answered\n"
        place = target.partition("?")[0]
        if place not in ("/metrics", "/health"):
            return HTTPStatus.NOT_FOUND, _PLAIN, "there are /metrics and /health\n"
        try:
            status = read_status(self._status)
        except (RunError, OSError):
            return HTTPStatus.SERVICE_UNAVAILABLE, _PLAIN, "the server has no status that can be read\n"
        if place == "/health":
            return HTTPStatus.OK, _PLAIN, f"{status.stage}\n"
        return HTTPStatus.OK, _METRICS, metrics_text(status, self._version, time.time())


class _Server(ThreadingTCPServer):
    # Not http.server's own: that one asks a name server for this machine's name before it listens.
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, answer: Callable[[list[str], str], _Answer], log: ServiceLog) -> None:
        self.answer, self._log = answer, log
        super().__init__((_HOST, port), _Request)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nobody's concern; a fault of ours is."""
        error = sys.exception()
        if not isinstance(error, OSError):
            self._log.write("warning", f"metrics: a request could not be answered ({type(error).__name__})")


class _Request(BaseHTTPRequestHandler):
    server_version, sys_version = "fedpretext", ""
    timeout = _SLOWEST_S

    def do_GET(self) -> None:
        """Answer with head and body."""
        self._answer(body=True)

    def do_HEAD(self) -> None:
        """Answer with the head alone."""
        self._answer(body=False)

    def _answer(self, body: bool) -> None:
        hosts = self.headers.get_all("Host") or []
        status, kind, text = cast(_Server, self.server).answer(hosts, self.path)
        data = text.encode(errors="replace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a scrape every few seconds would bury what the server has to tell."""
