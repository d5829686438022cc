"""A hospital's commands."""

import getpass
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Annotated

import typer

Kit = Annotated[Path, typer.Argument(help="The kit that the study lead sent.", metavar="KIT")]
Site = Annotated[Path, typer.Option("--site", help="The site file, or the kit that holds it.", metavar="FILE")]
Passphrase = Annotated[
    str | None,
    typer.Option("--passphrase", help="Of the site's key: a file that holds it, or: ask.", metavar="FILE|ask"),
]
HERE = Path("site.yaml")

site_app = typer.Typer(no_args_is_help=True, help="Prepare this hospital: key, checks, approval.")


def mount(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(client)
    app.command()(audit)
    app.command()(privacy)
    app.add_typer(site_app, name="site")


@site_app.command()
def init(
    kit: Kit,
    data: Annotated[Path | None, typer.Option(help="The images: a folder or a manifest (CSV, Parquet).")] = None,
    state: Annotated[Path | None, typer.Option(help="Folder for jobs and logs; default: in the kit.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    passphrase: Passphrase = None,
) -> None:
    """Make this site's own key and its request; the key never leaves this machine."""
    from client.kit_keys import site_init
    from foundation.machine import checked_device
    from foundation.passphrase import passphrase as given

    secret = given(passphrase, "the site's key", new=True)
    print(*site_init(kit, data, state, checked_device(device), secret), sep="\n")


@site_app.command()
def check(
    data: Annotated[Path | None, typer.Option(help="The images; default: those of the site file.")] = None,
    site: Site = HERE,
    study: Annotated[Path | None, typer.Option(help="Study file; default: the kit's, where there is one.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page, too.")] = None,
    sample: Annotated[int, typer.Option(help="Images to check first.")] = 50,
) -> None:
    """Check the images and the machine before joining; the report stays here."""
    from client.checks.report import lines, write_check
    from client.checks.site_check import check_kit

    found = check_kit(site, data, study, sample=sample)
    print(*lines(found, 80), sep="\n")
    if html is not None:
        write_check(found, html)
        print(f"\nreport: {html}")
    if not found.ok:
        sys.exit(2)


@site_app.command()
def approve(
    study: Annotated[Path, typer.Argument(help="Study file (the kit's study.yaml).", metavar="STUDY")],
    site: Site = HERE,
    by: Annotated[str, typer.Option(help="Who approves; stays here.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Approve without being asked.")] = False,
) -> None:
    """Show what a study would train, what would leave and how much; record the approval."""
    from client.approval import approve as record
    from client.site_file import find_site_file, load_site_file

    def confirm(text: str) -> bool:
        for line in text.splitlines():
            print(textwrap.fill(line, 80, subsequent_indent="    ", break_on_hyphens=False))
        return yes or typer.confirm("Approve this study?")

    print(record(study, load_site_file(find_site_file(site)), by or getpass.getuser(), confirm)[-1])


@site_app.command()
def withdraw(
    study: Annotated[str, typer.Argument(help="The study file, or the first digits of its hash.", metavar="STUDY")],
    site: Site = HERE,
) -> None:
    """Withdraw an approval; it counts from the next instruction on."""
    from client.approval import withdraw as take_back
    from client.site_file import find_site_file, load_site_file
    from federation.study import load_study

    hash_ = load_study(Path(study)).training_hash() if Path(study).is_file() else study
    named = take_back(load_site_file(find_site_file(site)), hash_)
    print(f"study {named}: no longer approved here; a round in work is finished, no other is begun")


@site_app.command()
def status(site: Site = HERE) -> None:
    """Show what this site's client has done last."""
    from client.site_file import find_site_file
    from client.site_status import site_status_lines

    print(*site_status_lines(find_site_file(site), shutil.get_terminal_size().columns), sep="\n")


@site_app.command()
def key() -> None:
    """Print a new key for encryption at rest (64 hex digits); keep it where the state folder is not."""
    from federation.keys.key_source import new_key_text

    print(new_key_text())


def client(
    kit: Kit,
    passphrase: Passphrase = None,
    service: Annotated[bool, typer.Option("--service", help="Print a systemd unit instead of starting.")] = False,
) -> None:
    """Join the federation of a kit and stay in it; reconnects by itself."""
    from client.processes.service import join, unit
    from foundation.passphrase import passphrase as given
    from foundation.process_group import end_well_on_sigterm

    if service:
        print(unit(kit, Path(sys.argv[0]).resolve()), end="")
        return
    end_well_on_sigterm()
    join(kit, given(passphrase, "the site's key"))


def audit(
    logs: Annotated[
        list[Path] | None,
        typer.Argument(help="A site file, kit or audit log; two logs are compared.", metavar="LOG"),
    ] = None,
) -> None:
    """Show what left this site, when, how big, under which study and code; verify the chain."""
    from client.site_file import audit_log_at
    from federation.audit.report import report

    found = report(*[audit_log_at(log) for log in logs or [HERE]])
    print(*found.lines, sep="\n")
    if not found.ok:
        sys.exit(2)


def privacy(
    place: Annotated[
        Path, typer.Argument(help="A site file or kit (what was spent), or a study file (its plan).", metavar="PLACE")
    ] = HERE,
    study: Annotated[Path | None, typer.Option(help="Study that is planned; default: the kit's.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Also ask a second accountant.")] = False,
) -> None:
    """Show what was spent on these patients, what a study would add, what is left, and what it means."""
    from client.privacy.page import privacy_lines

    print(*privacy_lines(place, study, check), sep="\n")
