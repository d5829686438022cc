"""Timing that several benchmarks share: alternatives take turns in one run, so that a busy machine slows them all."""

import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from foundation.files import write_text
from foundation.machine import commit, machine

RESULTS = Path(__file__).parent / "results"


def interleaved(
    alternatives: Mapping[str, Callable[[], object]],
    repetitions: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each alternative, ``repetitions`` times each, in turns, after one call of each that is not counted.

    The order is turned round every time, so that none always follows the same other one. clock: give
    ``time.process_time`` for work on one thread, so that waiting for a busy machine is not counted.
    """
    for run in alternatives.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    names = list(alternatives)
    for repetition in range(repetitions):
        for name in names if repetition % 2 == 0 else reversed(names):
            start = clock()
            alternatives[name]()
            seconds[name].append(clock() - start)
    return seconds


def median_ratio(slower: Sequence[float], faster: Sequence[float]) -> float:
    """Median of the ratios of the repetitions that ran side by side."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def peak_mib() -> float:
    """Largest resident set of this process so far.

    From /proc where there is one: getrusage's figure counts what a parent had resident when it started this process.
    """
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def machine_line() -> str:
    """Where and on which code this was measured, in one line."""
    facts = machine()
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {gpus}; {facts['system']}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; commit {commit()[:12]}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, a line a row."""
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def judged(what: str, value: float, target: float, *, at_least: bool = False) -> str:
    """One line that says the figure, the target, and whether it is met."""
    met = value >= target if at_least else value <= target
    side = "at least" if at_least else "at most"
    return f"- {what}: {value:.2f}; target: {side} {target:g}: {'met' if met else '**not met**'}"


def write_result(name: str, title: str, docstring: str | None, lines: Sequence[str]) -> str:
    """Write ``results/<name>.md``: the command, how it was measured (the docstring), the lines, the machine."""
    module = " ".join(["python -m", f"benchmarks.{name.replace('/', '.')}", *sys.argv[1:]])
    prose = [part for part in (docstring or "").strip().split("\n\n") if not part.startswith("    ")]
    paragraphs = [" ".join(part.split()) for part in prose]
    text = "\n\n".join([f"# {title}", f"`{module}`", *paragraphs, "\n".join(lines), machine_line()]) + "\n"
    write_text(RESULTS / f"{name}.md", text)
    return text
