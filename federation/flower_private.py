"""All uses of what Flower does not promise to keep, held by a contract test (tests/federation/test_flower_private.py).

Flower's executors install the app that a server ships and run it, in a new process for each message. Ours talk to the
same Runtime interface: ``TaskQueue`` hands out tasks, ``ClientTask`` and ``ServerTask`` are what one of them needs.
``ControlPlane`` is the interface of ``flwr run`` and ``flwr supernode``. Every call goes over HTTP to this machine.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import httpx
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, fab_to_proto, message_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.fleet_pb2 import DeactivateNodeRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from foundation.errors import FedpretextError, RunError

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

_HEARTBEAT_S = 20.0
_PATIENCE_S = 20.0  # with a SuperLink on this machine: longer, and it is dead
_BACKOFF_S, _MOST_BACKOFF_S = 0.1, 2.0
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
TaskKind = Literal["client", "server"]
_TYPES: dict[TaskKind, str] = {"client": TaskType.CLIENT_APP, "server": TaskType.SERVER_APP}


def assume_identity(node_id: int, run_id: int = 1) -> None:
    """Let this process make messages as node ``node_id``, unless Flower has already said who it is."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


@contextmanager
def _identity(task_id: int, run_id: int, node_id: int) -> Iterator[None]:
    """Be who a task is for its length: a process that lives long serves many tasks."""
    before = TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task_id, run_id, node_id
    try:
        yield
    finally:
        TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def set_message_id(message: Message, message_id: str) -> None:
    """Give a message the id that a SuperLink would have given it."""
    cast(Any, message.metadata).__dict__["_message_id"] = message_id


def reply_as_received(content: RecordDict, node_id: int, server_round: int) -> Message:
    """A training reply of ``node_id`` as a Flower strategy expects it."""
    metadata = Metadata(
        1, f"reply-{node_id}", node_id, 0, f"instruction-{node_id}", str(server_round), 0.0, 60.0, "train"
    )
    # Flower's own, internal form of the constructor: no overload is declared for it.
    return cast(Any, Message)(content=content, metadata=metadata)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Endpoint:
    """A Runtime interface on this machine; ``root``: the certificate it shows, None where it speaks plain HTTP."""

    address: str
    root: bytes | None = None


def _client(endpoint: Endpoint, *interceptors: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        endpoint.address,
        endpoint.root is None,
        endpoint.root,
        [RuntimeVersionHttpInterceptor(component_name="SuperExec"), *interceptors],
    )


@dataclass(frozen=True)
class Bundle:
    """The app that a run ships, and what it would set: nothing of it is ever unpacked or run."""

    content: bytes
    overrides: dict[str, Any]


class TaskQueue:
    """Where a SuperNode or SuperLink in process isolation hands out tasks, to whoever has its secret."""

    def __init__(self, endpoint: Endpoint, secret: bytes) -> None:
        self._lock, self._held = threading.Lock(), ""
        signed = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)
        self._client = _client(endpoint, signed)

    def next(self, kind: TaskKind) -> str | None:
        """The token of the oldest waiting task of this kind; None when there is none, or nobody listens now."""
        with self._lock:
            token, self._held = self._held, ""
        return token or self._acquire(kind)

    def waits(self, kind: TaskKind) -> bool:
        """Whether there is another task of this kind; it is kept for ``next``."""
        with self._lock:
            self._held = self._held or self._acquire(kind) or ""
            return bool(self._held)

    def _acquire(self, kind: TaskKind) -> str | None:
        try:
            answer = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=[_TYPES[kind]]))
        except httpx.TransportError:
            return None
        except httpx.HTTPStatusError as error:
            raise RunError(
                f"Flower hands out no tasks to this program (HTTP {error.response.status_code}); start it anew"
            ) from error
        return answer.token if answer.HasField("task") and answer.token else None

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


