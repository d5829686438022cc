"""What a hospital permits, whatever a study or a server asks for: the ``policy`` section of the site file."""

import re
import time
from collections.abc import Callable, Collection
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from client.privacy.rules import work_of_round
from foundation.configuration.section import Section
from foundation.errors import DataError, FedpretextError, StudyError, nearest
from foundation.messages import logger

if TYPE_CHECKING:
    from federation.study import Study

# The methods take seconds to import, and who reads a log or a status asks a site file for its places only: so they are
# imported where a policy names some.


class LabelsNotPermittedError(FedpretextError):
    """This site's policy does not permit what was asked about its labels."""


_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WEEK = len(_DAYS) * 24 * 60  # minutes
_SPAN = re.compile(r"(?:([a-z]{3})(?:-([a-z]{3}))? )?(\d\d):(\d\d)-(\d\d):(\d\d)")
_PREFIX = re.compile(r"[0-9a-f]{12,64}")


def _studies(given: Any) -> Any:
    if isinstance(given, str) and given in ("approved", "any"):
        return given
    if isinstance(given, str):
        known = ("approved", "any")
        raise ValueError(f"neither approved, any nor a list of training hashes{nearest(given, known)}")
    for entry in given if isinstance(given, list | tuple) else [given]:
        if not isinstance(entry, str):
            raise ValueError(f"{entry!r} is no text: write a training hash in quotes, in a list")
        if not _PREFIX.fullmatch(entry):
            raise ValueError(f"{entry!r} is no training hash: give at least its first 12 hex digits, in small letters")
    return given


