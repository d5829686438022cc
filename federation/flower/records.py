"""Flower's record types to ours and back."""

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.audit.log import NOTHING, AuditHead, Extension
from federation.federated_evaluation import STEPS, EvaluationRequest, Statistics, Step
from federation.keys.signing import Signature
from federation.packed import pack, unpack
from federation.records import (
    CATEGORIES,
    AuditNote,
    Failure,
    SiteInfo,
    TrainInstruction,
    TrainReply,
)
from foundation.errors import RunError, StudyError
from foundation.files import digest

ARRAYS, CONFIG, METRICS, AUDIT, LEDGER = "arrays", "config", "metrics", "audit", "ledger"
WEIGHTS, PACKED, _SIGNATURE = "weights", "safetensors", "signature"


def tensors_to_arrays(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """An ArrayRecord with every tensor in its own type."""
    return ArrayRecord({name: Array(value.detach().cpu().contiguous().numpy()) for name, value in tensors.items()})


def weights_to_record(tensors: Mapping[str, torch.Tensor]) -> ArrayRecord:
    """Shared tensors as they travel: one array of packed bytes."""
    data = pack(tensors)
    return ArrayRecord({WEIGHTS: Array("uint8", (len(data),), PACKED, data)})


def record_to_weights(arrays: ArrayRecord) -> dict[str, torch.Tensor]:
    """The tensors of ``weights_to_record``; an exception of some kind when it is not whole."""
    (array,) = arrays.values()
    if array.stype != PACKED:
        raise ValueError("the weights are not packed")
    return unpack(array.data)


def instruction_to_content(
    instruction: TrainInstruction, arrays: ArrayRecord | None = None, note: AuditNote | None = None
) -> RecordDict:
    """The content of a training message; ``arrays`` saves encoding the same weights once a site."""
    config = ConfigRecord({"study": instruction.study_hash, "round": instruction.round})
    content = RecordDict({ARRAYS: arrays or weights_to_record(instruction.weights), CONFIG: config})
    if instruction.ledger != NOTHING:
        content[LEDGER] = ConfigRecord({"known": instruction.ledger.count, "known-head": instruction.ledger.hash})
    return with_note(content, note)


def question(study_hash: str) -> RecordDict:
    """The content of 'who are you'."""
    return RecordDict({CONFIG: ConfigRecord({"study": study_hash})})


def study_asked_for(content: RecordDict) -> str:
    """The hash of the study that a message to a site is about; StudyError when it does not say."""
    try:
        return str(cast(ConfigRecord, content[CONFIG])["study"])
    except (KeyError, TypeError) as error:
        raise StudyError(
            "a message of the server does not say which study it is about; nothing is done for it"
        ) from error


def with_note(content: RecordDict, note: AuditNote | None) -> RecordDict:
    """The content with what goes with it about the audit logs."""
    if note is not None:
        known = {"known": note.known.count, "known-head": note.known.hash}
        content[AUDIT] = ConfigRecord(_proved(note.extension) | known)
    return content


def _proved(extension: Extension) -> dict[str, Any]:
    head = extension.head
    return {"count": head.count, "head": head.hash, "digests": list(extension.digests)}


def _extension(said: Any) -> Extension:
    return Extension(AuditHead(int(said["count"]), str(said["head"])), tuple(map(str, said["digests"])))


def _known(said: Any) -> AuditHead:
    return AuditHead(int(said["known"]), str(said["known-head"]))


def content_to_note(content: RecordDict) -> AuditNote | None:
    """What a message says about the audit logs, None when nothing; RunError when it is not of the agreed form."""
    if AUDIT not in content:
        return None
    try:
        said = cast(Any, content[AUDIT])
        return AuditNote(_extension(said), _known(said))
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
    config = cast(ConfigRecord, content[CONFIG])
    return TrainInstruction(
        str(config["study"]),
        int(cast(int, config["round"])),
        record_to_weights(cast(ArrayRecord, content[ARRAYS])),
        _known_ledger(content),
    )


def _known_ledger(content: RecordDict) -> AuditHead:
    if LEDGER not in content:
        return NOTHING
    try:
        return _known(content[LEDGER])
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"an instruction's head of the privacy ledger is not of the agreed form ({type(error).__name__})"
        ) from error


def reply_to_content(reply: TrainReply | Failure) -> RecordDict:
    """The content of a site's answer to a training message."""
    config: dict[str, Any] = {"study": reply.study_hash, "round": reply.round, "site": reply.site}
    if isinstance(reply, Failure):
        return RecordDict({CONFIG: ConfigRecord(config | {"failure": reply.category})})
    metrics = MetricRecord({"num-examples": reply.images, **reply.metrics})
    weights = weights_to_record(reply.weights)
    content = RecordDict({ARRAYS: weights, CONFIG: ConfigRecord(config), METRICS: metrics})
    if reply.ledger is not None:
        content[LEDGER] = ConfigRecord(_proved(reply.ledger))
    return content


