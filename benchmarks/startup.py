"""What a command costs before it does anything: processor time of fresh processes, ``import torch`` among them.

    python -m benchmarks.startup [--repetitions 5]

Loading a study and `fedpretext validate` are held against ``python -c "import torch"`` of the same minute: medians of
the ratios of runs that took turns. Commands that load no study are held against seconds. Counted are the processor's,
user and system, on one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import interleaved, judged, median_ratio, table, write_result
from client.kit_keys import site_init
from federation.audit.log import AuditLog
from server.enrolment.provision import provision
from server.monitoring.status_writer import StatusWriter

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
TORCH, STUDY, VALIDATE = "import torch", "load a study", "validate"
LOAD = "import sys, pathlib, federation.study; federation.study.load_study(pathlib.Path(sys.argv[1]))"
COMMAND = "import fedpretext.cli; fedpretext.cli.program()"
TARGETS = {STUDY: 2.5, VALIDATE: 3.0}
SECONDS = 1.5


def started(code: str, *arguments: str) -> None:
    """One fresh Python; CalledProcessError where it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True, env=environment)


def commands(place: Path) -> dict[str, tuple[str, ...]]:
    """Commands that train nothing and load no study, on a federation of two sites made in ``place``."""
    provision(
        ROOT / "configs" / "walkthrough.yaml", server="localhost:8443", sites=["north", "south"], out=place / "kits"
    )
    kit, server = place / "kits" / "kit-north", place / "kits" / "server"
    site_init(kit, place, None, "cpu", None)
    AuditLog(server / "audit.jsonl", "server").append("round aggregated", round=1)
    StatusWriter(server / "status.json", "tiny", "ab" * 32, 3)
    lists = {name: (name,) for name in ("--help", "methods", "algorithms", "encoders")}
    return lists | {
        "status": ("status", str(server), "--once"),
        "audit": ("audit", str(server / "audit.jsonl")),
        "site init": ("site", "init", str(place / "kits" / "kit-south"), "--data", str(place)),
        "site status": ("site", "status", "--site", str(kit)),
        "site key": ("site", "key"),
        "accept": ("accept", str(server), str(kit / "site.csr")),
        "expiry": ("expiry", str(server)),
    }


def command(place: Path, line: tuple[str, ...]) -> None:
    """One of them, as the first time: what an earlier ``site init`` made is taken away."""
    for made in ("site.key", "site.yaml"):
        (place / "kits" / "kit-south" / made).unlink(missing_ok=True)
    started(COMMAND, *line)


def children() -> float:
    """Processor seconds, user and system, of all processes that have ended so far."""
    spent = os.times()
    return spent.children_user + spent.children_system


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description="What commands cost before they do anything.")
    parser.add_argument("--repetitions", type=int, default=5, help="runs of each, in turns")
    repetitions = parser.parse_args().repetitions
    with tempfile.TemporaryDirectory() as place:
        runs: dict[str, Callable[[], object]] = {
            TORCH: partial(started, TORCH),
            STUDY: partial(started, LOAD, str(DEMO)),
            VALIDATE: partial(started, COMMAND, "validate", str(DEMO)),
        }
        runs |= {name: partial(command, Path(place), line) for name, line in commands(Path(place)).items()}
        seconds = interleaved(runs, repetitions, clock=children)
    middles = {name: statistics.median(spent) for name, spent in seconds.items()}
    ratios = {name: median_ratio(spent, seconds[TORCH]) for name, spent in seconds.items()}
    rows = [[name, f"{middles[name]:.2f}", f"{ratios[name]:.2f}"] for name in seconds]
    light = max((name for name in seconds if name not in (TORCH, *TARGETS)), key=lambda name: middles[name])
    lines = [
        *table(["what", "CPU seconds", "times import torch"], rows),
        "",
        *(judged(f"{name}, times import torch", ratios[name], target) for name, target in TARGETS.items()),
        judged(f"the slowest that loads no study ({light}), seconds", middles[light], SECONDS),
    ]
    print(write_result("startup", "Start of commands", __doc__, lines))


if __name__ == "__main__":
    main()
