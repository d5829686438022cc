"""Our own measurements, written into the advisor, which is installed where benchmarks/ is not.

    python -m benchmarks.advisor_table

Reads results/sweep.csv, adrenal-3d.md and natural-weights.md; writes simulation/advisor/sweep_evidence.py.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from benchmarks.measure import RESULTS
from benchmarks.sweep import DATASETS
from foundation.files import write_text
from simulation.advisor.cell import Cell

WRITTEN = Path(__file__).resolve().parents[1] / "simulation" / "advisor" / "sweep_evidence.py"
_GAIN = r"\**([+-]?[\d.]+) \(([+-]?[\d.]+) to ([+-]?[\d.]+)\)\**"
_HEADING = '''"""Our own measurements, written by ``python -m benchmarks.advisor_table`` from benchmarks/results."""

from simulation.advisor.cell import Cell

CELLS = (
'''


def flat_cells() -> Iterator[Cell]:
    """The sweep's cells on pictures."""
    for row in pd.read_csv(RESULTS / "sweep.csv").to_dict("records"):
        gain, low, high = (round(float(row[name]), 3) for name in ("difference", "low", "high"))
        method, dataset, encoder, protocol = (str(row[name]) for name in ("method", "dataset", "encoder", "protocol"))
        modality = str(DATASETS[dataset]["image"]["modality"])
        yield Cell(method, dataset, modality, 2, encoder, protocol, gain, low, high, int(row["units"]))


def volume_cells() -> Iterator[Cell]:
    """The four methods on volumes, by the logistic probe."""
    text = (RESULTS / "adrenal-3d.md").read_text()
    tested = _one(r"(\d+) are tested", text)
    for method, *numbers in re.findall(rf"^\| `(\w+)` \| [^|]+ \| {_GAIN} \|", text, re.MULTILINE):
        gain, low, high = map(float, numbers)
        yield Cell(method, "adrenalmnist3d", "ct", 3, "monai_vit", "logistic", gain, low, high, int(tested))


def natural_gain() -> tuple[float, float, float]:
    """SimCLR continued from ImageNet weights minus from scratch: by how much, and the interval."""
    text = (RESULTS / "natural-weights.md").read_text()
    found = re.search(rf"same encoder from scratch \| logistic \| {_GAIN} \|", text)
    if found is None:
        raise ValueError("natural-weights.md: the row of the same encoder from scratch is missing")
    gain, low, high = (float(number) for number in found.groups())
    return gain, low, high


def _one(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise ValueError(f"{len(found)} times {pattern!r}, not once")
    return str(found[0])


def written() -> str:
    """The advisor's module."""
    cells = [*flat_cells(), *volume_cells()]
    lines = [f"    Cell({', '.join(_literal(value) for value in vars(cell).values())}),\n" for cell in cells]
    gain = ", ".join(f"{number:.3f}" for number in natural_gain())
    about = (
        '"""AUROC that continuing from ImageNet weights added to SimCLR on the same EfficientNet, and its interval."""'
    )
    return f"{_HEADING}{''.join(lines)})\nNATURAL_WEIGHTS_GAIN = ({gain})\n{about}\n"


def _literal(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f'"{value}"' if isinstance(value, str) else str(value)


def main() -> None:
    """Write the module."""
    write_text(WRITTEN, written())
    print(WRITTEN)


if __name__ == "__main__":
    main()
