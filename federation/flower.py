"""Flower's record types to ours and back."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.audit import NOTHING, Extension, Head
from federation.audit_chain import MOST_DIGESTS
from federation.federated_evaluation import STEPS, Question, Statistics, Step
from federation.packed import check_packed, pack, unpack
from federation.records import (
    CATEGORIES,
    AuditNote,
    Failure,
    SiteInfo,
    TrainInstruction,
    TrainReply,
    WithheldError,
)
from federation.signing import Signature
from foundation.errors import RunError, StudyError
from foundation.files import digest

_ARRAYS, _CONFIG, _METRICS, _AUDIT, _LEDGER = "arrays", "config", "metrics", "audit", "ledger"
_WEIGHTS, _PACKED, _SIGNATURE = "weights", "safetensors", "signature"


def tensors_to_arrays(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """An ArrayRecord with every tensor in its own type."""
    return ArrayRecord({name: _to_array(value) for name, value in tensors.items()})


def _to_array(value: torch.Tensor) -> Array:
    return Array(value.detach().cpu().contiguous().numpy())


def weights_to_record(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Shared tensors as they travel: one array of packed bytes."""
    data = pack(tensors)
    return ArrayRecord({_WEIGHTS: Array("uint8", (len(data),), _PACKED, data)})


def record_to_weights(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    """The tensors of ``weights_to_record``; an exception of some kind when it is not whole."""
    (array,) = arrays.values()
    if array.stype != _PACKED:
        raise ValueError("the weights are not packed")
    return unpack(array.data)


def instruction_to_content(
    instruction: TrainInstruction, arrays: ArrayRecord | None = None, note: AuditNote | None = None
) -> RecordDict:
    """The content of a training message; ``arrays`` saves encoding the same weights once a site."""
    config = ConfigRecord({"study": instruction.study_hash, "round": instruction.round})
    content = RecordDict({_ARRAYS: arrays or weights_to_record(instruction.weights), _CONFIG: config})
    if instruction.ledger != NOTHING:
        content[_LEDGER] = ConfigRecord({"known": instruction.ledger.count, "known-head": instruction.ledger.hash})
    return with_note(content, note)


def question(study_hash: str) -> RecordDict:
    """The content of 'who are you'."""
    return RecordDict({_CONFIG: ConfigRecord({"study": study_hash})})


def study_asked_for(content: RecordDict) -> str:
    """The hash of the study that a message to a site is about; StudyError when it does not say."""
    try:
        return str(cast(ConfigRecord, content[_CONFIG])["study"])
    except (KeyError, TypeError) as error:
        raise StudyError(
            "a message of the server does not say which study it is about; nothing is done for it"
        ) from error


def with_note(content: RecordDict, note: AuditNote | None) -> RecordDict:
    """The content with what goes with it about the audit logs."""
    if note is not None:
        content[_AUDIT] = ConfigRecord(
            {
                "count": note.extension.head.count, "head": note.extension.head.hash,
                "digests": list(note.extension.digests), "known": note.known.count, "known-head": note.known.hash,
            }
        )  # fmt: skip
    return content


def content_to_note(content: RecordDict) -> AuditNote | None:
    """What a message says about the audit logs, None when nothing; RunError when it is not of the agreed form."""
    if _AUDIT not in content:
        return None
    try:
        said = cast(Any, content[_AUDIT])
        head, known = Head(int(said["count"]), str(said["head"])), Head(int(said["known"]), str(said["known-head"]))
        return AuditNote(Extension(head, tuple(map(str, said["digests"]))), known)
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"a message's note on the audit logs is not of the agreed form ({type(error).__name__})"
        ) from error


def said(content: RecordDict, kind: str, round_: str, site: str) -> str:
    """SHA-256 over all that a message says but its signature, with its kind, its round and the site that it is for."""
    parts: list[bytes | str] = [kind, round_, site]
    for name, record in sorted(content.items()):
        if name == _SIGNATURE:
            continue
        parts.append(f"{name} {type(record).__name__}")
        if isinstance(record, ArrayRecord):
            for key, array in record.items():
                parts += [key, f"{array.dtype} {array.shape} {array.stype}", array.data]
        else:
            parts.append(json.dumps(dict(record), sort_keys=True, default=repr))
    return digest(*parts)


