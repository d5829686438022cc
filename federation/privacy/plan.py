"""What a study will draw of noise, and what that costs: from the study file alone, before anything is trained."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

from federation.privacy.accounting import Release, discrete_release, epsilon_of, noise_for
from federation.privacy.config import PatientPrivacyConfig, SitePrivacyConfig
from federation.secure_aggregation.thresholds import threshold
from foundation.errors import StudyError

if TYPE_CHECKING:
    from federation.study import Study
    from imaging.config import ImageConfig
    from ssl_methods import AnyMethodConfig
    from ssl_methods.encoders.table import EncoderConfig

_LEAST_DEVIATION, _MOST_DEVIATION = 2**16, 2**22
_ROUNDING = 0.01  # share by which rounding to the grid may lengthen an update
_TAILS = 12  # deviations of a site's discrete noise at most, as federation/privacy/noise.py draws it
_LARGEST_SUM = 2**31
LEAST_SIGNAL = 1.0
"""Under this ``signal_to_noise`` a study is warned of. Even in the best case, that all patients agree in every step,
its noise then leads the weights as far as they learn. benchmarks/results/privacy/utility.md measures it."""


@dataclass(frozen=True)
class PrivacyPlan:
    """The noise multiplier, steps and cost of a whole study, and what a site charges for one round.

    ``noise``: standard deviation over the clipping bound, of a step's sum of patients or a round's sum of sites.
    ``epsilon``: what the study costs at ``delta``; at most what it promises.
    """

    noise: float
    rate: float
    steps: int
    per_round: Release
    epsilon: float
    delta: float


@dataclass(frozen=True)
class NoiseGrid:
    """How sites encode an update and noise it under secure aggregation.

    A site sends round(update * scale) + discrete_gaussian(dimension, deviation); ``survivors`` sites at least add up,
    and ``release`` is what one round then costs.
    """

    scale: float
    deviation: float
    survivors: int
    release: Release


def plan_of(study: "Study") -> PrivacyPlan | None:
    """The plan of a private study; None without privacy. StudyError where no useful noise keeps the promise."""
    privacy, rounds = study.privacy, study.rounds.count
    if privacy is None:
        return None
    if isinstance(privacy, PatientPrivacyConfig):
        assert study.training.steps is not None  # rules.py
        noise = noise_for(privacy.epsilon, privacy.delta, privacy.rate, study.training.steps * rounds)
        release = Release("gaussian", noise, privacy.rate, study.training.steps)
    elif study.secure_aggregation is not None:
        release = noise_grid(study, shared_numbers(study)).release
    else:
        release = Release("gaussian", noise_for(privacy.epsilon, privacy.delta, 1.0, rounds))
    whole = replace(release, steps=release.steps * rounds)
    return PrivacyPlan(
        release.noise, release.rate, whole.steps, release, epsilon_of([whole], privacy.delta), privacy.delta
    )


def noise_grid(study: "Study", dimension: int) -> NoiseGrid:
    """Grid and noise for a study with site-level privacy and secure aggregation whose update has ``dimension`` numbers.

    Rounding each number to the nearest whole lengthens an update of ``clip * scale`` by sqrt(dimension) / 2 at most:
    the sensitivity is their sum, and the noise multiplier is over it. A site's deviation is the smallest power of two
    from 2**16 with which that is at most 1 % longer, and the grid is as fine as it then may be. Noise is sized for
    t = floor(2n/3) + 1 of n = privacy.sites, with which a round can just be finished; with more it is larger than
    promised. n clipped updates with all their noise (12 deviations at most) stay below 2**31: a sum cannot wrap.
    StudyError where no grid does all this.
    """
    privacy = study.privacy
    assert isinstance(privacy, SitePrivacyConfig)
    return _grid(privacy.epsilon, privacy.delta, study.rounds.count, privacy.sites, privacy.clip, dimension)


@lru_cache(maxsize=64)
def _grid(epsilon: float, delta: float, rounds: int, sites: int, clip: float, dimension: int) -> NoiseGrid:
    survivors, deviation = threshold(sites), float(_LEAST_DEVIATION)
    longer = math.sqrt(dimension) / 2
    whole = discrete_release(epsilon, delta, rounds, dimension, deviation, survivors)
    while True:
        whole = replace(whole, deviation=deviation)
        sensitivity = math.sqrt(survivors) * deviation / whole.noise
        if longer <= _ROUNDING * (sensitivity - longer):
            break
        deviation *= 2
        if deviation > _MOST_DEVIATION:
            raise StudyError(
                f"secure_aggregation with privacy by site: no grid is fine enough for {dimension:,} numbers with noise "
                f"of {whole.noise:g} times the clipping bound: raise privacy.epsilon, or leave out secure_aggregation"
            )
    if sites * (sensitivity + _TAILS * deviation) >= _LARGEST_SUM:
        raise StudyError(
            f"secure_aggregation with privacy by site: the sum of {sites} noised updates of {dimension:,} numbers "
            "would not fit into 32 bits: ask fewer sites, or leave out secure_aggregation"
        )
    return NoiseGrid((sensitivity - longer) / clip, deviation, survivors, replace(whole, steps=1))


def signal_to_noise(noise: float, units: float, steps: int, numbers: int, sites: int = 1) -> float:
    """How long a study's signal can be at most against the noise that it meets: the best case, no forecast.

    Were all ``units`` (patients a step, or sites a round) of one mind in every step, their clipped sums would add up to
    a path of steps * units times the clipping bound; noise in ``numbers`` directions leads away from it by
    sqrt(steps * numbers) * noise times the bound. ``sites`` that train alike and are averaged gain a factor of
    sqrt(sites). Under 1 the weights move further by chance than they can by learning.
    """
    return math.sqrt(steps * sites / numbers) * units / noise


def study_signal(study: "Study", plan: PrivacyPlan, sites: int = 1) -> float:
    """``signal_to_noise`` of a private study; ``sites``: those that train, which the study file need not know."""
    privacy = study.privacy
    if isinstance(privacy, PatientPrivacyConfig):
        return signal_to_noise(plan.noise, privacy.patients_per_step, plan.steps, trained_numbers(study), sites)
    assert isinstance(privacy, SitePrivacyConfig)
    return signal_to_noise(plan.noise, privacy.sites, plan.steps, shared_numbers(study))


def shared_numbers(study: "Study") -> int:
    """Numbers in an update of the study to which noise is added: the shared parameters, frozen ones too."""
    return _numbers(study.method, study.encoder, study.image)[0]


def trained_numbers(study: "Study") -> int:
    """Numbers that a site's optimiser steps, each with noise in a study that is private by patient."""
    return _numbers(study.method, study.encoder, study.image)[1]


@lru_cache(maxsize=32)
def _numbers(method: "AnyMethodConfig", encoder: "EncoderConfig", image: "ImageConfig") -> tuple[int, int]:
    # Here, not above: a study is read before any method or encoder is needed.
    from federation.algorithms.algorithm import is_parameter
    from ssl_methods import build_method

    built = build_method(method, encoder, image, seed=0)
    shared = sum(value.numel() for name, value in built.shared_state().items() if is_parameter(name, value))
    return shared, sum(value.numel() for value in built.parameters() if value.requires_grad)
