"""The command line: a thin face of the rooms' functions, which are imported only when used."""

import gc
import os
import sys
import textwrap
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer

import advisor.commands
import attacks.commands
import client.commands
import evaluation.export.commands
import server.commands

# Flower reports usage and looks for updates by default; a hospital's machine must not.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyPath = Annotated[Path, typer.Argument(help="Study file (YAML); the ready ones are in configs/.", metavar="STUDY")]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a study key, e.g. --set rounds.count=5; may be repeated.", metavar="KEY=VALUE"
    ),
]


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Federated self-supervised pretraining of medical image encoders, across hospitals that cannot share images."""


@app.command()
def simulate(
    study: StudyPath,
    overrides: Overrides = None,
    resume: Annotated[Path | None, typer.Option(help="Go on in this run folder of the same study.")] = None,
    runs: Annotated[Path, typer.Option(help="Where run folders are made.")] = Path("runs"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    pretrain_only: Annotated[
        bool, typer.Option("--pretrain-only", help="Leave the evaluation to `fedpretext evaluate RUN [--task FILE]`.")
    ] = False,
) -> None:
    """Pretrain over simulated hospitals, compare with the alternatives, write the report."""
    from evaluation.report.summary import summary_lines
    from foundation.machine import checked_device
    from simulation.simulate import pretrain, simulate

    if pretrain_only:
        folder = pretrain(study, overrides or (), runs=runs, resume=resume, device=checked_device(device))
        print(f"pretrained: {folder}\nevaluate it: fedpretext evaluate {folder}")
        return
    run = simulate(study, overrides or (), runs=runs, resume=resume, device=checked_device(device))
    for line in summary_lines(run.folder):
        print(line)
    print(f"\nreport: {run.report}")


@app.command()
def evaluate(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            help="A run folder; with --task also several, an arm's folder in a run, an exported folder, NAME=FILE "
            "(weights for a timm model) or NAME (timm's own weights).",
            metavar="CHECKPOINT...",
        ),
    ],
    task: Annotated[
        Path | None,
        typer.Option(help="Task file (YAML) to judge the encoders on; the ready ones are in configs/tasks/."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="With --task: the folder to write; default: runs/<task>-<time>.")
    ] = None,
    protocol: Annotated[
        list[str] | None,
        typer.Option(help="Protocol to score by, default the study's; may be repeated. Rows of other protocols stay."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="For a run that hospitals made: labelled images of your own, a manifest or a folder with one.",
            metavar="DATA",
        ),
    ] = None,
    label: Annotated[str | None, typer.Option(help="The label's column in DATA; default: the study's.")] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Show test images in the report: it then holds images of patients.")
    ] = False,
) -> None:
    """Score encoders on labelled images and write the report: a run's own again, or any on a task file."""
    from evaluation.judge import evaluate
    from evaluation.report.summary import summary_lines

    _label(checkpoints, task, data, label)
    run = evaluate(checkpoints, protocol or None, task=task, out=out, images=images)
    for line in summary_lines(run.folder):
        print(line)
    print(f"\nreport: {run.report}")


def _label(checkpoints: list[str], task: Path | None, data: Path | None, label: str | None) -> None:
    """Give a run that hospitals made the labelled images of ``--data``."""
    if task is not None and (data is not None or label is not None):
        raise typer.BadParameter("--data and --label do nothing with --task: the task file says where images are")
    if data is None:
        if label is not None:
            raise typer.BadParameter("--label names a column of --data: give --data too, or leave it out")
        return
    if len(checkpoints) > 1:
        raise typer.BadParameter("--data is for one run: give one, or judge several on a task file with --task FILE")
    from server.central_evaluation import prepare

    prepare(Path(checkpoints[0]), data, label=label)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated run folders.", metavar="RUN...")],
    out: Annotated[Path | None, typer.Option(help="With several runs: the page; default: comparison.html.")] = None,
    images: Annotated[bool, typer.Option("--images", help="One run: show test images, of patients.")] = False,
) -> None:
    """Write one run's report again, or one page that compares several runs."""
    from evaluation.report.many_runs import write_comparison
    from evaluation.report.page import write_report

    if len(runs) == 1:
        if out is not None:
            raise typer.BadParameter("--out is for several runs: one run's report goes into its folder")
        page = write_report(runs[0], images=images)
    else:
        if images:
            raise typer.BadParameter("--images shows one run's test images: give one run")
        page = write_comparison(runs, out or Path("comparison.html"))
    print(f"report: {page}")


