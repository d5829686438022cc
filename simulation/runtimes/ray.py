"""A prepared federation in Flower's own simulation engine (Ray), started with ``flwr run`` and stopped without remains.

``flwr run`` alone would leave a SuperLink behind on a port that all runs of the machine share. So the three programs
that it stands on are started here, in one process group: a SuperLink on a free local port, a SuperExec (whose children
are the engine and all of Ray), and ``flwr run`` itself, which waits for the end. Whoever can reach local ports of this
machine could talk to them while they run: Flower's simulation has no accounts.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from client.site_file import load_site_file
from federation.study import load_study
from foundation import errors
from foundation.errors import FedpretextError, RunError, StudyError
from foundation.files import read_jsonl, write_text
from foundation.messages import logger
from foundation.process_group import ProcessGroup, flower_environment, free_port, options
from foundation.progress import bar
from simulation.sites.site_folders import Federation

_START_S, _POLL_S = 120.0, 0.3
_RAISED = re.compile(r"([\w.]+(?:Error|Exception|Exit)): (.+)")
_EMPTY = re.compile(r"\s*(\(\w+ pid=\d+\)\s*)?")  # also a blank line of an actor
_NO_REASON = "An error was encountered. Ending simulation."  # Flower's, around the exception that says why


def run(federation: Federation) -> None:
    """Run server and sites in Ray actors, as many at a time as the machine's processors or GPUs have room for.

    Goes on from the folder's last checkpoint. The engine's log is ``ray.log`` in the federation's folder; nothing is
    left running or lying about in temporary places afterwards. StudyError without the package extra ``ray``; otherwise
    what the server app raised, in one line that names the log.
    """
    if importlib.util.find_spec("ray") is None:
        raise StudyError("simulation.runtime 'ray' needs the extra: pip install 'fedpretext[ray]'")
    federation = replace(federation, folder=federation.folder.resolve())
    result, log = federation.folder / "global.safetensors", federation.folder / "ray.log"
    before, start = _version(result), log.stat().st_size if log.exists() else 0
    with _temporary_place() as place, _Engine(place, log) as engine:
        _write_app(place / "app", federation)
        submitted = engine.submit(place / "app", resources(federation))
        _monitor(federation, lambda: submitted.poll() is None and engine.alive())
        # The exit status says only whether the run could be started and followed, not how it ended.
        if _version(result) == before:
            raise error_in(log, start)


def resources(federation: Federation) -> dict[str, int]:
    """What Flower asks of Ray, in its own names: a site takes the study's threads, and one GPU where it can use one.

    Ray counts only what it is told, so that it starts no more actors than there are sites.
    """
    sites, threads = len(federation.sites), load_study(federation.folder / "study.yaml").training.threads
    files = [federation.folder / "sites" / site / "site.yaml" for site in federation.sites]
    wants_gpu = torch.cuda.is_available() and any(load_site_file(file).device != "cpu" for file in files)
    return {
        "num-supernodes": sites,
        "client-resources-num-cpus": threads,
        "client-resources-num-gpus": int(wants_gpu),
        "init-args-num-cpus": max(threads, min(_processors(), sites * threads)),
    }


def error_in(log: Path, start: int = 0) -> FedpretextError:
    """What the log says (from byte ``start``) of why a run ended: the last exception, otherwise the last line.

    One of our own errors comes back as its class, anything else as a RunError; the text is one line.
    """
    with log.open("rb") as handle:
        handle.seek(start)
        text = re.sub(r"\x1b\[[0-9;]*m", "", handle.read().decode(errors="replace"))
    lines = [line.strip() for line in text.splitlines() if not _EMPTY.fullmatch(line)]
    raised = [found.groups() for line in lines if (found := _RAISED.match(line)) and found[2] != _NO_REASON]
    where, again = f"; the whole log is {log}", "mend that, then --resume from the last checkpoint"
    own = [pair for pair in raised if pair[0].startswith(errors.__name__)]
    if own:
        kind: type[FedpretextError] = getattr(errors, own[-1][0].rsplit(".", 1)[-1])
        return kind(f"{own[-1][1]}{where}")
    last = ": ".join(raised[-1]) if raised else lines[-1] if lines else "it wrote nothing"
    return RunError(f"Flower's simulation ended without a result ({last}); {again}{where}")


class _Engine:
    """SuperLink, SuperExec and whatever they start, in one process group that ends with the ``with`` block."""

    def __init__(self, place: Path, log: Path) -> None:
        self._place, self._port = place, free_port()
        environment = flower_environment(place / "flwr") | {
            "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(self._port),
            "RAY_TMPDIR": str(place),
        }
        # Ray would join a cluster that this names; the simulation is this machine's alone.
        environment.pop("RAY_ADDRESS", None)
        self._group = ProcessGroup(environment, place)
        self._log = log.open("ab")
        self._servers_log = (place / "servers.log").open("w+b")

    def __enter__(self) -> "_Engine":
        self._group.__enter__()
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._group.stop()
        self._keep_logs()

    def _start(self) -> None:
        address = f"127.0.0.1:{self._port}"
        kind = options(insecure=True, simulation=True, disable_runtime_dependency_installation=True)
        place = options(isolation="process", host="127.0.0.1", port=self._port)
        self._launch("SuperLink", "flower-superlink", *kind, *place)
        deadline = time.monotonic() + _START_S
        while not (_answers(f"http://{address}/health") and self.alive()):
            if time.monotonic() > deadline or not self.alive():
                raise RunError(f"Flower's SuperLink did not start on {address}; the log is {self._log.name}")
            time.sleep(_POLL_S)
        self._launch("SuperExec", "flower-superexec", *options(insecure=True, runtime_api_address=address))
        connection = f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "{address}"\ninsecure = true\n'
        write_text(self._place / "flwr" / "config.toml", connection)

    def _launch(self, name: str, *command: str) -> None:
        self._group.launch(name, *command, output=self._servers_log, folder=self._place)

    def submit(self, app: Path, wanted: dict[str, int]) -> subprocess.Popen[bytes]:
        """``flwr run``: prints the log of the run, server app included, and ends when the run has ended."""
        config = " ".join(f"{key}={value}" for key, value in wanted.items())
        arguments = ("run", str(app), "local", "--stream", "--federation-config", config)
        return self._group.launch("flwr run", "flwr", *arguments, output=self._log, folder=self._place)

    def alive(self) -> bool:
        """False when one of the programs has ended by itself."""
        return self._group.ended() is None

    def _keep_logs(self) -> None:
        """Put what SuperLink and SuperExec wrote behind the engine's log."""
        with self._servers_log as servers, self._log as kept:
            servers.seek(0)
            kept.write(b"\n--- SuperLink and SuperExec ---\n")
            shutil.copyfileobj(servers, kept)


