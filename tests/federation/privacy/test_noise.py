"""Protection randomness: of the right distribution, never twice, and out of reach of any seed.

Tolerances are such that a right sampler fails by chance less than once in a million runs.
"""

import math
import random
from decimal import Decimal, getcontext
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from federation.privacy import noise
from federation.privacy.noise import (
    discrete_gaussian,
    grid,
    noised,
    poisson_sample,
    secure_generator,
)

COUNT = 400_000
# Kolmogorov-Smirnov: P(distance > c / sqrt(n)) is 2 exp(-2 c^2): 2.7 gives 9e-7. A deviation 3 % wrong is found.
FURTHEST = 2.7 / math.sqrt(COUNT)


def distance(values: np.ndarray, std: float) -> float:
    return float(kstest(values / std, "norm").statistic)


def test_gaussian_noise_is_normal() -> None:
    drawn = noised(torch.zeros(COUNT // 4, 4), 3.0)
    assert drawn.shape == (COUNT // 4, 4) and drawn.dtype == torch.float32
    assert distance(drawn.numpy().reshape(-1), 3.0) < FURTHEST
    assert distance(drawn.numpy().reshape(-1), 3.1) > FURTHEST  # the test can fail
    first, second = drawn[:, 0].numpy(), drawn[:, 1].numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(len(first))


def test_both_halves_of_a_block_and_odd_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are filled from pairs; none of the seams leaves a number out or uses one twice."""
    monkeypatch.setattr(noise, "_BLOCK", 1001)
    stream, blocks = noise._Stream(), torch.empty(COUNT + 1, dtype=torch.float64).split(1001)
    for block in blocks:
        noise._normal(stream, block)
    drawn = torch.cat(blocks).numpy()
    assert distance(drawn[:COUNT], 1.0) < FURTHEST
    assert len(np.unique(drawn)) == COUNT + 1
    assert distance(noised(torch.zeros(COUNT), 1.0).numpy(), 1.0) < FURTHEST
    released = noised(torch.zeros(7003), 1.0)
    assert (released != 0).all()
    assert [len(noised(torch.zeros(count), 1.0)) for count in (0, 1, 2, 3)] == [0, 1, 2, 3]
    assert noised(torch.zeros(()), 1.0).shape == ()


def test_noised_is_the_sum_plus_noise_on_the_grid() -> None:
    base = torch.linspace(-2, 2, COUNT).reshape(-1, 8)
    released = noised(base, 0.5)
    assert released.dtype == torch.float32 and released.shape == base.shape
    assert distance((released.double() - base.double()).numpy().reshape(-1), 0.5) < FURTHEST
    step = grid(0.5)
    assert step == 2.0**-21
    small = noised(torch.full((10_000,), 1e-9), 2.0**-3).double()
    assert torch.equal(small / grid(2.0**-3), (small / grid(2.0**-3)).round())


def test_what_was_added_to_does_not_show_in_the_grid() -> None:
    """The same points can be reached from any sum: rounding the noise alone would shift them by the sum."""
    step = grid(1.0)
    for value in (0.0, step / 3, 1 / 7):
        points = noised(torch.full((1000,), value, dtype=torch.float64), 1.0).double() / step
        assert torch.equal(points, points.round())


def test_grid_is_a_power_of_two_of_at_most_a_millionth() -> None:
    for std in (1e-6, 0.3, 1.0, 1.9, 700.0):
        exponent = math.log2(grid(std))
        assert exponent == round(exponent)
        assert std * 2.0**-21 < grid(std) <= std * 2.0**-20
    for std in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="standard deviation"):
            noised(torch.zeros(3), std)


def test_no_seed_has_any_influence() -> None:
    def everything() -> list[list[float]]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        return [
            noised(torch.zeros(4), 1.0).tolist(),
            discrete_gaussian(4, 1e6).tolist(),
            poisson_sample(200, 0.5).tolist(),
            torch.rand(4, generator=secure_generator()).tolist(),
        ]

    assert all(one != other for one, other in zip(everything(), everything(), strict=True))


def test_drawing_leaves_the_seeds_alone() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)
    noised(torch.zeros(9), 1.0), discrete_gaussian(9, 5.0), poisson_sample(9, 0.5), secure_generator()
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])


def test_each_call_has_a_key_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = noise.os.urandom
    monkeypatch.setattr(noise.os, "urandom", lambda count: asked.append(real(count)) or asked[-1])
    for _ in range(3):
        noised(torch.zeros(2), 1.0), poisson_sample(2, 0.5), discrete_gaussian(2, 4.0)
    assert [len(key) for key in asked] == [32] * 9
    assert len(set(asked)) == 9


def test_poisson_samples_have_the_rate() -> None:
    drawn = poisson_sample(COUNT, 0.3)
    assert drawn.dtype == torch.int64
    assert abs(len(drawn) - 0.3 * COUNT) < 5 * math.sqrt(COUNT * 0.21)
    assert bool((drawn[1:] > drawn[:-1]).all()) and int(drawn[0]) >= 0 and int(drawn[-1]) < COUNT
    sizes = [len(poisson_sample(50, 0.1)) for _ in range(2000)]  # binomial, not a fixed number
    assert abs(np.var(sizes) - 4.5) < 5 * 4.5 * math.sqrt(2 / 2000)
    assert 0 in sizes
    assert len(poisson_sample(40, 0.0)) == len(poisson_sample(0, 0.5)) == 0
    assert poisson_sample(4, 1.0).tolist() == [0, 1, 2, 3]
    for count, rate in ((-1, 0.5), (5, 1.1), (5, -0.1), (5, math.nan)):
        with pytest.raises(ValueError, match="is no probability"):
            poisson_sample(count, rate)


@pytest.mark.parametrize("deviation", [0.5, 3.3, 700.0, 1025.0, 65536.0, 2.0**21])
def test_discrete_gaussian_has_the_moments(deviation: float) -> None:
    drawn = discrete_gaussian(COUNT, deviation)
    assert drawn.dtype == np.int64
    where = np.arange(-20, 21) if deviation < 1 else np.array([])
    weights = np.exp(-((where / deviation) ** 2) / 2)
    # From 1 up a discrete Gaussian's moments are the normal ones to more digits than can be seen.
    second = float((weights * where**2).sum() / weights.sum()) if deviation < 1 else deviation**2
    fourth = float((weights * where**4).sum() / weights.sum()) if deviation < 1 else 3 * deviation**4
    values = drawn.astype(np.float64)
    spread = math.sqrt(second)
    assert abs(values.mean()) < 5 * spread / math.sqrt(COUNT)
    assert abs((values**2).mean() - second) < 5 * math.sqrt((fourth - second**2) / COUNT)
    assert abs((values**4).mean() / fourth - 1) < 6 * math.sqrt(105 / 9 / COUNT) * (1 if deviation >= 1 else 2)


def test_discrete_gaussian_has_the_probabilities() -> None:
    """Chi-squared over single numbers, in a plain table and in a composed one (deviation 1,500 mod 8)."""
    drawn = discrete_gaussian(COUNT, 2.0)
    where = np.arange(-6, 7)
    weights = np.exp(-(where**2) / 8)
    expected = COUNT * weights / np.exp(-(np.arange(-40, 41) ** 2) / 8).sum()
    found = np.array([(drawn == value).sum() for value in where])
    assert ((found - expected) ** 2 / expected).sum() < 60  # 13 degrees: 60 is passed once in 5e7
    rest = np.bincount(discrete_gaussian(COUNT, 1500.0) % 8, minlength=8)
    assert ((rest - COUNT / 8) ** 2 / (COUNT / 8)).sum() < 45  # 7 degrees


def test_the_composed_distribution_is_the_discrete_gaussian() -> None:
    """a * Y + Z by exact convolution against the definition, with parts as small as they are chosen at most."""
    deviation, coarse, fine = 96.0, 8, 32.0
    part = math.sqrt(deviation**2 - fine**2) / coarse
    where = np.arange(-900, 901)
    found = np.zeros(len(where))
    for value in range(-180, 181):
        found += math.exp(-((value / part) ** 2) / 2) * np.exp(-(((where - coarse * value) / fine) ** 2) / 2)
    expected = np.exp(-((where / deviation) ** 2) / 2)
    assert np.abs(found / found.sum() - expected / expected.sum()).max() < 1e-15
    for large in (1025.0, 5000.0, 65536.0, 2.0**24):
        factor = noise._coarse(large)
        rough, smooth = noise._parts(large, factor)
        assert factor > 1 and smooth / factor >= 4
        assert (factor * rough) ** 2 + smooth**2 == pytest.approx(large**2, rel=1e-12)
        assert smooth * factor * rough / large >= 3.4 * factor  # Z's share as the remainder sees it


def test_tables_are_as_exact_as_they_say() -> None:
    """Total variation between a table and the definition, in exact arithmetic."""
    table = noise._table(5.0)
    bounds = [0, *(int(bound) for bound in table._bounds), 1 << 64]
    masses = [Fraction(high - low, 1 << 64) for low, high in pairwise(bounds)]
    getcontext().prec = 60
    exact = [(-Decimal(k * k) / 50).exp() for k in range(-60, 61)]
    total = sum(exact)
    apart = sum(abs(Fraction(value / total) - mass) for value, mass in zip(exact, masses, strict=True)) / 2
    assert apart < Fraction(1, 1 << 48)


def test_draws_look_up_the_table_at_its_edges() -> None:
    table = noise._table(2.0)
    edges = np.concatenate([table._bounds, table._bounds[table._bounds > 0] - np.uint64(1)])
    words = np.concatenate([edges, np.array([0, (1 << 64) - 1], dtype=np.uint64)])
    plain = np.array([sum(int(bound) <= int(word) for bound in table._bounds) for word in words]) - 24
    assert table.draw(words).tolist() == plain.tolist()
    with pytest.raises(ValueError, match="deviation"):
        discrete_gaussian(3, 0.4)
