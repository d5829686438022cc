"""What noise a promise takes, by patients a site and by sites: tables of docs/privacy.md and `fedpretext privacy`."""

from dataclasses import dataclass, replace

from federation.privacy.accounting import Release, epsilon_of, noise_for, renyi_noise_for
from federation.privacy.plan import LEAST_SIGNAL, signal_to_noise

PATIENTS = (10, 13, 20, 36, 50, 100, 200, 500, 1000, 5000)
SITES = (3, 4, 6, 8, 16, 32, 64, 200, 1000)
EPSILON, STEPS, PER_STEP, DELTA = 8.0, 200, 8, 1e-3
"""What the page's first table is for: so few patients need a delta and steps that suit so few."""
SITE_EPSILONS, SITE_ROUNDS = (2.0, 8.0), 20
NUMBERS = 5_500_000
"""Numbers of a ViT-Tiny, the smallest encoder that is in use."""


@dataclass(frozen=True)
class Row:
    """Noise for one number of patients; ``rate`` is the probability with which a patient takes part in a step."""

    patients: int
    delta: float
    rate: float
    noise: float
    signal: float
    renyi: float | None = None


def by_patients(
    epsilon: float, delta: float, steps: int, per_step: int, numbers: int, patients: tuple[int, ...] = PATIENTS
) -> list[Row]:
    """Noise and best signal-to-noise for a promise kept with ``per_step`` patients expected a step (all, where fewer).

    ``delta`` is lowered to 1 / (10 x patients) where that is less.
    """
    rows = []
    for count in patients:
        own, taken = min(delta, 1 / (10 * count)), min(per_step, count)
        noise = noise_for(epsilon, own, taken / count, steps)
        rows.append(Row(count, own, taken / count, noise, signal_to_noise(noise, taken, steps, numbers)))
    return rows


def page_patients(patients: tuple[int, ...] = PATIENTS) -> list[Row]:
    """The rows of the page's first table, with the noise that Renyi accounting asks for beside them."""
    rows = by_patients(EPSILON, DELTA, STEPS, PER_STEP, NUMBERS, patients)
    return [replace(row, renyi=renyi_noise_for(EPSILON, row.delta, row.rate, STEPS)) for row in rows]


def patients_table(rows: list[Row]) -> list[str]:
    """The rows as a Markdown table."""
    return [
        "| patients a site | delta | q | noise | noise by Renyi accounting | best signal-to-noise |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r.patients:,} | {r.delta:.2g} | {r.rate:.3f} | {r.noise:.2f} | {r.renyi:.2f} | {r.signal:.3f} |"
            for r in rows
        ),
    ]


def sites_table(counts: tuple[int, ...] = SITES) -> list[str]:
    """Site-level noise and what it leaves of a federation of N sites, as a Markdown table."""
    lines = [
        "| sites N | epsilon | delta | noise | epsilon of that noise | noise in the mean, bounds | signal-to-noise |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for sites in counts:
        delta = min(1e-3, 1 / (10 * sites))
        for epsilon in SITE_EPSILONS:
            noise = noise_for(epsilon, delta, 1.0, SITE_ROUNDS)
            found = epsilon_of([Release("gaussian", noise, 1.0, SITE_ROUNDS)], delta)
            signal = signal_to_noise(noise, sites, SITE_ROUNDS, NUMBERS)
            length = noise * NUMBERS**0.5 / sites
            lines.append(
                f"| {sites:,} | {epsilon:g} | {delta:.2g} | {noise:.2f} | {found:.2f} | {length:,.0f} | {signal:.3f} |"
            )
    return lines


def least_sites(epsilon: float) -> int:
    """Sites below which the best signal-to-noise of the page's site-level study is under ``LEAST_SIGNAL``."""
    low, high = 2, 1 << 20

    def enough(sites: int) -> bool:
        noise = noise_for(epsilon, min(1e-3, 1 / (10 * sites)), 1.0, SITE_ROUNDS)
        return signal_to_noise(noise, sites, SITE_ROUNDS, NUMBERS) >= LEAST_SIGNAL

    while high - low > 0.02 * high:
        middle = round((low * high) ** 0.5)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def page_tables() -> dict[str, list[str]]:
    """The tables of docs/privacy.md, by the name that marks their place."""
    return {
        "patients": patients_table(page_patients()),
        "sites": sites_table(),
    }


def on_page(page: str, tables: dict[str, list[str]]) -> str:
    """The page with the tables in their places."""
    for name, lines in tables.items():
        start, end = (f"<!-- {edge} of {name}: federation/privacy/tables.py -->" for edge in ("start", "end"))
        before, after = page.split(start)[0], page.split(end)[1]
        page = f"{before}{start}\n\n" + "\n".join(lines) + f"\n\n{end}{after}"
    return page
