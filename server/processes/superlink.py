"""Flower's SuperLink on this machine only, and nginx as its door; both end with this process."""

import secrets
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from federation.flower.private import Endpoint
from federation.keys.secret_files import write_secret
from foundation.errors import RunError
from foundation.process_group import ProcessGroup, flower_environment, free_port, options
from foundation.service_log import rotate
from server.processes.proxy import needed_nginx, write_proxy

_START_S = 90.0


class SuperLink:
    """Both programs, running while the ``with`` block does; the proxy from ``open_door`` on.

    ``federation``: the folder with the certificates; ``place``: for database, logs and configuration; ``listen``:
    what hospitals reach. RunError when a program does not start, with the name of its log.
    """

    def __init__(self, federation: Path, place: Path, listen: tuple[str, int]) -> None:
        self._federation, self._place, self._listen = federation.resolve(), place.resolve(), listen
        self._port = free_port()
        self._root = (federation / "ca.crt").read_bytes()
        self.endpoint = Endpoint(f"127.0.0.1:{self._port}", self._root)
        self.secret = secrets.token_bytes(32)
        self._group = ProcessGroup(flower_environment(self._place / "flwr"))

    def __enter__(self) -> "SuperLink":
        self._place.mkdir(parents=True, exist_ok=True)
        needed_nginx()  # before anything is started
        self._group.begin(self._start_superlink)
        return self

    def __exit__(self, *_: object) -> None:
        self._group.stop()
        (self._place / "executor.secret").unlink(missing_ok=True)

    def ended(self) -> str | None:
        """The program that has ended by itself, None while both run."""
        return self._group.ended()

    def _start_superlink(self) -> None:
        secret = self._place / "executor.secret"
        write_secret(secret, self.secret, replace=True)
        arguments = options(
            ssl_ca_certfile=self._federation / "ca.crt",
            ssl_certfile=self._federation / "superlink.crt",
            ssl_keyfile=self._federation / "superlink.key",
            enable_supernode_auth=True,
            isolation="process",
            superexec_auth_secret_file=secret,
            host="127.0.0.1",
            port=self._port,
            database=self._place / "superlink.db",
            disable_runtime_dependency_installation=True,
        )
        log = self._place / "superlink.log"
        rotate(log)
        with log.open("ab") as output:
            self._group.launch("SuperLink", "flower-superlink", *arguments, output=output, folder=self._place)
        context = ssl.create_default_context(cadata=self._root.decode())
        self._await("SuperLink", log, lambda: _healthy(f"https://127.0.0.1:{self._port}/health", context))

    def open_door(self) -> None:
        """Start the proxy: from now on sites reach the fleet paths; they try at once, so they are admitted before."""
        program = needed_nginx()
        _check_free(*self._listen)
        configuration = write_proxy(self._place, self._listen, self._port, self._federation)
        log = self._place / "nginx-error.log"
        rotate(log)
        rotate(self._place / "nginx-access.log")
        with log.open("ab") as output:
            arguments = ("-p", str(self._place), "-e", str(log), "-c", str(configuration))
            self._group.launch("nginx", program, *arguments, output=output, folder=self._place)
        host, port = self._listen
        reached = "127.0.0.1" if host in ("0.0.0.0", "::", "*") else host
        self._await("nginx", log, lambda: _open(reached, port))

    def _await(self, name: str, log: Path, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_S
        while not ready():
            ended = self._group.ended()
            if ended is not None or time.monotonic() > deadline:
                what = f"{ended} ended" if ended else f"{name} did not answer within {_START_S:.0f} s"
                raise RunError(f"{what}: {_last_line(log)}; the whole log is {log}")
            time.sleep(0.1)


def _check_free(host: str, port: int) -> None:
    """RunError when another program has the address: it would answer in the proxy's place."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RunError(
                f"{host}:{port}: cannot be listened on ({error.strerror}); stop the program that has it, or choose "
                f"another --host"
            ) from error


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it wrote nothing"


def _healthy(url: str, context: ssl.SSLContext) -> bool:
    # Local, so no proxy of the environment may stand between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(url, timeout=2):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _open(host: str, port: int) -> bool:
    try:
        with socket.create_connection((host, port), timeout=1):
            return True
    except OSError:
        return False