def content_to_reply(content: RecordDict) -> TrainReply | Failure:
    """Read a site's answer; RunError when it is not of the agreed form."""
    try:
        failure = failure_of(content)
        if failure is not None:
            return failure
        config = cast(ConfigRecord, content[CONFIG])
        study, round_, site = str(config["study"]), int(cast(int, config["round"])), str(config["site"])
        metrics = {name: float(cast(float, value)) for name, value in cast(MetricRecord, content[METRICS]).items()}
        images = int(metrics.pop("num-examples"))
        weights = record_to_weights(cast(ArrayRecord, content[ARRAYS]))
        ledger = _extension(content[LEDGER]) if LEDGER in content else None
        return TrainReply(study, round_, site, images, weights, metrics, ledger)
    except Exception as error:  # whatever a site sends, it must not stop the server
        raise RunError(f"a reply lacks what the study agreed on ({type(error).__name__})") from error


def _category(config: ConfigRecord) -> str:
    # A site's free text must not reach the server's screen and log.
    category = str(config["failure"])
    return category if category in CATEGORIES else "unknown failure"


def site_to_content(info: SiteInfo) -> RecordDict:
    """The content of a site's answer to 'who are you'."""
    return RecordDict({CONFIG: ConfigRecord({"site": info.site, "study": info.study_hash, "images": info.images})})


def content_to_site(content: RecordDict) -> SiteInfo | Failure:
    """Read a site's answer to 'who are you'; RunError when it is not of the agreed form."""
    try:
        failure = failure_of(content)
        if failure is not None:
            return failure
        config = cast(ConfigRecord, content[CONFIG])
        return SiteInfo(str(config["site"]), str(config["study"]), int(cast(int, config["images"])))
    except Exception as error:
        raise RunError(f"a site's answer lacks what the study agreed on ({type(error).__name__})") from error


def delivery_to_content(study_hash: str, round_: int, arrays: ArrayRecord, note: AuditNote) -> RecordDict:
    """The content of a message that hands a site the weights at the study's end."""
    return with_note(RecordDict({ARRAYS: arrays, CONFIG: ConfigRecord({"study": study_hash, "round": round_})}), note)


def confirmation_to_content(site: str, study_hash: str, weights: str) -> RecordDict:
    """The content of a site's answer to a delivery; ``weights``: digest of what it has on its disk now."""
    return RecordDict({CONFIG: ConfigRecord({"site": site, "study": study_hash, "weights": weights})})


def confirmed_weights(content: RecordDict) -> str:
    """The digest that a site confirms, "" where it confirms none."""
    config = cast(Mapping[str, Any], content.get(CONFIG, {}))
    return str(config.get("weights", ""))


def failure_of(content: RecordDict) -> Failure | None:
    """The failure that a site answered with, if it did; an exception of some kind when it is malformed."""
    config = cast(ConfigRecord, content[CONFIG])
    if "failure" not in config:
        return None
    return Failure(str(config["study"]), int(cast(int, config["round"])), str(config["site"]), _category(config))


def question_to_content(question: EvaluationRequest, arrays: ArrayRecord, note: AuditNote) -> RecordDict:
    """The content of a question about labelled images; ``arrays``: its tensors, encoded once for all sites."""
    config = ConfigRecord({"study": question.study_hash, "step": question.step, "encoder": question.encoder})
    return with_note(RecordDict({ARRAYS: arrays, CONFIG: config}), note)


def content_to_question(content: RecordDict) -> EvaluationRequest:
    """Read a question about labelled images; StudyError for a step that there is not."""
    config = cast(ConfigRecord, content[CONFIG])
    tensors = record_to_weights(cast(ArrayRecord, content[ARRAYS]))
    return EvaluationRequest(str(config["study"]), _step(config), str(config["encoder"]), tensors)


def statistics_to_content(answer: Statistics) -> RecordDict:
    """The content of a site's answer to a question about labelled images."""
    config = ConfigRecord(
        {"study": answer.study_hash, "site": answer.site, "step": answer.step, "encoder": answer.encoder}
    )
    return RecordDict({ARRAYS: weights_to_record(answer.tensors), CONFIG: config})


def content_to_statistics(content: RecordDict) -> Statistics | Failure:
    """Read such an answer; RunError when it is not of the agreed form."""
    try:
        config = cast(ConfigRecord, content[CONFIG])
        study, site = str(config["study"]), str(config["site"])
        if "failure" in config:
            return Failure(study, 0, site, _category(config))
        tensors = record_to_weights(cast(ArrayRecord, content[ARRAYS]))
        return Statistics(study, site, _step(config), str(config["encoder"]), tensors)
    except Exception as error:  # whatever a site sends, it must not stop the server
        raise RunError(f"an answer lacks what the study agreed on ({type(error).__name__})") from error


def _step(config: ConfigRecord) -> Step:
    if config["step"] not in STEPS:
        raise StudyError(f"a question about labels has none of the steps {', '.join(STEPS)}; nothing is sent for it")
    return cast(Step, config["step"])
