"""What a study would take at this site: whether it accepts the images, space, bytes, and hours a round."""

import math
import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.approval_page import state_bytes
from client.policy import Policy, check_images, check_study, check_work
from client.privacy.approval_lines import private_findings, private_rows
from client.privacy.rules import check_patients, expected_step
from client.training.batches import BatchReader
from client.training.round import check_site
from federation.local_work import LocalWork, local_work
from federation.privacy.config import PatientPrivacyConfig
from federation.privacy.noise import noised
from federation.records import bytes_of
from federation.study import Study
from foundation.errors import DataError, FedpretextError
from foundation.machine import DeviceName, choose_device
from foundation.randomness import seeded_torch, torch_generator
from foundation.wording import counted, mebibytes
from imaging.inspection.finding import Finding, Table
from imaging.listing.manifest import Manifest, slices
from imaging.reading.readers import prepare
from imaging.store import TensorStore
from ssl_methods import build_method
from ssl_methods.method import Method
from ssl_methods.per_sample.sample_gradients import clipped_sum

_SECONDS = 6.0  # to spend on timing steps, once the first is done
_FIRST_BATCH = 4
_STEPS = 3
_SAMPLE = 32  # images decoded for it


@dataclass(frozen=True)
class Needs:
    """Bytes that a study takes at a site: decoded images and state on disk, memory but for activations, traffic."""

    store: int
    state: int
    memory: int
    shared: int


def needs_of(study: Study, method: Method, images: int) -> Needs:
    """As the tensor store, the site's state and ``fedpretext validate`` count them."""
    trained = bytes_of(p for p in method.parameters() if p.requires_grad)
    batch = local_work(study.training, images).batch * math.prod(study.image.shape) * 4
    return Needs(
        store=2 * images * math.prod(study.image.shape),
        state=state_bytes(method),
        memory=4 * trained + bytes_of(method.local_state().values()) + batch,
        shared=bytes_of(method.shared_state().values()),
    )


@dataclass(frozen=True)
class StudyCheck:
    """What there is to say of one study at this site."""

    findings: list[Finding]
    table: Table
    needs: Needs | None


def study_check(
    study: Study, usable: Manifest, policy: Policy | None, device: DeviceName, ledger: Path | None
) -> StudyCheck:
    """Ask the study's own rules and the site's policy, then time a few steps on some of the images.

    usable: the site's images that can be read. ledger: the site's privacy ledger, where its site file names one.
    """
    found = [] if policy is None else list(_permitted(study, policy))
    found += _enough(study, usable, policy)
    count = len(usable)
    rows = [("study", study.name), ("training hash", study.training_hash()[:16])]
    if study.privacy is not None:
        found += private_findings(study, policy, ledger)
        rows += private_rows(study, ledger)
    if len(usable) < 2:
        return StudyCheck(found, Table("Study", "study", ("", ""), tuple(rows)), None)
    method = build_method(study.method, study.encoder, study.image, study.seed)
    work, needs = local_work(study.training, count), needs_of(study, method, count)
    rows += [
        ("a round here", f"{counted(work.steps, 'step')} of {_step_here(study, usable, work)}"),
        ("sent in a round", f"{mebibytes(needs.shared)} MiB here and as much back"),
        ("decoded images", f"{_size(needs.store)} on disk"),
        ("state", f"up to {_size(needs.state)} on disk"),
        ("memory", f"{_size(needs.memory)} and more for activations"),
    ]
    try:
        seconds, timed = time_step(study, method, usable, choose_device(device))
    except torch.OutOfMemoryError:
        found.append(_does_not_fit(work.batch))
    except FedpretextError as error:
        if not any(finding.level == "error" for finding in found):
            found.append(_answer("no training step", error))
    else:
        each = _images_a_step(study, usable, work)
        hours = seconds / timed * each * work.steps / 3600
        timing = f"{seconds / timed:.2g} s an image, timed with {timed} a step"
        about = "about" if timed == work.batch else "at most"  # a step's fixed cost was counted more than once
        rows += [
            ("time a round", f"{about} {_duration(hours)} ({timing})"),
            ("time of the study", f"{about} {_duration(hours * study.rounds.count)} for {study.rounds.count:,} rounds"),
        ]
        found += _late(study, hours)
    return StudyCheck(found, Table("Study", "study", ("", ""), tuple(rows)), needs)


def _images_a_step(study: Study, usable: Manifest, work: LocalWork) -> float:
    """Images of a step here: the batches, or of drawn patients what is expected."""
    expected = expected_step(study, usable.images_each())
    return work.batch * work.accumulate if expected is None else expected


def _step_here(study: Study, usable: Manifest, work: LocalWork) -> str:
    if isinstance(study.privacy, PatientPrivacyConfig):
        return f"about {_images_a_step(study, usable, work):,.1f} images, of patients drawn at random"
    return f"{work.batch} x {work.accumulate} images"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"


def _permitted(study: Study, policy: Policy) -> Iterator[Finding]:
    """What this site's policy has against the study as such, were it approved."""
    try:
        check_study(policy, study, {study.training_hash()})
    except FedpretextError as error:
        yield _answer("policy on the study", error)


