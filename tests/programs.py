"""Processes of ours that tests start, forked from one that has imported torch and Flower; no test here.

They are processes like any other: they get signals, hold files and locks, and are waited for. A start costs
milliseconds in place of seconds of imports. That the installed command starts by itself is tested elsewhere.
"""

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PRELOADED = [
    "client.processes.service", "client.processes.supernode", "client.processes.worker", "dp_accounting",
    "server.commands", "server.processes.service",
    "simulation.runtimes.table", "ssl_methods", "torch.utils.tensorboard",
]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOADED)


class Program:
    """``fedpretext`` with these arguments, in a session of its own.

    ``environment`` is added to the caller's; ``changes`` are values of modules, by ``module.NAME``, to put in first.
    """

    def __init__(
        self,
        arguments: list[str],
        log: Path,
        folder: Path,
        environment: Mapping[str, str],
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        place = (arguments, log, folder, dict(os.environ) | dict(environment), dict(changes or {}))
        # A daemon: what a failed test left behind does not keep pytest from ending.
        self._process = CONTEXT.Process(target=_main, args=place, daemon=True)
        self._process.start()

    def poll(self) -> int | None:
        """Its exit code, None while it runs."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.pid is not None and self.poll() is None:
            os.kill(self._process.pid, number)

    def wait(self, seconds: float) -> int:
        """Its exit code, once it has ended."""
        self._process.join(seconds)
        code = self._process.exitcode
        assert code is not None, f"process {self._process.pid} runs on after {seconds} s"
        return code


def _main(arguments: list[str], log: Path, folder: Path, environment: dict[str, str], changes: dict[str, Any]) -> None:
    """What a shell does before it starts a program, and then the program."""
    assert "torch" in sys.modules and "flwr" in sys.modules, "nothing was preloaded"
    os.setsid()
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import torch

    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    for name, value in changes.items():
        module, _, constant = name.rpartition(".")
        owner = importlib.import_module(module)
        assert hasattr(owner, constant), name
        setattr(owner, constant, value)
    sys.argv = ["fedpretext", *arguments]
    from fedpretext.cli import program

    program()
