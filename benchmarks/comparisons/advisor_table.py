"""Our own measurements, written into the advisor, which is installed where benchmarks/ is not.

    python -m benchmarks.comparisons.advisor_table

Reads results/sweep.csv, adrenal-3d.md and pretrained-weights.md; writes advisor/sweep.csv.
"""

import re
from collections.abc import Iterator

import pandas as pd

from advisor.evidence import SWEEP, Cell
from benchmarks.comparisons.sweep import DATASETS
from benchmarks.measure import RESULTS
from foundation.files import write_text

_GAIN = r"\**([+-]?[\d.]+) \(([+-]?[\d.]+) to ([+-]?[\d.]+)\)\**"


def flat_cells() -> Iterator[Cell]:
    """The sweep's cells on images."""
    for row in pd.read_csv(RESULTS / "sweep.csv").to_dict("records"):
        gain, low, high = (round(float(row[name]), 3) for name in ("difference", "low", "high"))
        method, dataset, encoder, protocol = (str(row[name]) for name in ("method", "dataset", "encoder", "protocol"))
        modality = str(DATASETS[dataset]["image"]["modality"])
        yield Cell(
            method=method,
            dataset=dataset,
            modality=modality,
            dimensions=2,
            encoder=encoder,
            protocol=protocol,
            difference=gain,
            low=low,
            high=high,
            units=int(row["units"]),
        )


def volume_cells() -> Iterator[Cell]:
    """The four methods on volumes, by the logistic probe."""
    text = (RESULTS / "adrenal-3d.md").read_text()
    tested = _one(r"(\d+) are tested", text)
    for method, *numbers in re.findall(rf"^\| `(\w+)` \| [^|]+ \| {_GAIN} \|", text, re.MULTILINE):
        gain, low, high = map(float, numbers)
        yield Cell(
            method=method,
            dataset="adrenalmnist3d",
            modality="ct",
            dimensions=3,
            encoder="monai_vit",
            protocol="logistic",
            difference=gain,
            low=low,
            high=high,
            units=int(tested),
        )


def pretrained_gain() -> tuple[float, float, float]:
    """SimCLR continued from ImageNet weights minus from scratch: by how much, and the interval."""
    text = (RESULTS / "pretrained-weights.md").read_text()
    found = re.search(rf"same encoder from scratch \| logistic \| {_GAIN} \|", text)
    if found is None:
        raise ValueError("pretrained-weights.md: the row of the same encoder from scratch is missing")
    gain, low, high = (float(number) for number in found.groups())
    return gain, low, high


def _one(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    if len(found) != 1:
        raise ValueError(f"{len(found)} times {pattern!r}, not once")
    return str(found[0])


def written() -> str:
    """The advisor's table."""
    cells = [cell.model_dump() for cell in (*flat_cells(), *volume_cells())]
    return pd.DataFrame(cells).to_csv(index=False, float_format="%.3f", lineterminator="\n")


def main() -> None:
    """Write the table."""
    write_text(SWEEP, written())
    print(SWEEP)


if __name__ == "__main__":
    main()
