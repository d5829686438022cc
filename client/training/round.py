"""Local pretraining of one round: plain PyTorch, one loop for every method."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from client.privacy.rules import check_patients
from client.training.batches import BatchReader
from client.training.optimiser import build_optimiser, restore, set_rates, state_of
from federation.algorithms.algorithm import Algorithm
from federation.local_work import LocalWork, local_work
from federation.records import all_finite
from federation.study import Study
from federation.training_config import TrainingConfig
from foundation.errors import DataError, TrainingError
from foundation.progress import bar
from foundation.randomness import seeded_torch, torch_generator
from imaging.listing.partners import Partners
from imaging.store import TensorStore
from ssl_methods import method_class
from ssl_methods.diagnostics import feature_diagnostics
from ssl_methods.encoders.statistics import follow_batches
from ssl_methods.method import Batch, Method

_WATCHED = 16  # images: enough to see a collapse, and no more than a fifth of a step of 32
_CHECK_EVERY = 50  # steps between looks at the loss: each look makes a GPU wait


@dataclass(frozen=True)
class TrainingContext:
    """What all rounds of one site have in common: the study's model and algorithm, the site's images, the device."""

    study: Study
    method: Method
    algorithm: Algorithm
    store: TensorStore
    site: str
    device: torch.device


@dataclass(frozen=True)
class Learner:
    """What a step moves, and by which rules: the model, the algorithm with its penalty, the optimiser, the device."""

    method: Method
    algorithm: Algorithm
    optimiser: torch.optim.AdamW
    device: torch.device


@dataclass(frozen=True)
class RoundOutcome:
    """Scalars of a finished round; the weights are in the method."""

    metrics: dict[str, float]
    optimiser: dict[str, Tensor]


def check_site(study: Study, store: TensorStore) -> None:
    """Refuse images that the study's method cannot learn from; DataError with the remedy."""
    check_amount(study, len(store), len(set(store.patients.tolist())))
    relation = study.method.partner
    if relation is not None and Partners(store.table, relation).share() == 0:
        raise DataError(
            f"{study.method.name} needs a second image by {relation}, and no image of this site has one; choose "
            "another relation or method, or leave the site out"
        )


def check_amount(study: Study, images: int, patients: int) -> None:
    """DataError when a site has too few images or patients for the study's method, or too many for its delta."""
    if images < 2:
        raise DataError(f"this site has {images} image; pretraining needs at least 2, so leave the site out")
    fewest = method_class(study.method).fewest_patients
    if patients < fewest:
        raise DataError(
            f"this site has {patients} patient; {study.method.name} needs {fewest}, as images of one patient are "
            "not each other's negatives: choose mae or ijepa, or leave the site out"
        )
    check_patients(study, patients)


def train_round(context: TrainingContext, round_: int, optimiser_state: dict[str, Tensor]) -> RoundOutcome:
    """Train the method in place for one round of the study at one site.

    Every random choice comes from a generator of (study seed, purpose, site, round), every schedule from study
    progress, so the result depends on nothing else. What is read (order and partners), the views and the forward pass
    have generators of their own: each can be drawn ahead of the others. TrainingError when the loss is not finite.
    """
    study, method, store, site = context.study, context.method, context.store, context.site
    torch.set_num_threads(study.training.threads)
    work = local_work(study.training, len(store))
    reading, views = (torch_generator(study.seed, purpose, site, round_) for purpose in ("reading", "views"))
    method.to(context.device).train()
    optimiser = build_optimiser(method, study.training)
    restore(optimiser, method, optimiser_state, context.device)
    step = _Step(study.training, Learner(method, context.algorithm, optimiser, context.device), views)
    batches = _batches(store, BatchReader(store, method.config.partner, context.device), work, reading)
    started = time.perf_counter()
    named = study.training.batch * study.training.accumulate  # not what a small site has: all sites keep in step
    # Stochastic depth draws inside the forward pass and takes no generator.
    title = f"{site}, round {round_}/{study.rounds.count}"
    with bar(title, work.steps, "images") as line, seeded_torch(study.seed, "forward", site, round_):
        for number in range(work.steps):
            progress = (round_ - 1 + (number + 0.5) / work.steps) / study.rounds.count
            rate = set_rates(optimiser, study.training, method, progress, named)
            method.before_step(progress)
            if number < 2:  # what the round before left is forgotten
                follow_batches(method, anew=number == 0)
            step.take(batches)
            method.after_step(progress, work.batch * work.accumulate)
            line.advance(1, work.batch * work.accumulate)
            if number % _CHECK_EVERY == 0:
                step.totals.check(site, round_)
    step.totals.check(site, round_)
    check_weights(method, site, round_, "lower training.learning_rate or set training.clip")
    metrics = (
        step.totals.means()
        | feature_diagnostics_of(context, round_)
        | {
            "learning_rate": rate,
            "images_seen": float(work.images),
            "steps": float(work.steps),
            "seconds": time.perf_counter() - started,
        }
    )
    return RoundOutcome(metrics, state_of(optimiser, method))


