"""The door: hospitals reach the fleet paths through a real nginx, and nothing else, however they write it.

Behind it stands a stub that takes down every request that gets through.
"""

import http.server
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

from federation.keys.certificates import ca_certificate, certificate_pem, key_pem, new_key, server_certificate
from foundation.errors import RunError
from foundation.process_group import free_port
from server.processes import proxy
from server.processes.proxy import FLEET_PATHS, configuration, needed_nginx, nginx, write_proxy

NOW = datetime.now(UTC)
FLOWER = sorted({path for _, path in PROTOBUF_REQUEST_TYPES})
ALLOWED = [f"/v1/fleet/{name}" for name in FLEET_PATHS]
pytestmark = pytest.mark.skipif(nginx() is None, reason="needs nginx (Debian: apt install nginx-light)")


class Authority:
    """A CA in a folder, laid out as a federation's."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder, self._key = folder, new_key()
        self._certificate = ca_certificate(self._key, "test", NOW, 30)
        (folder / "ca.crt").write_text(certificate_pem(self._certificate))
        for name in ("proxy", "superlink"):
            key = new_key()
            signed = server_certificate(self._certificate, self._key, key.public_key(), ["localhost"], NOW, 30)
            (folder / f"{name}.crt").write_text(certificate_pem(signed))
            (folder / f"{name}.key").write_bytes(key_pem(key))

    def context(self) -> ssl.SSLContext:
        """What a SuperLink shows."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.folder / "superlink.crt", self.folder / "superlink.key")
        return context


@dataclass
class Request:
    """One request that came through."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@contextmanager
def superlink(authority: Authority) -> Iterator[tuple[int, list[Request]]]:
    """A stub in place of Flower: its port, and what reaches it."""
    reached: list[Request] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _take(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            if headers.get("transfer-encoding") == "chunked":
                body = b"".join(self._chunks())
            else:
                body = self.rfile.read(int(headers.get("content-length", 0)))
            reached.append(Request(self.command, self.path, headers, body))
            self.send_response(200)
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"flower")

        def _chunks(self) -> Iterator[bytes]:
            while size := int(self.rfile.readline(), 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()

        do_POST = do_GET = do_PUT = do_DELETE = do_HEAD = do_OPTIONS = _take

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Quiet(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A proxy that does not trust it hangs up."""

    server = Quiet(("127.0.0.1", 0), Handler)
    server.socket = authority.context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1], reached
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running(place: Path, port: int, upstream: int, federation: Path) -> Iterator[Path]:
    """nginx with the configuration that a server writes."""
    written = write_proxy(place, ("127.0.0.1", port), upstream, federation)
    log = place / "nginx-error.log"
    process = subprocess.Popen([needed_nginx(), "-p", str(place), "-e", str(log), "-c", str(written)])
    try:
        deadline = time.monotonic() + 20
        while True:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.02)
        yield place
    finally:
        process.terminate()
        process.wait(10)


@dataclass
class Door:
    """The proxy's port, and what reached the stub behind it."""

    port: int
    root: Path
    place: Path
    reached: list[Request] = field(default_factory=list)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.root))

    def say(self, data: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """Send these very bytes over TLS; all that comes back until it is closed or nothing more comes."""
        with (
            socket.create_connection(("127.0.0.1", self.port), 5) as plain,
            (context or self.context()).wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            secure.sendall(data)
            return heard(secure)

    def post(self, target: str, headers: str = "", body: bytes = b"x", version: str = "1.1") -> list[int]:
        """The statuses of the answers to one POST."""
        head = f"POST {target} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n{headers}"
        return statuses(self.say(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body))


def heard(line: socket.socket) -> bytes:
    answer = b""
    line.settimeout(1.0)
    try:
        while data := line.recv(65536):
            answer += data
    except OSError:  # a timeout too
        pass
    return answer


def statuses(answer: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"HTTP/1\.[01] (\d{3})", answer)]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("proxy") / "federation")


@pytest.fixture(scope="module")
def started(authority: Authority) -> Iterator[Door]:
    with ExitStack() as stack:
        upstream, reached = stack.enter_context(superlink(authority))
        port, place = free_port(), authority.folder.parent / "a place with spaces"
        stack.enter_context(running(place, port, upstream, authority.folder))
        yield Door(port, authority.folder / "ca.crt", place, reached)


