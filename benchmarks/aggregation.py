"""Our FedAvg, from stored files, against Flower's ``FedAvg.aggregate_train``, from replies in memory.

    python -m benchmarks.aggregation [--sites 8 100] [--repetitions 5]

The weights are a ViT-S (patch 16, 224 px) encoder, float32. Ours starts from the stored safetensors files of a round
and ends in float32 weights that were summed in float64; Flower's starts from the messages that a server holds in memory
and ends in its ArrayRecord, summed in float32. Both in one process, in turns, CPU seconds of one thread. The files are
hard links to four distinct ones, and the messages are as many distinct objects, so that the page cache, not the disk,
is read. Peak memory is that of a fresh process which does nothing but one aggregation, less that of one which only
imports.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import interleaved, judged, median_ratio, peak_mib, table, write_result
from federation.algorithms.algorithm import Contribution
from federation.algorithms.fedavg import FedAvg, FedAvgConfig
from foundation.messages import logger
from foundation.randomness import torch_generator
from foundation.tensor_files import TensorFile, save_tensors
from server.reply_store import StoredReply

TARGET, GROWTH = 0.5, 1.1
DISTINCT = 4
ENCODER = "vit_small_patch16_224"


def vit_s() -> dict[str, Tensor]:
    """The names and shapes of ViT-S, with random numbers."""
    from foundation.vision_import import timm

    state = timm.create_model(ENCODER, num_classes=0).state_dict()
    draw = torch_generator(0, "benchmark", "aggregation")
    return {name: torch.randn(value.shape, generator=draw) for name, value in state.items()}


def stored(folder: Path, sites: int) -> list[StoredReply]:
    """One reply store file a site: hard links to the distinct ones."""
    found = []
    for number in range(sites):
        path = folder / f"site-{number:03d}.safetensors"
        if not path.exists():
            path.hardlink_to(folder / f"distinct-{number % DISTINCT}")
        found.append(StoredReply(f"site-{number:03d}", 100 + number, {}, TensorFile(path)))
    return found


def messages(contributions: list[StoredReply], names: list[str], shared: bool) -> list[Any]:
    """The same replies as Flower's messages; ``shared``: sites with the same tensors share the memory of them."""
    from flwr.app import MetricRecord, RecordDict

    from federation.flower.private_identity import reply_as_received
    from federation.flower.records import tensors_to_arrays

    kept: list[Any] = []
    replies = []
    for number, each in enumerate(contributions):
        if shared and number >= DISTINCT:
            arrays = kept[number % DISTINCT]
        else:
            arrays = tensors_to_arrays({name: each.tensor(name) for name in names})
            kept.append(arrays)
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": each.images})})
        replies.append(reply_as_received(content, number + 1, 1))
    return replies


def aggregate_ours(weights: dict[str, Tensor], contributions: list[Contribution]) -> dict[str, Tensor]:
    """The next global weights."""
    return FedAvg(FedAvgConfig()).aggregate(weights, contributions, {})[0]


def aggregate_flower(replies: list[Any]) -> Any:
    """Flower's ArrayRecord of the next global weights."""
    import logging

    from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

    logging.getLogger("flwr").setLevel(logging.ERROR)
    return FlowerFedAvg().aggregate_train(1, replies)[0]


def child(kind: str, folder: Path, sites: int) -> None:
    """Print the peak MiB of this process after one aggregation of that kind, or after imports ("nothing")."""
    import flwr.serverapp.strategy  # noqa: F401  counted in all kinds alike

    torch.set_num_threads(1)
    contributions = stored(folder, sites)
    if kind == "ours":
        from foundation.tensor_files import load_tensors

        aggregate_ours(load_tensors(folder / "weights")[0], list(contributions))
    elif kind == "flower":
        aggregate_flower(messages(contributions, list(vit_s_names(folder)), shared=False))
    print(json.dumps(peak_mib()))


def vit_s_names(folder: Path) -> list[str]:
    """The tensors' names, from the starting weights' file."""
    from safetensors import safe_open

    with safe_open(folder / "weights", framework="pt") as handle:
        return list(handle.keys())


def peak(kind: str, folder: Path, sites: int) -> float:
    """MiB that one aggregation of that kind needs above a process that has imported everything."""

    def run(kind: str) -> float:
        command = [sys.executable, "-m", "benchmarks.aggregation", "--child", kind, str(folder), str(sites)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    return run(kind) - run("nothing")


def main() -> None:
    """Measure, print and write the table, or do one child's part."""
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="+", default=[8, 100])
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        folder = Path(place)
        weights = vit_s()
        save_tensors(folder / "weights", weights)
        for number in range(DISTINCT):
            moved = {name: value + 0.01 * (number + 1) for name, value in weights.items()}
            save_tensors(folder / f"distinct-{number}", moved)
        found = [one_count(folder, weights, sites, arguments.repetitions) for sites in arguments.sites]
    print(report(weights, found, arguments.sites, arguments.repetitions))


Counted = tuple[float, float, float, float, float | None]


def one_count(folder: Path, weights: dict[str, Tensor], sites: int, repetitions: int) -> Counted:
    """CPU seconds of ours and of Flower's, their ratio, MiB of ours and of Flower's (None: too little memory here)."""
    contributions = stored(folder, sites)
    replies = messages(contributions, list(weights), shared=True)
    ours, theirs = aggregate_ours(weights, list(contributions)), aggregate_flower(replies)
    for name, value in ours.items():
        torch.testing.assert_close(torch.from_numpy(theirs[name].numpy().copy()), value, rtol=1e-4, atol=1e-5)
    runs = {"ours": lambda: aggregate_ours(weights, list(contributions)), "flower": lambda: aggregate_flower(replies)}
    seconds = interleaved(runs, repetitions, time.process_time)
    runs.clear()
    replies.clear()
    bytes_each = sum(value.numel() * 4 for value in weights.values())
    roomy = 1.3 * bytes_each * (sites + 4) < _available()
    flower = peak("flower", folder, sites) if roomy else None
    own, other = (statistics.median(seconds[kind]) for kind in ("ours", "flower"))
    logger.info(f"{sites} sites: {own:.2f} s and {other:.2f} s")
    return own, other, median_ratio(seconds["ours"], seconds["flower"]), peak("ours", folder, sites), flower


def _available() -> int:
    """Bytes of memory that are free for the taking."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def report(weights: dict[str, Tensor], found: list[Counted], sites: list[int], repetitions: int) -> str:
    """The table, judged and written."""
    numbers = sum(value.numel() for value in weights.values())
    rows = [
        [str(n), *(f"{figure:.2f}" for figure in figures), f"{mib:.0f}", f"{theirs:.0f}" if theirs else "too much here"]
        for n, (*figures, mib, theirs) in zip(sites, found, strict=True)
    ]
    worst = max(counted[2] for counted in found)
    growth = max(counted[3] for counted in found) / min(counted[3] for counted in found)
    lines = [
        f"{numbers / 1e6:.1f} M numbers, {numbers * 4 / 2**20:.0f} MiB; medians of {repetitions} repetitions in turns.",
        "",
        *table(
            ["sites", "ours, CPU s", "Flower, CPU s", "ratio", "ours, peak MiB", "Flower, peak MiB"],
            rows,
        ),
        "",
        judged("CPU time, ours / Flower's, largest", worst, TARGET),
        judged("peak memory, most / fewest sites", growth, GROWTH),
    ]
    return write_result("aggregation", "The aggregation against Flower's FedAvg", __doc__, lines)


if __name__ == "__main__":
    main()