def _monitor(federation: Federation, running: Callable[[], bool]) -> None:
    """Show rounds as the server's metrics file gains them, and say what it says of sites, while ``running``."""
    journal, count = federation.folder / "metrics.jsonl", load_study(federation.folder / "study.yaml").rounds.count
    answer = [row for row in read_jsonl(journal) if "event" in row]
    shown = 0
    version: tuple[int, int] | None = None
    with bar(f"{federation.folder.name}: rounds in Ray", count) as line:
        while (more := running()) or version != _version(journal):
            if version != (version := _version(journal)):
                rows = read_jsonl(journal)
                done = max((row["round"] for row in rows if "event" not in row), default=0)
                line.advance(done - shown)
                shown = done
                for row in rows:
                    if "event" in row and row not in answer:
                        answer.append(row)
                        site = f", site {row['site']}" if row["site"] else ""
                        logger.info(f"round {row['round']}: {row['event']}{site} ({row['reason']})")
            if more:
                time.sleep(_POLL_S)


def _write_app(app: Path, federation: Federation) -> None:
    """A Flower app that holds nothing but the names of ours and the run's configuration."""
    config = "".join(f"{key} = {_toml(value)}\n" for key, value in federation.run_config().items())
    write_text(
        app / "pyproject.toml",
        '[project]\nname = "simulation"\nversion = "1.0.0"\ndescription = "A federation simulated by fedpretext"\n'
        'license = { text = "Apache-2.0" }\ndependencies = []\n\n'
        '[tool.flwr.app]\npublisher = "fedpretext"\n\n'
        "[tool.flwr.app.components]\n"
        'serverapp = "simulation.runtimes.ray_apps:server"\nclientapp = "simulation.runtimes.ray_apps:client"\n\n'
        f"[tool.flwr.app.config]\n{config}",
    )


def _toml(value: str | int) -> str:
    # TOML's basic strings are JSON's, as long as nothing is written as a pair of \\u escapes.
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _temporary_place() -> Iterator[Path]:
    """A folder for all that Flower and Ray write; its name is short, as Ray's sockets lie below it (104 bytes)."""
    usual = tempfile.gettempdir()
    place = Path(tempfile.mkdtemp(prefix="fedray-", dir=usual if len(usual) <= 20 else "/tmp"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _version(path: Path) -> tuple[int, int] | None:
    """Changes when the file is written anew or grows; None while there is none."""
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    return facts.st_mtime_ns, facts.st_ino


def _answers(url: str) -> bool:
    # Local, so no proxy of the environment may stand between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=1):
            return True
    except OSError:
        return False


def _processors() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
