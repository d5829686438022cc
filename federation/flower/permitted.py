"""What a site's answer may be, as Flower will serialise it: the list that every answer is held against last."""

import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from federation.audit.chain import MOST_DIGESTS
from federation.federated_evaluation import STEPS
from federation.flower.records import ARRAYS, AUDIT, CONFIG, LEDGER, METRICS, PACKED, WEIGHTS
from federation.packed import check_packed
from federation.records import CATEGORIES, WithheldError

_UPDATE = frozenset({"study", "round", "site"})
_STATISTICS = frozenset({"study", "site", "step", "encoder"})
_ANSWERS = (
    _UPDATE,
    _STATISTICS,
    _UPDATE | {"failure"},
    frozenset({"site", "study", "images"}),
    frozenset({"site", "study", "weights"}),
)
_EXTENSION = frozenset({"count", "head", "digests"})
_NOTE = _EXTENSION | {"known", "known-head"}


@dataclass(frozen=True)
class Permitted:
    """What one answer may say: of which site and study, which tensors (names, shapes, types) and names of metrics.

    private: the study has a ``privacy`` section: then an update bears its ledger's head. hides_counts: every count is 1
    and no metric leaves, as in a private study and where updates are summed under masks.
    """

    site: str
    study_hash: str
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)
    metrics: Collection[str] = ()
    private: bool = False
    hides_counts: bool = False


def check_record_dict(content: RecordDict, permitted: Permitted) -> None:
    """WithheldError unless the content is, byte for byte, an answer that a site may give; ours alone decide what is.

    Looks at nothing but the record that is about to be serialised: every record, key, type and value, and of arrays
    the bytes, headers included.
    """
    kinds = {ARRAYS: ArrayRecord, METRICS: MetricRecord} | dict.fromkeys((CONFIG, AUDIT, LEDGER), ConfigRecord)
    if any(type(record) is not kinds.get(name) for name, record in content.items()):
        raise WithheldError("an answer has a record that is not on the list")
    config = cast(ConfigRecord, content.get(CONFIG, ConfigRecord()))
    if frozenset(config) not in _ANSWERS or not _true_words(config, permitted.site, permitted.study_hash):
        raise WithheldError("an answer says something that is not on the list")
    if AUDIT in content and not is_note(cast(ConfigRecord, content[AUDIT])):
        raise WithheldError("an answer's note on the audit logs is not of the agreed form")
    with_arrays, with_metrics = frozenset(config) in (_UPDATE, _STATISTICS), frozenset(config) == _UPDATE
    if (ARRAYS in content, METRICS in content) != (with_arrays, with_metrics):
        raise WithheldError("an answer has tensors or metrics where there are none to be, or lacks them")
    if (LEDGER in content) != (permitted.private and with_metrics):
        raise WithheldError("an answer has the head of a privacy ledger where there is none to be, or lacks it")
    if with_arrays:
        _check_arrays(cast(ArrayRecord, content[ARRAYS]), permitted.tensors)
    if with_metrics:
        _check_metrics(cast(MetricRecord, content[METRICS]), permitted.metrics)
    if permitted.private or permitted.hides_counts:
        _check_private(content, config)


def _check_private(content: RecordDict, config: ConfigRecord) -> None:
    if config.get("images", 1) != 1 or (METRICS in content and dict(content[METRICS]) != {"num-examples": 1}):
        raise WithheldError("an answer tells a count or a metric that stays; in such a study the count is 1")
    if LEDGER in content and not _is_extension(cast(ConfigRecord, content[LEDGER])):
        raise WithheldError("an update's head of the privacy ledger is not of the agreed form")


def _true_words(config: ConfigRecord, site: str, study_hash: str) -> bool:
    checks: dict[str, Callable[[Any], bool]] = {
        "site": lambda value: value == site,
        "study": lambda value: value == study_hash or (value == "" and "failure" in config),
        "round": lambda value: type(value) is int and 0 <= value <= 100_000,
        "images": lambda value: type(value) is int and value >= 1,
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
    array = arrays.get(WEIGHTS)
    if array is None or len(arrays) != 1:
        raise WithheldError("an update has other arrays than its weights")
    if (array.stype, array.dtype, tuple(array.shape)) != (PACKED, "uint8", (len(array.data),)):
        raise WithheldError("an update's weights are not packed as agreed")
    check_packed(array.data, expected)


def _check_metrics(metrics: MetricRecord, permitted: Collection[str]) -> None:
    for name, value in metrics.items():
        if name == "num-examples" and type(value) is int and value >= 1:
            continue
        if name not in permitted or type(value) is not float or float(f"{value:.6g}") != value or math.isinf(value):
            raise WithheldError("an update has a metric that is not on the list, or with more than six digits")