def _methods(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    from ssl_methods import METHODS

    for name in names or ():
        if name not in METHODS:
            raise ValueError(f"method {name!r} is not known{nearest(name, METHODS)}; `fedpretext methods` lists them")
    return names


def _encoders(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    from ssl_methods.encoders.table import encoder_kind

    for name in names or ():
        try:
            encoder_kind(name)
        except StudyError as error:
            raise ValueError(str(error)) from error
    return names


def _metrics(given: Any) -> Any:
    if isinstance(given, str) and given != "all":
        raise ValueError(f"neither all nor a list of metric names{nearest(given, ['all'])}")
    from client.outgoing.metrics import OUTGOING_METRICS

    for name in given if isinstance(given, list | tuple) else ():
        if name not in OUTGOING_METRICS:
            close = nearest(str(name), OUTGOING_METRICS)
            raise ValueError(f"metric {name!r} is not known{close}; there are: {', '.join(OUTGOING_METRICS)}")
    return given


def _quiet(spans: tuple[str, ...]) -> tuple[str, ...]:
    if len(quiet_minutes(spans)) == _WEEK:
        raise ValueError("cover the whole week, so that no round would ever start: leave some time, or leave the study")
    return spans


class PrivacyBudget(Section):
    """The most that all studies together may cost a patient of a pool."""

    epsilon: float = Field(gt=0, le=1000, description="Epsilon of everything in the ledger, at `delta`.")
    delta: float = Field(
        default=1e-5,
        gt=0,
        lt=0.01,
        description="The probability that epsilon does not hold; at most 1 / (10 x patients) of the pool.",
    )


class Policy(Section):
    """What this hospital permits. Checked at the site before every round, and no server can change it."""

    studies: Annotated[str | tuple[str, ...], BeforeValidator(_studies)] = Field(
        default="approved",
        description="approved: studies whose approval was recorded here by `fedpretext site approve`, each exactly as "
        "it was read; a list of training hashes (12 hex digits or more of each): these alone; any: every study, for "
        "simulation. Whatever is set, a deployed site takes the study itself from the recorded approval.",
    )
    methods: Annotated[tuple[str, ...] | None, AfterValidator(_methods)] = Field(
        default=None,
        description="Methods that may be trained (of a sum `combine` and every member); null: all, as an approval "
        "names the study's one.",
    )
    encoders: Annotated[tuple[str, ...] | None, AfterValidator(_encoders)] = Field(
        default=None, description="Encoders that may be trained; null: all, as an approval names the study's one."
    )
    min_images: int = Field(default=5, ge=1, description="Fewer usable images than this are not trained on.")
    min_patients: int = Field(
        default=5,
        ge=1,
        description="Images of fewer patients than this are not trained on: what is learnt from a handful of people "
        "can be traced to them. Above 1 a manifest without patients is refused.",
    )
    max_rounds: int | None = Field(
        default=None,
        ge=1,
        description="Rounds that a study may have, and that this site trains of it in all, rounds asked for again from "
        "other weights (after a server's crash) included; null: as many as the approved study has, each as often as "
        "it is asked for.",
    )
    max_epochs_per_round: float | None = Field(
        default=None,
        gt=0,
        description="Passes over this site's images in one round, steps converted; null: as the approved study says.",
    )
    require_privacy: bool = Field(
        default=False,
        description="Refuse studies without a `privacy` section, which promise nothing about patients.",
    )
    privacy_budget: PrivacyBudget | None = Field(
        default=None,
        description="What all studies together may cost a patient of this pool, by the site file's ledger: "
        "{epsilon: 8, delta: 1.0e-5}; a round that would cost more is not begun. null: no bound.",
    )
    metrics: Annotated[Literal["all"] | tuple[str, ...], BeforeValidator(_metrics)] = Field(
        default="all",
        description="Numbers about a round that may leave, by name (of a sum every member's of that name); all: those "
        "of client/outgoing/metrics.py. Each has six digits and is about many images together.",
    )
    smallest_count: int = Field(
        default=5,
        ge=1,
        description="Fewer images than this are reported as this number; what would give the count away is not sent "
        "(steps, images_seen, shares of a batch, counters of BatchNorm). FedAvg then weights the site by this "
        "number. 1: every count is reported.",
    )
    allow_label_statistics: bool = Field(
        default=False,
        description="Take part in a study's federated evaluation: sums over labelled images and figures of test "
        "patients leave after the last round, of classes that at least smallest_count patients have. false: this site "
        "trains, and says that it does not take part in the evaluation.",
    )
    allow_score_histogram: bool = Field(
        default=False,
        description="Where a study asks for it, also tell how the probe's scores are spread in 100 bins, by class, "
        "bins of fewer than smallest_count images merged.",
    )
    min_secure_sites: int = Field(
        default=3,
        ge=3,
        description="With secure aggregation: fewer sites than this are not summed with. A server that breaks the "
        "protocol names few sites, as of few it needs few accomplices; set it near the number of sites you know of.",
    )
    quiet_hours: Annotated[tuple[str, ...], AfterValidator(_quiet)] = Field(
        default=(),
        description="No round is started in these times of this machine's clock; one in work is finished. "
        '"22:00-06:00" every day, "mon-fri 07:30-18:00" on those (past midnight: of the evening\'s day).',
    )


def check_study(policy: Policy, study: "Study", approvals: Collection[str]) -> None:
    """StudyError where the policy does not permit the study; ``approvals``: training hashes approved at this site."""
    _check_permission(policy, study, approvals)
    for method in (study.method, *study.method.members().values()):
        _among(method.name, policy.methods, "method", "methods", study)
    _among(study.encoder.name, policy.encoders, "encoder", "encoders", study)
    rounds, epochs = study.rounds.count, study.training.epochs
    if policy.max_rounds is not None and rounds > policy.max_rounds:
        raise StudyError(
            f"study {study.name} has {rounds} rounds, and this site's policy.max_rounds is {policy.max_rounds}: raise "
            "it, or ask for a shorter study"
        )
    if epochs is not None:
        _check_epochs(policy, study, epochs)
    if policy.require_privacy and study.privacy is None:
        raise StudyError(
            f"study {study.name} has no `privacy` section, and this site's policy.require_privacy is true: ask for a "
            "private study, or set it to false"
        )


def _check_permission(policy: Policy, study: "Study", approvals: Collection[str]) -> None:
    own = study.training_hash()
    if policy.studies == "approved" and own not in approvals:
        raise StudyError(
            f"study {study.name} ({own[:12]}) has no approval at this site, and policy.studies is approved: read and "
            "approve it with `fedpretext site approve STUDY`"
        )
    if isinstance(policy.studies, tuple) and not is_listed(policy, own):
        raise StudyError(
            f"study {study.name} ({own[:12]}) is none of the {len(policy.studies)} in this site's policy.studies: add "
            f"'{own[:12]}' there, or stay out"
        )


def is_listed(policy: Policy, training_hash: str) -> bool:
    """Whether the policy names this very study, which then needs no approval by a person."""
    return isinstance(policy.studies, tuple) and training_hash.startswith(policy.studies)


def _among(name: str, permitted: tuple[str, ...] | None, what: str, key: str, study: "Study") -> None:
    if permitted is not None and name not in permitted:
        raise StudyError(
            f"study {study.name} trains the {what} {name}, and this site's policy.{key} has "
            f"{', '.join(permitted) or 'none'}: add it there, or stay out"
        )


def check_label_statistics(policy: Policy, histogram: bool) -> None:
    """LabelsNotPermittedError where what is asked about labels is not permitted."""
    if not policy.allow_label_statistics:
        raise LabelsNotPermittedError(
            "this site's policy.allow_label_statistics is false, so that it takes no part in the evaluation: set it to "
            "true, or stay out"
        )
    if histogram and not policy.allow_score_histogram:
        raise LabelsNotPermittedError(
            "this site's policy.allow_score_histogram is false: set it to true, or tell figures only"
        )


def check_work(policy: Policy, study: "Study", images: Collection[int]) -> None:
    """StudyError where a round passes over a site's images more often than the policy permits.

    ``images``: how many each of the site's patients has, of all together one at least.
    """
    _check_epochs(policy, study, work_of_round(study, images)[1] / sum(images))


def _check_epochs(policy: Policy, study: "Study", epochs: float) -> None:
    most = policy.max_epochs_per_round
    if most is not None and epochs > most:
        raise StudyError(
            f"study {study.name} passes {epochs:.4g} times over this site's images in a round, and "
            f"policy.max_epochs_per_round is {most:g}: raise it, or ask for less local work"
        )


def check_trained(policy: Policy, study: "Study", trained: int) -> None:
    """StudyError where this site has ``trained`` as many rounds of the study as the policy permits."""
    if policy.max_rounds is not None and trained >= policy.max_rounds:
        raise StudyError(
            f"this site has trained {trained} rounds of study {study.name}, repeats from other weights counted, and "
            f"policy.max_rounds is {policy.max_rounds}: raise it, or ask why rounds are repeated"
        )


def check_images(policy: Policy, images: int, patients: int | None) -> None:
    """DataError where a site has too few; ``patients`` None: the manifest does not say whose images they are."""
    if images < policy.min_images:
        raise DataError(
            f"this site has {images} usable images, and its policy.min_images is {policy.min_images}: add "
            "images, or lower it"
        )
    if patients is None and policy.min_patients > 1:
        raise DataError(
            f"this site's images do not say whose they are, and its policy.min_patients is {policy.min_patients}: "
            "list them in a manifest with a `patient` column, or set it to 1"
        )
    if patients is not None and patients < policy.min_patients:
        raise DataError(
            f"this site has images of {patients} patients, and its policy.min_patients is {policy.min_patients}: add "
            "patients, or lower it"
        )


@lru_cache(maxsize=16)
def quiet_minutes(spans: tuple[str, ...]) -> frozenset[int]:
    """Minutes of the week, from Monday 00:00, that the spans cover; ValueError for a span that is not one."""
    return frozenset(minute for span in spans for minute in _minutes_of(span))


def _minutes_of(span: str) -> list[int]:
    found = _SPAN.fullmatch(span.lower())
    if found is None:
        raise ValueError(f"{span!r} is no span of time: write '22:00-06:00' or 'mon-fri 07:30-18:00'")
    first, last = found[1] or _DAYS[0], found[2] or found[1] or _DAYS[-1]
    if not {first, last} <= set(_DAYS):
        raise ValueError(f"{span!r} names a day that is none of {', '.join(_DAYS)}")
    start, end = int(found[3]) * 60 + int(found[4]), int(found[5]) * 60 + int(found[6])
    if start >= 24 * 60 or end > 24 * 60 or max(int(found[4]), int(found[6])) > 59 or start == end:
        raise ValueError(f"{span!r} is no span of time: from 00:00 to 24:00, and its ends differ")
    length = (end - start) % (24 * 60) or 24 * 60
    days = (_DAYS.index(last) - _DAYS.index(first)) % len(_DAYS) + 1
    begins = [(_DAYS.index(first) + day) * 24 * 60 + start for day in range(days)]
    return [(begin + minute) % _WEEK for begin in begins for minute in range(length)]


def wait_for_quiet_hours(
    policy: Policy, now: Callable[[], datetime] = datetime.now, sleep: Callable[[float], None] = time.sleep
) -> None:
    """Return at once, or when the quiet hours are over; the clock is read every minute, so that it may be changed."""
    quiet, announced = quiet_minutes(policy.quiet_hours), False
    while _minute_of_week(moment := now()) in quiet:
        if not announced:
            logger.info("policy.quiet_hours: the round is held until they end")
            announced = True
        sleep(60 - moment.second)


def _minute_of_week(moment: datetime) -> int:
    return (moment.weekday() * 24 + moment.hour) * 60 + moment.minute
