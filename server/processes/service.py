"""``fedpretext server``: SuperLink, proxy and round loop in one program, which goes on by itself after a mishap."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, RecordDict

from federation.app_bundle import app_bundle, bundle_digest
from federation.audit.log import AuditLog
from federation.flower.private import TaskQueue, server_task, superlink_errors
from federation.flower.private_control import ControlPlane
from federation.privacy.ledger import Ledger
from federation.study import Study, load_study
from foundation.errors import FedpretextError, QuorumError, RunError, StudyError
from foundation.exclusive import alone_in
from foundation.files import read_json, write_json, write_text
from foundation.machine import provenance, versions
from foundation.service_log import ServiceLog
from server.app import app
from server.enrolment.federation_folder import AUDIT, SERVER
from server.enrolment.fleet import Fleet
from server.enrolment.registry import Registry, check_server_keys
from server.export import TITLES, write_encoder
from server.federated_evaluation import collect
from server.initial import INITIAL_NAME, write_initial
from server.monitoring.metrics import MetricsEndpoint
from server.monitoring.status_writer import STATUS, StatusWriter, heartbeat
from server.privacy_record import write_privacy
from server.processes.proxy import needed_nginx
from server.processes.superlink import SuperLink
from server.rounds import write_study
from server.site_noise import LEDGER_NAME
from ssl_methods.encoders.starting_weights import read_weights

_TASK_S, _POLL_S = 60.0, 0.2
_PAUSE_S, _LASTED_S = 60.0, 120.0
_WAITS_S = (2.0, 5.0, 15.0, 60.0)


@dataclass(frozen=True)
class ServerOptions:
    """What the person who starts a server chooses, beside the study and the federation folder."""

    host: str = "0.0.0.0"
    weights: Path | None = None
    metrics_port: int = 9464
    pause_s: float = _PAUSE_S


def serve(study_path: Path, overrides: Sequence[str], federation: Path, settings: ServerOptions) -> Path:
    """Run the study with the admitted sites to its end, from wherever a former start left it; the run folder.

    StudyError for a study that is not the federation's, RunError when another server works in the folder or a program
    cannot be started. All that can pass by itself (a missing quorum, a full disk, a SuperLink that died) is a pause.
    """
    registry = Registry(federation)
    check_server_keys(federation)
    needed_nginx()
    study = checked_study(study_path, overrides, registry)
    run = federation / "runs" / f"{study.name}-{study.training_hash()[:12]}"
    run.mkdir(parents=True, exist_ok=True)
    with alone_in(run, "lock", "another server works on this study; stop it first (fedpretext status)"):
        folder = _prepare(run, study, settings)
        log = ServiceLog(run / "server.jsonl")
        status_writer = StatusWriter(folder / STATUS, study.name, study.training_hash(), study.rounds.count)
        audit = AuditLog(federation / AUDIT, SERVER)
        audit.append("server started", study=study.training_hash(), code=versions()["fedpretext"])
        for warning in registry.warnings(datetime.now(UTC)):
            log.write("warning", warning)
        for site, reason in registry.refused(datetime.now(UTC)).items():
            audit.append("site not admitted", site=site, reason=reason)
        with MetricsEndpoint(settings.metrics_port, folder / STATUS, log) as metrics, heartbeat(folder / STATUS):
            status_writer.metrics_at(metrics.port)
            failures, started = 0, time.monotonic()
            while not _attempt(study, registry, folder, settings, status_writer, audit, log):
                failures = 0 if time.monotonic() - started > _LASTED_S else failures + 1
                time.sleep(min(settings.pause_s, _WAITS_S[min(failures, len(_WAITS_S) - 1)]))
                started = time.monotonic()
        write_encoder(folder, study, "federated", TITLES["federated"])
        collect(run)
        _record_privacy(run, study, federation)
        finished = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(run / "run.json", read_json(run / "run.json") | {"finished": finished})
        log.write("info", f"study {study.name}: finished; the encoder is {folder / 'encoder.safetensors'}")
    return run


def _record_privacy(run: Path, study: Study, federation: Path) -> None:
    """What was promised and, where the server itself has noised, spent; the sites' own ledgers stay with them."""
    ledger = federation / LEDGER_NAME
    if study.privacy is not None:
        spent = {"the server": Ledger(ledger).spent(study.privacy.delta)} if ledger.exists() else {}
        write_privacy(run, study, spent)


