"""The advisor's command."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

NEEDED = ("--modality", "--task", "--labels", "--sites", "--patients-per-site")
MORE = ("--images-per-patient", "--volumes", "--pretrained-weights")
OF_PILOT = ("STUDY", "--set", "--passes", "--runs")


def mount(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(advise)


def advise(
    context: typer.Context,
    study: Annotated[
        Path | None, typer.Argument(help="With --pilot: the study file (YAML).", metavar="[STUDY]")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="x-ray, ultrasound, histopathology, ct, mri, ...")] = None,
    task: Annotated[
        str | None, typer.Option(help="classification, multilabel, regression, segmentation or detection.")
    ] = None,
    labels: Annotated[int | None, typer.Option(help="Labelled images, of all sites together.")] = None,
    sites: Annotated[int | None, typer.Option(help="Hospitals that take part.")] = None,
    patients_per_site: Annotated[int | None, typer.Option(help="Patients of the smallest site.")] = None,
    images_per_patient: Annotated[int, typer.Option(help="Images of each patient.")] = 1,
    volumes: Annotated[bool, typer.Option("--volumes", help="Images are volumes.")] = False,
    privacy: Annotated[bool, typer.Option("--privacy", help="Patient-level privacy: per-sample losses only.")] = False,
    pretrained_weights: Annotated[
        bool, typer.Option("--pretrained-weights", help="Weights from natural images are at hand.")
    ] = False,
    different_sites: Annotated[
        bool, typer.Option("--different-sites", help="Sites' images look strongly different.")
    ] = False,
    pilot: Annotated[bool, typer.Option("--pilot", help="Measure the first candidates on STUDY's own data.")] = False,
    passes: Annotated[int | None, typer.Option(help="Pilot: encoder passes of each candidate; default: 5000.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Pilot: override a study key.", metavar="KEY=VALUE")
    ] = None,
    runs: Annotated[Path, typer.Option(help="Pilot: where its folder is made.")] = Path("runs"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    out: Annotated[Path | None, typer.Option(help="Study file to write; default: advise-....yaml.")] = None,
) -> None:
    """Suggest pretext tasks, with the evidence, and write a study file; --pilot measures instead."""
    sources = {_option(name): context.get_parameter_source(name) for name in context.params}
    given = {option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    if pilot and study is None:
        raise typer.BadParameter("--pilot measures on a study's own data: give a STUDY")
    idle, why = (NEEDED + MORE, "with --pilot: the study says it") if pilot else (OF_PILOT, "without --pilot")
    if useless := [option for option in idle if option in given]:
        raise typer.BadParameter(f"{useless[0]} does nothing {why}; leave it out")
    reported: dict[str, Any] = {"privacy": privacy, "different_sites": different_sites}
    if study is not None:
        _pilot(study, tuple(overrides or ()), reported, passes, runs, device, out)
        return
    if missing := [option for option in NEEDED if option not in given]:
        raise typer.BadParameter(f"give {', '.join(missing)} too, or a STUDY with --pilot")
    reported |= {"modality": modality, "task": task, "labels": labels, "sites": sites, "patients": patients_per_site}
    reported |= {"images": images_per_patient, "volumes": volumes, "pretrained_weights": pretrained_weights}
    _answer(reported, device, out)


def _option(name: str) -> str:
    return {"study": "STUDY", "overrides": "--set"}.get(name, f"--{name.replace('_', '-')}")


def _answer(reported: dict[str, Any], device: str, out: Path | None) -> None:
    from advisor.answer import answer
    from advisor.ranking import best
    from advisor.setting import Setting
    from advisor.study_file import write_study
    from foundation.machine import checked_device, choose_device

    setting = Setting(**reported, accelerator=choose_device(checked_device(device)).type != "cpu")
    path = out or Path(f"advise-{setting.modality}-{setting.task}.yaml")
    lines = answer(setting)
    write_study(path, setting, best(setting)[0], _command())
    print(*lines, sep="\n")
    print(f"\nstudy file: {path}\ncheck it: fedpretext validate {path}")


def _pilot(
    study: Path,
    overrides: tuple[str, ...],
    reported: dict[str, Any],
    passes: int | None,
    runs: Path,
    device: str,
    out: Path | None,
) -> None:
    from advisor.pilot import pilot
    from advisor.pilot_plan import PASSES
    from advisor.study_file import refuse_overwriting
    from federation.study import load_study
    from foundation.machine import checked_device

    chosen = load_study(study, overrides)
    path = out or Path(f"advise-{chosen.name}.yaml")
    refuse_overwriting(path)
    budget = PASSES if passes is None else passes
    print(*pilot(chosen, runs, path, reported, checked_device(device), budget, _command()), sep="\n")


def _command() -> str:
    return " ".join(["fedpretext", *sys.argv[1:]])
