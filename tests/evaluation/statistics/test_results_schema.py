"""The tables of results keep their types through a file."""

from pathlib import Path

import pandas as pd
import pytest

from evaluation.statistics.results_schema import COMPARISONS, RESULTS, Role, Statistic, Unit, records
from foundation.errors import RunError

ROW = {
    "task": "1", "encoder": "None", "role": Role.LOCAL_ONLY, "protocol": "knn", "label_fraction": "0.10", "site": "007",
    "seed": "0", "metric": "AUROC", "statistic": Statistic.ESTIMATE, "value": 0.1 + 0.2, "ci_low": None, "n": 12,
    "unit": Unit.CLUSTER, "interval": "too few patients to say", "note": "a, \"b\"\nc",
}  # fmt: skip


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    """To the last digit; a site called 007 and an encoder called None stay text."""
    table = RESULTS.frame([ROW])
    RESULTS.write(tmp_path / "results.csv", table)
    read = RESULTS.read(tmp_path / "results.csv")
    pd.testing.assert_frame_equal(read, table, check_exact=True)
    assert {name: str(read[name].dtype) for name in ("value", "ci_low", "n", "site")} == {
        "value": "float64", "ci_low": "float64", "n": "int64", "site": "object",
    }  # fmt: skip
    (row,) = records(read)
    assert (row["site"], row["encoder"], row["dataset"], row["ci_low"]) == ("007", "None", "", None)


def test_an_empty_table_has_its_columns(tmp_path: Path) -> None:
    COMPARISONS.write(tmp_path / "comparisons.csv", COMPARISONS.frame())
    assert tuple(COMPARISONS.read(tmp_path / "comparisons.csv")) == COMPARISONS.columns


def test_what_a_column_may_not_hold_is_one_line(tmp_path: Path) -> None:
    RESULTS.write(tmp_path / "results.csv", RESULTS.frame([ROW]))
    text = (tmp_path / "results.csv").read_text()
    (tmp_path / "results.csv").write_text(text.replace(",local-only,", ",imagenet,"))
    with pytest.raises(RunError, match=r"results\.csv: 'imagenet' is not a valid Role; evaluate the run again"):
        RESULTS.read(tmp_path / "results.csv")
