"""Who a process is to Flower, and the ids of messages: what Flower does not promise to keep of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from flwr.app import Message, RecordDict
from flwr.app.metadata import Metadata
from flwr.supercore.task_identity import TaskIdentity


def assume_identity(node_id: int, run_id: int = 1) -> None:
    """Let this process make messages as node ``node_id``, unless Flower has already said who it is."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


@contextmanager
def identity(task_id: int, run_id: int, node_id: int) -> Iterator[None]:
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
