"""Flower's simulation engine gives the bits of the in-process runtime, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import QuorumError, RunError, StudyError
from simulation import ray_runtime
from simulation.runtimes import Federation, run_in_process, run_in_ray

# Starting Ray takes 15 s of two free cores and as many minutes as others leave it none.
pytestmark = pytest.mark.timeout(600)

Make = Callable[..., Federation]


class Marked:
    """Processes that carry a mark in their environment, those they were seen to be: all that a run started."""

    def __init__(self, mark: str) -> None:
        self._mark = f"FEDPRETEXT_MARK={mark}".encode()
        self.seen: dict[int, str] = {}
        self.places: set[Path] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            self._look()

    def _look(self) -> None:
        for entry in Path("/proc").glob("[0-9]*"):
            if int(entry.name) in self.seen or int(entry.name) == os.getpid():
                continue
            try:
                environment = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if self._mark in environment:
                self.seen[int(entry.name)] = started(int(entry.name))
                homes = [e for e in environment if e.startswith(b"FLWR_HOME=")]
                self.places |= {Path(home.decode().partition("=")[2]).parent for home in homes}

    def left(self) -> list[str]:
        """What of all that is running now."""
        self._look()
        there = [pid for pid, start in self.seen.items() if start and started(pid) == start]
        return [(Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ") for pid in there]

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def started(pid: int) -> str:
    """When a living process started, which tells it from a later one of the same number; "" for none or a dead one."""
    try:
        fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Marked]:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs Linux's /proc to see every process that a run started")
    mark = uuid.uuid4().hex
    monkeypatch.setenv("FEDPRETEXT_MARK", mark)
    watch = Marked(mark)
    yield watch
    watch.stop()


def assert_nothing_left(marked: Marked, at_least: int) -> None:
    assert len(marked.seen) >= at_least, "the watch saw too little to say anything"
    assert marked.left() == []
    assert marked.places and not any(place.exists() for place in marked.places)


def wait_for(there: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def test_a_killed_run_leaves_nothing_running_and_goes_on_to_the_bits_of_the_in_process_run(
    federation: Make, raw_study: dict[str, Any], marked: Marked
) -> None:
    raw_study["rounds"] = {"count": 4, "deadline_minutes": 5}
    reference, other = federation(raw_study, "reference"), federation(raw_study, "other")
    run_in_process(reference)
    program = (
        "import sys; from pathlib import Path; from simulation.runtimes import Federation, run_in_ray\n"
        "run_in_ray(Federation(Path(sys.argv[1]), ('A', 'B', 'C')))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(other.folder)])
    wait_for(lambda: process.poll() is not None or any((other.folder / "checkpoints").glob("*")), 300, "round 1")
    process.kill()
    process.wait()
    wait_for(lambda: not marked.left() and not any(p.exists() for p in marked.places), 20, "the guard")
    assert_nothing_left(marked, at_least=10)
    assert not (other.folder / "global.safetensors").exists()
    done = len(list((other.folder / "checkpoints").glob("*")))

    run_in_ray(other)

    result, expected = (f.folder / "global.safetensors" for f in (other, reference))
    assert result.read_bytes() == expected.read_bytes()
    assert 0 < done
    assert_nothing_left(marked, at_least=20)
