"""What secure aggregation adds to whole rounds of simulated sites: processor time against plain aggregation.

    python -m benchmarks.secure.rounds [--sites 4 16 64] [--rounds 3]

Sites with a ViT-tiny MAE (64 px, patch 8, a decoder of one block) do one step on 8 images a round, so that nearly all
of a round is what the federation does: messages, digests, checks, the sites' stored rounds, reply store or masks,
aggregation, checkpoints, audit logs. Both kinds run the apps of a real federation in one process, the sites in turn,
in a new folder. A figure is the median over the rounds after the first, in seconds of the processor: on the wall a
slow disk has the larger part. No site is lost: what lost sites cost the server is in secure_aggregation.md. With a
network, masks are made at all sites at once, and the server's part alone is in turn.
"""

import argparse
import json
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from benchmarks.measure import table, write_result
from benchmarks.simulation import SIDE, Laps, Measured, write_images
from foundation.files import write_text
from foundation.messages import logger

IMAGES = 8
STUDY: dict[str, Any] = {
    "name": "benchmark",
    "image": {"modality": "mri", "size": SIDE, "channels": 1},
    "encoder": {"name": "vit_tiny_patch16_224", "patch_size": 8},
    "method": {"name": "mae", "decoder_width": 96, "decoder_depth": 1, "decoder_heads": 3},
    "training": {"epochs": None, "steps": 1, "batch": IMAGES, "precision": "float32", "threads": 1},
    "algorithm": {"name": "fedavg"},
}


def rounds_of(sites: int, rounds: int, *, secure: bool) -> Measured:
    """Clocks of a run in a folder of its own; the first round is left out of its rounds."""
    from federation.study import study_from
    from server.checkpoint import write_checkpoint
    from server.rounds import write_study
    from simulation.arms import OPEN_POLICY
    from simulation.runtimes.table import run_in_process
    from simulation.sites.run_keys import write_run_keys
    from simulation.sites.site_folders import Federation

    sums = {"secure_aggregation": {"largest_value": 1.0}} if secure else {}
    study = study_from(STUDY | {"rounds": {"count": rounds}} | sums, "benchmark")
    laps = Laps()

    def write_and_note(*arguments: Any, **named: Any) -> None:
        write_checkpoint(*arguments, **named)
        laps.note()

    with TemporaryDirectory() as place:
        folder = Path(place)
        data = write_images(folder / "images", sites, IMAGES)
        write_study(folder, study)
        for site, manifest in data.items():
            text: dict[str, object] = {"site": site, "data": str(manifest), "state": "state", "cache": "../../store"}
            write_text(folder / "sites" / site / "site.yaml", json.dumps(text | {"policy": OPEN_POLICY}))
        if secure:
            write_run_keys(folder / "sites", {site: folder / "sites" / site for site in data})
        laps.note()
        with mock.patch("server.rounds.write_checkpoint", write_and_note):
            run_in_process(Federation(folder, tuple(sorted(data))))
        laps.note()
    return laps.measured()


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for count in arguments.sites:
        plain, masked = (rounds_of(count, arguments.rounds, secure=secure) for secure in (False, True))
        before, after = (statistics.median(run.round_cpu) for run in (plain, masked))
        logger.info(f"{count} sites: a plain round {before:.2f} CPU s, a secure one {after:.2f}")
        figures = [f"{before:.2f}", f"{after:.2f}", f"{after / before:.2f}"]
        rows.append([str(count), *figures, f"{(after - before) / count:.2f}"])
    head = ["sites", "plain, CPU s", "secure, CPU s", "ratio", "more a site, CPU s"]
    lines = [f"Rounds after the first: {arguments.rounds - 1}.", "", *table(head, rows)]
    print(write_result("secure/rounds", "Whole rounds of simulated sites with secure aggregation", __doc__, lines))


if __name__ == "__main__":
    main()
