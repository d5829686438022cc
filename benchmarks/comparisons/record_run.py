"""Keep a run's figures: ``python -m benchmarks.comparisons.record_run RUN`` writes results/<study>.md and two tables.

Paths of the machine are left out, so that what is written can be published.
"""

import argparse
from pathlib import Path

import pandas as pd

from benchmarks.measure import RESULTS
from evaluation.report.summary import summary_lines
from evaluation.statistics import results_schema
from evaluation.statistics.results_schema import COMPARISONS, Statistic
from foundation.files import read_json, write_text

_MAIN = "logistic"


def record(run: Path) -> Path:
    """Write the page and copy results.csv and comparisons.csv beside it; the page's path."""
    facts, arms = read_json(run / "run.json"), read_json(run / "arms.json")
    results = results_schema.RESULTS.read(run / "results.csv")
    comparisons = COMPARISONS.read(run / "comparisons.csv")
    name = facts["name"]
    for table in ("results.csv", "comparisons.csv"):
        write_text(RESULTS / f"{name}-{table}", (run / table).read_text())
    hours = sum(arm["seconds"] for arm in arms) / 60
    command = f"fedpretext simulate configs/{name}.yaml --set simulation.root=FOLDER"
    page = [
        f"# {facts['title']}",
        "",
        f"`{command}`",
        "",
        f"Pretraining {hours:.0f} minutes in all on {facts['machine']['processor']}, {facts['machine']['cores']} cores "
        f"(shared with other work); commit {facts['commit']}; study hash {facts['study_hash'][:16]}; "
        f"torch {facts['versions']['torch']}, timm {facts['versions']['timm']}, flwr {facts['versions']['flwr']}.",
        "",
        "```",
        *summary_lines(run),
        "```",
        "",
        "## Federated minus every alternative (AUROC, the same patients, 95 % interval)",
        "",
        _table(_comparison_rows(comparisons)),
        "",
        "## Every encoder, by site (AUROC, logistic probe; supervised: fine-tuned)",
        "",
        _table(_site_rows(results)),
        "",
        "## Budget",
        "",
        _table(_budget_rows(arms)),
        "",
        f"All figures: [{name}-results.csv]({name}-results.csv), [{name}-comparisons.csv]({name}-comparisons.csv).",
        "",
    ]
    path = RESULTS / f"{name}.md"
    write_text(path, "\n".join(page))
    return path


def _interval(row: pd.Series) -> str:
    if pd.isna(row["ci_low"]):
        return str(row["interval"])
    return f"{row['ci_low']:+.3f} to {row['ci_high']:+.3f}"


def _comparison_rows(comparisons: pd.DataFrame) -> pd.DataFrame:
    kept = comparisons[comparisons["metric"].eq("AUROC") & comparisons["site"].isin(["all", "left-out"])]
    rows = [
        {
            "protocol": row["protocol"],
            "patients": f"{row['n']}, {'left-out site' if row['site'] == 'left-out' else 'federation'}",
            "federated minus": row["encoder_b"],
            "difference": f"{row['value']:+.3f}",
            "95 % interval": _interval(row),
        }
        for _, row in kept.iterrows()
    ]
    return pd.DataFrame(rows)


def _site_rows(results: pd.DataFrame) -> pd.DataFrame:
    wanted = results["protocol"].isin([_MAIN, "finetune"]) & (results["metric"] == "AUROC")
    wanted &= results["statistic"].isin([Statistic.ESTIMATE, Statistic.SITE_MEAN, Statistic.SEED_SD])
    rows = [
        {
            "encoder": row["encoder"],
            "protocol": row["protocol"],
            "site": row["site"],
            "seed": row["seed"],
            "figure": f"{row['metric']} {row['statistic']}",
            "value": f"{row['value']:.3f}",
            "95 % interval": _interval(row).replace("+", ""),
            "patients": row["n"],
        }
        for _, row in results[wanted].iterrows()
    ]
    return pd.DataFrame(rows)


def _budget_rows(arms: list[dict[str, object]]) -> pd.DataFrame:
    columns = ["arm", "images", "passes", "optimiser_steps", "sequential_steps", "folds", "seeds", "seconds"]
    return pd.DataFrame([{column: arm[column] for column in columns} for arm in arms])


def _table(rows: pd.DataFrame) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(rows.columns) + " |", "|" + "---|" * len(rows.columns)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows.itertuples(index=False)]
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a finished run folder")
    print(record(parser.parse_args().run))