def _enough(study: Study, usable: Manifest, policy: Policy | None) -> Iterator[Finding]:
    """What the study's method and the site's policy have against these images, a finding each."""
    patients = usable.patients()
    rules: dict[str, Callable[[], None]] = {"not accepted": lambda: check_site(study, _store_of(usable))}
    if patients is None:
        rules["whose images"] = lambda: check_patients(study, patients)
    if policy is not None:
        rules["policy on images"] = lambda: check_images(policy, len(usable), patients)
        rules["policy on work"] = lambda: check_work(policy, study, usable.images_each() or [1])
    for kind, rule in rules.items():
        try:
            rule()
        except FedpretextError as error:
            yield _answer(kind, error)


def _answer(kind: str, error: FedpretextError) -> Finding:
    """An error's line as a finding: such a line is what is wrong, then what to do."""
    parts = re.split(r"; |: (?=\w+ )", str(error), maxsplit=1)
    return Finding("error", "study", kind, parts[0], parts[1] if len(parts) > 1 else "")


def _does_not_fit(batch: int) -> Finding:
    return Finding(
        "error",
        "study",
        "out of memory",
        f"a step of {counted(batch, 'image')} does not fit into this machine's memory",
        "end what else uses the GPU, or take a larger one: a site cannot change the study's batch",
    )


def _late(study: Study, hours: float) -> Iterator[Finding]:
    deadline = study.rounds.deadline_minutes / 60
    if hours > deadline:
        yield Finding(
            "warning",
            "study",
            "too slow",
            f"a round may take {_duration(hours)} here, and the server waits {_duration(deadline)}",
            "use a faster machine, or ask the study lead for a longer deadline or fewer steps",
        )


def _duration(hours: float) -> str:
    """``2.5 hours``, ``12 minutes``, ``40 seconds``."""
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{hours * 60:.0f} minutes" if hours * 60 >= 1.5 else counted(max(1, round(hours * 3600)), "second")


def _store_of(usable: Manifest) -> TensorStore:
    """The site's images as the tensor store numbers them, without any pixels."""
    singletons = np.arange(len(usable), dtype=np.int64)
    studies, series = (usable.codes(name) if name in usable.table else singletons for name in ("study", "series"))
    return TensorStore(Path(), usable.table, singletons, usable.codes("patient"), studies, series)


@dataclass(frozen=True, eq=False, kw_only=True)
class _Rehearsal(TensorStore):
    """All images of the site by number, but the pixels of a few in turn, in memory: a check writes none to disk."""

    pixels: Tensor

    def stored(self, indices: npt.ArrayLike | Tensor) -> Tensor:
        chosen = torch.as_tensor(np.asarray(indices, dtype=np.int64)) % len(self.pixels)
        return self.pixels[chosen]


def _rehearsal(usable: Manifest, study: Study) -> _Rehearsal:
    paths, frames, images = usable.paths(), slices(usable), []
    wanted = study.image.at_once(_SAMPLE)
    for row in np.unique(np.linspace(0, len(usable) - 1, wanted).round().astype(int)):
        try:
            images.append(torch.from_numpy(prepare(paths[row], study.image, frames[row])))
        except DataError:
            continue  # told of with the images
    if not images:
        raise DataError("none of the images can be made into what the study asks for; see what is said of them")
    whole = _store_of(usable)
    known = {name: getattr(whole, name) for name in ("folder", "table", "slots", "patients", "studies", "series")}
    return _Rehearsal(**known, pixels=torch.stack(images))


def time_step(study: Study, method: Method, usable: Manifest, device: torch.device) -> tuple[float, int]:
    """Seconds of one real step of the study's method, and its images; ``method`` is trained by it.

    A batch too large for that is timed with fewer images than the study's. Views, loss and backward are the study's;
    reading the store and compiling are not counted. DataError where no image can be used.
    """
    store, batch = _rehearsal(usable, study), local_work(study.training, len(usable)).batch
    with _threads(study.training.threads), seeded_torch(study.seed, "check"):
        step = _step_of(study, method.to(device).train(), store, device)
        images = min(_FIRST_BATCH, batch)
        step(images)  # the first one also sets up the device
        started, seconds = time.perf_counter(), step(images)
        # A step has a fixed cost, so that few images say little: the batch grows while that takes a few seconds.
        while images < batch and time.perf_counter() - started + 2 * seconds < _SECONDS:
            images = min(2 * images, batch)
            seconds = step(images)
        if time.perf_counter() - started + _STEPS * seconds < _SECONDS:
            seconds = statistics.median(step(images) for _ in range(_STEPS))
        return seconds, images


def _step_of(study: Study, method: Method, store: TensorStore, device: torch.device) -> Callable[[int], float]:
    """The function ``images a batch -> seconds``."""
    training, generator = study.training, torch_generator(study.seed, "check")
    reader = BatchReader(store, method.config.partner, device)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-6)
    half = training.precision == "bf16" or (training.precision == "auto" and device.type == "cuda")

    def step(images: int) -> float:
        chosen = torch.randperm(len(store), generator=generator)[:images]
        started = time.perf_counter()
        method.before_step(0.0)
        views = method.make_views(reader.read(chosen, generator), generator)
        if isinstance(study.privacy, PatientPrivacyConfig):
            singletons = torch.arange(images, device=device)  # as if each were another patient's
            clipped = clipped_sum(method, views, singletons, images, study.privacy.clip).gradients
            for name, parameter in method.named_parameters():
                parameter.grad = noised(clipped[name], study.privacy.clip) if name in clipped else None
        else:
            with torch.autocast(device.type, dtype=torch.bfloat16) if half else nullcontext():
                loss, _ = method.loss(views)
            torch.autograd.backward(loss)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        method.after_step(0.0, images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    return step


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute with so many threads, as the study says, then as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