def signed(content: RecordDict, signature: Signature) -> RecordDict:
    """The content with the server's signature."""
    content[_SIGNATURE] = ConfigRecord({"certificate": signature.certificate, "value": signature.value})
    return content


def signature_of(content: RecordDict) -> Signature | None:
    """The signature that a message bears; None where it bears none, or one that is not of the agreed form."""
    record = content.get(_SIGNATURE)
    if not isinstance(record, ConfigRecord) or set(record) != {"certificate", "value"}:
        return None
    return Signature(str(record["certificate"]), str(record["value"]))


def content_to_instruction(content: RecordDict) -> TrainInstruction:
    """Read a training message."""
    config = cast(ConfigRecord, content[_CONFIG])
    return TrainInstruction(
        str(config["study"]),
        int(cast(int, config["round"])),
        record_to_weights(cast(ArrayRecord, content[_ARRAYS])),
        _known_ledger(content),
    )


def _known_ledger(content: RecordDict) -> Head:
    if _LEDGER not in content:
        return NOTHING
    try:
        known = cast(Any, content[_LEDGER])
        return Head(int(known["known"]), str(known["known-head"]))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"an instruction's head of the privacy ledger is not of the agreed form ({type(error).__name__})"
        ) from error


def _ledger(content: RecordDict) -> Extension | None:
    """The ledger's head in a reply, None where there is none; an exception of some kind when malformed."""
    if _LEDGER not in content:
        return None
    told = cast(Any, content[_LEDGER])
    return Extension(Head(int(told["count"]), str(told["head"])), tuple(map(str, told["digests"])))


def reply_to_content(reply: TrainReply | Failure) -> RecordDict:
    """The content of a site's answer to a training message."""
    config: dict[str, Any] = {"study": reply.study_hash, "round": reply.round, "site": reply.site}
    if isinstance(reply, Failure):
        return RecordDict({_CONFIG: ConfigRecord(config | {"failure": reply.category})})
    metrics = MetricRecord({"num-examples": reply.pictures, **reply.metrics})
    weights = weights_to_record(reply.weights)
    content = RecordDict({_ARRAYS: weights, _CONFIG: ConfigRecord(config), _METRICS: metrics})
    if reply.ledger is not None:
        head, digests = reply.ledger.head, list(reply.ledger.digests)
        content[_LEDGER] = ConfigRecord({"count": head.count, "head": head.hash, "digests": digests})
    return content


def content_to_reply(content: RecordDict) -> TrainReply | Failure:
    """Read a site's answer; RunError when it is not of the agreed form."""
    try:
        config = cast(ConfigRecord, content[_CONFIG])
        study, round_, site = str(config["study"]), int(cast(int, config["round"])), str(config["site"])
        if "failure" in config:
            return Failure(study, round_, site, _category(config))
        metrics = {name: float(cast(float, value)) for name, value in cast(MetricRecord, content[_METRICS]).items()}
        pictures = int(metrics.pop("num-examples"))
        weights = record_to_weights(cast(ArrayRecord, content[_ARRAYS]))
        return TrainReply(study, round_, site, pictures, weights, metrics, _ledger(content))
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


def delivery_to_content(study_hash: str, round_: int, arrays: ArrayRecord, note: AuditNote) -> RecordDict:
    """The content of a message that hands a site the weights at the study's end."""
    return with_note(RecordDict({_ARRAYS: arrays, _CONFIG: ConfigRecord({"study": study_hash, "round": round_})}), note)


def confirmation_to_content(site: str, study_hash: str, weights: str) -> RecordDict:
    """The content of a site's answer to a delivery; ``weights``: digest of what it has on its disk now."""
    return RecordDict({_CONFIG: ConfigRecord({"site": site, "study": study_hash, "weights": weights})})


