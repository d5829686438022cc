"""The distinguishing game of an empirical privacy audit: the real private step, with and without one known patient.

The adversary knows everything but whether one patient (the canary) takes part: the study, the others' images, the
canary's gradient, and every noised gradient that the site computes (more than the site sends). A run is the whole of a
small study: ``client.privacy.step`` as it is, over a loss that is linear in the weights, so that every gradient is
known in advance. The canary's is along an axis of its own and far longer than the clip; the others' are small and at
right angles to it.

(epsilon, delta) promises for every event S, P[S | in] <= e^epsilon P[S | out] + delta, and the other way round. Some
runs choose S (a statistic, a side, a threshold); the others, which had no part in the choice, bound its two
probabilities (Clopper and Pearson 1934), and with them epsilon from below: log((low - delta) / high) at the confidence
of both bounds together. Nothing is assumed of the noise (Jagielski, Ullman and Oprea 2020; Nasr et al. 2021).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import Tensor, nn

import client.privacy.step
from client.privacy.step import PrivateStep
from client.training.round import Learner
from federation.algorithms import build_algorithm
from federation.algorithms.fedavg import FedAvgConfig
from federation.privacy import noise
from federation.privacy.accounting import Release, epsilon_of, noise_for
from federation.privacy.config import PatientPrivacyConfig
from imaging.config import ImageConfig
from imaging.store import TensorStore
from ssl_methods.method import Batch, Draws, Method, Views
from ssl_methods.method_config import MethodConfig
from ssl_methods.per_sample.sample_gradients import ClippedSum, clipped_sum
from ssl_methods.table import Family, Role

Figures = NDArray[np.float64]

CONFIDENCE = 0.95
_WIDTH = 16  # numbers of an image and so of a gradient; the first of them is the canary's alone
_SMALL = 0.05  # length of the others' gradients
_LARGE = 10.0  # length of the canary's, before it is clipped to 1
_OF_CANARY = 8  # images


@dataclass(frozen=True)
class Setting:
    """A small study; ``sigma`` follows from what it promises. All patients but the canary have one image each."""

    epsilon: float
    patients_per_step: int
    steps: int
    patients: int = 10
    delta: float = 5e-3

    @property
    def privacy(self) -> PatientPrivacyConfig:
        """As a study would say it."""
        own = {"patients": self.patients, "patients_per_step": self.patients_per_step}
        return PatientPrivacyConfig.model_validate(
            {"epsilon": self.epsilon, "delta": self.delta, "images_per_patient": _OF_CANARY, **own}
        )

    @property
    def sigma(self) -> float:
        """Noise multiplier."""
        return noise_for(self.epsilon, self.delta, self.privacy.rate, self.steps)

    @property
    def claimed(self) -> float:
        """Epsilon that the accountant gives."""
        return epsilon_of([Release("gaussian", self.sigma, self.privacy.rate, self.steps)], self.delta)


WHOLE = Setting(epsilon=3.0, patients_per_step=10, steps=1)
"""Every patient takes part in the one step: where a run says most."""
SAMPLED = Setting(epsilon=1.5, patients_per_step=2, steps=8)
"""A fifth of the patients in each of eight steps: where fresh noise matters."""
RARE = Setting(epsilon=1.5, patients_per_step=1, steps=6)
"""A tenth of the patients in each of six steps: where the accountant relies most on sampling."""


class Linear(Method):
    """The loss of an image is its product with the weights, and its gradient so the image itself."""

    Config: ClassVar[type[MethodConfig]] = MethodConfig
    summary = paper = "for audits"
    family: ClassVar[Family] = "predictive"
    per_sample: ClassVar[bool] = True
    encoders = ("vit",)
    parts: ClassVar[dict[str, Role]] = {"encoder": "shared"}

    def __init__(self, width: int = _WIDTH) -> None:
        image = ImageConfig(modality="mri", size=32, channels=1)
        super().__init__(MethodConfig(), nn.Linear(width, 1, bias=False), image)

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Nothing."""
        return {}

    def views_from(self, batch: Batch, draws: Draws) -> Views:
        """The images as they are."""
        return {"x": batch.images.flatten(1)}

    def image_losses(self, views: Views) -> Tensor:
        """Products with the weights."""
        products: Tensor = self.encoder(views["x"])
        return products[:, 0]

    def loss(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Their mean."""
        return self.image_losses(views).mean(), {}


class Images(TensorStore):
    """A store in memory."""

    def __init__(self, images: Tensor, patients: list[int]) -> None:
        codes, singletons = np.asarray(patients, dtype=np.int64), np.arange(len(patients))
        super().__init__(Path(), cast(Any, None), singletons, codes, singletons, singletons)
        object.__setattr__(self, "images", images)

    def stored(self, indices: Any) -> Tensor:
        """Those images."""
        chosen: Tensor = self.__dict__["images"][torch.as_tensor(np.asarray(indices))]
        return chosen


class Seen:
    """In an optimiser's place: the adversary, who sees every noised gradient."""

    def __init__(self, weight: Tensor) -> None:
        self._weight = weight
        self.gradients: list[Figures] = []

    def step(self) -> None:
        """Keep the gradient."""
        assert self._weight.grad is not None
        self.gradients.append(self._weight.grad[0].double().numpy().copy())

    def zero_grad(self, set_to_none: bool) -> None:
        """Drop the gradient."""
        self._weight.grad = None


def store_of(setting: Setting, canary: bool, axis: Tensor) -> Images:
    """The canary's eight images along ``axis`` (of length 1), where it takes part, and one of each of the others."""
    others = torch.randn(setting.patients - 1, len(axis), generator=torch.Generator().manual_seed(1))
    others -= (others @ axis)[:, None] * axis
    others *= _SMALL / others.norm(dim=1, keepdim=True)
    own = (_LARGE * axis).repeat(_OF_CANARY if canary else 0, 1)
    codes = [0] * len(own) + list(range(1, setting.patients))
    return Images(torch.cat([own, others]).reshape(len(codes), 1, 1, -1), codes)


def play(setting: Setting, canary: bool, runs: int) -> Figures:
    """What the adversary sees along the canary's axis, ``[runs, steps]``, in lengths of the clip."""
    method, algorithm = Linear(), build_algorithm(FedAvgConfig())
    store, privacy, sigma = store_of(setting, canary, torch.eye(_WIDTH)[0]), setting.privacy, setting.sigma
    weight = cast(nn.Linear, method.encoder).weight
    found = []
    for _ in range(runs):
        seen = Seen(weight)
        learner = Learner(method, algorithm, cast(Any, seen), torch.device("cpu"))
        step = PrivateStep(learner, store, privacy, sigma, 64)
        for _ in range(setting.steps):
            step.take()
        found.append([gradient[0] for gradient in seen.gradients])
    return np.asarray(found) * setting.patients_per_step / privacy.clip


@contextmanager
def noise_too_small() -> Iterator[None]:
    """A quarter of the noise that was accounted for."""
    noised = noise.noised
    with mock.patch.object(noise, "noised", lambda total, std: noised(total, std / 4)):
        yield


@contextmanager
def no_clipping() -> Iterator[None]:
    """Gradients as long as they are."""

    def unclipped(method: Method, views: Views, groups: Tensor, count: int, clip: float) -> ClippedSum:
        return clipped_sum(method, views, groups, count, 1e6)

    with mock.patch.object(client.privacy.step, "clipped_sum", unclipped):
        yield


@contextmanager
def clipped_by_image() -> Iterator[None]:
    """Each image's gradient is clipped, not each patient's: what comes of training code that knows no patients."""

    def by_image(method: Method, views: Views, groups: Tensor, count: int, clip: float) -> ClippedSum:
        return clipped_sum(method, views, torch.arange(len(groups)), len(groups), clip)

    with mock.patch.object(client.privacy.step, "clipped_sum", by_image):
        yield


@contextmanager
def noise_used_again() -> Iterator[None]:
    """Every step of a run has the same noise, from a seed that the run drew once."""
    seeds: dict[int, int] = {}
    take = PrivateStep.take

    def taken(step: PrivateStep) -> None:
        seed = seeds.setdefault(id(step), int(torch.randint(2**31, ())))
        generator = torch.Generator().manual_seed(seed)

        def again(total: Tensor, std: float) -> Tensor:
            return total + std * torch.randn(total.shape, generator=generator)

        with mock.patch.object(noise, "noised", again):
            take(step)

    with mock.patch.object(PrivateStep, "take", taken):
        yield


@contextmanager
def sampled_more_often() -> Iterator[None]:
    """Patients take part in every step, whatever rate the accountant was told."""
    sample = noise.poisson_sample
    with mock.patch.object(noise, "poisson_sample", lambda count, rate: sample(count, 1.0)):
        yield


FAULTS: dict[str, tuple[Callable[[], AbstractContextManager[None]], Setting]] = {
    "noise / 4": (noise_too_small, WHOLE),
    "clipping off": (no_clipping, WHOLE),
    "clipped by image": (clipped_by_image, WHOLE),
    "noise used again": (noise_used_again, SAMPLED),
    "rate understated": (sampled_more_often, RARE),
}
"""Planted faults, and the setting in which each shows."""


def likelihood(setting: Setting) -> Callable[[Figures], Figures]:
    """The logarithm of the likelihood ratio of a run, in against out: the best test there is of what was promised."""
    rate, sigma = setting.privacy.rate, setting.sigma

    def of(seen: Figures) -> Figures:
        ratio = np.logaddexp(np.log1p(-rate) if rate < 1 else -np.inf, math.log(rate) + (seen - 0.5) / sigma**2)
        return np.asarray(ratio.sum(axis=1))

    return of


def spread(seen: Figures) -> Figures:
    """How far the steps of a run are apart: what noise hides that is the same in each does not hide this."""
    return np.asarray(seen.max(axis=1) - seen.min(axis=1))


@dataclass(frozen=True)
class Bound:
    """Epsilon is at least ``epsilon``, at the confidence asked for, by an event of ``statistic``."""

    epsilon: float
    statistic: str
    inside: float
    outside: float


def audit(setting: Setting, runs: int, confidence: float = CONFIDENCE) -> Bound:
    """Play ``runs`` studies with the canary and as many without; a quarter of them chooses the event."""
    inside, outside = play(setting, True, runs), play(setting, False, runs)
    statistics = {"likelihood": likelihood(setting), "spread": spread}
    return bound(inside, outside, statistics, setting.delta, confidence)


Statistics = Mapping[str, Callable[[Figures], Figures]]


def bound(
    inside: Figures, outside: Figures, statistics: Statistics, delta: float, confidence: float = CONFIDENCE
) -> Bound:
    """The lower bound on epsilon from runs ``[runs, ...]`` with and without the canary."""
    cut = len(inside) // 4, len(outside) // 4
    best = (-math.inf, "", 1, 0.0)
    for name, statistic in statistics.items():
        ins, outs = statistic(inside[: cut[0]]), statistic(outside[: cut[1]])
        for sign in (1, -1):
            thresholds = _between(np.concatenate([ins, outs]) * sign)
            found = _epsilon(_above(ins * sign, thresholds), _above(outs * sign, thresholds), cut, delta, confidence)
            place = int(found.argmax())
            if found[place] > best[0]:
                best = (float(found[place]), name, sign, float(thresholds[place]))
    _, name, sign, threshold = best
    if not name:
        return Bound(0.0, "none", 0.0, 0.0)
    chosen, sizes = np.asarray([threshold]), (len(inside) - cut[0], len(outside) - cut[1])
    often = _above(statistics[name](inside[cut[0] :]) * sign, chosen)
    seldom = _above(statistics[name](outside[cut[1] :]) * sign, chosen)
    epsilon = float(_epsilon(often, seldom, sizes, delta, confidence)[0])
    return Bound(max(0.0, epsilon), name, float(often[0] / sizes[0]), float(seldom[0] / sizes[1]))


def _between(values: Figures) -> Figures:
    """Thresholds between the values, in rising order."""
    ordered = np.unique(values)
    return (ordered[1:] + ordered[:-1]) / 2 if len(ordered) > 1 else ordered


def _above(values: Figures, thresholds: Figures) -> Figures:
    """How many values reach each threshold."""
    return (len(values) - np.searchsorted(np.sort(values), thresholds, side="left")).astype(np.float64)


def _epsilon(inside: Figures, outside: Figures, sizes: tuple[int, int], delta: float, confidence: float) -> Figures:
    """From how often each event came with and without the canary; either may be the rarer one."""
    return np.maximum(
        _one_way(inside, outside, sizes, delta, confidence), _one_way(outside, inside, sizes[::-1], delta, confidence)
    )


def _one_way(often: Figures, seldom: Figures, sizes: tuple[int, int], delta: float, confidence: float) -> Figures:
    each = (1 - confidence) / 2
    low = np.where(often > 0, beta.ppf(each, np.maximum(often, 1), sizes[0] - often + 1), 0.0)
    missing = np.maximum(sizes[1] - seldom, 1)
    high = np.where(seldom < sizes[1], beta.ppf(1 - each, seldom + 1, missing), 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(low > delta, np.log((low - delta) / high), -np.inf))