class _Step:
    """One optimiser step: gradients of ``accumulate`` batches, the algorithm's penalty, clipping."""

    def __init__(self, training: TrainingConfig, learner: Learner, generator: torch.Generator) -> None:
        self.totals, method = _Totals(), learner.method
        self._training, self._method, self._algorithm = training, method, learner.algorithm
        self._optimiser, self._generator, self._device = learner.optimiser, generator, learner.device
        self._loss = torch.compile(method.loss) if training.compile else method.loss
        self._shared = shared_parameters(method)
        self._received = {name: p.detach().clone() for name, p in self._shared.items()}

    def take(self, batches: Iterator[Batch]) -> None:
        """Read as many batches as the study accumulates and move the weights once."""
        for _ in range(self._training.accumulate):
            views = self._method.make_views(next(batches), self._generator)
            with _autocast(self._training, self._device):
                loss, scalars = self._loss(views)
            penalty = self._algorithm.penalty(self._shared, self._received)
            total = loss if penalty is None else loss + penalty
            torch.autograd.backward(total / self._training.accumulate)
            self.totals.add(loss, scalars)
        if self._training.clip is not None:
            nn.utils.clip_grad_norm_(self._method.parameters(), self._training.clip)
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)


class _Totals:
    """Sums of the loss and the method's scalars, kept on the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, loss: Tensor, scalars: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in {"loss": loss, **scalars}.items():
            value = value.detach().double() if value.device.type != "mps" else value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def check(self, site: str, round_: int) -> None:
        if not bool(torch.isfinite(self._sums["loss"])):
            raise TrainingError(
                f"site {site}, round {round_}: the loss is not finite; lower training.learning_rate, set training.clip "
                "or look for broken images"
            )

    def means(self) -> dict[str, float]:
        return {name: float(value) / self._count for name, value in self._sums.items()}


def feature_diagnostics_of(context: TrainingContext, round_: int) -> dict[str, float]:
    """The features of some of the site's images, the same ones in every round."""
    study, store, site = context.study, context.store, context.site
    chosen = torch.randperm(len(store), generator=torch_generator(study.seed, "watched", site))[:_WATCHED]
    with _autocast(study.training, context.device):
        return feature_diagnostics(
            context.method,
            store.batch(chosen.sort().values.numpy()).to(context.device),
            torch_generator(study.seed, "watch", site, round_),
        )


def check_weights(method: Method, site: str, round_: int, remedy: str) -> None:
    """TrainingError where weights are not finite.

    A last step can break the weights after its loss was seen; kept moments would then spoil every later round.
    """
    if not all(all_finite(p.detach()) for p in method.parameters()):
        raise TrainingError(f"site {site}, round {round_}: the weights are not finite after the last step; {remedy}")


def _batches(store: TensorStore, reader: BatchReader, work: LocalWork, generator: torch.Generator) -> Iterator[Batch]:
    """Batches without end: every pass a fresh order, whole batches only, so that no batch holds an image twice."""
    while True:
        order = torch.randperm(len(store), generator=generator)
        for start in range(0, len(store) - work.batch + 1, work.batch):
            yield reader.read(order[start : start + work.batch], generator)


def shared_parameters(method: Method) -> dict[str, nn.Parameter]:
    """What an algorithm's penalty may look at: shared parameters that are trained, by name."""
    return {name: p for name, p in method.named_parameters() if p.requires_grad and method.role_of(name) == "shared"}


def _autocast(training: TrainingConfig, device: torch.device) -> AbstractContextManager[object]:
    if training.precision == "float32" or (training.precision == "auto" and device.type != "cuda"):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
