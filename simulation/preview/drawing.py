"""Drawing of an image sheet: a block of panels an image, on white, as a PNG."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from numpy.typing import NDArray

from evaluation.report.plots import INK, MUTED
from foundation.files import write_bytes
from simulation.sites.findings import Annotations

# Of Okabe and Ito 2008 those that stand out on grey as on black.
CROPS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#F0E442", "#0072B2")
FINDING, HIDDEN = "#FF2D55", "#93a0b4"
COLUMNS = 7
WIDTH, NARROWEST, LARGEST_CELL = 11.5, 8.0, 2.4  # inches
GAP, TITLE, LINE = 0.1, 0.2, 0.165  # inches
CHARACTERS = 17.5  # of a caption, an inch
BRIGHTEST = 99.8  # percentile that is shown white


@dataclass(frozen=True, eq=False)
class Panel:
    """One image: grey ``[H, W]`` or colour ``[H, W, 3]`` in [0, 1], NaN where hidden.

    outlines: corners ``[4, 2]`` (x, y in pixels, around the outside of the crop) of the views cut from it, by number.
    view: the number of the view that this panel shows, for a frame in its outline's colour.
    """

    title: str
    pixels: NDArray[np.float32]
    outlines: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    view: int | None = None
    findings: Annotations = field(default_factory=Annotations)


@dataclass(frozen=True, eq=False)
class Block:
    """The panels of one image."""

    title: str
    panels: Sequence[Panel]


def write_sheet(path: Path, title: str, caption: Sequence[str], blocks: Sequence[Block]) -> None:
    """Write the sheet as a PNG, atomically. It names no image and no patient."""
    columns = min(COLUMNS, max(len(block.panels) for block in blocks))
    cell = min(LARGEST_CELL, WIDTH / columns - GAP)
    width = max(NARROWEST, columns * (cell + GAP) + GAP)
    lines = [line for text in caption for line in textwrap.wrap(text, int(CHARACTERS * width))]
    rows = [-(-len(block.panels) // columns) for block in blocks]
    head = 0.55 + LINE * len(lines)
    height = head + sum(TITLE + count * (cell + TITLE + GAP) for count in rows) + 0.1
    with mpl.rc_context({"font.family": "sans-serif", "font.size": 8, "text.color": INK}):
        figure = Figure(figsize=(width, height), facecolor="white")
        figure.text(GAP / width, 1 - 0.3 / height, title, fontsize=12 if width > 10 else 10, fontweight="bold")
        for number, line in enumerate(lines):
            figure.text(GAP / width, 1 - (0.5 + LINE * number) / height, line, color=MUTED)
        top = head
        for block, count in zip(blocks, rows, strict=True):
            figure.text(GAP / width, 1 - (top + 0.13) / height, block.title, fontweight="bold", fontsize=9)
            top += TITLE
            white = _white(block)
            for number, panel in enumerate(block.panels):
                row, column = divmod(number, columns)
                left, lower = GAP + column * (cell + GAP), top + row * (cell + TITLE + GAP) + TITLE + cell
                axes = figure.add_axes((left / width, 1 - lower / height, cell / width, cell / height))
                _draw(axes, panel, white)
            top += count * (cell + TITLE + GAP)
        side = max((panel.pixels.shape[0] for block in blocks for panel in block.panels), default=0)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=min(max(130, side / cell), 400), metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def _white(block: Block) -> float:
    """The intensity shown white, one for all panels of a grey image; 1 for colour."""
    grey = [panel.pixels[~np.isnan(panel.pixels)] for panel in block.panels if panel.pixels.ndim == 2]
    return max((float(np.percentile(values, BRIGHTEST)) for values in grey if len(values)), default=1.0) or 1.0


def _draw(axes: Axes, panel: Panel, white: float) -> None:
    """One panel; hidden pixels in a flat colour that no grey image has."""
    axes.set_title(panel.title, fontsize=8, pad=3)
    axes.set_xticks([])
    axes.set_yticks([])
    colours = panel.pixels if panel.pixels.ndim == 3 else np.repeat(panel.pixels[:, :, None] / white, 3, axis=2)
    hidden = np.isnan(colours[:, :, :1])
    colours = np.where(hidden, mpl.colors.to_rgb(HIDDEN), np.nan_to_num(colours).clip(0, 1))
    axes.imshow(colours, interpolation="nearest")
    if panel.findings.mask is not None:
        axes.contour(panel.findings.mask, levels=[0.5], colors=[FINDING], linewidths=1.0)
    for x0, y0, x1, y1 in panel.findings.boxes if panel.findings.mask is None else ():
        box = Rectangle((x0 - 0.5, y0 - 0.5), x1 - x0, y1 - y0, fill=False, edgecolor=FINDING, linewidth=0.8)
        axes.add_patch(box)
    width = 1.4 if len(panel.outlines) <= 4 else 0.8
    for number, corners in panel.outlines.items():
        axes.add_patch(Polygon(corners, closed=True, fill=False, edgecolor=CROPS[number % len(CROPS)], linewidth=width))
    axes.set(xlim=(-0.5, colours.shape[1] - 0.5), ylim=(colours.shape[0] - 0.5, -0.5))
    frame = MUTED if panel.view is None else CROPS[panel.view % len(CROPS)]
    for spine in axes.spines.values():
        spine.set(color=frame, linewidth=0.5 if panel.view is None else 2.0)
