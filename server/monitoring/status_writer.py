"""What a server knows of its run, kept in ``status.json``, which ``fedpretext status`` and the metrics read."""

import math
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

from pydantic import TypeAdapter, ValidationError

from federation.records import Failure, TrainReply, bytes_of
from foundation.errors import RunError
from foundation.files import read_json, write_json

STATUS = "status.json"
_EVERY_S = 1.0
_BEAT_S = 5.0
State = Literal["not asked", "in work", "answered", "failed"]
STATES: tuple[State, ...] = get_args(State)
TRAINING, PAUSED, FINISHED = "training", "paused", "finished"
STATISTICS = "estimating statistics"
_EARLIER = ("starting", "waiting for sites")
_LATER = (STATISTICS, "evaluating at the sites", "delivering the weights")
STAGES = (*_EARLIER, TRAINING, PAUSED, *_LATER, FINISHED)


@dataclass
class SiteStatus:
    """One site: whether it is there, what it was last asked, what it answered. Times in seconds since 1970."""

    online: bool = False
    seen: float = 0.0
    state: State = "not asked"
    asked: float = 0.0
    answered: float = 0.0
    round: int = 0
    reason: str = ""
    loss: float | None = None
    images: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0

    def waiting(self, now: float) -> float:
        """For how many seconds its answer has been waited for; 0 when it is not."""
        return max(0.0, now - self.asked) if self.state == "in work" else 0.0


@dataclass
class Status:
    """The whole status; ``phase`` is one line for a person, ``detail`` what it waits for or what is wrong.

    ``started``: when the study was first started; ``quorum``: sites that a round needs, 0 before it is known.
    """

    study: str
    study_hash: str
    rounds: int
    phase: str = "starting"
    detail: str = ""
    round: int = 0
    round_started: float = 0.0
    started: float = 0.0
    updated: float = 0.0
    quorum: int = 0
    round_seconds: list[float] = field(default_factory=list)
    metrics_port: int = 0
    sites: dict[str, SiteStatus] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The phase without the round's number, mostly one of ``STAGES``."""
        return TRAINING if self.phase.startswith("round ") else self.phase

    @property
    def mean_round(self) -> float | None:
        """Mean seconds of the last rounds, 20 at most; None before the first has ended."""
        return fmean(self.round_seconds) if self.round_seconds else None

    def late(self, now: float) -> set[str]:
        """Sites in work for more than twice the time of this round's slowest answer; before one, of a mean round."""
        answered = [site for site in self.sites.values() if site.state == "answered"]
        usual = max((site.answered - site.asked for site in answered), default=self.mean_round)
        if usual is None:
            return set()
        return {name for name, site in self.sites.items() if site.waiting(now) > 2 * usual}


class StatusWriter:
    """Writes the status at most once a second; a full disk leaves the old one, never stops the run.

    The server's program and its Flower app each have a writer of one file, and a server is started again: a writer goes
    on from what the file says, if it is of the same study.
    """

    def __init__(self, path: Path, study: str, study_hash: str, rounds: int) -> None:
        self._path = path
        self.status = Status(study, study_hash, rounds, started=time.time())
        self._written = float("-inf")
        self._round_begun = 0
        self._take_over()
        for site in self.status.sites.values():
            site.online = False
        self.phase("starting")

    def phase(self, phase: str, detail: str = "") -> None:
        """What the server does now; written at once when it changes."""
        self._take_over()
        changed = (phase, detail) != (self.status.phase, self.status.detail)
        self.status.phase, self.status.detail = phase, detail
        self._write(at_once=changed)

    def metrics_at(self, port: int) -> None:
        """Where the metrics are served; 0: nowhere."""
        self.status.metrics_port = port
        self._write(at_once=True)

    def needed(self, sites: int) -> None:
        """How many sites a round needs."""
        self.status.quorum = sites

    def round_started(self, round_: int, sites: Iterable[str]) -> None:
        """A round begins, or is tried again: nobody of ``sites`` has been asked yet."""
        now = time.time()
        if round_ != self._round_begun:
            if round_ == self._round_begun + 1 and self._round_begun:  # not one that a former server began
                self.status.round_seconds = [*self.status.round_seconds[-19:], now - self.status.round_started]
            self.status.round, self.status.round_started = round_, now
            self._round_begun = round_
        for name in sites:
            site = self._site(name)
            site.state, site.reason = "not asked", ""
        is_training = round_ <= self.status.rounds
        self.phase(f"round {round_} of {self.status.rounds}" if is_training else STATISTICS)

    def online(self, admitted: Sequence[str], online: Mapping[str, int]) -> None:
        """Who is admitted, and who is there now."""
        now = time.time()
        for name in set(self.status.sites) - set(admitted):
            del self.status.sites[name]
        for name in admitted:
            site = self._site(name)
            site.online = name in online
            site.seen = now if site.online else site.seen
        self._write()

    def sent(self, name: str, size: int) -> None:
        """A site was sent its instruction, of so many bytes; it is waited for from the first one on."""
        site = self._site(name)
        if site.state != "in work":
            site.state, site.asked, site.round = "in work", time.time(), self.status.round
        site.bytes_sent += size
        self._write()

    def answered(self, answer: TrainReply | Failure) -> None:
        """A site has answered."""
        site = self._site(answer.site)
        if isinstance(answer, Failure):
            if answer.category != "offline":
                site.state, site.reason, site.answered = "failed", answer.category, time.time()
        else:
            site.state, site.reason, site.answered = "answered", "", time.time()
            site.images = 0 if answer.ledger is not None else answer.images  # a private study tells no count
            loss = answer.metrics.get("loss")
            site.loss = loss if loss is not None and math.isfinite(loss) else None  # JSON has no NaN
            site.bytes_received += bytes_of(answer.weights.values())
        self._write(at_once=True)

    def _site(self, name: str) -> SiteStatus:
        return self.status.sites.setdefault(name, SiteStatus())

    def _take_over(self) -> None:
        """Go on from what another writer has written since."""
        with suppress(RunError, OSError):
            found = read_status(self._path)
            if found.study_hash == self.status.study_hash and found.updated > self.status.updated:
                self.status = found

    def _write(self, at_once: bool = False) -> None:
        if not at_once and time.monotonic() - self._written < _EVERY_S:
            return
        self._written = time.monotonic()
        self.status.updated = time.time()
        with suppress(RunError, OSError):
            write_json(self._path, asdict(self.status))


def read_status(path: Path) -> Status:
    """The status in ``status.json``; RunError when it is missing or damaged."""
    try:
        return _STATUS.validate_python(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RunError(
            f"{path}: is not what this version of the program writes ({where}: {first['msg']}); restart the server"
        ) from error


_STATUS = TypeAdapter(Status)


def latest_status(federation: Path) -> Path:
    """The newest ``status.json`` below a federation or run folder; RunError when no server ever ran there."""
    found = sorted(federation.rglob(STATUS), key=lambda path: path.stat().st_mtime)
    if not found:
        raise RunError(f"{federation}: no server has run here yet (there is no {STATUS}); start it: fedpretext server")
    read_status(found[-1])
    return found[-1]


@contextmanager
def heartbeat(path: Path) -> Iterator[None]:
    """While the block runs, renew the status file's time of change: a server that aggregates or pauses is not dead."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT_S):
            with suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def last_sign(path: Path, status: Status) -> float:
    """When the server last gave a sign of life: a written status, or a heartbeat."""
    return max(status.updated, path.stat().st_mtime)
