"""Tasks of Flower's Runtime interface, which it does not promise to keep: tests/federation/flower/test_private.py.

Flower's executors install the app that a server ships and run it, in a new process for each message. Ours talk to the
same Runtime interface: ``TaskQueue`` hands out tasks, ``ClientTask`` and ``ServerTask`` are what one of them needs.
Every call goes over HTTP to this machine. The other two files of this name hold the rest of what is not promised.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto, message_to_proto, run_from_proto
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
from flwr.supercore.runtime import RuntimeHttpClient

from federation.flower.private_identity import identity, set_message_id
from foundation.errors import FedpretextError, RunError

if TYPE_CHECKING:
    from flwr.superlink.grid import HttpGrid

_HEARTBEAT_S = 20.0
PATIENCE_S = 20.0  # with a SuperLink on this machine: longer, and it is dead
_BACKOFF_S, _MOST_BACKOFF_S = 0.1, 2.0
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})
TaskKind = Literal["client", "server"]
_TYPES: dict[TaskKind, str] = {"client": TaskType.CLIENT_APP, "server": TaskType.SERVER_APP}


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
                f"Flower hands out no tasks to this program (HTTP {error.response.status_code}); start it again"
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
        with identity(*task.identity):
            yield task
    except FedpretextError:
        raise
    except Exception as error:  # Flower has many ways to say that the SuperNode, or its session, is gone
        raise RunError(f"the SuperNode no longer waits for this task ({type(error).__name__})") from error
    finally:
        heartbeat.stop()
        client.close()


@contextmanager
def server_task(endpoint: Endpoint, token: str) -> Iterator["HttpGrid"]:
    """The grid of the run whose server task has that token. The run is marked as completed, or failed, at the end."""
    from flwr.superlink.grid import HttpGrid  # half a second to import, and a site never needs it

    grid = HttpGrid(endpoint.address, endpoint.root is None, endpoint.root, token=token)
    grid._retry_invoker.max_time = PATIENCE_S
    heartbeat = _Heartbeat(grid._runtime_client)
    status = SubStatus.FAILED
    try:
        answer = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        run = run_from_proto(answer.run)
        grid.set_run(run)
        with identity(answer.task_id, run.run_id, answer.context.node_id):
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


def context_for(task: ClientTask, site_file: Path) -> Context:
    """What our app is given at a site: where the site's own file is, and nothing that came from the server."""
    return Context(task.run_id, task.node_id, {"site-file": str(site_file)}, RecordDict(), {})
