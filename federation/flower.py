"""Flower's record types to ours and back, and all uses of Flower's private names (tests/federation/test_flower.py).

Flower 1.41 keeps the identity of the running task in a private class; building a ``Message`` outside a process that
Flower started needs it set. The id of a message is likewise private: the SuperLink sets it, our in-process grid must.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.metadata import Metadata
from flwr.supercore.task_identity import TaskIdentity

from federation.records import CATEGORIES, Failure, SiteInfo, TrainInstruction, TrainReply
from foundation.errors import RunError

_ARRAYS, _CONFIG, _METRICS = "arrays", "config", "metrics"


def assume_identity(node_id: int, run_id: int = 1) -> None:
    """Let this process make messages as node ``node_id``, unless Flower has already said who it is."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


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


def tensors_to_arrays(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """An ArrayRecord with every tensor in its own type."""
    return ArrayRecord({name: _to_array(value) for name, value in tensors.items()})


def _to_array(value: torch.Tensor) -> Array:
    return Array(value.detach().cpu().contiguous().numpy())


def arrays_to_tensors(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    """The tensors of an ArrayRecord, each with memory of its own."""
    return {name: _to_tensor(array) for name, array in arrays.items()}


def _to_tensor(array: Array) -> torch.Tensor:
    # Flower sends NumPy's .npy bytes. Its reader parses a Python literal a tensor, which took longer than the numbers;
    # a model has few shapes, so headers are remembered. Anything unusual is left to Flower.
    data = array.data
    if array.stype != "numpy.ndarray" or data[:8] != b"\x93NUMPY\x01\x00":
        return torch.from_numpy(array.numpy())
    length = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _npy_header(data[:length])
    if fortran or dtype.hasobject:
        return torch.from_numpy(array.numpy())
    flat = np.frombuffer(data, dtype, math.prod(shape), length)
    return torch.from_numpy(flat.reshape(shape).copy())


@lru_cache(maxsize=1024)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    stream = BytesIO(header)
    np.lib.format.read_magic(stream)
    return np.lib.format.read_array_header_1_0(stream)


def instruction_to_content(instruction: TrainInstruction, arrays: ArrayRecord | None = None) -> RecordDict:
    """The content of a training message; ``arrays`` saves encoding the same weights once a site."""
    config = ConfigRecord({"study": instruction.study_hash, "round": instruction.round})
    return RecordDict({_ARRAYS: arrays or tensors_to_arrays(instruction.weights), _CONFIG: config})


def content_to_instruction(content: RecordDict) -> TrainInstruction:
    """Read a training message."""
    config = cast(ConfigRecord, content[_CONFIG])
    return TrainInstruction(
        str(config["study"]),
        int(cast(int, config["round"])),
        arrays_to_tensors(cast(ArrayRecord, content[_ARRAYS])),
    )


def reply_to_content(reply: TrainReply | Failure) -> RecordDict:
    """The content of a site's answer to a training message."""
    config: dict[str, Any] = {"study": reply.study_hash, "round": reply.round, "site": reply.site}
    if isinstance(reply, Failure):
        return RecordDict({_CONFIG: ConfigRecord(config | {"failure": reply.category})})
    metrics = MetricRecord({"num-examples": reply.pictures, **reply.metrics})
    return RecordDict({_ARRAYS: tensors_to_arrays(reply.weights), _CONFIG: ConfigRecord(config), _METRICS: metrics})


def content_to_reply(content: RecordDict) -> TrainReply | Failure:
    """Read a site's answer; RunError when it is not of the agreed form."""
    try:
        config = cast(ConfigRecord, content[_CONFIG])
        study, round_, site = str(config["study"]), int(cast(int, config["round"])), str(config["site"])
        if "failure" in config:
            return Failure(study, round_, site, _category(config))
        metrics = {name: float(cast(float, value)) for name, value in cast(MetricRecord, content[_METRICS]).items()}
        pictures = int(metrics.pop("num-examples"))
        return TrainReply(
            study, round_, site, pictures, arrays_to_tensors(cast(ArrayRecord, content[_ARRAYS])), metrics
        )
    except Exception as error:  # whatever a site sends, it must not stop the server
        raise RunError(f"a reply lacks what the study agreed on ({type(error).__name__})") from error


def _category(config: ConfigRecord) -> str:
    # A site's free text must not reach the server's screen and log.
    category = str(config["failure"])
    return category if category in CATEGORIES else "unknown failure"


def site_to_content(info: SiteInfo) -> RecordDict:
    """The content of a site's answer to 'who are you'."""
    return RecordDict({_CONFIG: ConfigRecord({"site": info.site, "study": info.study_hash, "pictures": info.pictures})})


def content_to_site(content: RecordDict) -> SiteInfo:
    """Read a site's answer to 'who are you'; RunError when it is not of the agreed form."""
    try:
        config = cast(ConfigRecord, content[_CONFIG])
        return SiteInfo(str(config["site"]), str(config["study"]), int(cast(int, config["pictures"])))
    except Exception as error:
        raise RunError(f"a site's answer lacks what the study agreed on ({type(error).__name__})") from error


def failure_in(content: RecordDict) -> str | None:
    """The category of a failure that a site answered with, if it did."""
    config = cast(ConfigRecord, content[_CONFIG])
    return _category(config) if "failure" in config else None
