"""The messages of a secure sum as they travel: an array of bytes, and a few words about which message it is."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from federation.flower import check_note, failure_told, with_note
from federation.records import AuditNote, Failure, WithheldError
from federation.secure_aggregation.messages import (
    Advertisement,
    ListSignature,
    MaskedUpdate,
    SealedShares,
    Unmasking,
    UnmaskRequest,
)
from federation.secure_aggregation.streams import NUMBER
from foundation.errors import RunError, StudyError

Stage = Literal["advertise", "share", "masked", "sign", "unmask"]
STAGES: tuple[str, ...] = get_args(Stage)
Answered = Advertisement | SealedShares | MaskedUpdate | ListSignature | Unmasking
_CONFIG, _ARRAYS, _SAID, _BYTES = "config", "arrays", "said", "bytes"
_AUDIT = "audit"


@dataclass(frozen=True)
class Asked:
    """What the server asks of a site at a stage; ``said`` as ``requested`` and ``request_in`` have it."""

    study_hash: str
    round: int
    attempt: int
    stage: Stage
    said: bytes


@dataclass(frozen=True)
class Told:
    """A site's answer to it; ``said`` as ``answered`` and ``answer_in`` have it."""

    study_hash: str
    round: int
    attempt: int
    stage: Stage
    site: str
    said: bytes


def requested(stage: Stage, request: Any) -> bytes:
    """What goes to a site: at "advertise" its certificate (PEM), then advertisements, shares, names, a request."""
    if stage in ("share", "masked"):
        return _json([asdict(one) for one in request])
    return _json(asdict(request) if stage == "unmask" else request)


def request_in(asked: Asked) -> Any:
    """What ``requested`` put there; StudyError when it is not of the agreed form."""
    readers: dict[str, Callable[[Any], Any]] = {
        "advertise": str,
        "share": lambda read: [_advertisement(one) for one in read],
        "masked": lambda read: [_shares(one) for one in read],
        "sign": lambda read: tuple(map(str, read)),
        "unmask": lambda read: UnmaskRequest(tuple(map(str, read["survivors"])), _hex_values(read["signatures"])),
    }
    try:
        return readers[asked.stage](json.loads(asked.said))
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError("a message about a secure sum is not of the agreed form; nothing is done for it") from error


def answered(answer: Answered) -> bytes:
    """A site's message as bytes: the numbers of a masked update as they are, the others as JSON."""
    if isinstance(answer, MaskedUpdate):
        return answer.values.astype(NUMBER, copy=False).tobytes()
    return _json(asdict(answer))


def answer_in(told: Told) -> Answered:
    """What ``answered`` put there; RunError when it is not of the agreed form, or under another site's name."""
    readers: dict[str, Callable[[Any], Answered]] = {
        "advertise": _advertisement,
        "share": _shares,
        "sign": lambda read: ListSignature(str(read["site"]), bytes.fromhex(read["signature"])),
        "unmask": lambda read: Unmasking(str(read["site"]), _hex_values(read["seeds"]), _hex_values(read["keys"])),
    }
    try:
        if told.stage == "masked":
            return MaskedUpdate(told.site, np.frombuffer(told.said, dtype=NUMBER))
        answer = readers[told.stage](json.loads(told.said))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"an answer about a secure sum is not of the agreed form ({type(error).__name__})") from error
    if answer.site != told.site:
        raise RunError("an answer about a secure sum is under another site's name")
    return answer


def asked_to_content(asked: Asked, note: AuditNote | None) -> RecordDict:
    """The content of a message to a site."""
    config = {"study": asked.study_hash, "round": asked.round, "attempt": asked.attempt, "stage": asked.stage}
    return with_note(_content(config, asked.said), note)


def content_to_asked(content: RecordDict) -> Asked:
    """Read such a message; StudyError when it is not of the agreed form."""
    try:
        config = cast(Mapping[str, Any], content[_CONFIG])
        return Asked(str(config["study"]), *_which(config), _said(content))
    except (KeyError, TypeError, ValueError) as error:
        raise StudyError("a message about a secure sum is not of the agreed form; nothing is done for it") from error


