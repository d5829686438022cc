"""A contract for the private names of Flower that federation/flower_private*.py rely on, and its executor at work.

The executor is tried against the Runtime interface of Flower's own SuperNode, which is filled as a SuperLink would.
"""

import ast
import importlib
import inspect
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import uvicorn
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.metadata import Metadata
from flwr.proto.control_pb2 import StartRunResponse
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory
from flwr.supernode.start_client_internal import _pull_and_store_message, _push_messages

from federation.app_bundle import app_bundle, bundle_digest
from federation.flower import private as flower_private
from federation.flower import private_control as flower_private_control
from federation.flower import private_identity as flower_private_identity
from federation.flower.private import Bundle, ClientTask, Endpoint, TaskQueue, client_task
from federation.study import study_from
from foundation.errors import RunError
from foundation.process_group import free_port

MEND = "mend federation/flower_private*.py"
SOURCES = [Path(module.__file__) for module in (flower_private, flower_private_control, flower_private_identity)]


def test_contract_every_name_is_there() -> None:
    """Names what is gone after an update of Flower, all of it, in one line."""
    missing = []
    for node in (node for path in SOURCES for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flwr"):
            module = importlib.import_module(str(node.module))
            missing += [f"{node.module}.{name.name}" for name in node.names if not hasattr(module, name.name)]
    assert missing == [], f"Flower lost {', '.join(missing)}: {MEND}"


CALLS: dict[str, tuple[str, tuple[Any, ...], tuple[str, ...]]] = {
    # What is called: module, positional arguments (self left out), keywords.
    "RuntimeHttpClient.from_server_address": ("flwr.supercore.runtime", ("a", True, None, []), ()),
    "ControlHttpClient.from_server_address": (
        "flwr.supercore.control.control_http_client", ("a", True, None, []), ("retry_invoker",),
    ),
    "FleetHttpClient.from_server_address": ("flwr.supernode.fleet_http_client", ("a", True, None, []), ()),
    "RuntimeVersionHttpInterceptor": ("flwr.supercore.interceptors", (), ("component_name",)),
    "RuntimeTokenHttpInterceptor": ("flwr.supercore.interceptors", ("token",), ()),
    "SuperExecAuthHttpInterceptor": (
        "flwr.supercore.interceptors", (), ("master_secret", "protected_methods"),
    ),
    "NodeAuthHttpInterceptor": ("flwr.supernode.node_auth_http_interceptor", ("key", "public"), ()),
    "make_simple_http_retry_invoker": ("flwr.supercore.retry", (), ()),
    "pull_and_inflate_object_from_tree": (
        "flwr.supercore.inflatable.inflatable_utils", ("tree", "pull", "confirm"),
        ("return_type", "max_time", "max_tries_per_object", "initial_backoff", "backoff_cap"),
    ),
    "push_objects": ("flwr.supercore.inflatable.inflatable_utils", ("objects", "push"), ("object_ids_to_push",)),
    "make_pull_object_fn_protobuf": (
        "flwr.supercore.inflatable.inflatable_protobuf_utils", ("pull", "node", 1), (),
    ),
    "make_push_object_fn_protobuf": (
        "flwr.supercore.inflatable.inflatable_protobuf_utils", ("push", "node", 1, "session"), (),
    ),
    "make_confirm_message_received_fn_protobuf": (
        "flwr.supercore.inflatable.inflatable_protobuf_utils", ("confirm", "node", 1), (),
    ),
    "get_object_tree": ("flwr.supercore.inflatable.inflatable_object", ("message",), ()),
    "get_all_nested_objects": ("flwr.supercore.inflatable.inflatable_object", ("message",), ()),
    "no_object_id_recompute": ("flwr.supercore.inflatable.inflatable_object", (), ()),
    "remove_content_from_message": ("flwr.app.message", ("message",), ()),
    "Fab": ("flwr.supercore.fab", ("hash", b"content", {}), ()),
    "HttpGrid": ("flwr.superlink.grid", ("address", True, None), ("token",)),
    "HttpGrid.set_run": ("flwr.superlink.grid", ("run",), ()),
    "HttpGrid.close": ("flwr.superlink.grid", (), ()),
}  # fmt: skip
CLIENTS = {
    ("flwr.supercore.runtime", "RuntimeHttpClient"): (
        "AcquireTask", "SendTaskHeartbeat", "PullTaskInput", "PullMessages", "PullObject", "PushMessages", "PushObject",
        "ConfirmMessageReceived", "PushTaskOutput",
    ),
    ("flwr.supercore.control.control_http_client", "ControlHttpClient"): (
        "ListNodes", "RegisterNode", "UnregisterNode", "StartRun", "ListRuns", "StopRun",
    ),
    ("flwr.supernode.fleet_http_client", "FleetHttpClient"): ("DeactivateNode",),
}  # fmt: skip
FIELDS = {
    "flwr.proto.control_pb2": {
        "ListNodesRequest": (), "ListNodesResponse": ("nodes_info",), "RegisterNodeRequest": ("public_key", "name"),
        "RegisterNodeResponse": ("node_id",), "UnregisterNodeRequest": ("node_id",), "StartRunRequest": ("fab",),
        "StartRunResponse": ("run_id",), "ListRunsResponse": ("run_dict",), "StopRunRequest": ("run_id",),
    },
    "flwr.proto.node_pb2": {"Node": ("node_id",), "NodeInfo": ("node_id", "name", "public_key", "status")},
    "flwr.proto.fleet_pb2": {"DeactivateNodeRequest": ("node_id",)},
    "flwr.proto.runtime_pb2": {
        "AcquireTaskRequest": ("supported_task_types",), "AcquireTaskResponse": ("task", "token"),
        "PullTaskInputResponse": ("context", "run", "fab", "task_id"), "SendTaskHeartbeatRequest": (),
        "PullAppMessagesResponse": ("messages_list", "message_object_trees"),
        "PushAppMessagesRequest": ("messages_list", "message_object_trees"),
        "PushAppMessagesResponse": ("objects_to_push", "session_id"),
        "PushTaskOutputRequest": ("sub_status", "details"),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_contract_calls(name: str) -> None:
    module, positional, keywords = CALLS[name]
    owner, _, method = name.partition(".")
    found = getattr(importlib.import_module(module), owner)
    called = inspect.getattr_static(found, method) if method else found
    if isinstance(called, classmethod):
        called = getattr(found, method)
    elif method:
        positional = ("self", *positional)
    try:
        inspect.signature(called).bind(*positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise AssertionError(f"Flower's {name} is called otherwise now ({error}): {MEND}") from error


@pytest.mark.parametrize(("module", "name"), CLIENTS)
def test_contract_clients(module: str, name: str) -> None:
    client = getattr(importlib.import_module(module), name)
    for method in CLIENTS[module, name]:
        assert hasattr(client, method), f"Flower's {name} lost {method}: {MEND}"
        assert len(inspect.signature(getattr(client, method)).parameters) == 2, f"{name}.{method} asks for more: {MEND}"


@pytest.mark.parametrize("module", FIELDS)
def test_contract_protocol(module: str) -> None:
    for name, fields in FIELDS[module].items():
        message = getattr(importlib.import_module(module), name, None)
        assert message is not None, f"Flower's protocol lost {name}: {MEND}"
        lost = set(fields) - set(message.DESCRIPTOR.fields_by_name)
        assert not lost, f"Flower's {name} lost {', '.join(sorted(lost))}: {MEND}"


def test_a_run_that_the_superlink_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([StartRunResponse(run_id=7), StartRunResponse()])
    superlink = SimpleNamespace(StartRun=lambda request: next(answers))
    monkeypatch.setattr(flower_private_control.ControlHttpClient, "from_server_address", lambda *_, **__: superlink)
    control = flower_private_control.ControlPlane(Endpoint("127.0.0.1:1", None))
    assert control.start_run(b"app", "digest") == 7
    with pytest.raises(RunError, match="the SuperLink did not start a run"):
        control.start_run(b"app", "digest")


def test_contract_the_grid_of_a_server_task() -> None:
    from flwr.superlink.grid import HttpGrid

    grid = HttpGrid("127.0.0.1:1", True, None, token="x")
    for attribute in ("max_time", "max_tries"):
        assert hasattr(grid._retry_invoker, attribute), f"Flower's retries lost {attribute}: {MEND}"
    for method in ("PullTaskInput", "PushTaskOutput", "SendTaskHeartbeat"):
        assert hasattr(grid._runtime_client, method), f"Flower's HttpGrid lost {method}: {MEND}"
    grid.close()


def test_contract_task_identity() -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        assert hasattr(TaskIdentity, name), f"Flower's TaskIdentity lost {name}: {MEND}"
    for name in ("task_id", "run_id", "node_id"):
        public = getattr(type(TaskIdentity), name, None)
        assert isinstance(public, property) and public.fset, (
            f"Flower's TaskIdentity.{name} cannot be set any more: {MEND}"
        )


def test_contract_metadata() -> None:
    expected = [
        "run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "created_at", "ttl",
        "message_type",
    ]  # fmt: skip
    found = [name for name in inspect.signature(Metadata.__init__).parameters if name != "self"]
    assert found[:9] == expected, "the order of Flower's Metadata changed: mend reply_as_received"
    assert all(
        parameter.default is not inspect.Parameter.empty
        for parameter in list(inspect.signature(Metadata.__init__).parameters.values())[10:]
    ), "Flower's Metadata asks for more than it did: mend reply_as_received"


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever identity this process has is put back after the test."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)


def test_contract_a_message_needs_an_identity(identity: None) -> None:
    with pytest.raises(RuntimeError):
        Message(RecordDict(), 2, "train")
    flower_private_identity.assume_identity(1, run_id=5)
    message = Message(RecordDict(), 2, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (5, 1, 2)


def test_an_identity_that_flower_gave_is_kept(identity: None) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 9, 8, 7
    flower_private_identity.assume_identity(1)
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (9, 8, 7)


def test_contract_the_id_of_a_message_and_of_what_it_answers(identity: None) -> None:
    flower_private_identity.assume_identity(1)
    message = Message(RecordDict(), 2, "train", group_id="3")
    flower_private_identity.set_message_id(message, "message-1")
    assert message.metadata.message_id == "message-1"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "message-1"
    assert reply.metadata.src_node_id == 2


def test_contract_a_reply_as_a_strategy_expects_it() -> None:
    content = RecordDict({"metrics": MetricRecord({"num-examples": 3})})
    reply = flower_private_identity.reply_as_received(content, 4, 2)
    assert not reply.has_error()
    assert reply.metadata.src_node_id == 4
    assert reply.metadata.group_id == "2"
    assert reply.metadata.message_type == "train"
    assert reply.content["metrics"]["num-examples"] == 3


# ---- the executor, at Flower's own SuperNode

NODE, RUN = 77, 5


class Node:
    """A SuperNode in process isolation, without a SuperLink: a test hands in messages and takes answers out."""

    def __init__(self) -> None:
        self.secret, self.endpoint = b"s" * 32, Endpoint(f"127.0.0.1:{free_port()}")
        factory = NodeStateFactory(objectstore_factory=ObjectStoreFactory())
        self.state: Any = factory.state()
        self.store = factory.objectstore_factory.store()
        self.state.set_node_id(NODE)
        port = int(self.endpoint.address.rpartition(":")[2])
        application = create_app(state_factory=factory, superexec_auth_secret=self.secret)
        self._server = uvicorn.Server(
            uvicorn.Config(application, "127.0.0.1", port, log_config=None, ws="none", lifespan="off")
        )
        self._thread = threading.Thread(target=self._server.run)

    def start(self) -> None:
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(0.01)

    def stop(self) -> None:
        """End at once, as a killed process does."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join()

    def hand_in(self, content: RecordDict, app: bytes, group: str = "1", **overrides: Any) -> None:
        """A message comes from the server, by Flower's own code."""
        message = Message(content, NODE, "train", group_id=group)
        flower_private_identity.set_message_id(message, message.object_id)
        objects = {key: value.deflate() for key, value in get_all_nested_objects(message).items()}
        run = Run.create_empty(RUN)
        run.fab_hash, run.override_config = bundle_digest(app), overrides
        taken = _pull_and_store_message(
            state=self.state, object_store=self.store, node_config={},
            receive=lambda: (remove_content_from_message(message), get_object_tree(message)),
            get_run=lambda _: run, get_fab=lambda *_: Fab(run.fab_hash, app, {}),
            pull_object=lambda _, object_id: objects[object_id], confirm_message_received=lambda *_: None,
            trusted_entities=None,
        )  # fmt: skip
        assert taken == RUN

    def taken_out(self) -> tuple[Message, list[bytes]]:
        """The answer that would leave now, by Flower's own code, and the bytes of its objects."""
        sent: list[Message] = []
        objects: list[bytes] = []

        def send(message: Message, tree: Any, _: float) -> tuple[set[str], str]:
            sent.append(message)
            return {each.object_id for each in iterate_object_tree(tree)}, "session"

        _push_messages(
            state=self.state, object_store=self.store, send=send,
            push_object=lambda _run, _session, _id, data: objects.append(data),
        )  # fmt: skip
        (message,) = sent
        return message, objects


@pytest.fixture
def node(identity: None) -> Iterator[Node]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN, 1
    made = Node()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def queue(node: Node) -> Iterator[TaskQueue]:
    made = TaskQueue(node.endpoint, node.secret)
    yield made
    made.close()


@pytest.fixture
def app(raw_study: dict[str, Any]) -> bytes:
    return app_bundle(study_from(raw_study, "test"))


def question(number: int = 1) -> RecordDict:
    arrays = ArrayRecord({"w": Array(np.arange(6, dtype=np.float32).reshape(2, 3))})
    return RecordDict({"config": ConfigRecord({"number": number}), "arrays": arrays})


def number_in(message: Message) -> Any:
    return message.content["config"]["number"]


def taken(node: Node, queue: TaskQueue) -> Any:
    """The next task, as the worker takes it."""
    token = queue.next("client")
    assert token is not None
    return client_task(node.endpoint, token, lambda: queue.waits("client"))


def test_a_task_is_taken_read_and_answered(node: Node, queue: TaskQueue, app: bytes) -> None:
    """All the calls of a round, against the interface that they are made for."""
    assert queue.next("client") is None
    node.hand_in(question(), app, group="3", **{"training-hash": "another"})
    assert queue.next("server") is None
    with taken(node, queue) as task:
        assert isinstance(task, ClientTask)
        assert (task.node_id, task.run_id) == (NODE, RUN)
        assert task.bundle == Bundle(app, {"training-hash": "another"})
        assert task.message.metadata.group_id == "3" and number_in(task.message) == 1
        assert np.array_equal(task.message.content["arrays"]["w"].numpy(), [[0, 1, 2], [3, 4, 5]])
        assert TaskIdentity.node_id == NODE
        task.answer(Message(question(2), reply_to=task.message))
    assert TaskIdentity.node_id == 1  # whoever this process was, it is again
    message, objects = node.taken_out()
    assert message.metadata.reply_to_message_id == task.message.metadata.message_id
    assert (message.metadata.src_node_id, message.metadata.dst_node_id) == (NODE, 1)
    assert len(objects) == 6 and not message.has_error()
    assert queue.next("client") is None


def test_who_does_not_know_the_secret_gets_no_task(node: Node, app: bytes) -> None:
    """Defends a site against other programs on its machine: one line, and no task."""
    node.hand_in(question(), app)
    stranger = TaskQueue(node.endpoint, b"x" * 32)
    with pytest.raises(RunError, match="hands out no tasks to this program") as caught:
        stranger.next("client")
    assert "\n" not in str(caught.value)
    stranger.close()


def test_where_nobody_listens_there_is_no_task(node: Node, queue: TaskQueue) -> None:
    node.stop()
    assert queue.next("client") is None
    assert queue.waits("client") is False


def test_a_task_that_was_seen_is_kept_for_the_next_to_ask(node: Node, queue: TaskQueue, app: bytes) -> None:
    node.hand_in(question(), app)
    assert queue.waits("client") and queue.waits("client")
    with taken(node, queue) as task:
        assert number_in(task.message) == 1
    assert not queue.waits("client")


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Signals that this process sends itself, as Flower's heartbeat does; a heartbeat comes every 20 ms."""
    sent: list[int] = []
    monkeypatch.setattr(signal, "raise_signal", sent.append)
    monkeypatch.setattr("os.kill", lambda _, number: sent.append(number))
    monkeypatch.setattr(flower_private, "_HEARTBEAT_S", 0.02)
    return sent


def test_a_supernode_that_goes_away_costs_one_line(
    node: Node, queue: TaskQueue, app: bytes, signals: list[int]
) -> None:
    """Defends a long round against a lost SuperNode: the work goes on to its end, then the task is given up."""
    node.hand_in(question(), app)
    trained = False
    with pytest.raises(RunError, match="no longer waits for this task") as caught, taken(node, queue) as task:
        node.stop()
        time.sleep(0.2)
        trained = True
        task.answer(Message(question(2), reply_to=task.message))
    assert trained and signals == []
    assert "\n" not in str(caught.value)
    assert TaskIdentity.node_id == 1


def test_a_task_that_the_supernode_has_closed_does_not_end_this_process(
    node: Node, queue: TaskQueue, app: bytes, signals: list[int]
) -> None:
    """Flower's own executor interrupts itself when a heartbeat is not welcome any more."""
    node.hand_in(question(), app)
    with pytest.raises(RunError, match="no longer waits"), taken(node, queue) as task:
        node.state.finish_task(task.identity[0], "failed", "the SuperNode gave it up")
        time.sleep(0.2)
        task.answer(Message(question(2), reply_to=task.message))
    assert signals == []


def test_a_message_that_was_given_up_for_another_is_given_up_here(node: Node, queue: TaskQueue, app: bytes) -> None:
    """Flower waits for parts of a message for ever; that another task waits says that they will not come."""
    node.hand_in(question(1), app)
    token = queue.next("client")
    assert token is not None
    node.state.get_object = lambda run_id, object_id: b""  # still to come
    node.hand_in(question(2), app)
    with (
        pytest.raises(RunError, match="has given this message up"),
        client_task(node.endpoint, token, lambda: queue.waits("client")),
    ):
        raise AssertionError("the message is not whole")


def test_a_message_that_cannot_be_read_is_one_line_and_the_next_is_served(
    node: Node, queue: TaskQueue, app: bytes
) -> None:
    """Defends a site's program against a hostile or newer server: it is not ended by what it is sent."""
    node.hand_in(question(1), app)
    real = node.state.get_object
    node.state.get_object = lambda run_id, object_id: b"Nothing that Flower wrote"
    with pytest.raises(RunError, match="message cannot be read") as caught, taken(node, queue):
        raise AssertionError("it was read")
    assert "\n" not in str(caught.value)
    node.state.get_object = real
    node.state.delete_messages()
    node.hand_in(question(2), app)
    with taken(node, queue) as task:
        assert number_in(task.message) == 2


def test_whatever_flower_raises_in_a_task_is_a_lost_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defends the client against a crash: a push session that expired, say, raises an error of Flower's own kind."""
    monkeypatch.setattr(flower_private, "_client", lambda *_: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(flower_private, "_Heartbeat", lambda _: SimpleNamespace(stop=lambda: None))
    monkeypatch.setattr(flower_private, "ClientTask", lambda *_: SimpleNamespace(identity=(1, 2, 3)))
    with (
        pytest.raises(RunError, match=r"^the SuperNode no longer waits for this task \(ObjectPushError\)$"),
        client_task(Endpoint("127.0.0.1:1"), "token", lambda: False),
    ):
        raise ObjectPushError("object", 1, "session")
