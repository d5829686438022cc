"""A contract for the private names of Flower that federation/flower_private.py relies on."""

import inspect

import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.supercore.task_identity import TaskIdentity

from federation import flower_private


def test_contract_task_identity() -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        assert hasattr(TaskIdentity, name), f"Flower's TaskIdentity lost {name}: mend federation/flower_private.py"
    for name in ("task_id", "run_id", "node_id"):
        public = getattr(type(TaskIdentity), name, None)
        assert isinstance(public, property) and public.fset, (
            f"Flower's TaskIdentity.{name} cannot be set any more: mend federation/flower_private.py"
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
    flower_private.assume_identity(1, run_id=5)
    message = Message(RecordDict(), 2, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id, message.metadata.dst_node_id) == (5, 1, 2)


def test_an_identity_that_flower_gave_is_kept(identity: None) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 9, 8, 7
    flower_private.assume_identity(1)
    assert (TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id) == (9, 8, 7)


def test_contract_the_id_of_a_message_and_of_what_it_answers(identity: None) -> None:
    flower_private.assume_identity(1)
    message = Message(RecordDict(), 2, "train", group_id="3")
    flower_private.set_message_id(message, "message-1")
    assert message.metadata.message_id == "message-1"
    reply = Message(RecordDict(), reply_to=message)
    assert reply.metadata.reply_to_message_id == "message-1"
    assert reply.metadata.src_node_id == 2


def test_contract_a_reply_as_a_strategy_expects_it() -> None:
    content = RecordDict({"metrics": MetricRecord({"num-examples": 3})})
    reply = flower_private.reply_as_received(content, 4, 2)
    assert not reply.has_error()
    assert reply.metadata.src_node_id == 4
    assert reply.metadata.group_id == "2"
    assert reply.metadata.message_type == "train"
    assert reply.content["metrics"]["num-examples"] == 3
