"""A study in simulation: drawn hospitals, federated pretraining beside its alternatives, one report.

python examples/simulated_study.py      # a few minutes on two cores; other studies are in configs/
"""

import logging
import sys
from pathlib import Path

import pandas as pd

import fedpretext as fp

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main(study: str | Path = DEMO, *overrides: str, runs: str | Path = "runs") -> pd.DataFrame:
    """Run the study with ``key=value`` overrides; what every encoder reached, over all sites."""
    run = fp.simulate(study, overrides, runs=runs)
    print(f"report: {run.report}")

    # One row a figure: encoder, protocol, site, metric, value and its interval over patients.
    figures = run.results.query("metric == 'AUROC' and site == 'all'")
    return figures[["encoder", "protocol", "value", "ci_low", "ci_high", "n"]]


if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(message)s")  # without it Python prints warnings alone
    print(main(*sys.argv[1:]).to_string(index=False))
