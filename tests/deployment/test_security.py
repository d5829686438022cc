"""Who is kept out of a real federation, and that nothing but updates leaves a site: real programs, TLS on loopback.

One federation for all tests: what happens in it is written down once, and each test looks at its part.
"""

import asyncio
import json
import socket
import sqlite3
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from flwr.common.serde import fab_to_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest, PullTaskInputRequest
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from client.approval import approve
from client.kit_keys import load_site_key, site_init
from client.processes.supernode import SuperNode
from client.site import Site
from client.site_file import load_site_file
from federation.app_bundle import app_bundle, bundle_digest
from federation.audit.log import verify
from federation.flower.private import Endpoint
from federation.flower.private_control import ControlPlane, NodeFacts
from federation.keys.certificates import (
    PrivateKey,
    ca_certificate,
    certificate_pem,
    key_pem,
    new_key,
    read_key,
    server_certificate,
)
from federation.keys.kit import Kit
from foundation.files import read_jsonl
from foundation.process_group import free_port
from foundation.tensor_files import load_tensors
from server.enrolment import provision as commands
from server.enrolment.federation_folder import load_ca
from server.enrolment.provision import add_site, revoke
from server.processes.proxy import nginx

from ..conftest import STUDY, write_site
from ..identifier_hunt import Hospital, patches_in, patterns, words_in, write_hospital
from .conftest import Deployment

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
NOW = datetime.now(UTC)
LOGIN = "dr-fictional-engineer"


def signed_by(ca_folder: Path, hosts: list[str], start: datetime = NOW, days: int = 30) -> ssl.SSLContext:
    """A server's side of TLS, with a certificate of the federation's CA."""
    ca_key = read_key((ca_folder / "ca.key").read_bytes(), None, "ca.key")
    return _context(ca_folder.parent, load_ca(ca_folder), ca_key, hosts, start, days)


def _context(place: Path, ca: Any, ca_key: PrivateKey, hosts: list[str], start: datetime, days: int) -> ssl.SSLContext:
    key = new_key()
    signed = server_certificate(ca, ca_key, key.public_key(), hosts, start, days)
    path = place / f"{hosts[0]}-{start:%Y%m%d}-{days}.pem"
    path.write_bytes(certificate_pem(signed).encode() + key_pem(key))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