def told_to_content(told: Told) -> RecordDict:
    """The content of a site's answer."""
    config = {"study": told.study_hash, "round": told.round, "site": told.site}
    return _content(config | {"attempt": told.attempt, "stage": told.stage}, told.said)


def content_to_told(content: RecordDict) -> Told | Failure:
    """Read a site's answer; RunError when it is not of the agreed form."""
    try:
        failure = failure_told(content)
        if failure is not None:
            return failure
        config = cast(Mapping[str, Any], content[_CONFIG])
        return Told(str(config["study"]), *_which(config), str(config["site"]), _said(content))
    except Exception as error:  # whatever a site sends, it must not stop the server
        raise RunError(f"an answer lacks what the study agreed on ({type(error).__name__})") from error


def check_told(content: RecordDict, told: Told, numbers: int) -> None:
    """WithheldError unless the content is exactly that answer, and the answer one that the protocol has.

    numbers: of an update with its count. JSON is read and written again: nothing else can hide in it.
    """
    config = content.get(_CONFIG)
    expected = told_to_content(told)
    if set(content) - {_AUDIT} != {_CONFIG, _ARRAYS} or not isinstance(config, ConfigRecord):
        raise WithheldError("an answer about a secure sum has a record that is not on the list")
    if dict(config) != dict(cast(ConfigRecord, expected[_CONFIG])) or told.stage not in STAGES:
        raise WithheldError("an answer about a secure sum says something that is not on the list")
    check_note(content)
    if not _same_array(content, expected):
        raise WithheldError("an answer about a secure sum has other bytes than the site's message")
    if told.stage == "masked":
        if len(told.said) != 4 * numbers:
            raise WithheldError(f"a masked update is not {numbers} numbers of 4 bytes")
    elif answered(answer_in(told)) != told.said:
        raise WithheldError("an answer about a secure sum holds more than its message")


def _same_array(content: RecordDict, expected: RecordDict) -> bool:
    found, wanted = (cast(ArrayRecord, each[_ARRAYS]) for each in (content, expected))
    if not isinstance(found, ArrayRecord) or set(found) != {_SAID}:
        return False
    one, other = found[_SAID], wanted[_SAID]
    return (one.dtype, tuple(one.shape), one.stype, one.data) == (
        other.dtype,
        tuple(other.shape),
        other.stype,
        other.data,
    )


def _content(config: Mapping[str, Any], data: bytes) -> RecordDict:
    arrays = ArrayRecord({_SAID: Array("uint8", (len(data),), _BYTES, data)})
    return RecordDict({_CONFIG: ConfigRecord(dict(config)), _ARRAYS: arrays})


def _said(content: RecordDict) -> bytes:
    return bytes(cast(ArrayRecord, content[_ARRAYS])[_SAID].data)


def _which(config: Mapping[str, Any]) -> tuple[int, int, Stage]:
    stage = str(config["stage"])
    if stage not in STAGES:
        raise ValueError("no stage of a secure sum")
    return int(config["round"]), int(config["attempt"]), cast(Stage, stage)


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), default=bytes.hex).encode("ascii")


def _hex_values(read: Mapping[str, str]) -> dict[str, bytes]:
    return {str(name): bytes.fromhex(value) for name, value in read.items()}


def _advertisement(read: Mapping[str, str]) -> Advertisement:
    mask_key, seal_key, signature = (bytes.fromhex(read[key]) for key in ("mask_key", "seal_key", "signature"))
    return Advertisement(str(read["site"]), mask_key, seal_key, str(read["certificate"]), signature)


def _shares(read: Mapping[str, Any]) -> SealedShares:
    commitments = {str(s): (bytes.fromhex(one), bytes.fromhex(two)) for s, (one, two) in read["commitments"].items()}
    seed, signature = bytes.fromhex(read["seed_commitment"]), bytes.fromhex(read["signature"])
    return SealedShares(str(read["site"]), _hex_values(read["sealed"]), commitments, seed, signature)
