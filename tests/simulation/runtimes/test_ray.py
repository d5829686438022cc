"""Flower's simulation engine gives the bits of the in-process runtime, and leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import QuorumError, RunError, StudyError
from simulation.runtimes import ray as ray_runtime
from simulation.runtimes.table import run_in_process, run_in_ray
from simulation.sites.site_folders import Federation

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
        there = [pid for pid, start in list(self.seen.items()) if start and started(pid) == start]
        return [command(pid) for pid in there]

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


def command(pid: int) -> str:
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


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
    wait_for(lambda: not marked.left(), 10, f"the end of {marked.left()}")  # a kill takes its time on a busy machine
    assert marked.places and not any(place.exists() for place in marked.places)


def wait_for(there: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)


@pytest.mark.slow
def test_a_killed_run_leaves_nothing_running_and_goes_on_to_the_bits_of_the_in_process_run(
    federation: Make, raw_study: dict[str, Any], marked: Marked
) -> None:
    raw_study["rounds"] = {"count": 4, "deadline_minutes": 5}
    reference, other = federation(raw_study, "reference"), federation(raw_study, "other")
    run_in_process(reference)
    program = (
        "import sys; from pathlib import Path; from simulation.runtimes.table import run_in_ray\n"
        "from simulation.sites.site_folders import Federation\n"
        "run_in_ray(Federation(Path(sys.argv[1]), ('A', 'B', 'C')))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(other.folder)])
    wait_for(lambda: process.poll() is not None or any((other.folder / "checkpoints").glob("*")), 300, "round 1")
    process.kill()
    process.wait()
    wait_for(lambda: not marked.left() and not any(p.exists() for p in marked.places), 20, "the guard")
    assert_nothing_left(marked, at_least=10)
    assert not (other.folder / "global.safetensors").exists()

    run_in_ray(other)

    result, expected = (f.folder / "global.safetensors" for f in (other, reference))
    assert result.read_bytes() == expected.read_bytes()
    assert_nothing_left(marked, at_least=20)


@pytest.mark.slow
def test_an_interrupted_run_leaves_nothing_running(federation: Make, raw_study: dict[str, Any], marked: Marked) -> None:
    prepared = federation(raw_study)
    over = threading.Event()

    def interrupt() -> None:
        while not over.wait(0.1):
            if any("raylet" in line for line in marked.left()):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run_in_ray(prepared)
    over.set()
    thread.join()
    assert_nothing_left(marked, at_least=6)


@pytest.mark.slow
def test_a_site_without_its_data_ends_the_run_with_one_line(
    federation: Make, raw_study: dict[str, Any], marked: Marked
) -> None:
    prepared = federation(raw_study)
    (prepared.folder / "sites" / "B" / "manifest.csv").unlink()
    with pytest.raises(StudyError) as raised:
        run_in_ray(prepared)
    text, log = str(raised.value), prepared.folder / "ray.log"
    assert "site B: cannot take part (data-not-usable)" in text and str(log) in text and "\n" not in text
    assert "--- SuperLink and SuperExec ---" in log.read_text()
    assert "manifest.csv" in (prepared.folder / "sites" / "B" / "state" / "site.log").read_text()
    assert_nothing_left(marked, at_least=6)


def test_without_the_extra_the_remedy_is_told(
    federation: Make, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # None is what the import system takes for "known not to be there".
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        StudyError, match=r"^simulation.runtime 'ray' needs the extra: pip install 'fedpretext\[ray\]'$"
    ):
        run_in_ray(federation(raw_study))


@pytest.mark.slow
def test_a_superlink_that_cannot_start_is_told_with_its_log(
    federation: Make, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = federation(raw_study)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setattr(ray_runtime, "free_port", lambda: taken.getsockname()[1])
        with pytest.raises(RunError, match=r"SuperLink did not start on 127.0.0.1:\d+; the log is .*ray.log"):
            run_in_ray(prepared)
    assert "address already in use" in (prepared.folder / "ray.log").read_text()


@pytest.mark.parametrize(
    ("processors", "gpu", "device", "expected"),
    [(2, False, "auto", (3, 2, 0, 2)), (1, False, "auto", (3, 2, 0, 2)), (64, True, "cpu", (3, 2, 0, 6)),
     (64, True, "auto", (3, 2, 1, 6))],
)  # fmt: skip
def test_ray_is_told_of_no_more_than_the_sites_can_use(
    federation: Make, raw_study: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    processors: int, gpu: bool, device: str, expected: tuple[int, ...],
) -> None:  # fmt: skip
    raw_study["training"]["threads"] = 2
    prepared = federation(raw_study)
    for file in prepared.folder.glob("sites/*/site.yaml"):
        file.write_text(file.read_text().replace("device: cpu", f"device: {device}"))
    monkeypatch.setattr(ray_runtime, "_processors", lambda: processors)
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    names = ("num-supernodes", "client-resources-num-cpus", "client-resources-num-gpus", "init-args-num-cpus")
    assert ray_runtime.resources(prepared) == dict(zip(names, expected, strict=True))


@pytest.mark.parametrize(
    ("lines", "kind", "reason"),
    [
        (["foundation.errors.QuorumError: round 1: too few", "RuntimeError: later"], QuorumError, "round 1: too few"),
        (["OSError: disk", "RuntimeError: An error was encountered. Ending simulation."], RunError, "OSError: disk"),
        (["ray.exceptions.RayActorError: it died", "INFO : bye"], RunError, "RayActorError: it died"),
        (["\x1b[91mERROR\x1b[0m : no exception here", "", ""], RunError, "(ERROR : no exception here)"),
        (["INFO : killed here", "(ClientAppActor pid=7) "], RunError, "(INFO : killed here)"),
        ([], RunError, "it wrote nothing"),
    ],
)
def test_the_reason_is_found_in_the_log_of_this_run(
    tmp_path: Path, lines: list[str], kind: type[Exception], reason: str
) -> None:
    log, earlier = tmp_path / "ray.log", "foundation.errors.StudyError: of a run before\n"
    log.write_text(earlier + "\n".join(lines))
    error = ray_runtime.error_in(log, len(earlier))
    assert type(error) is kind
    assert reason in str(error) and str(log) in str(error) and "before" not in str(error) and "\n" not in str(error)


def test_the_flower_app_holds_only_names_and_any_path(tmp_path: Path) -> None:
    folder = tmp_path / 'wörk "quoted" \\ 😀'
    prepared = Federation(folder, ("A", "B"))
    ray_runtime._write_app(tmp_path / "app", prepared)
    assert [p.name for p in (tmp_path / "app").iterdir()] == ["pyproject.toml"]
    app = tomllib.loads((tmp_path / "app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"] == prepared.run_config()
    assert app["components"] == {
        "serverapp": "simulation.runtimes.ray_apps:server",
        "clientapp": "simulation.runtimes.ray_apps:client",
    }
