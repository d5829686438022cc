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
        initial = initial_weights(study, folder)
        secure = _secure(study, folder, channel, audit, lambda: certificates_in(folder / "sites"))
        weights = RoundLoop(study, RunRecords(folder, audit), channel, initial, secure).run()
        save_tensors(folder / "global.safetensors", weights)
        evaluate_federated(study, folder, channel, _arms(folder, initial, weights))
        return
    registry = Registry(Path(config["federation"]))
    audit = AuditLog(registry.folder / AUDIT, SERVER)
    vault = open_vault(registry.federation.key, [registry.folder])
    status_writer = StatusWriter(folder / STATUS, study.name, study.training_hash(), study.rounds.count)
    control = ControlPlane(Endpoint(config["control"], (registry.folder / "ca.crt").read_bytes()))
    fleet = FleetSiteChannel(
        grid, study, audit, Fleet(registry, control, audit), status_writer, Signer.of(registry.folder)
    )
    initial = initial_weights(study, folder)
    secure = _secure(study, folder, fleet, audit, lambda: certificates_of(registry))
    weights = RoundLoop(study, RunRecords(folder, audit, vault), fleet, initial, secure).run()
    save_tensors(folder / "global.safetensors", weights)
    if study.federated_evaluation is not None:
        status_writer.phase("evaluating at the sites")
        evaluate_federated(study, folder, fleet, _arms(folder, initial, weights))
    audit.append("study finished", study=study.training_hash())
    status_writer.phase("delivering the weights")
    confirmed = fleet.deliver(weights, study.rounds.count, _DELIVERY_S)
    status_writer.phase("finished", f"weights confirmed by {', '.join(confirmed) or 'no site'}")
    control.close()


def _secure(
    study: Study, folder: Path, channel: GridSiteChannel, audit: AuditLog, certificates: Callable[[], SiteCertificates]
) -> SecureMean | None:
    if study.secure_aggregation is None:
        return None
    return SecureMean(study, folder, channel.requests, certificates(), audit.path.with_name(LEDGER_NAME))


def _arms(folder: Path, initial: Weights, final: Weights) -> dict[str, Weights]:
    """The encoders that the sites evaluate: what training started from, and what came of it."""
    return {"pretrained-init" if (folder / INITIAL_NAME).exists() else "random": initial, "federated": final}
