"""The server's Flower app: thin. Hands the round loop a way to the sites."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from federation.algorithms.algorithm import Weights
from federation.audit.log import AuditLog
from federation.flower.private import Endpoint
from federation.flower.private_control import ControlPlane
from federation.keys.key_source import open_vault
from federation.keys.signing import Signer
from federation.study import Study, load_study
from foundation.tensor_files import save_tensors
from server.enrolment.federation_folder import AUDIT, SERVER
from server.enrolment.fleet import Fleet
from server.enrolment.registry import Registry
from server.federated_evaluation import evaluate_federated
from server.fleet_channel import FleetSiteChannel
from server.initial import INITIAL_NAME, initial_weights
from server.monitoring.status_writer import STATUS, StatusWriter
from server.rounds import RoundLoop, RunRecords
from server.secure_round import SecureMean, SiteCertificates, certificates_in, certificates_of
from server.site_channel import GridSiteChannel
from server.site_noise import LEDGER_NAME

app = ServerApp()
_DELIVERY_S = 600.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the study named in the run's configuration to its end; leave ``global.safetensors`` in its folder.

    In a simulation the configuration says how many sites to wait for. In a federation it names the federation's folder
    and the SuperLink's address, and every admitted site is handed the final weights.
    """
    config = {name: str(value) for name, value in context.run_config.items()}
    folder, study = Path(config["folder"]), load_study(Path(config["study"]))
    if "federation" not in config:
        audit = AuditLog(folder / AUDIT, SERVER)
        channel = GridSiteChannel(grid, study, audit, int(config["sites"]))
        arms = _trained(study, RunRecords(folder, audit), channel, lambda: certificates_in(folder / "sites"))
        evaluate_federated(study, folder, channel, arms)
        return
    registry = Registry(Path(config["federation"]))
    audit = AuditLog(registry.folder / AUDIT, SERVER)
    vault = open_vault(registry.federation.key, [registry.folder])
    status_writer = StatusWriter(folder / STATUS, study.name, study.training_hash(), study.rounds.count)
    control = ControlPlane(Endpoint(config["control"], (registry.folder / "ca.crt").read_bytes()))
    fleet = FleetSiteChannel(
        grid, study, audit, Fleet(registry, control, audit), status_writer, Signer.of(registry.folder)
    )
    arms = _trained(study, RunRecords(folder, audit, vault), fleet, lambda: certificates_of(registry))
    if study.federated_evaluation is not None:
        status_writer.phase("evaluating at the sites")
        evaluate_federated(study, folder, fleet, arms)
    audit.append("study finished", study=study.training_hash())
    status_writer.phase("delivering the weights")
    confirmed = fleet.deliver(arms["federated"], study.rounds.count, _DELIVERY_S)
    status_writer.phase("finished", f"weights confirmed by {', '.join(confirmed) or 'no site'}")
    control.close()


def _trained(
    study: Study, records: RunRecords, channel: GridSiteChannel, certificates: Callable[[], SiteCertificates]
) -> dict[str, Weights]:
    """Train to the end; the encoders that the sites evaluate: what training started from, and what came of it."""
    folder, secure = records.folder, None
    initial = initial_weights(study, folder)
    if study.secure_aggregation is not None:
        ledger = records.audit.path.with_name(LEDGER_NAME)
        secure = SecureMean(study, folder, channel.requests, certificates(), ledger)
    weights = RoundLoop(study, records, channel, initial, secure).run()
    save_tensors(folder / "global.safetensors", weights)
    return {"pretrained-init" if (folder / INITIAL_NAME).exists() else "random": initial, "federated": weights}
