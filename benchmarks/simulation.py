"""A simulated federation against a bare PyTorch loop that does the same training and averaging.

    python -m benchmarks.simulation [--repetitions 3] [--ray 1] [--sites 8] [--images 256] [--depth 12]

8 sites of 256 images of 64 px, a ViT-tiny MAE (patch 8), 3 rounds of 1 epoch, batches of 32, one thread. Each run
is a fresh process, and runs take turns, in turned order. Ray is given one core, so that it trains one site at a time
as the others do; with more it would train several. The clock starts after the imports and after the images were
decoded (they are random smooth PNGs, decoded once into the tensor store that all runs read), and stops when the final
weights are there: what the federation adds are messages, digests, checks, the sites' stored rounds, reply store,
aggregation, checkpoints, journal. The bare loop keeps everything in memory and writes nothing
(benchmarks/bare_loop.py). A steady round is any but the first. Peak memory is the process's largest resident set,
imports included. The final weights must be the same bits, or it fails.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
import torch
from PIL import Image

from benchmarks import bare_loop
from benchmarks.measure import judged, median_ratio, peak_mib, table, write_result
from foundation.files import read_json, write_json, write_text
from foundation.messages import logger
from foundation.randomness import numpy_generator
from foundation.tensor_files import load_tensors, save_tensors
from imaging.config import ImageConfig
from imaging.listing.manifest import Manifest
from imaging.store import TensorStore

WHOLE, STEADY, MEMORY = 1.10, 1.05, 1.3
BUSY = 1.25  # wall seconds a CPU second from which a wall clock says more about other programs
SIDE = 64


@dataclass(frozen=True)
class Measured:
    """One run: seconds of the whole and of each round after the first, on the wall and of the processor; MiB."""

    wall: float
    cpu: float
    round_wall: list[float]
    round_cpu: list[float]
    peak: float


def write_images(folder: Path, sites: int, images: int) -> dict[str, Path]:
    """Smooth random PNGs and a manifest for each site; the manifests by site."""
    manifests = {}
    for site in (f"site-{number}" for number in range(1, sites + 1)):
        draw, place = numpy_generator(0, "benchmark", site), folder / site
        place.mkdir(parents=True)
        rows = ["image,patient"]
        for number in range(images):
            small = Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8))
            small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(place / f"{number:03d}.png")
            rows.append(f"{number:03d}.png,{site}-{number // 16}")
        write_text(place / "manifest.csv", "\n".join(rows) + "\n")
        manifests[site] = place / "manifest.csv"
    return manifests


def federated(kind: str, folder: Path, data: dict[str, Path], cache: Path, depth: int) -> "Callable[[Laps], None]":
    """A prepared federation in ``folder``, ready to run in the runtime ``kind``."""
    from federation.study import study_from
    from server.checkpoint import write_checkpoint
    from server.rounds import write_study
    from simulation.arms import OPEN_POLICY
    from simulation.runtimes.table import RUNTIMES
    from simulation.sites.site_folders import Federation

    study = study_from(
        {
            "name": "benchmark",
            "seed": bare_loop.SEED,
            "image": bare_loop.IMAGE,
            "encoder": bare_loop.ENCODER | {"depth": depth},
            "method": {"name": "mae"},
            "training": {
                "batch": bare_loop.BATCH,
                "learning_rate": bare_loop.RATE,
                "warmup": bare_loop.WARMUP,
                "weight_decay": bare_loop.DECAY,
                "betas": list(bare_loop.BETAS),
                "precision": "float32",
                "threads": 1,
            },
            "algorithm": {"name": "fedavg"},
            "rounds": {"count": bare_loop.ROUNDS},
        },
        "benchmark",
    )
    write_study(folder, study)
    for site, manifest in data.items():
        text: dict[str, object] = {"site": site, "data": str(manifest), "state": "state", "cache": str(cache)}
        text |= {"device": "cpu", "policy": OPEN_POLICY}
        write_text(folder / "sites" / site / "site.yaml", json.dumps(text))
    federation = Federation(folder, tuple(sorted(data)))

    def run(laps: Laps) -> None:
        def write_and_note(*arguments: object, **named: object) -> None:
            write_checkpoint(*arguments, **named)  # type: ignore[arg-type]  # handed on as they come
            laps.note()

        # In Ray the server is another process: no laps are seen there.
        with mock.patch("server.rounds.write_checkpoint", write_and_note):
            RUNTIMES[kind](federation)

    return run


class Laps:
    """Both clocks, read at the start, after each round and at the end."""

    def __init__(self) -> None:
        self._read: list[tuple[float, float]] = []

    def note(self) -> None:
        """Read the clocks."""
        self._read.append((time.perf_counter(), time.process_time()))

    def measured(self) -> Measured:
        """What the readings say."""
        (wall, cpu), (last_wall, last_cpu) = self._read[0], self._read[-1]
        ends = self._read[1:-1]
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(ends)]
        return Measured(last_wall - wall, last_cpu - cpu, [s[0] for s in steps], [s[1] for s in steps], peak_mib())


def child(kind: str, folder: Path, data: dict[str, Path], cache: Path, depth: int) -> None:
    """One run in this process; leaves ``global.safetensors`` and ``measured.json`` in ``folder``."""
    if kind == "ray" and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    laps, weights = Laps(), None
    if kind == "bare":
        laps.note()
        weights = bare_loop.run_bare(data, cache, depth, laps.note)
    else:
        run = federated(kind, folder, data, cache, depth)
        laps.note()
        run(laps)
    laps.note()
    write_json(folder / "measured.json", asdict(laps.measured()))
    if weights is not None:
        save_tensors(folder / "global.safetensors", weights)


def in_a_process(kind: str, work: Path, depth: int, number: int) -> tuple[Measured, Path]:
    """``child`` in a fresh process; what it measured, and its weights."""
    folder = work / f"{number}-{kind}"
    folder.mkdir()
    command = [sys.executable, "-m", "benchmarks.simulation", "--child", kind, str(folder), str(work), str(depth)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the {kind} run failed:\n{done.stderr[-2000:]}")
    return Measured(**read_json(folder / "measured.json")), folder / "global.safetensors"


def same_bits(one: Path, other: Path) -> bool:
    """True when both files hold the same tensors, bit for bit."""
    a, b = load_tensors(one)[0], load_tensors(other)[0]
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and a[name].numpy().tobytes() == b[name].numpy().tobytes() for name in a
    )


def measure(sites: int, images: int, depth: int, repetitions: int, ray: int) -> dict[str, list[Measured]]:
    """All runs of all kinds; AssertionError when two ended in different weights."""
    found: dict[str, list[Measured]] = {"bare": [], "in-process": [], "ray": []}
    with TemporaryDirectory() as place:
        work = Path(place)
        data = write_images(work / "data", sites, images)
        write_json(work / "data.json", {site: str(path) for site, path in data.items()})
        _decode(data, work / "store")
        reference: Path | None = None
        for number in range(repetitions):
            kinds = [kind for kind in found if kind != "ray" or number < ray]
            for kind in kinds if number % 2 == 0 else reversed(kinds):
                measured, weights = in_a_process(kind, work, depth, number)
                logger.info(f"{number + 1}/{repetitions} {kind}: {measured.wall:.1f} s, CPU {measured.cpu:.1f} s")
                reference = reference or weights
                assert same_bits(weights, reference), f"the {kind} run ended in other weights than the one before"
                found[kind].append(measured)
    return found


def _decode(data: dict[str, Path], cache: Path) -> None:
    for path in data.values():
        TensorStore.build(Manifest.open(path), ImageConfig.model_validate(bare_loop.IMAGE), cache, progress=False)


def main() -> None:
    """Measure, print and write the table, or do one child's part."""
    if sys.argv[1:2] == ["--child"]:
        kind, folder, work, depth = sys.argv[2:]
        data = {site: Path(path) for site, path in read_json(Path(work) / "data.json").items()}
        child(kind, Path(folder), data, Path(work) / "store", int(depth))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("repetitions", 3), ("ray", 1), ("sites", 8), ("images", 256), ("depth", 12)):
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    torch.set_num_threads(1)
    print(report(measure(a.sites, a.images, a.depth, a.repetitions, a.ray)))