@pytest.fixture
def door(started: Door) -> Door:
    started.reached.clear()
    return started


# ---- what is let through


@pytest.mark.parametrize("path", ALLOWED)
def test_a_supernodes_calls_get_through(door: Door, path: str) -> None:
    """The refusals below are for what is refused in them."""
    assert door.post(path, "flwr-timestamp: now\r\n", b"\x00\xffbody") == [200]
    (request,) = door.reached
    assert (request.method, request.path, request.body) == ("POST", path, b"\x00\xffbody")
    assert request.headers["flwr-timestamp"] == "now" and request.headers["host"] == "localhost"


def test_every_path_of_flowers_fleet_is_let_through_or_refused_on_purpose() -> None:
    """A new version of Flower with a new call must be looked at."""
    fleet = {path.removeprefix("/v1/fleet/") for path in FLOWER if path.startswith("/v1/fleet/")}
    assert fleet - set(FLEET_PATHS) == {"register-node", "unregister-node"}, "Flower's fleet paths changed: see proxy"
    assert set(FLEET_PATHS) <= fleet, "Flower lost fleet paths: see server/processes/proxy.py"


def test_a_body_in_chunks_gets_through_whole(door: Door) -> None:
    """Flower sends lengths today; another client, or a later one, may not."""
    head = f"POST {ALLOWED[0]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert statuses(door.say(head.encode() + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")) == [200]
    assert door.reached[0].body == b"abcde"


# ---- what is refused, and never reaches Flower

REFUSED = [path for path in FLOWER if path not in ALLOWED]
OTHERS = ["/", "/health", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/v1/fleet", "/v1/fleet/",
          "/v1/fleet/anything", "/v2/fleet/pull-messages", "/metrics", "/nginx_status"]  # fmt: skip


def test_nothing_else_of_flower_is_reached(door: Door) -> None:
    """Defends the control and runtime interfaces: who may register nodes, start runs and take tasks is not asked."""
    assert len(REFUSED) > 50 and {"/v1/control/start-run", "/v1/runtime/acquire-task"} <= set(REFUSED)
    for path in REFUSED + OTHERS:
        assert door.post(path) == [403], path
    assert door.reached == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "post"])
def test_no_other_method(door: Door, method: str) -> None:
    """Defends Flower's web framework: what answers GET and OPTIONS there is not for hospitals."""
    for path in (ALLOWED[0], "/v1/control/list-runs", "/docs"):
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
        assert statuses(door.say(head.encode()))[0] in (400, 403, 405), path
    assert door.reached == []


CONTROL = "/v1/control/start-run"
TRICKS = [
    "/v1/fleet/../control/start-run", "/v1/fleet/pull-messages/../../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/%2E%2E%2Fcontrol%2Fstart-run", "/v1/fleet/..%2fcontrol/start-run",
    "/v1/fleet/..;/control/start-run", "/v1/fleet/pull-messages;/../../control/start-run",
    "/v1/fleet/pull-messages%00/../../control/start-run", "/v1/fleet/pull-messages%3f/../../control/start-run",
    "/v1/fleet/pull-messages%23/../../control/start-run", "/v1/control/start-run#/v1/fleet/pull-messages",
    "/v1/control/start-run?/v1/fleet/pull-messages", "/v1/control/start-run%3f/v1/fleet/pull-messages",
    "/v1/control/start-run;/v1/fleet/pull-messages", "//v1/control/start-run", "/v1//control//start-run",
    "/./v1/./control/start-run", "/V1/CONTROL/START-RUN", "/v1/Fleet/pull-messages", "/v1/fleet/Pull-Messages",
    "/v1/fleet/pull-messages/", "/v1/fleet/pull-messagesx", "/v1/fleet/xpull-messages", "/v1/fleet/pull-messages%0a",
    "/v1/fleet/pull-messages%20", "/v1%2fcontrol%2fstart-run", "/%76%31/control/start-run", "\\v1\\control\\start-run",
    "/v1/fleet\\..\\control\\start-run", "/v1/fleet/%252e%252e/control/start-run", "/v1/fleet/register%2dnode",
    "/v1/fleet/pull-messages/../register-node", "/v1/fleet/.//register-node", "/../../v1/control/start-run",
    "https://localhost/v1/control/start-run", "http://localhost/v1/control/start-run", "http:///v1/control/start-run",
    "https://localhost@127.0.0.1/v1/control/start-run", "https://localhost/v1/fleet/pull-messages/../register-node",
    "//localhost/v1/control/start-run", "*", "v1/control/start-run", "/\xa0v1/control/start-run",
]  # fmt: skip