class _Heartbeat:
    """Says that a task is in work, until it is not. Never ends this process, as Flower's would."""

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client, self._over = client, threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while True:
            # The SuperNode may be gone, or have given the task up: the work goes on, its result is kept on disk.
            with suppress(httpx.HTTPError):
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
            if self._over.wait(_HEARTBEAT_S):
                return

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


class ClientTask:
    """One message for this site's app: what came with it, and the way to answer."""

    def __init__(self, client: RuntimeHttpClient, given_up: Callable[[], bool]) -> None:
        self._client, self._given_up = client, given_up
        answer = client.PullTaskInput(PullTaskInputRequest())
        context, run, fab = context_from_proto(answer.context), run_from_proto(answer.run), fab_from_proto(answer.fab)
        self.bundle = Bundle(fab.content, dict(run.override_config))
        self.identity = answer.task_id, run.run_id, context.node_id
        self.node_id, self.run_id = context.node_id, run.run_id
        self._node = Node(node_id=context.node_id)
        self.message = self._pull()

    def _pull(self) -> Message:
        answer = self._client.PullMessages(PullAppMessagesRequest())
        if not answer.messages_list:
            raise RunError("the SuperNode handed out a task without a message; it is asked again")
        tree = answer.message_object_trees[0]
        try:
            message = pull_and_inflate_object_from_tree(
                tree,
                self._pull_object,
                make_confirm_message_received_fn_protobuf(self._client.ConfirmMessageReceived, self._node, self.run_id),
                return_type=Message,
                max_time=None,
                max_tries_per_object=None,
                initial_backoff=_BACKOFF_S,
                backoff_cap=_MOST_BACKOFF_S,
            )
        except (httpx.HTTPError, RunError):
            raise
        except Exception as error:  # whatever a server sends, it must not end a site's program
            raise RunError(f"the server's message cannot be read ({type(error).__name__})") from error
        set_message_id(message, tree.object_id)
        return message

    def _pull_object(self, object_id: str) -> bytes:
        """One part of the message; the SuperNode may still be fetching it, or have given the message up.

        It works on one message at a time: that it has handed out another task says that this one will never be whole.
        """
        try:
            return make_pull_object_fn_protobuf(self._client.PullObject, self._node, self.run_id)(object_id)
        except ObjectUnavailableError:
            if self._given_up():
                raise RunError("the SuperNode has given this message up for another") from None
            raise

    def answer(self, reply: Message) -> None:
        """Hand the reply to the SuperNode, which sends it."""
        set_message_id(reply, reply.object_id)
        proto = message_to_proto(remove_content_from_message(reply))
        with no_object_id_recompute():
            answer = self._client.PushMessages(
                PushAppMessagesRequest(messages_list=[proto], message_object_trees=[get_object_tree(reply)])
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(self._client.PushObject, self._node, self.run_id, answer.session_id),
                object_ids_to_push=set(answer.objects_to_push),
            )
        self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))


@contextmanager
def client_task(endpoint: Endpoint, token: str, given_up: Callable[[], bool]) -> Iterator[ClientTask]:
    """The task of that token, with a heartbeat and its identity while the block runs; RunError when it is lost.

    ``given_up``: whether the SuperNode has handed out another task meanwhile.
    """
    client = _client(endpoint, RuntimeTokenHttpInterceptor(token))
    heartbeat = _Heartbeat(client)
    try:
        task = ClientTask(client, given_up)
        with _identity(*task.identity):
            yield task
    except FedpretextError:
        raise
    except Exception as error:  # Flower has many ways to say that the SuperNode, or its session, is gone
        raise RunError(f"the SuperNode no longer waits for this task ({type(error).__name__})") from error
    finally:
        heartbeat.stop()
        client.close()


