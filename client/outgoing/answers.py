"""The list of what may leave a site; every answer is held against it right before it is sent."""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from client.outgoing.metrics import OUTGOING_METRICS, known_metric, rounded
from client.policy import Policy
from federation.federated_evaluation import Statistics
from federation.records import CATEGORIES, Failure, SiteInfo, TrainReply, WithheldError, check_reply
from federation.site_names import SITE_NAME
from federation.study import Study
from foundation.errors import RunError
from foundation.messages import logger

Answer = TypeVar("Answer", TrainReply, Failure, SiteInfo)
_MOST_ROUNDS = 100_000  # RoundsConfig's


def hide_count(reply: TrainReply, received: Mapping[str, Tensor], policy: Policy) -> TrainReply:
    """The reply without what tells how few images the site has, where these are fewer than ``smallest_count``.

    Not for a private study, whose count is a constant.

    The count becomes the threshold, telling metrics are left out, and counters (whole-number tensors, such as
    BatchNorm's of its steps) are those that were ``received``.
    """
    if reply.images >= policy.smallest_count:
        return reply
    untold = tuple(f"_{name}" for name, facts in OUTGOING_METRICS.items() if facts.tells_count)
    return replace(
        reply,
        images=policy.smallest_count,
        metrics={name: value for name, value in reply.metrics.items() if not f"_{name}".endswith(untold)},
        weights={n: v if v.is_floating_point() else received[n] for n, v in reply.weights.items()},
    )


def checked_reply(
    study: Study | None, reply: Answer, expected: Mapping[str, Tensor], policy: Policy, site: str, round_: int = 0
) -> Answer:
    """``reply`` as it may be sent; WithheldError when it holds anything that is not on the list.

    expected: the study's shared tensors, whose names, shapes and types a reply has exactly, all values finite. site:
    the only name there may be. round_: the only round. ``study`` is None where none could be read: then only a
    ``Failure`` may leave. Metrics are those of ``OUTGOING_METRICS`` that the policy permits, to six digits; one that is
    not finite or beyond its bound is left out. In a private study, and with secure aggregation, the count is
    1 and there are no metrics; with secure aggregation ``expected`` is empty.
    """
    private = study is not None and study.privacy is not None
    hides_counts = private or (study is not None and study.secure_aggregation is not None)
    check_words(study, reply, site)
    if isinstance(reply, Failure):
        if type(reply.round) is not int or not 0 <= reply.round <= _MOST_ROUNDS:
            raise WithheldError(f"a failure names a round that is not 0 to {_MOST_ROUNDS}")
        return reply
    if hides_counts and (type(reply.images) is not int or reply.images != 1):
        raise WithheldError("the count of images is not 1, as it is at every site where counts are not sent")
    if type(reply.images) is not int or (reply.images < policy.smallest_count and not hides_counts):
        raise WithheldError(f"the count of images is no whole number of at least {policy.smallest_count}")
    if isinstance(reply, SiteInfo):
        return reply
    assert study is not None
    if hides_counts and reply.metrics:
        raise WithheldError(
            "a reply has metrics, which tell of its patients, in a study whose metrics stay at the site"
        )
    if private != (reply.ledger is not None):
        raise WithheldError("a reply has the head of a privacy ledger where there is none to be, or lacks it")
    try:
        check_reply(reply, dict(expected), study.training_hash(), round_)
    except RunError as error:
        raise WithheldError(f"the reply {error}") from error
    return replace(reply, metrics=_permitted(study, reply.metrics, policy))


def check_words(study: Study | None, reply: TrainReply | Failure | SiteInfo | Statistics, site: str) -> None:
    """The only texts that leave: the study's hash, the site's name, a category."""
    if not re.fullmatch(SITE_NAME, site) or reply.site != site:
        raise WithheldError("an answer goes under a name that is not this site's")
    hashes = {"" if isinstance(reply, Failure) else None, study.training_hash() if study else None}
    if reply.study_hash not in hashes:
        raise WithheldError("an answer names another study than the one on this site's disk")
    if isinstance(reply, Failure) and reply.category not in CATEGORIES:
        raise WithheldError(f"a failure has a category that is none of {', '.join(CATEGORIES)}")


def _permitted(study: Study, metrics: Mapping[str, float], policy: Policy) -> dict[str, float]:
    sent: dict[str, float] = {}
    for name, value in metrics.items():
        base = known_metric(study, name)
        if base is None or type(value) not in (int, float):
            raise WithheldError(
                f"the reply has a metric that is not on the list, {name!r}: a method's own scalars are named in "
                "OUTGOING_METRICS (client/outgoing/metrics.py)"
            )
        if policy.metrics != "all" and base not in policy.metrics:
            continue
        if not math.isfinite(value) or abs(value) > OUTGOING_METRICS[base].most:
            logger.warning(f"metric {name} is not finite or beyond {OUTGOING_METRICS[base].most:g}, and is not sent")
            continue
        sent[name] = rounded(value)
    return sent
