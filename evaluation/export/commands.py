"""The command that hands an encoder on."""

from pathlib import Path
from typing import Annotated

import typer


def mount(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(export)


def export(
    run: Annotated[Path, typer.Argument(help="A run folder.", metavar="RUN")],
    to: Annotated[
        str, typer.Option(help="timm (also Hugging Face's layout), onnx or monai.", metavar="timm|onnx|monai")
    ],
    arm: Annotated[str, typer.Option(help="Whose encoder.")] = "federated",
    fold: Annotated[int, typer.Option(help="Fold of the split.")] = 0,
    seed: Annotated[int | None, typer.Option(help="Training seed; default: the lowest there is.")] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder; default: in RUN/export.", metavar="FOLDER")] = None,
) -> None:
    """Write a run's encoder as a folder that loads without this project, with its model card."""
    from evaluation.export.export import export as write

    place = write(run, to, arm, fold, seed, out)
    print(f"encoder: {place}")
    print("read its model card before handing it on: the licence of the weights is yours to state")