def confirmed_weights(content: RecordDict) -> str:
    """The digest that a site confirms, "" where it confirms none."""
    config = cast(Mapping[str, Any], content.get(_CONFIG, {}))
    return str(config.get("weights", ""))


def failure_of(content: RecordDict) -> Failure | None:
    """The failure that a site answered with, if it did; an exception of some kind when it is malformed."""
    config = cast(ConfigRecord, content[_CONFIG])
    if "failure" not in config:
        return None
    return Failure(str(config["study"]), int(cast(int, config["round"])), str(config["site"]), _category(config))


def failure_in(content: RecordDict) -> str | None:
    """The category of a failure that a site answered with, if it did."""
    config = cast(ConfigRecord, content[_CONFIG])
    return _category(config) if "failure" in config else None


def question_to_content(question: Question, arrays: ArrayRecord, note: AuditNote) -> RecordDict:
    """The content of a question about labelled pictures; ``arrays``: its tensors, encoded once for all sites."""
    config = ConfigRecord({"study": question.study_hash, "step": question.step, "encoder": question.encoder})
    return with_note(RecordDict({_ARRAYS: arrays, _CONFIG: config}), note)


def content_to_question(content: RecordDict) -> Question:
    """Read a question about labelled pictures; StudyError for a step that there is not."""
    config = cast(ConfigRecord, content[_CONFIG])
    tensors = record_to_weights(cast(ArrayRecord, content[_ARRAYS]))
    return Question(str(config["study"]), _step(config), str(config["encoder"]), tensors)


def statistics_to_content(told: Statistics) -> RecordDict:
    """The content of a site's answer to a question about labelled pictures."""
    config = ConfigRecord({"study": told.study_hash, "site": told.site, "step": told.step, "encoder": told.encoder})
    return RecordDict({_ARRAYS: weights_to_record(told.tensors), _CONFIG: config})


def content_to_statistics(content: RecordDict) -> Statistics | Failure:
    """Read such an answer; RunError when it is not of the agreed form."""
    try:
        config = cast(ConfigRecord, content[_CONFIG])
        study, site = str(config["study"]), str(config["site"])
        if "failure" in config:
            return Failure(study, 0, site, _category(config))
        tensors = record_to_weights(cast(ArrayRecord, content[_ARRAYS]))
        return Statistics(study, site, _step(config), str(config["encoder"]), tensors)
    except Exception as error:  # whatever a site sends, it must not stop the server
        raise RunError(f"an answer lacks what the study agreed on ({type(error).__name__})") from error


def _step(config: ConfigRecord) -> Step:
    if config["step"] not in STEPS:
        raise StudyError(f"a question about labels has none of the steps {', '.join(STEPS)}; nothing is told for it")
    return cast(Step, config["step"])


_UPDATE = frozenset({"study", "round", "site"})
_STATISTICS = frozenset({"study", "site", "step", "encoder"})
_ANSWERS = (
    _UPDATE,
    _STATISTICS,
    _UPDATE | {"failure"},
    frozenset({"site", "study", "pictures"}),
    frozenset({"site", "study", "weights"}),
)
_EXTENSION = frozenset({"count", "head", "digests"})
_NOTE = _EXTENSION | {"known", "known-head"}