@pytest.mark.parametrize("target", TRICKS)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_no_spelling_of_a_path_gets_through(door: Door, target: str, version: str) -> None:
    """Defends against proxy and Flower reading a path in two ways: dots, slashes, escapes, case, absolute forms."""
    assert door.post(target, version=version)[0] in (400, 403, 404)
    assert door.reached == []


@pytest.mark.parametrize(
    "target",
    [
        "/v1/control/start-run/../../fleet/pull-messages", "//v1//fleet//pull-messages", "/v1/./fleet/pull-messages",
        "/v1/fleet/pull%2dmessages", "/v1/fleet/pull-messages?x=/v1/control/start-run",
        "/v1/control/start-run%23/../../fleet/pull-messages", "/v1/fleet/pull-messages#/v1/control/start-run",
        "https://elsewhere.example/v1/fleet/pull-messages",
    ],
)  # fmt: skip
def test_what_was_checked_is_what_flower_gets(door: Door, target: str) -> None:
    """Defends against a spelling that is a fleet path to the proxy and another to Flower: it is never passed on."""
    assert door.post(target) in ([200], [400], [403])
    assert {request.path for request in door.reached} <= {"/v1/fleet/pull-messages"}
    assert {request.headers["host"] for request in door.reached} <= {"localhost"}


INNER = b"POST /v1/control/start-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\n\r\nx"
OUTER = b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\n"
ENDED = b"0\r\n\r\n"
SMUGGLED = {
    "length short, chunked": OUTER + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + ENDED + INNER,
    "chunked, length long": OUTER
    + f"Transfer-Encoding: chunked\r\nContent-Length: {len(ENDED + INNER)}\r\n\r\n".encode() + ENDED + INNER,
    "two lengths": OUTER + b"Content-Length: 1\r\nContent-Length: 80\r\n\r\nx" + INNER,
    "a list of lengths": OUTER + b"Content-Length: 1, 80\r\n\r\nx" + INNER,
    "a signed length": OUTER + b"Content-Length: +1\r\n\r\nx" + INNER,
    "chunked twice": OUTER + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + ENDED + INNER,
    "an unknown coding": OUTER + b"Transfer-Encoding: xchunked\r\nContent-Length: 5\r\n\r\n" + ENDED + INNER,
    "a space before the colon": OUTER + b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n" + ENDED + INNER,
    "a tab in the coding": OUTER + b"Transfer-Encoding:\x0bchunked\r\nContent-Length: 5\r\n\r\n" + ENDED + INNER,
    "a folded header": OUTER + b"X: y\r\n Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + ENDED + INNER,
    "a bare line feed": OUTER + b"X: y\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n" + ENDED + INNER,
    "a chunk of a false size": OUTER + b"Transfer-Encoding: chunked\r\n\r\n1;x\r\nx\r\n" + ENDED + INNER,
    "in an old request": OUTER.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n" + ENDED + INNER,
    "behind a request": OUTER + b"Content-Length: 1\r\n\r\nx" + INNER,
}  # fmt: skip


@pytest.mark.parametrize("case", SMUGGLED)
def test_no_second_request_is_smuggled(door: Door, case: str) -> None:
    """Defends against a request hidden in another's body, where proxy and Flower disagree about its length."""
    answer = statuses(door.say(SMUGGLED[case]))
    assert answer and answer[0] in (200, 400, 403, 501) and 200 not in answer[1:]
    assert {request.path for request in door.reached} <= {"/v1/fleet/pull-messages"}
    assert all(b"control" not in request.body for request in door.reached)


