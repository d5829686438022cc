"""What the table, the classes and the documentation say of each algorithm is the same."""

from pathlib import Path

import pytest

from federation.algorithms import ALGORITHMS, algorithm_type
from federation.algorithms.mean import MeanAlgorithm
from federation.algorithms.table import SETTINGS
from federation.privacy.rules import check_algorithm
from foundation.errors import StudyError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "methods.md"


def test_the_page_has_every_algorithm_as_the_table_has_it() -> None:
    lines = PAGE.read_text().split("## Algorithms")[1].splitlines()
    rows = [line for line in lines if line.startswith("|")]
    expected = [f"| algorithm | {' | '.join(SETTINGS)} | a site that missed rounds |"]
    for name, facts in ALGORITHMS.items():
        goes = " | ".join("no" if setting in facts.refuses else "yes" for setting in SETTINGS)
        expected.append(f"| `{name}` | {goes} | {facts.missed} |")
    assert [rows[0], *rows[2:]] == expected


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_has_only_a_mean_goes_with_algorithms_of_the_mean(name: str) -> None:
    """A sum under masks and noise by site leave one mean; the loop relies on ``after_mean`` there."""
    found, refuses = algorithm_type(name), ALGORITHMS[name].refuses
    if issubclass(found, MeanAlgorithm):
        assert found.aggregate is MeanAlgorithm.aggregate
    else:
        assert {"privacy by site", "secure sums"} <= refuses.keys()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_refusal_names_the_algorithm_the_reason_and_those_that_go(name: str, setting: str) -> None:
    reason = ALGORITHMS[name].refuses.get(setting)  # type: ignore[call-overload]
    if reason is None:
        check_algorithm(name, setting)  # type: ignore[arg-type]
        return
    with pytest.raises(StudyError) as caught:
        check_algorithm(name, setting)  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"algorithm {name!r} {reason}: choose fedavg or ")
    assert name not in str(caught.value).split("choose ")[1].split(" or ")