def sign_off(server: str, root: bytes, key: EllipticCurvePrivateKey, node_id: int) -> None:
    """Tell a server that this site's node is gone, as a killed SuperNode could not; nothing when it cannot be told.

    Flower takes a node that was killed for online until its heartbeats are missed, and lets no other in its place.
    """
    signed = NodeAuthHttpInterceptor(key, key.public_key())
    interceptors: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperNode"), signed]
    with suppress(httpx.HTTPError), FleetHttpClient.from_server_address(server, False, root, interceptors) as client:
        client.DeactivateNode(DeactivateNodeRequest(node_id=node_id))


@contextmanager
def server_task(endpoint: Endpoint, token: str) -> Iterator["HttpGrid"]:
    """The grid of the run whose server task has that token. The run is marked as completed, or failed, at the end."""
    from flwr.superlink.grid import HttpGrid  # half a second to import, and a site never needs it

    grid = HttpGrid(endpoint.address, endpoint.root is None, endpoint.root, token=token)
    grid._retry_invoker.max_time = _PATIENCE_S
    heartbeat = _Heartbeat(grid._runtime_client)
    status = SubStatus.FAILED
    try:
        answer = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        run = run_from_proto(answer.run)
        grid.set_run(run)
        with _identity(answer.task_id, run.run_id, answer.context.node_id):
            yield grid
        status = SubStatus.COMPLETED
    finally:
        heartbeat.stop()
        grid._retry_invoker.max_tries = 1
        with suppress(httpx.HTTPError):  # the SuperLink may be gone; what counts is in the run folder
            grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        grid.close()


@contextmanager
def superlink_errors() -> Iterator[None]:
    """Turn what Flower and its HTTP client raise into a RunError of one line; our own errors, and bugs, pass."""
    try:
        yield
    except BaseException as error:  # Flower says with a BaseException that a run was ended
        if type(error).__module__.split(".")[0] not in ("flwr", "httpx"):
            raise
        raise RunError(
            f"the SuperLink is gone, or has ended the run ({type(error).__name__}); its log is superlink/superlink.log"
        ) from error


@dataclass(frozen=True)
class NodeFacts:
    """A registered SuperNode as the SuperLink knows it; ``public_key``: PEM."""

    node_id: int
    name: str
    public_key: bytes
    online: bool


class ControlPlane:
    """Registers nodes and starts runs. Its address is on this machine only: the proxy in front does not pass it on."""

    def __init__(self, endpoint: Endpoint) -> None:
        retries = make_simple_http_retry_invoker()
        retries.max_time = _PATIENCE_S
        self._client = ControlHttpClient.from_server_address(
            endpoint.address,
            endpoint.root is None,
            endpoint.root,
            [RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
            retry_invoker=retries,
        )

    def nodes(self) -> list[NodeFacts]:
        """All nodes that are registered and not removed."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            NodeFacts(node.node_id, node.name, node.public_key, node.status == "online")
            for node in found
            if node.status != "unregistered"
        ]

    def register(self, name: str, public_key: bytes) -> int:
        """Admit a node by its public key (PEM); its number."""
        return int(self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name)).node_id)

    def unregister(self, node_id: int) -> None:
        """Remove a node; whatever it sends from now on is refused."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id))

    def start_run(self, app: bytes, digest: str) -> int:
        """Start a run that ships ``app``; its number. RunError when the SuperLink refuses."""
        answer = self._client.StartRun(StartRunRequest(fab=fab_to_proto(Fab(digest, app, {}))))
        if not answer.HasField("run_id"):
            raise RunError("the SuperLink did not start a run; its log (superlink.log) says why")
        return int(answer.run_id)

    def stop_runs(self) -> None:
        """Stop all runs that a killed server left behind."""
        answer = self._client.ListRuns(ListRunsRequest())
        for run_id, run in answer.run_dict.items():
            if run.status.status != "finished":
                self._client.StopRun(StopRunRequest(run_id=run_id))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def context_for(task: ClientTask, site_file: Path) -> Context:
    """What our app is given at a site: where the site's own file is, and nothing that came from the server."""
    return Context(task.run_id, task.node_id, {"site-file": str(site_file)}, RecordDict(), {})