def checked_study(path: Path, overrides: Sequence[str], registry: Registry) -> Study:
    """The study file without its simulation section, if it is the one that the federation's kits name."""
    study = load_study(path, tuple(overrides)).model_copy(update={"simulation": None})
    if study.training_hash() != registry.federation.study:
        raise StudyError(
            f"{path}: has the hash {study.training_hash()[:12]}, and the kits of this federation were made for "
            f"{registry.federation.study[:12]}; give the study file that they were made with "
            f"({registry.folder / 'study.yaml'}), or provision the new study"
        )
    return study


def _prepare(run: Path, study: Study, settings: ServerOptions) -> Path:
    """The folder of the federated arm, laid out as a simulated run's, so that evaluation and report read both."""
    folder = run / "arms" / "federated" / "fold-0" / f"seed-{study.seed}"
    if not (run / "run.json").exists():
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        write_text(run / "study.yaml", study.to_yaml())
        write_json(run / "run.json", study.facts() | {"started": started} | provenance("fedpretext server"))
    write_study(folder, study)
    if settings.weights is not None and not (folder / INITIAL_NAME).exists():
        fitted = write_initial(folder, study, read_weights(settings.weights), settings.weights.name)
        line = fitted.line(settings.weights.name)
        write_json(run / "run.json", read_json(run / "run.json") | {"starting_weights": line})
    return folder


def _attempt(
    study: Study,
    registry: Registry,
    folder: Path,
    settings: ServerOptions,
    status_writer: StatusWriter,
    audit: AuditLog,
    log: ServiceLog,
) -> bool:
    """Run to the end and return True; False after what may pass by itself, which the status and the log then name."""
    port = int(registry.federation.server.rpartition(":")[2])
    try:
        place = registry.folder / "superlink"
        with superlink_errors(), SuperLink(registry.folder, place, (settings.host, port)) as link:
            _admit(registry, link, audit)
            link.open_door()
            log.write("info", f"listening on {settings.host}:{port}; SuperLink on {link.endpoint.address} only")
            while True:
                try:
                    _run(study, registry, folder, link)
                    return True
                except QuorumError as error:
                    _pause(error, status_writer, audit, log)
                    time.sleep(settings.pause_s)
    except StudyError:
        raise
    except (FedpretextError, OSError) as error:
        _pause(error, status_writer, audit, log)
        return False


def _admit(registry: Registry, link: SuperLink, audit: AuditLog) -> None:
    """Make the SuperLink's list of nodes the registry's, before the first site can try."""
    control = ControlPlane(link.endpoint)
    try:
        Fleet(registry, control, audit).refresh()
    finally:
        control.close()


def _run(study: Study, registry: Registry, folder: Path, link: SuperLink) -> None:
    """One Flower run from the last checkpoint on, its server app in this process."""
    control = ControlPlane(link.endpoint)
    queue = TaskQueue(link.endpoint, link.secret)
    try:
        control.stop_runs()
        bundle = app_bundle(study)
        control.start_run(bundle, bundle_digest(bundle))
        deadline = time.monotonic() + _TASK_S
        while (token := queue.next("server")) is None:
            if time.monotonic() > deadline or link.ended():
                raise RunError("the SuperLink did not hand out the study's run; its log is superlink/superlink.log")
            time.sleep(_POLL_S)
        paths = {"study": folder / "study.yaml", "folder": folder, "federation": registry.folder}
        with server_task(link.endpoint, token) as grid:
            config = {key: str(path) for key, path in paths.items()} | {"control": link.endpoint.address}
            app(grid, Context(1, 1, {}, RecordDict(), dict(config)))
    finally:
        queue.close()
        control.close()


def _pause(error: Exception, status_writer: StatusWriter, audit: AuditLog, log: ServiceLog) -> None:
    status_writer.phase("paused", str(error))
    log.write("warning", f"paused: {error}; goes on by itself from the last round")
    try:
        audit.append("paused", reason=str(error)[:500])
    except RunError as full:
        log.write("error", f"the audit log cannot be written: {full}")


def unit(federation: Path, study: Path, program: Path) -> str:
    """A systemd unit that keeps the server running."""
    return f"""\
[Unit]
Description=fedpretext server ({study.stem})
After=network-online.target
Wants=network-online.target

[Service]
ExecStart="{program}" server "{study.resolve()}" --federation "{federation.resolve()}"
Restart=always
RestartSec=30
NoNewPrivileges=true
PrivateTmp=true
ProtectSystem=strict
ReadWritePaths="{federation.resolve()}"

[Install]
WantedBy=multi-user.target
"""