@app.command()
def validate(study: StudyPath, overrides: Overrides = None) -> None:
    """Check a study without running it: what would be trained, bytes a round, memory."""
    from simulation.validate import validate

    for line in validate(study, overrides or ()):
        print(line)


@app.command()
def preview(
    study: StudyPath,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="The sheet to write (PNG).")] = Path("preview.png"),
    images: Annotated[int, typer.Option(help="How many images to show.")] = 4,
    site: Annotated[Path | None, typer.Option(help="Site file: show this hospital's images.")] = None,
    weights: Annotated[Path | None, typer.Option(help="Run folder, or shared weights, for restorations.")] = None,
    channel: Annotated[int | None, typer.Option(help="Channel to show, from 1; default: the middle one.")] = None,
) -> None:
    """Show what the method makes of real images: views, masks, targets, restorations."""
    from simulation.preview.sheet import preview

    shown = preview(study, overrides or (), site=site, out=out, images=images, weights=weights, channel=channel)
    for line in shown:
        print(line)


@app.command()
def pretend_hospitals(
    out: Annotated[Path, typer.Argument(help="A new folder for them.", metavar="OUT")],
    images: Annotated[int, typer.Option(help="Images of each hospital, at least 40.")] = 48,
) -> None:
    """Draw three small pretend hospitals and an evaluator, for the walk-through (docs/walkthrough.md)."""
    from simulation.walkthrough.pretend_hospitals import make_hospitals

    print(*make_hospitals(out, images), sep="\n")


@app.command()
def methods() -> None:
    """List the pretext methods: family, paper, per-sample or coupled loss, dimensions, encoders."""
    from typing import get_args

    from ssl_methods import METHODS
    from ssl_methods.table import Family, Kind

    for family in get_args(Family):
        print(family)
        for name, method in METHODS.items():
            if method.family == family:
                sizes = ", ".join(f"{size}-D" for size in method.dimensions)
                coupling = "per-sample" if method.per_sample else "coupled"
                takes = "any" if set(method.encoders) == set(get_args(Kind)) else ", ".join(method.encoders)
                _print_entry(f"  {name}", f"{method.summary} ({method.paper})")
                _print_entry("", f"{coupling}; {sizes}; encoders: {takes}")
                _print_entry(
                    "", f"learning_rate {method.learning_rate:g}, betas {method.betas[0]:g}, {method.betas[1]:g}"
                )
    print("per-sample: no image's gradient depends on another, as patient-level privacy")
    print("needs it")
    print("learning_rate, betas: of training where a study names none; of combine the least")
    print("of its members")


@app.command()
def algorithms() -> None:
    """List the federated algorithms."""
    from federation.algorithms import ALGORITHMS

    for name, algorithm in ALGORITHMS.items():
        _print_entry(name, f"{algorithm.summary} ({algorithm.paper})")


@app.command()
def encoders() -> None:
    """List encoders that are tried with this; any other timm name of these kinds works too."""
    from ssl_methods.encoders.table import ENCODERS

    for name, about in ENCODERS.items():
        norms = "; BatchNorm, or GroupNorm with encoder.norm: group" if about.batch_norm else ""
        _print_entry(name, f"{about.summary} ({about.paper}){norms}")


evaluation.export.commands.mount(app)
server.commands.mount(app)
client.commands.mount(app)
advisor.commands.mount(app)
attacks.commands.mount(app)


def _print_entry(name: str, text: str) -> None:
    """One entry of a list, at most 80 columns wide."""
    width = 30
    print(textwrap.fill(text, 80, initial_indent=name.ljust(width), subsequent_indent=" " * width))


def main() -> None:
    """Entry point: a user's error is one line and exit code 2; Ctrl-C is 130."""
    from foundation.errors import FedpretextError
    from foundation.messages import print_messages

    print_messages()
    try:
        # --debug is taken anywhere on the line, not only before the command.
        # Of Ctrl-C typer makes the exit code 130, and returns it.
        sys.exit(app([argument for argument in sys.argv[1:] if argument != "--debug"], standalone_mode=False))
    except FedpretextError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; free space or permit it, then try again")
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        _fail(error.format_message())  # click's usage errors


def _fail(text: str) -> NoReturn:
    """One line for the error being handled, after its traceback where --debug asks for it."""
    if "--debug" in sys.argv:
        traceback.print_exc()
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)


def program() -> None:
    """The installed command: ``main`` in a process of its own.

    torch, timm and Flower make millions of objects while they are imported, none of them garbage. Python's collector
    would look through them again and again, and once more at the end: a third of a short command's time.
    """
    gc.set_threshold(50_000, 20, 100)
    try:
        main()
    finally:
        gc.freeze()
