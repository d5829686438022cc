"""What releases cost together: epsilon at a delta, by privacy loss distributions, and by a second accountant.

A *release* is noise of one size, drawn some number of times over. Two data sets are neighbours when one has one patient
(or one site) more. The figure to trust is ``epsilon_of``: an upper bound from numerically composed privacy loss
distributions (Koskela et al. 2020; Doroshenko et al. 2022) as dp-accounting computes them, and never more than Renyi
accounting gives. ``recomputed`` is another accountant's word on the same releases: Opacus' PRV accountant (Gopi et al.
2021), which shares no code with the first.

Sums of discrete Gaussians, which are not discrete Gaussians themselves, have a bound in concentrated differential
privacy (Kairouz, Liu and Steinke 2021); ``concentrated`` gives it. A pool with such a release is composed in Renyi
divergence altogether, the other releases too: an upper bound, some 10 % above what either kind would have alone.
"""

import logging
import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

from foundation.errors import RunError, StudyError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

Mechanism = Literal["gaussian", "discrete gaussian"]

MOST_NOISE = 1000.0
"""Noise multiplier from which on a promise is refused: an update is then nothing but noise."""
_LARGE = 1000.0  # Renyi epsilon over which the distribution is not computed: it takes long, and all is lost either way
_FINEST, _COARSEST = 1e-4, 1e-3  # step of the privacy loss grid; a finer one takes longer, a coarser one gives more
_ENDMOST_ORDER = "Optimal order is the (largest|smallest) alpha"
_WHOLE_ORDERS = (*range(2, 65), 80, 96, 128, 192, 256, 512, 1024)
_ORDERS = (*(1 + tenth / 10 for tenth in range(1, 10)), *_WHOLE_ORDERS)


@dataclass(frozen=True)
class Release:
    """Noise of one size, drawn ``steps`` times. StudyError where the numbers cannot be.

    ``noise``: standard deviation over sensitivity (L2), of the sum. ``rate``: the probability with which a unit takes
    part in a step. The last three are for discrete noise that is spread over sites: numbers in a release, standard
    deviation of each site's noise in units of the grid, and the sites of which at least so many add theirs.
    """

    mechanism: Mechanism
    noise: float
    rate: float = 1.0
    steps: int = 1
    dimension: int = 0
    deviation: float = 0.0
    survivors: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.noise < math.inf and 0 < self.rate <= 1 and self.steps >= 1):
            raise StudyError(
                f"a release with noise {self.noise}, rate {self.rate} and {self.steps} steps: noise is above 0, the "
                "rate above 0 and at most 1, and there is a step"
            )
        if self.mechanism == "gaussian":
            if (self.dimension, self.deviation, self.survivors) != (0, 0.0, 0):
                raise StudyError("a gaussian release has no dimension, deviation and survivors: leave them out")
        elif self.mechanism != "discrete gaussian":
            raise StudyError(f"mechanism {self.mechanism!r}: there are gaussian and discrete gaussian")
        elif not (self.rate == 1 and self.dimension >= 1 and self.survivors >= 1 and 0.5 <= self.deviation < math.inf):
            raise StudyError(
                f"a discrete release at rate {self.rate} of {self.dimension} numbers, deviation {self.deviation}, "
                f"from {self.survivors} sites: all take part (rate 1), there is a number and a site, and the "
                "deviation is at least .5"
            )


def epsilon_of(releases: Sequence[Release], delta: float) -> float:
    """Epsilon of all releases together at ``delta``: an upper bound, 0 for none.

    Equal releases are composed at once, so that thousands of rows of a ledger take no longer than a few. Renyi
    accounting alone is used where a release is discrete, and where its epsilon is over a thousand.
    """
    _check_delta(delta)
    counted = _counted(releases)
    return _epsilon(counted, delta) if counted else 0.0


