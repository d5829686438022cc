"""Timing that several benchmarks share: alternatives take turns in one run, so that a busy machine slows them all."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from foundation.machine import commit, machine


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


def machine_line() -> str:
    """Where and on which code this was measured, in one line."""
    facts = machine()
    gpus = ", ".join(facts["gpus"]) or "no GPU"
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB, {gpus}; {facts['system']}; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; commit {commit()[:12]}"
    )
