"""Figures of a running server for Prometheus, on this machine only: ``/metrics`` and ``/health``.

The text format is Prometheus' 0.0.4. It is made from ``status.json`` at each request, and holds nothing secret: no
count of images, no key, no path, and of a site's error its state alone.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Self, cast

from foundation.errors import RunError
from foundation.machine import versions
from foundation.service_log import ServiceLog
from server.monitoring.status_writer import PAUSED, STAGES, STATES, Status, read_status

_HOST = "127.0.0.1"
_NAMES = re.compile(r"(?:127\.0\.0\.1|localhost)(?::[0-9]{1,5})?", re.IGNORECASE | re.ASCII)
_PLAIN = "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_SLOWEST_S = 5.0  # a client that says nothing for so long is sent away
_POLL_S = 0.1  # how long an end of the server waits for this
_Figure = tuple[str, str, Sequence[tuple[dict[str, str], float]]]  # name, what it is, samples by their labels
_Answer = tuple[HTTPStatus, str, str]  # status, content type, text


def metrics_text(status: Status, version: str, now: float) -> str:
    """All metrics in Prometheus' text format; ``now`` in seconds since 1970. What is not known yet is left out."""
    from prometheus_client import Metric, generate_latest
    from prometheus_client.registry import Collector

    class Figures(Collector):
        def collect(self) -> Iterator[Metric]:
            for name, about, samples in (*_of_study(status, version, now), *_of_sites(status, now)):
                kind = "counter" if name.endswith("_total") else "gauge"
                metric = Metric(f"fedpretext_{name.removesuffix('_total')}", about, kind)
                for labels, value in samples:
                    sent = {label: text.encode(errors="replace").decode() for label, text in labels.items()}
                    metric.add_sample(f"fedpretext_{name}", sent, value)
                if samples:
                    yield metric

    return generate_latest(Figures()).decode()


def _of_study(status: Status, version: str, now: float) -> Iterator[_Figure]:
    info = {"study": status.study, "study_hash": status.study_hash[:12], "version": version}
    stages = dict.fromkeys((*STAGES, status.stage))
    said = [({"phase": stage}, int(stage == status.stage)) for stage in stages]
    single: dict[str, tuple[str, float | None]] = {
        "paused": ("1 while the server is paused; fedpretext status says why.", int(status.stage == PAUSED)),
        "round": ("The round in work, from 1; 0 before the first.", status.round),
        "rounds": ("Rounds of the study.", status.rounds),
        "start_time_seconds": ("When the study was first started, since 1970.", status.started),
        "since_start_seconds": ("Seconds since the study was first started.", max(0.0, now - status.started)),
        "status_time_seconds": ("When the status was last written, since 1970.", status.updated),
        "round_start_time_seconds": (
            "When the round in work was begun, since 1970.",
            status.round_started or None,
        ),
        "round_seconds_mean": ("Mean duration of the last rounds, 20 at most.", status.mean_round),
        "quorum_sites": ("Sites that a round needs.", status.quorum or None),
    }
    yield "info", "The study and the version of the program; always 1.", [(info, 1)]
    yield "phase", "1 for what the server does now, 0 for all else.", said
    for name, (about, value) in single.items():
        yield name, about, [] if value is None else [({}, value)]


def _of_sites(status: Status, now: float) -> Iterator[_Figure]:
    late, sites = status.late(now), dict(sorted(status.sites.items()))
    states = [
        ({"site": name, "state": state}, int(site.state == state)) for name, site in sites.items() for state in STATES
    ]
    each: dict[str, tuple[str, dict[str, float | None]]] = {
        "online": ("1 while the site is connected.", {name: int(site.online) for name, site in sites.items()}),
        "loss": ("Training loss of the site's last update.", {name: site.loss for name, site in sites.items()}),
        "sent_bytes_total": ("Bytes of weights sent to the site.", {n: site.bytes_sent for n, site in sites.items()}),
        "received_bytes_total": (
            "Bytes of weights received from the site.",
            {name: site.bytes_received for name, site in sites.items()},
        ),
        "waiting_seconds": (
            "Seconds for which the site's update is waited for; 0: it is not.",
            {name: site.waiting(now) for name, site in sites.items()},
        ),
        "late": (
            "1 when the site takes more than twice as long as others.",
            {name: int(name in late) for name in sites},
        ),
    }
    yield "site_state", "1 for the site's state in the round in work.", states
    for name, (about, values) in each.items():
        yield f"site_{name}", about, [({"site": site}, value) for site, value in values.items() if value is not None]


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

    def __exit__(self, *_: object) -> None:
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