def test_headers_that_speak_for_others_are_dropped(door: Door) -> None:
    """Defends Flower's log and its header checks: no forged origin, no header that another spelling could shadow."""
    forged = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: http\r\nflwr_timestamp: 1\r\nflwr.timestamp: 2\r\n"
    assert door.post(ALLOWED[0], f"{forged}flwr-timestamp: 3\r\nUpgrade: h2c\r\n") == [200]
    (request,) = door.reached
    assert request.headers["flwr-timestamp"] == "3"
    assert not {"x-forwarded-for", "x-forwarded-proto", "flwr_timestamp", "flwr.timestamp", "upgrade"} & set(
        request.headers
    )


@pytest.mark.parametrize("headers", ["Content-Length: 17000000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_beyond_the_limit(door: Door, headers: str) -> None:
    """Defends the server's memory and disk: no more than three times Flower's chunk of 5 MiB in one request."""
    head = f"POST {ALLOWED[0]} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
    body = b"" if "Length" in headers else b"1036640\r\n" + bytes(0x1036640)  # 17 million
    assert statuses(door.say(head.encode() + body)) == [413]
    assert door.reached == []


# ---- TLS on both sides


def test_plain_http_is_refused(door: Door) -> None:
    """Defends what travels: there is no door without TLS, and no redirect that a client would follow in plain text."""
    with socket.create_connection(("127.0.0.1", door.port), 5) as plain:
        plain.sendall(f"POST {ALLOWED[0]} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n".encode())
        answer = heard(plain)
    assert statuses(answer) == [400] and b"Location" not in answer
    assert door.reached == []


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_old_tls_is_refused(door: Door) -> None:
    """Defends what travels against a downgrade: TLS 1.2 or newer."""
    said: dict[ssl.TLSVersion, list[int]] = {}
    for version in (ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = door.context()
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        try:
            said[version] = statuses(
                door.say(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", context)
            )
        except ssl.SSLError:
            said[version] = []
    assert list(said.values()) == [[], [403], [403]]


def test_the_proxy_shows_the_federations_certificate(door: Door, tmp_path: Path) -> None:
    """Defends a site against a server in between: a certificate of any other CA is not taken."""
    stranger = Authority(tmp_path / "stranger")
    context = ssl.create_default_context(cafile=str(stranger.folder / "ca.crt"))
    with pytest.raises(ssl.SSLCertVerificationError):
        door.say(b"", context)


def test_another_program_on_flowers_port_is_not_taken_for_flower(
    authority: Authority, door: Door, tmp_path: Path
) -> None:
    """Defends updates against another user of the server's machine, who took the port: it has no certificate for it."""
    stranger = Authority(tmp_path / "stranger")
    with superlink(stranger) as (upstream, reached):
        port = free_port()
        with running(tmp_path / "nginx", port, upstream, authority.folder) as place:
            assert Door(port, authority.folder / "ca.crt", place).post(ALLOWED[0]) == [502]
        assert reached == []
        assert "certificate verify error" in (place / "nginx-error.log").read_text()


# ---- its configuration


def test_addresses_and_paths_in_the_configuration(tmp_path: Path) -> None:
    text = configuration(tmp_path, ("::", 8443), 9000, tmp_path / "kits")
    assert "listen [::]:8443 ssl;" in text and "https://127.0.0.1:9000/" in text
    assert "listen 0.0.0.0:443 ssl;" in configuration(tmp_path, ("0.0.0.0", 443), 9000, tmp_path)


@pytest.mark.parametrize("name", ['a"b', "a$b", "a\\b", "a\nb"])
def test_a_folder_that_nginx_would_read_otherwise_is_refused(tmp_path: Path, name: str) -> None:
    """Defends the configuration against what a folder's name could add to it."""
    with pytest.raises(RunError, match="choose another"):
        configuration(tmp_path / name, ("127.0.0.1", 1), 2, tmp_path)


def test_without_nginx_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defends the control plane: without its door the program does not start, and says how to get it."""
    absent: Callable[..., None] = lambda *_, **__: None  # noqa: E731
    monkeypatch.setattr(proxy.shutil, "which", absent)
    with pytest.raises(RunError, match="nginx is not installed") as caught:
        needed_nginx()
    assert "apt install nginx-light" in str(caught.value) and "\n" not in str(caught.value)
