"""What a run found, for the console: the answer, and one line an encoder; never wider than 80 columns."""

import io
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evaluation.report.answers import BASELINE, Contrast, answer, contrasts
from evaluation.report.cautions import demonstration_text, elsewhere_text
from evaluation.report.run_folder import RunFolder, read_run
from evaluation.statistics.metric_values import (
    MetricQuery,
    MetricValue,
    arm_figures,
    interval_text,
    main_question,
    metric_title,
    number,
)

WIDTH = 80


def summary_lines(run: Path) -> list[str]:
    """Plain lines of at most 80 columns from a run folder's records. RunError when it has no results.csv."""
    folder = read_run(run)
    query = main_question(folder)
    found = contrasts(folder, query)
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, force_terminal=False, legacy_windows=False)
    for line in answer(found, folder, query):
        console.print(Text(line), soft_wrap=False)
    console.print()
    console.print(_table(folder, query, found))
    if folder.demonstration:
        console.print()
        console.print(Text(demonstration_text(folder)))
    if folder.pretrained_elsewhere:
        console.print()
        console.print(Text(elsewhere_text(folder)))
    written = console.file
    assert isinstance(written, io.StringIO)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def _table(folder: RunFolder, query: MetricQuery, found: list[Contrast]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="", pad_edge=False)
    for heading, side in (("encoder", "left"), (metric_title(query.metric), "right"), ("95 % interval", "left")):
        table.add_column(heading, justify="right" if side == "right" else "left")
    one = folder.about_one
    table.add_column("federated minus it" if one else "minus what it started from")
    reported = found if one else [contrast for contrast in found if contrast.kind == BASELINE]
    verdicts = {contrast.other if one else contrast.own: contrast for contrast in reported}
    for name, figure in arm_figures(folder, query).items():
        contrast = verdicts.get(name)
        said = f"{number(contrast.figure.value, signed=True)}  {contrast.verdict}" if contrast else ""
        cells = (folder.arm(name).short, number(figure.value), _interval(figure), said)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _interval(figure: MetricValue) -> str:
    return interval_text(figure) if figure.interval else "none"
