"""Our records through Flower's and back."""

from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.audit.log import NOTHING, AuditHead, Extension
from federation.flower import records as flower
from federation.packed import pack
from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply
from foundation.errors import RunError

TENSORS = {
    "encoder.w": torch.arange(6.0).reshape(2, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "count": torch.tensor(2**40 + 1),
    "flags": torch.tensor([True, False]),
    "flag": torch.tensor(True),
    "scalar": torch.tensor(0.1),
    "double": torch.tensor([1 / 3], dtype=torch.float64),
    "half": torch.tensor([0.5], dtype=torch.float16),
    "empty": torch.empty(0, 4),
    "special": torch.tensor([-0.0, 1e-45, float("nan"), float("inf")]),
    "trained": torch.ones(2, requires_grad=True),
}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(other) and all(
        one[n].dtype == other[n].dtype
        and one[n].shape == other[n].shape
        and one[n].detach().numpy().tobytes() == other[n].detach().contiguous().numpy().tobytes()
        for n in one
    )


def test_tensors_come_back_bit_for_bit() -> None:
    assert same(flower.record_to_weights(flower.weights_to_record(TENSORS)), TENSORS)


def test_each_tensor_has_memory_of_its_own() -> None:
    """Sites in one process get one ArrayRecord: what one does to its weights must not reach another."""
    arrays = flower.weights_to_record(TENSORS)
    flower.record_to_weights(arrays)["encoder.w"].fill_(9)
    assert same(flower.record_to_weights(arrays), TENSORS)
    assert TENSORS["encoder.w"][0, 1] == 1


def test_instructions() -> None:
    instruction = TrainInstruction("hash", 7, TENSORS)
    for content in (
        flower.instruction_to_content(instruction),
        flower.instruction_to_content(instruction, flower.weights_to_record(TENSORS)),
    ):
        read = flower.content_to_instruction(content)
        assert (read.study_hash, read.round) == ("hash", 7)
        assert same(read.weights, TENSORS)


def test_replies() -> None:
    reply = TrainReply("hash", 7, "Site A", 12, TENSORS, {"loss": 0.1, "steps": 4.0})
    read = flower.content_to_reply(flower.reply_to_content(reply))
    assert isinstance(read, TrainReply)
    assert same(read.weights, TENSORS)
    assert (read.study_hash, read.round, read.site, read.images) == ("hash", 7, "Site A", 12)
    assert read.metrics == reply.metrics
    assert flower.failure_of(flower.reply_to_content(reply)) is None


HEX = "0123456789abcdef" * 4
HEAD, PROOF = AuditHead(3, HEX), Extension(AuditHead(5, HEX), (HEX, HEX))


def test_the_heads_of_a_privacy_ledger() -> None:
    instruction = TrainInstruction("hash", 7, {"w": torch.ones(2)}, HEAD)
    assert flower.content_to_instruction(flower.instruction_to_content(instruction)).ledger == HEAD
    reply = TrainReply("hash", 7, "A", 1, {"w": torch.ones(2)}, {}, PROOF)
    read = flower.content_to_reply(flower.reply_to_content(reply))
    assert isinstance(read, TrainReply)
    assert read.ledger == PROOF


def test_where_there_is_no_ledger_nothing_is_said_of_one() -> None:
    instruction = flower.instruction_to_content(TrainInstruction("hash", 7, {"w": torch.ones(2)}))
    reply = flower.reply_to_content(TrainReply("hash", 7, "A", 1, {"w": torch.ones(2)}, {}))
    assert "ledger" not in instruction and "ledger" not in reply
    assert flower.content_to_instruction(instruction).ledger == NOTHING
    read = flower.content_to_reply(reply)
    assert isinstance(read, TrainReply)
    assert read.ledger is None


def test_the_ledgers_head_is_signed_with_the_rest() -> None:
    heads = [NOTHING, HEAD, AuditHead(4, HEX)]
    contents = [flower.instruction_to_content(TrainInstruction("h", 1, {"w": torch.ones(2)}, head)) for head in heads]
    assert len({flower.said(content, "train", "1", "A") for content in contents}) == 3


@pytest.mark.parametrize(
    "ledger", [{}, {"known": 3}, {"known": -1, "known-head": HEX}, {"known": 3, "known-head": "x"}, {"known": "many"}]
)
def test_a_ledgers_head_of_another_form_in_an_instruction(ledger: dict[str, Any]) -> None:
    content = flower.instruction_to_content(TrainInstruction("hash", 7, {"w": torch.ones(2)}))
    content["ledger"] = ConfigRecord(ledger)
    with pytest.raises(RunError, match=r"^(an instruction's head of the privacy ledger|the head of an audit log)"):
        flower.content_to_instruction(content)


def test_failures_and_sites() -> None:
    failure = Failure("hash", 7, "A", "disk-full")
    content = flower.reply_to_content(failure)
    assert flower.content_to_reply(content) == failure
    assert flower.failure_of(content) == failure
    info = SiteInfo("A", "hash", 12)
    assert flower.content_to_site(flower.site_to_content(info)) == info


def test_free_text_in_place_of_a_category_is_not_passed_on() -> None:
    content = flower.reply_to_content(Failure("hash", 7, "A", "patient Müller\n\x1b[2J"))
    assert flower.failure_of(content) == Failure("hash", 7, "A", "unknown failure")
    read = flower.content_to_reply(content)
    assert isinstance(read, Failure)
    assert read.category == "unknown failure"


def _reply(**changes: Any) -> RecordDict:
    content = flower.reply_to_content(TrainReply("hash", 7, "A", 12, {"w": torch.ones(2)}, {"loss": 0.1}))
    for key, value in changes.items():
        if value is None:
            del content[key]
        else:
            content[key] = value
    return content


def packed(data: bytes) -> ArrayRecord:
    return ArrayRecord({"weights": Array("uint8", (len(data),), "safetensors", data)})


WHOLE = pack({"w": torch.ones(2)})
CONFIG = {"study": "hash", "round": 7, "site": "A"}
BROKEN = {
    "nothing": RecordDict(),
    "no config": _reply(config=None),
    "no arrays": _reply(arrays=None),
    "no metrics": _reply(metrics=None),
    "no round": _reply(config=ConfigRecord({"study": "hash", "site": "A"})),
    "a round that is no number": _reply(config=ConfigRecord(CONFIG | {"round": "seven"})),
    "no count": _reply(metrics=MetricRecord({"loss": 1.0})),
    "a count that is NaN": _reply(metrics=MetricRecord({"num-examples": float("nan")})),
    "a count that is infinite": _reply(metrics=MetricRecord({"num-examples": float("inf")})),
    "a list as a metric": _reply(metrics=MetricRecord({"num-examples": 3, "loss": [1.0, 2.0]})),
    "metrics in place of arrays": _reply(arrays=MetricRecord({"w": 1.0})),
    "an empty array": _reply(arrays=packed(b"")),
    "an array cut short": _reply(arrays=packed(WHOLE[:-3])),
    "a header that is none": _reply(arrays=packed(b"\x08" + bytes(7) + b"notajson")),
    "a header beyond any": _reply(arrays=packed(b"\xff" * 8 + WHOLE)),
    "two arrays": _reply(arrays=ArrayRecord({"w": packed(WHOLE)["weights"], "v": packed(WHOLE)["weights"]})),
    "a pickle": _reply(arrays=packed(b"\x80\x04N.")),
    "an array of Flower's own": _reply(arrays=ArrayRecord({"weights": Array(np.ones(2))})),
    "a ledger without a head": _reply(ledger=ConfigRecord({"count": 3})),
    "a ledger with a false head": _reply(ledger=ConfigRecord({"count": 3, "head": "x", "digests": []})),
    "a ledger with a false digest": _reply(ledger=ConfigRecord({"count": 3, "head": HEX, "digests": ["x"]})),
    "a number for a ledger's digests": _reply(ledger=ConfigRecord({"count": 3, "head": HEX, "digests": 7})),
    "metrics in place of a ledger": _reply(ledger=MetricRecord({"count": 3.0})),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_reply_of_another_form_is_one_error_and_never_another(case: str) -> None:
    """One broken site must not stop the server with an exception nobody catches."""
    with pytest.raises(RunError, match=r"^a reply lacks what the study agreed on") as caught:
        flower.content_to_reply(BROKEN[case])
    assert "\n" not in str(caught.value)


def test_a_site_that_does_not_say_who_it_is() -> None:
    with pytest.raises(RunError, match=r"^a site's answer lacks what the study agreed on"):
        flower.content_to_site(_reply())