def report(found: dict[str, list[Measured]]) -> str:
    """The table, judged and written."""
    rows = [_row(kind, runs) for kind, runs in found.items() if runs]
    bare, ours, ray = found["bare"], found["in-process"], found["ray"]
    pairs = {
        "whole run": ([r.cpu for r in ours], [r.cpu for r in bare], WHOLE),
        "steady round": (
            [lap for r in ours for lap in r.round_cpu],
            [lap for r in bare for lap in r.round_cpu],
            STEADY,
        ),
        "whole run, wall": ([r.wall for r in ours], [r.wall for r in bare], WHOLE),
        "steady round, wall": (
            [lap for r in ours for lap in r.round_wall],
            [lap for r in bare for lap in r.round_wall],
            STEADY,
        ),
        "peak memory": ([r.peak for r in ours], [r.peak for r in bare], MEMORY),
    }
    waited = max(r.wall / r.cpu for r in (*ours, *bare))
    lines = [
        *table(["run", "runs", "whole, s", "whole, CPU s", "steady round, s", "CPU s", "peak, MiB"], rows),
        "",
        "Medians; ratios (in-process / bare) are medians over pairs side by side, of CPU time unless it says wall. All "
        "runs ended in the same bits.",
        "",
    ]
    for what, (a, b, target) in pairs.items():
        if "wall" in what and waited > BUSY:
            lines.append(f"- {what}: not judged, as other programs kept a run waiting ({waited:.1f} s a CPU second)")
        else:
            each = ", ".join(f"{x / y:.2f}" for x, y in zip(a, b, strict=True))
            lines.append(f"{judged(what, median_ratio(a, b), target)} (pairs: {each})")
    if ray:
        ratio = statistics.median(r.wall for r in ray) / statistics.median(r.wall for r in ours)
        lines.append(f"- whole run, Ray / in-process, wall clock: {ratio:.2f} (for comparison; no target)")
    return write_result("simulation", "A simulated federation against a bare PyTorch loop", __doc__, lines)


def _row(kind: str, runs: list[Measured]) -> list[str]:
    if kind == "ray":  # its server and sites are other processes
        return [kind, str(len(runs)), f"{statistics.median(run.wall for run in runs):.1f}", "", "", "", ""]
    series = (
        [run.wall for run in runs],
        [run.cpu for run in runs],
        [lap for run in runs for lap in run.round_wall],
        [lap for run in runs for lap in run.round_cpu],
        [run.peak for run in runs],
    )
    return [kind, str(len(runs)), *(f"{statistics.median(values):.1f}" for values in series)]


if __name__ == "__main__":
    main()
