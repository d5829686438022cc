"""Where a simulated federation runs. The same two app objects in each."""

from collections.abc import Callable

from flwr.app import Context, RecordDict

from client.app import build_app
from server.app import app as server_app
from simulation.runtimes.grid import InProcessGrid
from simulation.sites.site_folders import Federation


def run_in_process(federation: Federation) -> None:
    """Run server and sites in this process, sites in turn."""
    config = federation.run_config()
    nodes = [{"site-file": str(federation.folder / "sites" / site / "site.yaml")} for site in federation.sites]
    grid = InProcessGrid(build_app(), nodes, config)
    server_app(grid, Context(1, 1, {}, RecordDict(), dict(config)))


def run_in_ray(federation: Federation) -> None:
    """Run the apps in Flower's own simulation engine (Ray), for many GPUs."""
    from simulation.runtimes.ray import run

    run(federation)


RUNTIMES: dict[str, Callable[[Federation], None]] = {"in-process": run_in_process, "ray": run_in_ray}
