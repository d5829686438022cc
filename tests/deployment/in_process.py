"""What a deployed federation's weights are held against: the same study and sites in one process; no test here."""

import shutil
from pathlib import Path

import yaml

from foundation.tensor_files import load_tensors
from server.rounds import write_study
from simulation.runtimes.table import run_in_process
from simulation.sites.run_keys import write_run_keys
from simulation.sites.site_folders import Federation

from .conftest import Deployment


def bits(path: Path) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in load_tensors(path)[0].items()}


def undisturbed(deployment: Deployment, place: Path) -> dict[str, bytes]:
    """The weights of the same study and sites in process, where nothing happens."""
    write_study(place, deployment.study)
    for site in deployment.sites:
        own = place / "sites" / site
        own.mkdir(parents=True)
        hospital = deployment.root / "hospitals" / site
        shutil.copy(hospital / "site.yaml", own)
        raw = yaml.safe_load((own / "site.yaml").read_text())
        (own / "site.yaml").write_text(yaml.safe_dump(raw | {"data": str(hospital / "manifest.csv"), "cache": "cache"}))
    if deployment.study.secure_aggregation is not None:
        write_run_keys(place / "sites", {site: place / "sites" / site for site in deployment.sites})
    run_in_process(Federation(place, tuple(deployment.sites)))
    return bits(place / "global.safetensors")