def check_record_dict(
    content: RecordDict, site: str, study_hash: str, expected: Mapping[str, torch.Tensor], metrics: Collection[str],
    private: bool = False, uncounted: bool = False,
) -> None:  # fmt: skip
    """WithheldError unless the content is, byte for byte, an answer that a site may give; ours alone decide what is.

    Looks at nothing but the record that is about to be serialised: every record, key, type and value, and of arrays
    the bytes, headers included. expected: the shared tensors (names, shapes, types); metrics: names that may leave.
    private: the study has a ``privacy`` section: then an update bears its ledger's head. uncounted: every count is 1
    and no metric leaves, as in a private study and where updates are summed under masks.
    """
    kinds = {_ARRAYS: ArrayRecord, _METRICS: MetricRecord} | dict.fromkeys((_CONFIG, _AUDIT, _LEDGER), ConfigRecord)
    if any(type(record) is not kinds.get(name) for name, record in content.items()):
        raise WithheldError("an answer has a record that is not on the list")
    config = cast(ConfigRecord, content.get(_CONFIG, ConfigRecord()))
    if frozenset(config) not in _ANSWERS or not _true_words(config, site, study_hash):
        raise WithheldError("an answer says something that is not on the list")
    if _AUDIT in content and not is_note(cast(ConfigRecord, content[_AUDIT])):
        raise WithheldError("an answer's note on the audit logs is not of the agreed form")
    with_arrays, with_metrics = frozenset(config) in (_UPDATE, _STATISTICS), frozenset(config) == _UPDATE
    if (_ARRAYS in content, _METRICS in content) != (with_arrays, with_metrics):
        raise WithheldError("an answer has tensors or metrics where there are none to be, or lacks them")
    if (_LEDGER in content) != (private and with_metrics):
        raise WithheldError("an answer has the head of a privacy ledger where there is none to be, or lacks it")
    if with_arrays:
        _check_arrays(cast(ArrayRecord, content[_ARRAYS]), expected)
    if with_metrics:
        _check_metrics(cast(MetricRecord, content[_METRICS]), metrics)
    if private or uncounted:
        _check_private(content, config)


def _check_private(content: RecordDict, config: ConfigRecord) -> None:
    if config.get("pictures", 1) != 1 or (_METRICS in content and dict(content[_METRICS]) != {"num-examples": 1}):
        raise WithheldError("an answer tells a count or a metric that stays; in such a study the count is 1")
    if _LEDGER in content and not _is_extension(cast(ConfigRecord, content[_LEDGER])):
        raise WithheldError("an update's head of the privacy ledger is not of the agreed form")


def _true_words(config: ConfigRecord, site: str, study_hash: str) -> bool:
    checks: dict[str, Callable[[Any], bool]] = {
        "site": lambda value: value == site,
        "study": lambda value: value == study_hash or (value == "" and "failure" in config),
        "round": lambda value: type(value) is int and 0 <= value <= 100_000,
        "pictures": lambda value: type(value) is int and value >= 1,
        "failure": lambda value: value in CATEGORIES,
        "weights": _is_hash,
        "step": lambda value: value in STEPS,
        "encoder": _is_hash,
    }
    return all(checks[key](value) for key, value in config.items())


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_note(note: ConfigRecord) -> bool:
    """Whether a note on the audit logs is of the agreed form."""
    return frozenset(note) == _NOTE and _is_head(note["known"], note["known-head"]) and _is_proof(note)


def _is_extension(ledger: ConfigRecord) -> bool:
    return frozenset(ledger) == _EXTENSION and _is_proof(ledger)


def _is_proof(said: ConfigRecord) -> bool:
    digests = said["digests"]
    whole = isinstance(digests, list) and len(digests) <= MOST_DIGESTS and all(map(_is_hash, digests))
    return whole and _is_head(said["count"], said["head"])


def _is_head(count: Any, hash_: Any) -> bool:
    return (count, hash_) == (0, "") or (type(count) is int and count > 0 and _is_hash(hash_))


def _check_arrays(arrays: ArrayRecord, expected: Mapping[str, torch.Tensor]) -> None:
    array = arrays.get(_WEIGHTS)
    if array is None or len(arrays) != 1:
        raise WithheldError("an update has other arrays than its weights")
    if (array.stype, array.dtype, tuple(array.shape)) != (_PACKED, "uint8", (len(array.data),)):
        raise WithheldError("an update's weights are not packed as agreed")
    check_packed(array.data, expected)


def _check_metrics(told: MetricRecord, permitted: Collection[str]) -> None:
    for name, value in told.items():
        if name == "num-examples" and type(value) is int and value >= 1:
            continue
        if name not in permitted or type(value) is not float or float(f"{value:.6g}") != value or math.isinf(value):
            raise WithheldError("an update has a metric that is not on the list, or with more than six digits")
