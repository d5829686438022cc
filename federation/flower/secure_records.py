"""The stages of a secure sum as Flower's records, and back: what is asked of a site, and all that it may answer.

A stage's values travel as one canonical JSON text, bytes as hexadecimal digits, so that a site can hold an answer,
before it leaves, against what it must be; the masked update travels as one array beside it.
"""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, cast, get_args

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from federation.flower.permitted import is_note
from federation.flower.records import failure_of, with_note
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
from foundation.files import digest

Stage = Literal["advertise", "share", "masked", "sign", "unmask"]
STAGES: tuple[str, ...] = get_args(Stage)
Asked = str | tuple[Advertisement, ...] | tuple[SealedShares, ...] | tuple[str, ...] | UnmaskRequest
"""By stage: the site's certificate, all sites' keys, the shares for this site, the survivors, the list's signatures."""
Answered = Advertisement | SealedShares | MaskedUpdate | ListSignature | Unmasking
_CONFIG, _ARRAYS, _AUDIT, _MASKED, _RAW = "config", "arrays", "audit", "masked", "little-endian"
_WORDS = frozenset({"study", "round", "attempt", "stage"})


@dataclass(frozen=True)
class _StageMessage:
    """What a request and its answer say of the stage."""

    study_hash: str
    round: int
    attempt: int
    stage: Stage

    def words(self) -> dict[str, str | int]:
        """As they travel, and as the audit logs have them."""
        return {"study": self.study_hash, "round": self.round, "attempt": self.attempt, "stage": self.stage}


@dataclass(frozen=True)
class SecureRequest(_StageMessage):
    """What a site is asked at one stage of one attempt."""

    asked: Asked

    def noted(self) -> dict[str, str | int]:
        """What the audit logs say of it; its content as SHA-256."""
        return self.words() | {"content": digest(self.stage, str(self.attempt), _text(self.asked))}


@dataclass(frozen=True)
class SecureAnswer(_StageMessage):
    """What a site answers."""

    site: str
    answered: Answered

    def noted(self) -> dict[str, str | int]:
        """What the audit logs say of it; its content as SHA-256."""
        if isinstance(self.answered, MaskedUpdate):
            return self.words() | {"content": digest(self.answered.values.data.cast("B"))}
        return self.words() | {"content": digest(_text(_bare(self.answered)))}


def request_to_content(request: SecureRequest, note: AuditNote | None) -> RecordDict:
    """The content of a message about one stage."""
    config: dict[str, Any] = request.words() | {"text": _text(request.asked)}
    return with_note(RecordDict({_CONFIG: ConfigRecord(config)}), note)


def content_to_request(content: RecordDict) -> SecureRequest:
    """Read such a message; StudyError when it is not of the agreed form."""
    try:
        config = cast(Any, content[_CONFIG])
        stage = _stage(config)
        asked = _ASKED[stage](json.loads(str(config["text"])))
        return SecureRequest(str(config["study"]), int(config["round"]), int(config["attempt"]), stage, asked)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"a message about a secure sum is not of the agreed form ({type(error).__name__})") from error


def answer_to_content(answer: SecureAnswer) -> RecordDict:
    """The content of a site's answer."""
    config: dict[str, Any] = answer.words() | {"site": answer.site}
    if isinstance(answer.answered, MaskedUpdate):
        values = answer.answered.values.astype(NUMBER, copy=False)
        array = Array("uint32", (len(values),), _RAW, values.tobytes())
        return RecordDict({_CONFIG: ConfigRecord(config), _ARRAYS: ArrayRecord({_MASKED: array})})
    return RecordDict({_CONFIG: ConfigRecord(config | {"text": _text(_bare(answer.answered))})})


def _bare(answered: Answered) -> Answered:
    """An answer as it travels: without the certificate, which the server has."""
    return replace(answered, certificate="") if isinstance(answered, Advertisement) else answered


def content_to_answer(content: RecordDict) -> SecureAnswer | Failure:
    """Read a site's answer; RunError when it is not of the agreed form."""
    try:
        failure = failure_of(content)
        if failure is not None:
            return failure
        config = cast(Any, content[_CONFIG])
        stage, site = _stage(config), str(config["site"])
        answered: Answered
        if stage == "masked":
            array = cast(ArrayRecord, content[_ARRAYS])[_MASKED]
            answered = MaskedUpdate(site, np.frombuffer(array.data, dtype=NUMBER))
        else:
            answered = _ANSWERED[stage](json.loads(str(config["text"])))
        if answered.site != site:
            raise ValueError("another site's")
        words = str(config["study"]), int(config["round"]), int(config["attempt"])
        return SecureAnswer(*words, stage, site, answered)
    except Exception as error:  # whatever a site sends, it must not stop the server
        raise RunError(f"an answer lacks what the protocol asks for ({type(error).__name__})") from error


