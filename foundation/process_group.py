"""Programs of others that run beside this process, and end with it however it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

_STOP_S = 10.0
# Reads until this process is gone, however it went, then ends its whole process group and clears up.
_GUARD = 'trap \'\' TERM INT HUP; read -r _; kill -TERM 0; sleep 2; [ -z "$1" ] || rm -rf "$1"; kill -KILL 0'


def options(**given: object) -> list[str]:
    """``--some-name value`` for each ``some_name=value``, and the name alone where the value is True."""
    words = [(f"--{name.replace('_', '-')}", value) for name, value in given.items()]
    return [part for name, value in words for part in ([name] if value is True else [name, str(value)])]


class ProcessGroup:
    """Programs in one process group, with a guard that ends them even when this process is killed.

    ``environment``: of all of them. ``place``: a folder that goes with them when this process is killed.
    """

    def __init__(self, environment: Mapping[str, str], place: Path | None = None) -> None:
        self._environment, self._place = dict(environment), place
        self._members: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "ProcessGroup":
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", str(self._place or "")], stdin=subprocess.PIPE, process_group=0, cwd="/"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def begin(self, launch: Callable[[], object]) -> None:
        """Enter, and ``launch`` the first programs; where that fails all are ended."""
        self.__enter__()
        try:
            launch()
        except BaseException:
            self.stop()
            raise

    def launch(
        self, name: str, program: str, *arguments: str, output: BinaryIO, folder: Path, keep: tuple[int, ...] = ()
    ) -> subprocess.Popen[bytes]:
        """Start a program under a name of its own; ``keep``: file descriptors that it inherits."""
        # By its path: the search for a bare name would use this process's PATH, not the one passed on.
        path = shutil.which(program, path=self._environment.get("PATH")) or program
        process = subprocess.Popen(
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=folder,
            process_group=self._guard.pid,
            pass_fds=keep,
        )
        self._members[name] = process
        return process

    def ended(self) -> str | None:
        """The name of a program that has ended by itself, None while all run."""
        return next((name for name, member in self._members.items() if member.poll() is not None), None)

    def stop(self) -> None:
        """Ask all to end, wait a little, then end them."""
        deadline = time.monotonic() + _STOP_S
        try:
            os.killpg(self._guard.pid, signal.SIGTERM)
            for member in self._members.values():
                member.wait(max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            pass
        finally:
            os.killpg(self._guard.pid, signal.SIGKILL)
            for process in (*self._members.values(), self._guard):
                process.wait()
            self._await_last()
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._members.clear()

    def _await_last(self) -> None:
        """Wait for what is not our own child: it holds memory, of GPUs too, until it is gone.

        Not for long: where no one reaps orphans (a container without an init), the dead keep the group for ever.
        """
        deadline = time.monotonic() + _STOP_S / 2
        with suppress(ProcessLookupError, PermissionError):
            while time.monotonic() < deadline:
                os.killpg(self._guard.pid, 0)
                time.sleep(0.05)


FLOWER_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Flower and Ray report usage and look for updates by default; a hospital's machine must not."""


def flower_environment(home: Path) -> dict[str, str]:
    """The environment of Flower's programs: quiet, this installation's own, their files below ``home``."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    return os.environ | FLOWER_QUIET | {"PATH": path, "FLWR_HOME": str(home)}


def end_well_on_sigterm() -> None:
    """Have SIGTERM, as a service manager sends it, end this process by the way out of its ``with`` blocks, with 0."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def free_port() -> int:
    """A port of this machine's loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
