"""The attacks' command."""

import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

WIDTH = 80


def mount(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(attack)


def attack(
    run: Annotated[Path, typer.Argument(help="Folder of a simulated run.", metavar="RUN")],
    shadows: Annotated[int, typer.Option(help="Shadow pretrainings, an even number; 0 for none.")] = 4,
    arm: Annotated[str, typer.Option(help="The arm to attack; it must have trained.")] = "federated",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Measure what attacks learn of patients from a run's weights and updates; its report then shows it."""
    from attacks.attack import attack as measured
    from foundation.machine import checked_device

    answer = measured(run, shadows=shadows, arm=arm, device=checked_device(device))
    for line in table(answer):
        print(line)
    print(f"\nshow it in the report: fedpretext report {run}")


def table(answer: Mapping[str, Any]) -> Iterator[str]:
    """What ``attacks.json`` says, in lines of at most 80 columns."""
    from evaluation.report.tables.attack_rows import attack_rows, promise_text, who_text

    yield from textwrap.wrap(who_text(answer), WIDTH)
    yield from textwrap.wrap(promise_text(answer), WIDTH)
    yield f"\n{'attack':<28}{'advantage, 95 %':<26}on an overfitted model"
    for row in attack_rows(answer):
        yield f"{row.name:<28}{row.advantage:<26}{row.control}"
        yield textwrap.fill(row.reading, WIDTH, initial_indent="    ", subsequent_indent="    ")
