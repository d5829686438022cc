"""The advisor's command."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer


def mount(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(advise)


def advise(
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
    images_per_patient: Annotated[int | None, typer.Option(help="Images of each patient; default: 1.")] = None,
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
    runs: Annotated[Path | None, typer.Option(help="Pilot: where its folder is made; default: runs.")] = None,
    device: Annotated[str | None, typer.Option(help="auto (default), cpu, cuda or mps.")] = None,
    out: Annotated[Path | None, typer.Option(help="Study file to write; default: advise-....yaml.")] = None,
) -> None:
    """Suggest pretext tasks, with the evidence, and write a study file; --pilot measures instead."""
    needed = {
        "modality": modality,
        "task": task,
        "labels": labels,
        "sites": sites,
        "patients_per_site": patients_per_site,
    }
    of_images = {"images_per_patient": images_per_patient, "volumes": volumes, "pretrained_weights": pretrained_weights}
    reported: dict[str, Any] = {"privacy": privacy, "different_sites": different_sites}
    if pilot:
        if study is None:
            raise typer.BadParameter("--pilot measures on a study's own data: give a STUDY")
        _refuse(
            {_option(name): value for name, value in (needed | of_images).items()}, "with --pilot: the study says it"
        )
        _pilot(study, overrides or (), reported, passes, runs or Path("runs"), device or "auto", out)
        return
    _refuse({"STUDY": study, "--set": overrides, "--passes": passes, "--runs": runs}, "without --pilot")
    missing = [_option(name) for name, value in needed.items() if value is None]
    if missing:
        raise typer.BadParameter(f"give {', '.join(missing)} too, or a STUDY with --pilot")
    reported |= {"modality": modality, "task": task, "labels": labels, "sites": sites, "patients": patients_per_site}
    reported |= {"volumes": volumes, "pretrained_weights": pretrained_weights}
    reported |= {} if images_per_patient is None else {"images": images_per_patient}
    _answer(reported, device or "auto", out)


def _refuse(options: dict[str, Any], why: str) -> None:
    """BadParameter for the first option that was given."""
    for name, value in options.items():
        if value is not None and value is not False and value != []:
            raise typer.BadParameter(f"{name} does nothing {why}; leave it out")


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _answer(reported: dict[str, Any], device: str, out: Path | None) -> None:
    from advisor.answer import answer
    from advisor.ranking import best
    from advisor.setting import Setting
    from advisor.study_file import refuse_overwriting, write_study
    from foundation.machine import checked_device, choose_device

    setting = Setting(**reported, accelerator=choose_device(checked_device(device)).type != "cpu")
    path = out or Path(f"advise-{setting.modality}-{setting.task}.yaml")
    refuse_overwriting(path)
    lines = answer(setting)
    write_study(path, setting, best(setting)[0], _command())
    print(*lines, sep="\n")
    print(f"\nstudy file: {path}\ncheck it: fedpretext validate {path}")


def _pilot(
    study: Path, overrides: Any, reported: dict[str, Any], passes: int | None, runs: Path, device: str, out: Path | None
) -> None:
    from advisor.pilot import pilot
    from advisor.pilot_plan import PASSES
    from advisor.study_file import refuse_overwriting
    from federation.study import load_study
    from foundation.machine import checked_device

    chosen = load_study(study, tuple(overrides))
    path = out or Path(f"advise-{chosen.name}.yaml")
    refuse_overwriting(path)
    lines = pilot(
        chosen, runs, path, reported, checked_device(device), PASSES if passes is None else passes, _command()
    )
    print(*lines, sep="\n")


def _command() -> str:
    return " ".join(["fedpretext", *sys.argv[1:]])
