"""The tables of docs/privacy.md are what the product's own functions give: some rows are computed anew."""

from pathlib import Path

import pytest

from federation.privacy.accounting import Release, _renyi, epsilon_of, noise_for
from federation.privacy.plan import LEAST_SIGNAL, signal_to_noise

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "privacy.md").read_text()
NUMBERS = 5_500_000  # of a ViT-Tiny
STEPS, PER_STEP, ROUNDS = 200, 8, 20


def table(heading: str) -> list[list[str]]:
    """The cells of the page's table whose first column is so called, without heading and rule."""
    lines = PAGE.splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading} | "))
    last = lines.index("", first)
    return [line.strip("| ").split(" | ") for line in lines[first + 2 : last]]


def by_renyi(noise: float, delta: float, rate: float) -> float:
    return _renyi((Release("gaussian", noise, rate, STEPS),), delta)


def test_rows_by_patients() -> None:
    rows = {int(row[0].replace(",", "")): row[1:] for row in table("patients a site")}
    assert list(rows) == [10, 13, 20, 36, 50, 100, 200, 500, 1000, 5000]
    for patients in (13, 36, 200):
        delta, rate = min(1e-3, 1 / (10 * patients)), PER_STEP / patients
        noise = noise_for(8.0, delta, rate, STEPS)
        signal = signal_to_noise(noise, PER_STEP, STEPS, NUMBERS)
        renyi = float(rows[patients][3])
        assert rows[patients] == [f"{delta:.2g}", f"{rate:.3f}", f"{noise:.2f}", f"{renyi:.2f}", f"{signal:.3f}"]
        assert by_renyi(renyi, delta, rate) <= 8.0 < by_renyi(renyi - 0.01, delta, rate)
    assert (rows[36][3], rows[13][3]) == ("1.83", "4.61")
    assert "36\npatients take 1.8 and 13 take 4.6" in PAGE


def test_rows_by_sites() -> None:
    rows = table("sites N")
    assert [row[0] for row in rows[::2]] == ["3", "4", "6", "8", "16", "32", "64", "200", "1,000"]
    assert [row[1] for row in rows] == ["2", "8"] * 9
    for sites, epsilon in ((6, 2.0), (6, 8.0), (1000, 2.0), (1000, 8.0)):
        delta = min(1e-3, 1 / (10 * sites))
        noise = noise_for(epsilon, delta, 1.0, ROUNDS)
        found = epsilon_of([Release("gaussian", noise, 1.0, ROUNDS)], delta)
        signal = signal_to_noise(noise, sites, ROUNDS, NUMBERS)
        length = noise * NUMBERS**0.5 / sites
        cells = [f"{sites:,}", f"{epsilon:g}", f"{delta:.2g}", f"{noise:.2f}", f"{found:.2f}", f"{length:,.0f}"]
        assert [*cells, f"{signal:.3f}"] in rows


def test_below_how_many_sites_not_to_bother() -> None:
    assert "Below about 1,300 sites at epsilon 8, and 4,500 at epsilon 2" in PAGE
    for epsilon, about in ((8.0, 1300), (2.0, 4500)):
        signals = [
            signal_to_noise(noise_for(epsilon, 1 / (10 * sites), 1.0, ROUNDS), sites, ROUNDS, NUMBERS)
            for sites in (round(about * 0.95), round(about * 1.05))
        ]
        assert signals[0] < LEAST_SIGNAL < signals[1]


@pytest.mark.parametrize("heading", ["patients a site", "sites N"])
def test_signal_to_noise_grows_down_the_table(heading: str) -> None:
    signals = [float(row[-1]) for row in table(heading)]
    step = 1 if heading == "patients a site" else 2  # two epsilons a number of sites
    assert all(one <= other for one, other in zip(signals, signals[step:], strict=False))
