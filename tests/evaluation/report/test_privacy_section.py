"""What the report says of a private study, from its record alone."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evaluation.report.privacy_section import privacy_section
from evaluation.report.run_folder import Arm, RunFolder
from evaluation.report.tables.run import budget_statement

RECORD: dict[str, Any] = {
    "unit": "patient", "epsilon": 8.0, "delta": 1e-5, "planned": 7.98, "noise": 1.25, "rate": 0.25, "steps": 40,
    "clip": 1.0, "secure_aggregation": False, "spent": 7.98, "spent_by": "north", "ledgers": 3, "trainings": 1,
    "meaning": ["What it means."], "not_covered": ["labels"], "withheld": ["Losses stay."],
}  # fmt: skip
FEDERATED = Arm("federated", "Federated: all sites together", "federated", images=1000)
POOLED = Arm("centralised", "Centralised: all images in one place, without privacy", "centralised", images=1005)


def folder(path: Path, *arms: Arm, **changes: Any) -> RunFolder:
    return RunFolder(path, pd.DataFrame(), pd.DataFrame(), arms=arms, privacy=RECORD | changes)


def facts(run: RunFolder) -> dict[str, str]:
    section = privacy_section(run)
    assert section is not None
    return dict(section.facts)


def test_by_patient(tmp_path: Path) -> None:
    run = folder(tmp_path, FEDERATED, POOLED)
    answer, section = facts(run), privacy_section(run)
    assert section is not None
    assert answer["Promised"] == "epsilon 8 at delta 1e-05; planned for 7.98"
    assert answer["Spent"] == "epsilon 7.98 by the ledger of north, the largest"
    assert answer["Noise"] == (
        "standard deviation 1.25 times the longest contribution (1) in each of 40 steps of a site, in which a patient "
        "takes part with probability 0.25"
    )
    assert section.withheld[0] == "Losses stay."
    assert "Centralised" in section.withheld[1] and "Federated" not in section.withheld[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spent": None, "spent_by": None, "ledgers": 0}, "stands in each site's own ledger, which stays there"),
        ({"spent": 8.4}, "more than planned, as attempts that were cut off are charged too"),
        ({"trainings": 5}, "of one training: this run has 5 (folds and seeds), and giving away more adds up"),
        ({"ledgers": 1, "spent_by": "the server"}, "epsilon 7.98 by the ledger of the server"),
    ],
)
def test_what_was_spent(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    assert said in facts(folder(tmp_path, **changes))["Spent"]


def test_by_site_it_says_who_adds_the_noise(tmp_path: Path) -> None:
    for together, who in ((False, "noise at the server"), (True, "noise by the sites themselves")):
        answer = facts(folder(tmp_path, unit="site", secure_aggregation=together, steps=8))
        assert who in answer["Protected"]
        assert answer["Noise"].endswith("on the sum of updates, in each of 8 rounds")


def test_a_study_without_privacy_has_no_section(tmp_path: Path) -> None:
    assert privacy_section(RunFolder(tmp_path, pd.DataFrame(), pd.DataFrame())) is None


def test_the_budget_of_a_private_arm_is_called_an_expectation(tmp_path: Path) -> None:
    private = folder(tmp_path, FEDERATED, POOLED)
    assert "is the number that was to be expected" in budget_statement(private)
    assert "expected" not in budget_statement(folder(tmp_path, FEDERATED, POOLED, unit="site"))