def recomputed(releases: Sequence[Release], delta: float) -> float:
    """A second opinion on ``epsilon_of``, by Opacus: its PRV accountant, or its Renyi conversion with discrete noise.

    PRV's own error is at most .01 in epsilon and a thousandth of delta, added; the two agree within about .02.
    """
    _check_delta(delta)
    counted = _counted(releases)
    if not counted:
        return 0.0
    if any(release.mechanism != "gaussian" for release in counted):
        return _opacus_renyi(counted, delta)
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(release.noise, release.rate, release.steps) for release in counted]
    with warnings.catch_warnings():
        # Opacus takes logarithms of probabilities that underflow to 0 in the far tails, which it then leaves out.
        warnings.filterwarnings("ignore", _ENDMOST_ORDER, UserWarning)  # of the Renyi bound that only sizes its grid
        for message in ("divide by zero encountered in log", "invalid value encountered", "overflow encountered"):
            warnings.filterwarnings("ignore", message, RuntimeWarning)
        return float(accountant.get_epsilon(delta))


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The smallest noise multiplier, in hundredths, with which ``steps`` Gaussian steps cost at most ``epsilon``.

    StudyError when it would be over ``MOST_NOISE``.
    """
    _check_delta(delta)
    return _noise_for(epsilon, delta, rate, steps)


@lru_cache(maxsize=256)
def _noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    def cost(hundredths: int) -> float:
        return epsilon_of([Release("gaussian", hundredths / 100, rate, steps)], delta)

    most = round(MOST_NOISE * 100)
    # Renyi accounting gives more, but at once: a noise that is enough, to one part in twenty.
    enough, small = most, 1
    while enough > small * 1.05 + 1:
        middle = round(math.sqrt(enough * small))
        holds = _renyi((Release("gaussian", middle / 100, rate, steps),), delta) <= epsilon
        enough, small = (middle, small) if holds else (enough, middle)
    upper_cost = cost(enough)
    if upper_cost > epsilon:
        raise StudyError(
            f"epsilon {epsilon:g} at delta {delta:g} over {steps:,} steps at rate {rate:.3g}: would take noise of over "
            f"{MOST_NOISE:g} times the clipping bound, so that nothing could be learnt: raise epsilon, or ask for "
            "fewer steps"
        )
    return _narrowed(cost, epsilon, enough, upper_cost) / 100


def _narrowed(cost: Callable[[int], float], epsilon: float, upper: int, upper_cost: float) -> int:
    """The smallest whole number whose falling ``cost`` is at most ``epsilon``; ``upper``, of ``upper_cost``, is enough.

    By interpolation on the logarithmic scale, where the cost of noise is all but a straight line; each third try halves
    what is left, so that it ends in any case.
    """
    lower, lower_cost, tries = 0, math.inf, 0
    while upper - lower > 1:
        tries += 1
        if tries % 3 == 0:
            guess = (lower + upper) // 2
        elif lower_cost == math.inf:  # no second point yet: a little below where cost would be if it fell as 1 / noise
            guess = math.floor(upper * upper_cost / epsilon * 0.98)
        else:
            slope = math.log(upper_cost / lower_cost) / math.log(upper / lower)
            guess = math.ceil(upper * math.exp(math.log(epsilon / upper_cost) / slope)) - (tries % 2)
        guess = min(max(guess, lower + 1), upper - 1)
        found = cost(guess)
        if found <= epsilon:
            upper, upper_cost = guess, found
        else:
            lower, lower_cost = guess, found
    return upper


def concentrated(release: Release) -> float:
    """Rho of one step of discrete noise: rho-zCDP (Bun and Steinke 2016), by Kairouz, Liu and Steinke 2021.

    Each of t sites adds a discrete Gaussian of deviation s to each of d numbers; the sum's sensitivity is Delta.
    With tau = 10 sum_{k=1}^{t-1} exp(-2 pi^2 s^2 k / (k + 1)), how far a sum is from being a discrete Gaussian,
    rho = eps^2 / 2 for eps = min(sqrt(Delta^2 / (t s^2) + tau d / 2), Delta / (sqrt(t) s) + tau sqrt(d)).
    More sites than t only add noise. Noise that its own site gives away does not count as noise.
    """
    tau = 10 * sum(math.exp(-2 * math.pi**2 * release.deviation**2 * k / (k + 1)) for k in range(1, release.survivors))
    ratio = 1 / release.noise
    first = math.sqrt(ratio**2 + tau * release.dimension / 2)
    return min(first, ratio + tau * math.sqrt(release.dimension)) ** 2 / 2


def discrete_release(
    epsilon: float, delta: float, steps: int, dimension: int, deviation: float, survivors: int
) -> Release:
    """A discrete release with the least noise, in hundredths, whose ``steps`` cost at most ``epsilon``.

    ``deviation``, in units of the grid, is each site's; the noise multiplier then says how coarse the grid is.
    StudyError when it would be over ``MOST_NOISE``.
    """
    _check_delta(delta)

    def release(hundredths: int) -> Release:
        return Release("discrete gaussian", hundredths / 100, 1.0, steps, dimension, deviation, survivors)

    hundredths = range(1, round(MOST_NOISE * 100) + 1)
    place = bisect_left(hundredths, True, key=lambda one: epsilon_of([release(one)], delta) <= epsilon)
    if place == len(hundredths):
        raise StudyError(
            f"epsilon {epsilon:g} at delta {delta:g} over {steps:,} rounds: would take noise of over {MOST_NOISE:g} "
            "times the clipping bound, so that nothing could be learnt: raise epsilon, or ask for fewer rounds"
        )
    return release(hundredths[place])


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise StudyError(f"delta {delta}: is a probability above 0 and below 1")


def _counted(releases: Sequence[Release]) -> tuple[Release, ...]:
    """Releases without duplicates, in a fixed order: those that differ in steps alone are one with the sum of them."""
    steps: dict[Release, int] = {}
    for one in releases:
        kind = replace(one, steps=1)
        steps[kind] = steps.get(kind, 0) + one.steps
    return tuple(replace(kind, steps=steps[kind]) for kind in sorted(steps, key=astuple))


@lru_cache(maxsize=1024)
def _epsilon(counted: tuple[Release, ...], delta: float) -> float:
    bound = _renyi(counted, delta)
    if bound > _LARGE or any(release.mechanism != "gaussian" for release in counted):
        return bound
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld import PLDAccountant

    grid = min(max(bound / 10_000, _FINEST), _COARSEST)
    accountant = PLDAccountant(NeighboringRelation.ADD_OR_REMOVE_ONE, value_discretization_interval=grid)
    for release in counted:
        accountant.compose(_event(release), release.steps)
    return min(bound, float(accountant.get_epsilon(delta)))


def _renyi(counted: tuple[Release, ...], delta: float) -> float:
    """Epsilon by Renyi divergences (Mironov 2017; of sampled Gaussians: Mironov et al. 2019)."""
    from dp_accounting.rdp import RdpAccountant

    with _without_notes():
        accountant = RdpAccountant(list(_orders(counted)))
        for release in counted:
            accountant.compose(_event(release), release.steps)
        return float(accountant.get_epsilon(delta))


def _orders(counted: tuple[Release, ...]) -> Sequence[float]:
    # Between whole orders the divergence of a sampled Gaussian is an infinite series that may not end.
    return _ORDERS if all(release.rate == 1 for release in counted) else _WHOLE_ORDERS


def _event(release: Release) -> "DpEvent":
    import dp_accounting

    if release.mechanism == "discrete gaussian":
        return dp_accounting.ZCDpEvent(concentrated(release))
    gaussian = dp_accounting.GaussianDpEvent(release.noise)
    return gaussian if release.rate == 1 else dp_accounting.PoissonSampledDpEvent(release.rate, gaussian)


def _opacus_renyi(counted: tuple[Release, ...], delta: float) -> float:
    from opacus.accountants.analysis.rdp import compute_rdp, get_privacy_spent

    orders = list(_orders(counted))
    total = [0.0] * len(orders)
    for one in counted:
        if one.mechanism == "gaussian":
            more = compute_rdp(q=one.rate, noise_multiplier=one.noise, steps=one.steps, orders=orders)
        else:
            more = [one.steps * concentrated(one) * order for order in orders]
        total = [sum_ + float(part) for sum_, part in zip(total, more, strict=True)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _ENDMOST_ORDER, UserWarning)
        epsilon, _ = get_privacy_spent(orders=orders, rdp=total, delta=delta)
    if not math.isfinite(epsilon):
        raise RunError(f"the second accountant gives epsilon {epsilon}: it cannot check releases of this kind")
    return float(epsilon)


@contextmanager
def _without_notes() -> Iterator[None]:
    """dp-accounting notes in the log which orders it left out; leaving one out makes the figure larger, if anything."""
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)
