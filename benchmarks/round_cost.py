"""What a simulated round costs beside its training steps: the collapse watch, files and digests, and the rest.

    python -m benchmarks.round_cost [--rounds 3] [--sites 5] [--images 80]

SimCLR over a ResNet-10t, batches of 32, one epoch a round, one thread; the sites share one process. Everything is CPU
time of this process and is given as a share of the steps of the same run, so that other programs and slower machines
change it little. Files: a site's stored round, reply store, checkpoints, snapshots. Digests: SHA-256 of weights.
"""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

import client.training.round
import client.training.stored_rounds
import federation.records
import server.rounds
from benchmarks.measure import judged, table, write_result
from benchmarks.simulation import write_images
from federation.study import study_from
from foundation.files import write_text
from server.reply_store import ReplyStore
from simulation.arms import OPEN_POLICY
from simulation.runtimes.table import run_in_process
from simulation.sites.site_folders import Federation

TARGET = 0.15
WATCHED: dict[str, list[tuple[Any, str]]] = {
    "steps": [(client.training.round._Step, "take")],
    "watch": [(client.training.round, "feature_diagnostics_of")],
    "files": [
        (client.training.stored_rounds.StoredRounds, "keep"),
        (ReplyStore, "write"),
        (server.rounds, "write_checkpoint"),
        (server.rounds, "write_snapshot"),
    ],
    "digests": [(federation.records, "weights_digest")],
    "round": [(server.rounds.RoundLoop, "_one_round")],
}


def timed(seconds: dict[str, float], part: str, owner: Any, name: str) -> Any:
    """``owner.name`` replaced by one that adds its CPU seconds to ``part``."""
    original = getattr(owner, name)

    def measured(*arguments: Any, **named: Any) -> Any:
        started = time.process_time()
        try:
            return original(*arguments, **named)
        finally:
            seconds[part] += time.process_time() - started

    return mock.patch.object(owner, name, measured)


def prepared(folder: Path, rounds: int, sites: int, images: int) -> Federation:
    """A federation in ``folder``, ready to run."""
    raw = {
        "name": "round-cost",
        "image": {"modality": "mri", "size": 64, "channels": 1},
        "encoder": {"name": "resnet10t"},
        "method": {"name": "simclr"},
        "training": {"batch": 32, "learning_rate": 0.008, "threads": 1},
        "algorithm": {"name": "fedavg"},
        "rounds": {"count": rounds},
    }
    server.rounds.write_study(folder, study_from(raw, "benchmark"))
    for site, manifest in write_images(folder / "data", sites, images).items():
        text: dict[str, object] = {
            "site": site,
            "data": str(manifest),
            "state": "state",
            "cache": str(folder / "store"),
        }
        write_text(folder / "sites" / site / "site.yaml", json.dumps(text | {"device": "cpu", "policy": OPEN_POLICY}))
    return Federation(folder, tuple(sorted(path.name for path in (folder / "sites").iterdir())))


def main() -> None:
    """Run one federation, print its shares and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 3), ("sites", 5), ("images", 80)):
        parser.add_argument(f"--{name}", type=int, default=default)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    seconds: dict[str, float] = defaultdict(float)
    with TemporaryDirectory() as place:
        federation = prepared(Path(place), chosen.rounds, chosen.sites, chosen.images)
        patches = [timed(seconds, part, *each) for part, several in WATCHED.items() for each in several]
        for patch in patches:
            patch.start()
        run_in_process(federation)
        mock.patch.stopall()
    parts = ("steps", "watch", "files", "digests", "round")
    rows = [[part, f"{seconds[part] / chosen.rounds:.2f}", f"{seconds[part] / seconds['steps']:.0%}"] for part in parts]
    fixed = (seconds["watch"] + seconds["files"]) / seconds["steps"]
    lines = [
        *table(["what", "CPU seconds a round", "share of the steps"], rows),
        "",
        judged("watch and files, share of the steps", fixed, TARGET),
    ]
    print(write_result("round_cost", "A round's fixed cost in simulation", __doc__, lines))


if __name__ == "__main__":
    main()
