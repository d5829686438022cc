"""The study lead's commands."""

import sys
from pathlib import Path
from typing import Annotated

import typer

Federation = Annotated[Path, typer.Option(help="The federation folder that provision made.", metavar="FOLDER")]
FederationArgument = Annotated[
    Path, typer.Argument(help="The federation folder that provision made.", metavar="FEDERATION")
]
StudyPath = Annotated[Path, typer.Argument(help="Study file (YAML).", metavar="STUDY")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a study key; may be repeated.", metavar="KEY=VALUE"),
]
Passphrase = Annotated[
    str | None,
    typer.Option("--passphrase", help="Of the CA's key: a file that holds it, or: ask.", metavar="FILE|ask"),
]
Site = Annotated[str, typer.Argument(help="The site's name.", metavar="SITE")]
DEFAULT = Path("kits/server")


def mount(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (provision, add_site, accept, revoke, renew, expiry, server, status, accept_restart):
        app.command()(command)


def provision(
    study: StudyPath,
    server: Annotated[str, typer.Option(help="HOST:PORT by which sites will reach the server.")],
    sites: Annotated[list[str], typer.Option(help="A site's name; may be repeated, or several in one, by commas.")],
    out: Annotated[Path, typer.Option(help="Where the kits are made.")] = Path("kits"),
    days: Annotated[int, typer.Option(help="Days for which certificates hold.")] = 365,
    overrides: Overrides = None,
    passphrase: Passphrase = None,
) -> None:
    """Make a federation for a study: CA, the server's certificates, and a kit for each site."""
    from foundation.passphrase import passphrase as given
    from server.enrolment.provision import provision as make

    names = [name.strip() for each in sites for name in each.split(",") if name.strip()]
    secret = given(passphrase, "the CA's key", new=True)
    _print(make(study, overrides or (), server=server, sites=names, out=out, days=days, passphrase=secret))


def add_site(
    federation: FederationArgument,
    site: Site,
    out: Annotated[Path | None, typer.Option(help="Where the kit is made; default: beside the others.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Invite a revoked site again.")] = False,
) -> None:
    """Make a kit for one more site; no other site is touched."""
    from server.enrolment.provision import add_site as add

    _print(add(federation, site, out, again=again))


def accept(
    federation: FederationArgument,
    request: Annotated[Path, typer.Argument(help="The request that the site sent (site.csr).", metavar="REQUEST")],
    fingerprint: Annotated[
        str | None, typer.Option(help="The fingerprint that the site read out by telephone; compared for you.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Let an enrolled site change its key.")] = False,
    passphrase: Passphrase = None,
) -> None:
    """Enrol a site by its request; the same request again renews its certificate."""
    from foundation.passphrase import passphrase as given
    from server.enrolment.provision import accept as enrol

    _print(enrol(federation, request, fingerprint, given(passphrase, "the CA's key"), replace=replace))


def revoke(
    federation: FederationArgument, site: Site, reason: Annotated[str, typer.Option(help="Why; kept on record.")]
) -> None:
    """Exclude a site; a running server cuts it off within seconds."""
    from server.enrolment.provision import revoke as exclude

    _print(exclude(federation, site, reason))


def renew(
    federation: FederationArgument,
    what: Annotated[str, typer.Argument(help="server, or a site's name.", metavar="server|SITE")],
    new_keys: Annotated[bool, typer.Option("--new-keys", help="Make new keys for the server, too.")] = False,
    passphrase: Passphrase = None,
) -> None:
    """Renew the server's certificates, or a site's."""
    from foundation.passphrase import passphrase as given
    from server.enrolment.provision import renew as again

    _print(again(federation, what, given(passphrase, "the CA's key"), new_server_keys=new_keys))


def expiry(federation: FederationArgument = DEFAULT) -> None:
    """Say how long each certificate still holds."""
    from server.enrolment.provision import expiry as report

    _print(report(federation))


def server(
    study: StudyPath,
    federation: Federation = DEFAULT,
    host: Annotated[str, typer.Option(help="Address of this machine to listen on.")] = "0.0.0.0",
    weights: Annotated[Path | None, typer.Option(help="Starting weights (.safetensors, .pth), not random.")] = None,
    metrics_port: Annotated[int, typer.Option(help="Port of the metrics on this machine; 0: any.")] = 9464,
    service: Annotated[bool, typer.Option("--service", help="Print a systemd unit instead of starting.")] = False,
    overrides: Overrides = None,
) -> None:
    """Run a study with the admitted sites: SuperLink, proxy and round loop; restarts by itself after a crash."""
    from foundation.process_group import end_well_on_sigterm
    from server.processes.service import ServerOptions, serve, unit

    if service:
        print(unit(federation, study, Path(sys.argv[0]).resolve()), end="")
        return
    end_well_on_sigterm()
    run = serve(study, overrides or (), federation, ServerOptions(host, weights, metrics_port))
    print(f"\nrun: {run}")
    print(f"evaluate it: fedpretext evaluate {run} --data LABELLED_IMAGES")


def status(
    folder: Annotated[Path, typer.Argument(help="A federation or run folder.", metavar="FEDERATION")] = DEFAULT,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as it is.")] = False,
) -> None:
    """Show a live table: sites, round, progress, last loss, bytes, who is late."""
    from server.monitoring.status_table import show
    from server.monitoring.status_writer import latest_status

    path = latest_status(folder)
    if as_json:
        print(path.read_text(), end="")
        return
    show(path, once)


def accept_restart(
    federation: FederationArgument,
    site: Site,
    reason: Annotated[str, typer.Option(help="Why; kept on record.")],
    ledger: Annotated[
        bool, typer.Option("--ledger", help="Its privacy ledger: what was spent before no longer adds up.")
    ] = False,
) -> None:
    """Take a site's new audit log, or privacy ledger, after its disk was lost; without this it is refused."""
    from federation.audit.log import AuditLog
    from server.enrolment.federation_folder import AUDIT, SERVER
    from server.ledgers import ledger_party

    AuditLog(federation / AUDIT, SERVER).accept_restart(ledger_party(site) if ledger else site, reason)
    what = "privacy ledger" if ledger else "audit log"
    print(f"site {site}: its next {what} is taken as a new one; that and the reason are on record")
    if ledger:
        print("What the lost ledger had charged is still spent: the site's figures are too small from now on.")


def _print(lines: list[str]) -> None:
    print(*lines, sep="\n")