class Recorder:
    """A line between a site and the server that opens TLS, as the owner of the CA can, and keeps what went over it."""

    def __init__(self, near: ssl.SSLContext, root: Path, towards: int) -> None:
        self.sent: list[bytearray] = []
        self.received: list[bytearray] = []
        self.port = free_port()
        self._near, self._far, self._towards = near, ssl.create_default_context(cafile=str(root)), towards
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> "Recorder":
        self._thread.start()
        starting = asyncio.start_server(self._pass_on, "127.0.0.1", self.port, ssl=self._near)
        self._server = asyncio.run_coroutine_threadsafe(starting, self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        rest = asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _pass_on(self, near: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        self.sent.append(bytearray())
        self.received.append(bytearray())
        sent, received = self.sent[-1], self.received[-1]
        try:
            far, onward = await asyncio.open_connection(
                "127.0.0.1", self._towards, ssl=self._far, server_hostname="localhost"
            )
        except OSError:  # the server has ended
            back.close()
            return
        await asyncio.gather(self._copy(near, onward, sent), self._copy(far, back, received))

    @staticmethod
    async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter, kept: bytearray) -> None:
        try:
            while data := await source.read(65536):
                kept += data
                target.write(data)
                await target.drain()
        except OSError:
            pass
        finally:
            target.close()


@dataclass
class Story:
    """What happened in the federation."""

    deployment: Deployment
    hospital: Hospital
    sent: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    nodes: list[list[NodeFacts]] = field(default_factory=list)
    listening: set[str] = field(default_factory=set)
    cut_off_s: float = 0.0

    def refusals(self, site: str) -> list[str]:
        """The lines in which a site's client says that the server does not let it in."""
        path = self.deployment.kit(site) / "state" / "client.jsonl"
        return [row["event"] for row in read_jsonl(path) if NOT_ADMITTED in row["event"]] if path.exists() else []

    def rows(self, site: str | None = None) -> list[dict[str, Any]]:
        """The audit log of a site, or the server's; whole."""
        path = (self.deployment.kit(site) / "state" if site else self.deployment.federation) / "audit.jsonl"
        assert verify(path).fault == ""
        return read_jsonl(path)

    def lost(self, site: str) -> list[str]:
        """Why a site's connections ended, by its audit log."""
        return [row["reason"] for row in self.rows(site) if row["event"] == "connection lost"]

    def not_admitted(self) -> dict[str, str]:
        """Why sites were not admitted when the server started, by its audit log."""
        return {row["site"]: row["reason"] for row in self.rows() if row["event"] == "site not admitted"}


NOT_ADMITTED = "the server does not admit this site now"


class Hand:
    """Flower's own clients in a hospital's hand: its kit's CA and its key, through the public port."""

    def __init__(self, deployment: Deployment, site: str, signs: PrivateKey | None = None) -> None:
        kit = deployment.kit(site)
        self.key, root = load_site_key(kit), (kit / "ca.crt").read_bytes()
        self.public = public_key_to_bytes(self.key.public_key())
        address = f"localhost:{deployment.port}"
        signed = NodeAuthHttpInterceptor(signs or self.key, self.key.public_key())
        version = RuntimeVersionHttpInterceptor(component_name="SuperNode")
        task = SuperExecAuthHttpInterceptor(
            master_secret=b"x" * 32, protected_methods=frozenset({"/flwr.proto.Runtime/AcquireTask"})
        )
        self.fleet = FleetHttpClient.from_server_address(address, False, root, [version, signed])
        self.unsigned = FleetHttpClient.from_server_address(address, False, root, [version])
        self.control = ControlHttpClient.from_server_address(address, False, root, [version, signed])
        self.runtime = RuntimeHttpClient.from_server_address(address, False, root, [version, signed, task])

    def close(self) -> None:
        for client in (self.fleet, self.unsigned, self.control, self.runtime):
            client.close()


def status_of(call: Callable[[], Any]) -> int:
    try:
        call()
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    return 200


CONTROLLING = {
    "register a node": lambda hand: hand.control.RegisterNode(RegisterNodeRequest(public_key=b"x", name="x")),
    "unregister a node": lambda hand: hand.control.UnregisterNode(UnregisterNodeRequest(node_id=1)),
    "list nodes": lambda hand: hand.control.ListNodes(ListNodesRequest()),
    "list runs": lambda hand: hand.control.ListRuns(ListRunsRequest()),
    "stop a run": lambda hand: hand.control.StopRun(StopRunRequest(run_id=1)),
    "register itself": lambda hand: hand.fleet.RegisterNode(RegisterNodeFleetRequest(public_key=hand.public)),
    "unregister itself": lambda hand: hand.fleet.UnregisterNode(UnregisterNodeFleetRequest(node_id=1)),
    "acquire a task": lambda hand: hand.runtime.AcquireTask(
        AcquireTaskRequest(supported_task_types=["flwr-serverapp", "flwr-clientapp"])
    ),
    "pull a task": lambda hand: hand.runtime.PullTaskInput(PullTaskInputRequest()),
    "ask for nodes": lambda hand: hand.runtime.GetNodes(GetNodesRequest()),
}


def start_a_run(hand: Hand, deployment: Deployment) -> Any:
    bundle = app_bundle(deployment.study)
    return hand.control.StartRun(StartRunRequest(fab=fab_to_proto(Fab(bundle_digest(bundle), bundle, {}))))


def as_another(hand: Hand, node_id: int) -> dict[str, Callable[[], Any]]:
    """What an admitted hospital may try under another's number."""
    other = Node(node_id=node_id)
    return {
        "pull another's messages": lambda: hand.fleet.PullMessages(PullMessagesRequest(node=other)),
        "push as another": lambda: hand.fleet.PushMessages(PushMessagesRequest(node=other)),
        "beat as another": lambda: hand.fleet.SendNodeHeartbeat(
            SendNodeHeartbeatRequest(node=other, heartbeat_interval=30)
        ),
        "sign another off": lambda: hand.fleet.DeactivateNode(DeactivateNodeRequest(node_id=node_id)),
        "pull without a signature": lambda: hand.unsigned.PullMessages(PullMessagesRequest(node=other)),
        "activate another's key": lambda: hand.fleet.ActivateNode(
            ActivateNodeRequest(public_key=b"another key", heartbeat_interval=30)
        ),
    }


def attack(story: Story, control: ControlPlane) -> None:
    """Try everything, with an admitted hospital's credentials, and with keys that were never accepted."""
    deployment = story.deployment
    with ExitStack() as stack:
        hand = Hand(deployment, "north")
        stack.callback(hand.close)
        for name, call in CONTROLLING.items():
            story.answers[name] = status_of(lambda call=call: call(hand))  # type: ignore[misc]
        story.answers["start a run"] = status_of(lambda: start_a_run(hand, deployment))
        other = next(node.node_id for node in control.nodes() if node.name == "leaving")
        for name, act in as_another(hand, other).items():
            story.answers[name] = status_of(act)
        for site in ("unknown", "expired"):
            stranger = Hand(deployment, site)
            stack.callback(stranger.close)
            story.answers[f"{site} activates"] = status_of(
                lambda stranger=stranger: stranger.fleet.ActivateNode(  # type: ignore[misc]
                    ActivateNodeRequest(public_key=stranger.public, heartbeat_interval=30)
                )
            )
        thief = Hand(deployment, "north", signs=new_key())
        stack.callback(thief.close)
        story.answers["another key's signature"] = status_of(
            lambda: thief.fleet.ActivateNode(ActivateNodeRequest(public_key=thief.public, heartbeat_interval=30))
        )


def build(root: Path) -> tuple[Deployment, Hospital]:
    """North has DICOM, south images; leaving will be revoked; unknown was never accepted, expired is no longer."""
    raw = json.loads(json.dumps(STUDY)) | {"rounds": {"count": 2, "deadline_minutes": 5, "quorum": 1.0}}
    deployment = Deployment(root, raw, write_site, {"north": (9, 3), "south": (6, 2), "leaving": (4, 2)})
    hospital = write_hospital(root / "klinik-north" / "pacs-export", "north")
    path = deployment.kit("north") / "site.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"data": str(root / "klinik-north")}))
    for site in ("unknown", "expired"):
        add_site(deployment.federation, site)
        data = write_site(root / "hospitals", site, images=4, patients=2, seed=9).parent / "manifest.csv"
        if site == "unknown":
            kit = deployment.kit(site)
            site_init(kit, data=data, device="cpu")
            approve(kit / "study.yaml", load_site_file(kit / "site.yaml"), "a test", lambda _: True)
            continue
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(commands, "_now", lambda: NOW - timedelta(days=400))
            deployment.enrol(site, data)
    return deployment, hospital


def until(reached: Callable[[], Any], deployment: Deployment, seconds: float = 120.0) -> float:
    """Wait; how long it took."""
    started = time.monotonic()
    while not reached():
        assert time.monotonic() - started < seconds, deployment.logs()
        time.sleep(0.1)
    return time.monotonic() - started


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """A federation from its start to the end of its study, attacked while it waits for its sites."""
    if nginx() is None:
        pytest.skip("needs nginx, the proxy in front of a server (Debian: apt install nginx-light)")
    root = tmp_path_factory.mktemp("security") / "federation"
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        for name in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(name, LOGIN)
        deployment, hospital = build(root)
        stack.callback(deployment.stop)
        made = Story(deployment, hospital)
        near = signed_by(deployment.federation, ["localhost"])
        recorder = stack.enter_context(Recorder(near, deployment.federation / "ca.crt", deployment.port))
        run(made, recorder)
        made.sent, made.received = list(map(bytes, recorder.sent)), list(map(bytes, recorder.received))
        yield made


def run(story: Story, recorder: Recorder) -> None:
    """The first part: strangers knock, a hospital tries more than it may, one is revoked. The second: the study."""
    deployment = story.deployment
    deployment.start("server", "leaving", "unknown", "expired")
    deployment.wait(lambda status: "leaving" in status.sites and status.sites["leaving"].online)
    for site in ("unknown", "expired"):
        until(lambda site=site: story.lost(site), deployment)  # type: ignore[misc]
        deployment.kill(site)
    control = control_of(deployment)
    story.listening = listening_addresses(int(control_port(deployment)))
    story.nodes.append(control.nodes())
    attack(story, control)
    story.nodes.append(control.nodes())
    revoke(deployment.federation, "leaving", "left the study")
    story.cut_off_s = until(lambda: story.refusals("leaving"), deployment)
    until(lambda: story.lost("leaving"), deployment)
    story.nodes.append(control.nodes())
    control.close()
    deployment.kill("leaving")
    path = deployment.kit("north") / "kit.yaml"
    path.write_text(path.read_text().replace(f"localhost:{deployment.port}", f"localhost:{recorder.port}"))
    deployment.start("north", "south")
    deployment.finish()
    deployment.stop()


def control_port(deployment: Deployment) -> str:
    rows = read_jsonl(deployment.run / "server.jsonl")
    (line,) = [row["event"] for row in rows if "SuperLink on" in row["event"]]
    return str(line.rpartition(":")[2].partition(" ")[0])


def control_of(deployment: Deployment) -> ControlPlane:
    """The server's own interface, as a program on its machine reaches it."""
    root = (deployment.federation / "ca.crt").read_bytes()
    return ControlPlane(Endpoint(f"127.0.0.1:{control_port(deployment)}", root))


def listening_addresses(port: int) -> set[str]:
    """Addresses of this machine on which somebody listens on that port, as Linux writes them."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A" and int(local.rpartition(":")[2], 16) == port:
                found.add(local.rpartition(":")[0])
    return found


# ---- kept out


def test_a_key_that_was_never_accepted_is_kept_out(story: Story) -> None:
    """Defends the federation against anybody with a kit: one line at the site, an entry in both audit logs."""
    answer = story.refusals("unknown")
    assert answer[0].startswith(f"site unknown: {NOT_ADMITTED}: its key is not accepted yet")
    assert story.answers["unknown activates"] == 412
    assert story.lost("unknown")[0].startswith(NOT_ADMITTED)
    assert story.not_admitted()["unknown"] == "site unknown is invited; its request has not been accepted"
    assert "unknown" not in {node.name for nodes in story.nodes for node in nodes}


def test_an_expired_site_certificate_is_kept_out(story: Story) -> None:
    """Defends the federation against a site whose admission has run out, whatever key it holds."""
    assert story.refusals("expired")[0].startswith(f"site expired: {NOT_ADMITTED}")
    assert story.answers["expired activates"] == 412
    assert story.lost("expired")[0].startswith(NOT_ADMITTED)
    assert "has a certificate that expired on" in story.not_admitted()["expired"]
    assert "expired" not in {node.name for nodes in story.nodes for node in nodes}


def test_a_revoked_site_is_cut_off_within_seconds(story: Story) -> None:
    """Defends the federation against a site that is excluded while it is connected; it is told why, in one line."""
    before, _, after = ({node.name for node in nodes if node.online} for nodes in story.nodes)
    assert "leaving" in before and "leaving" not in after
    assert story.cut_off_s < 15
    assert story.refusals("leaving")[-1].startswith(f"site leaving: {NOT_ADMITTED}")
    assert story.lost("leaving")[-1].startswith(NOT_ADMITTED)
    changes = [(row["event"], row["site"]) for row in story.rows() if row["event"] == "site revoked"]
    assert changes == [("site revoked", "leaving")]


@pytest.mark.parametrize("what", [*CONTROLLING, "start a run"])
def test_a_hospitals_credentials_do_not_control_the_server(story: Story, what: str) -> None:
    """Defends every other hospital: an admitted one cannot register nodes, run apps, or take the server's tasks."""
    assert story.answers[what] == 403


def test_what_was_tried_changed_nothing(story: Story) -> None:
    """The control plane works all the same, for the server itself."""
    before, after, revoked = ({(node.name, node.node_id) for node in nodes} for nodes in story.nodes)
    assert before == after and {name for name, _ in before} == {"north", "south", "leaving"}
    assert {name for name, _ in revoked} == {"north", "south"}


@pytest.mark.parametrize(
    "what",
    [
        "pull another's messages", "push as another", "beat as another", "sign another off",
        "pull without a signature", "activate another's key", "another key's signature",
    ],
)  # fmt: skip
def test_a_hospital_does_not_act_for_another(story: Story, what: str) -> None:
    """Defends a site's place: its messages, answers and presence are tied to its key, not to a number."""
    assert story.answers[what] == 401


def test_no_site_learns_anothers_number(story: Story) -> None:
    """Defends a site against instructions in the server's name.

    Flower takes such a message from any admitted site that knows the other's number, which is 64 random bits.
    """
    numbers = {node.name: node.node_id for node in story.nodes[0]}
    got = b"".join(story.received)

    def is_in(number: int) -> bool:
        forms = [str(number).encode(), *(number.to_bytes(8, order) for order in ("little", "big")), varint(number)]
        return any(form in got for form in forms)

    assert is_in(numbers["north"])  # its own, which it is told
    assert not is_in(numbers["south"]) and not is_in(numbers["leaving"])


def varint(number: int) -> bytes:
    """As protobuf writes it."""
    written = []
    while number > 127:
        written.append(number & 127 | 128)
        number >>= 7
    return bytes([*written, number])


def test_flower_itself_listens_on_the_servers_own_machine_only(story: Story) -> None:
    """Defends the control plane against the network: only nginx has a port that others reach."""
    assert story.listening == {"0100007F"}  # 127.0.0.1


def test_a_sites_key_stays_in_its_file(story: Story) -> None:
    """Defends a site's identity: nothing at the site, at the server or on the wire holds its private key."""
    for site in ("north", "south", "leaving"):
        path = story.deployment.kit(site) / "site.key"
        lines = [line for line in path.read_bytes().splitlines() if b"PRIVATE KEY" not in line]
        for other in story.deployment.root.rglob("*"):
            if other.is_file() and other != path:
                assert lines[1] not in other.read_bytes(), other
        assert all(lines[1] not in each for each in story.sent)


# ---- nothing but updates leaves


def values(path: Path) -> list[bytes]:
    """Every value in a database, whole; its pages may cut one in two."""
    with closing(sqlite3.connect(path)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        rows = [row for name in names for row in database.execute(f'SELECT * FROM "{name}"')]
    return [value if isinstance(value, bytes) else str(value).encode() for row in rows for value in row]


def at_the_server(story: Story) -> list[bytes]:
    paths = [path for path in story.deployment.federation.rglob("*") if path.is_file()]
    names = "\n".join(str(path.relative_to(story.deployment.federation)) for path in paths)
    wanted = {"audit.jsonl", "status.json", "server.jsonl", "superlink.log", "superlink.db", "nginx-access.log"}
    assert wanted <= {path.name for path in paths} and "tensorboard" in names and "checkpoints" in names
    log = story.deployment.root / "server.log"
    blobs = [names.encode(), log.read_bytes(), *(path.read_bytes() for path in paths)]
    return blobs + values(story.deployment.federation / "superlink" / "superlink.db")


def private_words(story: Story) -> list[str]:
    """All that is said at the site of persons, places and the machine."""
    own = [LOGIN, "klinik-north", ".dcm", str(story.deployment.kit("north")), str(story.deployment.root)]
    host = socket.gethostname()
    return [*story.hospital.words, *own, *([host] if len(host) > 7 and host != "localhost" else [])]


def pixel_patches(story: Story) -> set[bytes]:
    store = Site(load_site_file(story.deployment.kit("north") / "site.yaml"), story.deployment.study).images.store()
    decoded = (store.batch(np.arange(len(store))).numpy()[:, 0] * 65535).round().astype(np.uint16)
    pairs = zip(story.hospital.pixels, decoded, strict=True)
    return {patch for pixels, image in pairs for patch in patterns(pixels, image)}


def test_what_leaves_a_site_holds_no_identifier_path_or_pixels(story: Story) -> None:
    """Defends patients: every byte that the site sent in two rounds is searched, as its TLS connection carried it."""
    assert sum(map(len, story.sent)) > 200_000
    sent = [*story.sent, b"".join(story.sent)]
    assert words_in(sent, private_words(story)) == set()
    assert patches_in(sent, pixel_patches(story)) == 0
    # The search finds what is there.
    hash_ = story.deployment.study.training_hash()
    assert words_in(sent, ["north", hash_, "/v1/fleet/push-object"]) == {"north", hash_, "/v1/fleet/push-object"}
    tensor = next(iter(load_tensors(update_of(story))[0].values())).numpy().tobytes()
    assert any(tensor in each for each in sent)


def update_of(story: Story) -> Path:
    state = story.deployment.kit("north") / "state" / story.deployment.study.training_hash()[:16]
    return next(state.glob("round-*2/update.safetensors"))


def test_what_the_server_keeps_holds_no_identifier_path_or_pixels(story: Story) -> None:
    """Defends patients at the server: logs, database, checkpoints, status, curves, audit log and names of files."""
    kept = at_the_server(story)
    # The server is on the same machine here and writes its own folder; a site's is what must not be there.
    words = [word for word in private_words(story) if word not in str(story.deployment.federation)]
    assert len(words) > 20
    assert words_in(kept, words) == set()
    assert patches_in(kept, pixel_patches(story)) == 0
    assert words_in(kept, ["north"]) == {"north"}


def test_the_sites_own_log_tells_of_what_left(story: Story) -> None:
    """Two rounds and the final weights, and nothing else, by the audit logs of both sides."""
    site = [row["event"] for row in story.rows("north")]
    assert [event for event in site if event.startswith(("update", "weights"))] == [
        "update released", "update released", "weights delivered",
    ]  # fmt: skip
    server = [row["event"] for row in story.rows() if row.get("site") == "north"]
    assert server.count("update received") == 2 and server.count("weights delivered") == 1


# ---- servers that are not the federation's


def false_server(context: ssl.SSLContext | None, stack: ExitStack) -> int:
    """Something that takes every POST with a 200; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that does not trust it hangs up."""

        def get_request(self) -> tuple[socket.socket, Any]:
            plain, address = self.socket.accept()
            plain.settimeout(5)
            return (plain if context is None else context.wrap_socket(plain, server_side=True)), address

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    stack.callback(server.server_close)
    stack.callback(thread.join)
    stack.callback(server.shutdown)
    return int(server.server_address[1])


def reason_at(place: Path, root: bytes, port: int) -> tuple[str, bytes]:
    """Why a site's SuperNode ended that was sent to this port, and its whole log."""
    place.mkdir()
    (place / "ca.crt").write_bytes(root)
    kit = Kit(site="a", federation="test", server=f"localhost:{port}", study=64 * "a")
    with SuperNode(place, kit, new_key(), place / "supernode") as node:
        deadline = time.monotonic() + 60
        while not node.ended() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert node.ended(), node.log.read_text()
        return node.reason(), node.log.read_bytes()


def test_a_server_that_is_not_the_federations_gets_nothing(tmp_path: Path) -> None:
    """Defends a site against false servers: expired, of another CA, without TLS; one line each, nothing is sent."""
    own, other = new_key(), new_key()
    start = NOW - timedelta(days=400)
    ca, stranger = ca_certificate(own, "ours", start, 800), ca_certificate(other, "theirs", start, 800)
    root = certificate_pem(ca).encode()
    hosts = ["localhost"]
    with ExitStack() as stack:
        ports = [
            false_server(_context(tmp_path, ca, own, hosts, NOW - timedelta(days=30), 10), stack),
            false_server(_context(tmp_path, stranger, other, hosts, NOW, 20), stack),
            false_server(None, stack),
            false_server(_context(tmp_path, ca, own, ["elsewhere.example"], NOW, 20), stack),
        ]
        with ThreadPoolExecutor(2) as pool:
            places = [tmp_path / str(number) for number in range(len(ports))]
            reasons = [reason for reason, _ in pool.map(reason_at, places, len(ports) * [root], ports)]
    beginnings = (
        "the server's certificate is not valid now: certificate has expired; ask the study lead to renew it",
        "the server's certificate is not of this kit's federation: CERTIFICATE_VERIFY_FAILED; do not go on",
        "the server does not speak TLS at this address; nothing is sent without it",
        "the server shows a certificate for another address: Hostname mismatch",
    )
    for reason, beginning in zip(reasons, beginnings, strict=True):
        assert reason.startswith(beginning) and "\n" not in reason
