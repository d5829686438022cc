"""The way to the server: each thing that can be wrong is one finding; a clock that is off is told."""

import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import formatdate
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from client.checks.server import Reached, reach
from federation.keys.certificates import ca_certificate, certificate_pem, new_key, server_certificate

NOW = datetime.now(UTC)


class Authority:
    """A CA in a folder, and server certificates it has signed."""

    def __init__(self, folder: Path, name: str) -> None:
        self._key, self._folder, self._name = new_key(), folder, name
        self._certificate = ca_certificate(self._key, name, NOW - timedelta(days=400), 800)
        self.path = folder / f"{name}.crt"
        self.path.write_text(certificate_pem(self._certificate))

    def server(self, hosts: list[str], start: datetime, days: int) -> ssl.SSLContext:
        key = new_key()
        signed = server_certificate(self._certificate, self._key, key.public_key(), hosts, start, days)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path = self._folder / f"{self._name}-{hosts[0]}-{days}.pem"
        path.write_bytes(certificate_pem(signed).encode() + pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def handler_of(offset: float | None) -> type[http.server.BaseHTTPRequestHandler]:
    """A server that answers 403 with a Date that is ``offset`` seconds off, or none."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(403)
            if offset is not None:
                self.send_header("Date", formatdate(time.time() + offset, usegmt=True))
            self.send_header("Connection", "close")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def serving(context: ssl.SSLContext | None, offset: float | None = 0.0) -> Iterator[int]:
    """A server on a free port of this machine; its port."""

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            """A client that does not trust the server hangs up."""

        def get_request(self) -> tuple[socket.socket, object]:
            plain, address = self.socket.accept()
            plain.settimeout(5)
            return (plain if context is None else context.wrap_socket(plain, server_side=True)), address

    server = Quiet(("127.0.0.1", 0), handler_of(offset))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def serve() -> Iterator[Callable[..., int]]:
    with ExitStack() as stack:
        yield lambda *arguments: stack.enter_context(serving(*arguments))


def good(authority: Authority, days: int = 60, hosts: list[str] | None = None) -> ssl.SSLContext:
    return authority.server(hosts or ["127.0.0.1", "localhost"], NOW, days)


def kinds(reached: Reached) -> list[tuple[str, str]]:
    for finding in reached.findings:
        assert "\n" not in finding.line and finding.remedy and finding.subject == "server"
    return [(finding.kind, finding.level) for finding in reached.findings]


def test_a_good_server(authority: Authority, serve: Callable[..., int]) -> None:
    reached = reach(f"127.0.0.1:{serve(good(authority))}", authority.path)
    assert kinds(reached) == []
    rows = dict(reached.rows)
    assert rows["clock"] == "as the server's" and rows["TLS"].endswith("verified")


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (30.0, []),
        (-100.0, [("clock", "warning")]),
        (120.0, [("clock", "warning")]),
        (300.0, [("clock", "error")]),
        (-86400.0, [("clock", "error")]),
        (None, []),
    ],
)
def test_clocks(
    authority: Authority, serve: Callable[..., int], offset: float | None, expected: list[tuple[str, str]]
) -> None:
    reached = reach(f"127.0.0.1:{serve(good(authority), offset)}", authority.path)
    assert kinds(reached) == expected
    if expected and offset is not None:
        assert ("behind" if offset > 0 else "ahead of") in reached.findings[0].text
    if offset is None:
        assert dict(reached.rows)["clock"].startswith("not compared")


def test_a_certificate_that_expires_soon(authority: Authority, serve: Callable[..., int]) -> None:
    reached = reach(f"127.0.0.1:{serve(good(authority, days=5))}", authority.path)
    assert kinds(reached) == [("certificate expires", "warning")]


def test_wrong_ca(authority: Authority, serve: Callable[..., int], tmp_path: Path) -> None:
    reached = reach(f"127.0.0.1:{serve(good(authority))}", Authority(tmp_path, "theirs").path)
    assert kinds(reached) == [("wrong CA", "error")]


def test_other_name(authority: Authority, serve: Callable[..., int]) -> None:
    port = serve(good(authority, hosts=["elsewhere.example"]))
    assert kinds(reach(f"127.0.0.1:{port}", authority.path)) == [("other name", "error")]
    assert kinds(reach(f"localhost:{port}", authority.path)) == [("other name", "error")]


def test_an_expired_certificate(authority: Authority, serve: Callable[..., int]) -> None:
    old = authority.server(["127.0.0.1"], NOW - timedelta(days=30), 10)
    reached = reach(f"127.0.0.1:{serve(old)}", authority.path)
    assert kinds(reached) == [("certificate out of time", "error")]
    assert "has expired" in reached.findings[0].text


def test_a_wrong_clock_here_is_told_beside_the_certificate_that_seems_expired(
    authority: Authority, serve: Callable[..., int]
) -> None:
    old = authority.server(["127.0.0.1"], NOW - timedelta(days=30), 10)
    reached = reach(f"127.0.0.1:{serve(old, -25 * 86400.0)}", authority.path)
    assert kinds(reached) == [("certificate out of time", "error"), ("clock", "error")]


def test_plain_http(authority: Authority, serve: Callable[..., int]) -> None:
    assert kinds(reach(f"127.0.0.1:{serve(None)}", authority.path, timeout=1)) == [("plain HTTP", "error")]


def test_a_closed_port(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert kinds(reach(f"127.0.0.1:{port}", authority.path)) == [("refused", "error")]


def test_something_that_speaks_no_tls(authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the system accepts, nobody answers
        reached = reach(f"127.0.0.1:{silent.getsockname()[1]}", authority.path, timeout=0.3)
    assert kinds(reached) == [("no TLS", "error")]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (socket.gaierror(-2, "Name or service not known"), "unknown host"),
        (TimeoutError("timed out"), "no answer"),
        (OSError(101, "Network is unreachable"), "unreachable"),
        (OSError(13, "Permission denied"), "unreachable"),
    ],
)
def test_no_connection(monkeypatch: pytest.MonkeyPatch, error: OSError, kind: str) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_connection", refuse)
    assert kinds(reach("fl.example.org:8443", None)) == [(kind, "error")]


@pytest.mark.parametrize("address", ["fl.example.org", "https://fl.example.org:8443", "host:0", ":8443"])
def test_no_address(address: str) -> None:
    assert kinds(reach(address, None)) == [("server address", "error")]


def test_a_root_certificate_that_is_none(tmp_path: Path) -> None:
    assert kinds(reach("127.0.0.1:9", tmp_path / "missing.crt")) == [("root certificate", "error")]
    (tmp_path / "ca.crt").write_text("not a certificate")
    assert kinds(reach("127.0.0.1:9", tmp_path / "ca.crt")) == [("root certificate", "error")]
