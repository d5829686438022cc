"""The page's tables are what the functions give; a few rows are computed anew, all have their place."""

import re
from pathlib import Path

import pytest

from federation.privacy import tables
from federation.privacy.accounting import noise_for
from federation.privacy.plan import LEAST_SIGNAL, signal_to_noise
from federation.privacy.tables import NUMBERS, SITE_ROUNDS, by_patients, on_page, page_patients, patients_table

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "privacy.md").read_text()


def on_the_page(name: str) -> list[str]:
    found = re.search(rf"<!-- start of {name}: .*?-->\n\n(.*?)\n\n<!-- end of {name}:", PAGE, re.DOTALL)
    assert found is not None
    return found[1].splitlines()


def test_rows_by_patients() -> None:
    page = on_the_page("patients")
    head, rule, *rows = patients_table(page_patients((13, 36, 200)))
    assert page[:2] == [head, rule]
    assert set(rows) <= set(page)
    assert [row.split(" | ")[0] for row in page[2:]] == [f"| {count:,}" for count in tables.PATIENTS]


def test_the_figures_that_are_quoted() -> None:
    rows = {row.patients: row for row in page_patients((13, 36))}
    assert (rows[36].renyi, rows[13].renyi) == (1.83, 4.61)
    assert "36\npatients take 1.8 and 13 take 4.6" in PAGE


def test_rows_by_sites() -> None:
    page = on_the_page("sites")
    assert len(page[2:]) == len(tables.SITES) * len(tables.SITE_EPSILONS)
    assert set(tables.sites_table((6, 1000))) <= set(page)


def test_below_how_many_sites_not_to_bother() -> None:
    assert "Below about 1,300 sites at epsilon 8, and 4,500 at epsilon 2" in PAGE
    for epsilon, about in ((8.0, 1300), (2.0, 4500)):
        signals = [
            signal_to_noise(noise_for(epsilon, 1 / (10 * sites), 1.0, SITE_ROUNDS), sites, SITE_ROUNDS, NUMBERS)
            for sites in (round(about * 0.95), round(about * 1.05))
        ]
        assert signals[0] < LEAST_SIGNAL < signals[1]


def test_writing_the_page_again_changes_nothing() -> None:
    assert on_page(PAGE, {name: on_the_page(name) for name in ("patients", "sites")}) == PAGE


def test_delta_falls_with_the_patients() -> None:
    few, many = by_patients(8, 1e-3, 50, 8, 1000, (4, 1000))
    assert (few.delta, few.rate) == (1e-3, 1.0)
    assert (many.delta, many.rate) == (pytest.approx(1e-4), 0.008)