def check_answer_record(content: RecordDict, site: str, study_hash: str, numbers: int) -> None:
    """WithheldError unless the content is an answer that a site may give at a stage; an update only as masked numbers.

    Looks at the record that is about to be serialised. numbers: in an update, without its count.
    """
    config = content.get(_CONFIG)
    if set(content) - {_AUDIT, _ARRAYS} != {_CONFIG} or not isinstance(config, ConfigRecord):
        raise WithheldError("an answer about a secure sum has a record that is not on the list")
    masked = config.get("stage") == "masked"
    if set(config) != _WORDS | {"site"} | (set() if masked else {"text"}) or masked != (_ARRAYS in content):
        raise WithheldError("an answer about a secure sum has other parts than its stage has")
    counts = (config["round"], config["attempt"])
    if (config["study"], config["site"]) != (study_hash, site) or any(type(n) is not int or n < 0 for n in counts):
        raise WithheldError("an answer about a secure sum is of another study, site, round or attempt")
    if _AUDIT in content and not is_note(cast(ConfigRecord, content[_AUDIT])):
        raise WithheldError("an answer's note on the audit logs is not of the agreed form")
    if masked:
        _check_masked(content, numbers)
    else:
        _check_text(str(config["text"]), _stage(config), site)


def _check_masked(content: RecordDict, numbers: int) -> None:
    arrays = cast(ArrayRecord, content[_ARRAYS])
    array = arrays.get(_MASKED)
    form = None if array is None else (array.dtype, tuple(array.shape), array.stype, len(array.data))
    if len(arrays) != 1 or form != ("uint32", (numbers + 1,), _RAW, 4 * (numbers + 1)):
        raise WithheldError("a masked update is not the vector of whole numbers that the study shares")


def _check_text(text: str, stage: Stage, site: str) -> None:
    try:
        read = _ANSWERED[stage](json.loads(text))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WithheldError("an answer about a secure sum is not of the agreed form") from error
    if read.site != site or _text(read) != text or (isinstance(read, Advertisement) and read.certificate):
        raise WithheldError("an answer about a secure sum says something that is not on the list")


def _stage(config: Any) -> Stage:
    if config["stage"] not in STAGES:
        raise ValueError("no stage")
    return cast(Stage, config["stage"])


def _text(value: Any) -> str:
    plain = [asdict(one) if not isinstance(one, str) else one for one in value] if isinstance(value, tuple) else value
    plain = plain if isinstance(plain, str | list) else asdict(plain)
    return json.dumps(plain, default=bytes.hex, sort_keys=True)


_Read = dict[str, Any]


def _only(read: _Read, *keys: str) -> None:
    if set(read) != set(keys):
        raise ValueError("other keys")


def _bytes(text: Any, length: int | None = None) -> bytes:
    if not isinstance(text, str) or not re.fullmatch("(?:[0-9a-f]{2})*", text) or len(text) > 1024:
        raise ValueError("no hexadecimal digits")
    if length is not None and len(text) != 2 * length:
        raise ValueError("another length")
    return bytes.fromhex(text)


def _advertisement(read: _Read) -> Advertisement:
    _only(read, "site", "mask_key", "seal_key", "certificate", "signature")
    mask_key, seal_key = (_bytes(read[key], 32) for key in ("mask_key", "seal_key"))
    signature = _bytes(read["signature"])
    return Advertisement(str(read["site"]), mask_key, seal_key, str(read["certificate"]), signature)


def _shares(read: _Read) -> SealedShares:
    _only(read, "site", "sealed", "commitments", "seed_commitment", "signature")
    sealed = {str(holder): _bytes(value) for holder, value in read["sealed"].items()}
    commitments = {str(h): (_bytes(one, 32), _bytes(two, 32)) for h, (one, two) in read["commitments"].items()}
    return SealedShares(
        str(read["site"]), sealed, commitments, _bytes(read["seed_commitment"], 32), _bytes(read["signature"])
    )


def _signature(read: _Read) -> ListSignature:
    _only(read, "site", "signature")
    return ListSignature(str(read["site"]), _bytes(read["signature"]))


def _unmasking(read: _Read) -> Unmasking:
    _only(read, "site", "seeds", "keys")
    parts = ({str(site): _bytes(value) for site, value in read[kind].items()} for kind in ("seeds", "keys"))
    return Unmasking(str(read["site"]), *parts)


def _unmask_request(read: _Read) -> UnmaskRequest:
    _only(read, "survivors", "signatures")
    signatures = {str(site): _bytes(value) for site, value in read["signatures"].items()}
    return UnmaskRequest(tuple(map(str, read["survivors"])), signatures)


_ASKED: dict[str, Callable[[Any], Asked]] = {
    "advertise": str,
    "share": lambda read: tuple(map(_advertisement, read)),
    "masked": lambda read: tuple(map(_shares, read)),
    "sign": lambda read: tuple(map(str, read)),
    "unmask": _unmask_request,
}
_ANSWERED: dict[str, Callable[[Any], Advertisement | SealedShares | ListSignature | Unmasking]] = {
    "advertise": _advertisement,
    "share": _shares,
    "sign": _signature,
    "unmask": _unmasking,
}
