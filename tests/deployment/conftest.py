"""A federation as hospitals run it: SuperLink, nginx and SuperNodes over TLS on loopback, each with its own ports."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from client.approval import approve
from client.kit_keys import site_init
from client.site_file import load_site_file
from federation.keys.key_source import new_key_text
from federation.study import study_from
from foundation.errors import RunError
from foundation.process_group import free_port
from server.enrolment.provision import accept, provision
from server.monitoring.status_writer import Status, read_status
from server.processes.proxy import nginx

from ..programs import Program

_ANY_PORT = ("--metrics-port", "0")
IMPATIENT = {"client.processes.service._WAITS_S": (1.0,), "server.processes.service._WAITS_S": (1.0,)}
"""How long programs wait before they try again, where that is not what is tested."""
SITES = {"a": (9, 3), "b": (6, 2), "c": (4, 2)}


class Deployment:
    """One federation in a folder: provisioned, enrolled and approved; programs are started and stopped one by one."""

    def __init__(self, root: Path, raw: dict[str, Any], write: Callable[..., Path], sites: Any = None) -> None:
        self.root, self.sites = root, dict(sites or SITES)
        self.study = study_from(raw, "test")
        self.port = free_port()
        self.patient = False
        self.processes: dict[str, Program] = {}
        root.mkdir(parents=True, exist_ok=True)
        self.study_file = root / "study.yaml"
        self.study_file.write_text(yaml.safe_dump(raw))
        self.federation = root / "kits" / "server"
        provision(self.study_file, server=f"localhost:{self.port}", sites=list(self.sites), out=root / "kits")
        for seed, (site, (images, patients)) in enumerate(self.sites.items()):
            data = write(root / "hospitals", site, images=images, patients=patients, seed=seed).parent
            self.enrol(site, data / "manifest.csv")

    def enrol(self, site: str, data: Path) -> None:
        """What a site and the study lead do before the first start."""
        kit = self.kit(site)
        site_init(kit, data=data, device="cpu")
        self.permit(site, min_images=1, min_patients=1, smallest_count=1)
        accept(self.federation, kit / "site.csr")
        approve(kit / "study.yaml", load_site_file(kit / "site.yaml"), "a test", lambda _: True)

    def permit(self, site: str, **policy: Any) -> None:
        """Change a site's policy."""
        path = self.kit(site) / "site.yaml"
        raw = yaml.safe_load(path.read_text())
        raw["policy"] |= policy
        path.write_text(yaml.safe_dump(raw))

    def encrypt(self, site: str | None = None) -> None:
        """Have a site, or the server, encrypt what it keeps, with a key in a folder of its own."""
        path = self.kit(site) / "site.yaml" if site else self.federation / "federation.yaml"
        key = self.root / "secrets" / (site or "server")
        key.parent.mkdir(exist_ok=True)
        key.touch(0o600)
        key.write_text(new_key_text())
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"key": {"file": str(key)}}))

    def kit(self, site: str) -> Path:
        return self.root / "kits" / f"kit-{site}"

    @property
    def run(self) -> Path:
        return self.federation / "runs" / f"{self.study.name}-{self.study.training_hash()[:12]}"

    @property
    def folder(self) -> Path:
        return self.run / "arms" / "federated" / "fold-0" / f"seed-{self.study.seed}"

    def start(self, *names: str) -> None:
        """Start "server" or sites by name."""
        for name in names:
            arguments = (
                ("server", self.study_file, "--federation", self.federation, "--host", "127.0.0.1", *_ANY_PORT)
                if name == "server"
                else ("client", self.kit(name))
            )
            log = self.root / f"{name}.log"
            waits = {} if self.patient else IMPATIENT
            self.processes[name] = Program([*map(str, arguments)], log, self.root, {"OMP_NUM_THREADS": "1"}, waits)

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """End one program, as a power cut does unless told otherwise, and wait until it is gone."""
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(60)

    def kill_superlink(self) -> None:
        """End Flower's SuperLink alone, once it runs; the server that started it has to notice."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    words = entry.read_text().split("\0")
                    if any("flower-superlink" in word for word in words) and str(self.federation / "ca.crt") in words:
                        os.kill(int(entry.parent.name), signal.SIGKILL)
                        return
            time.sleep(0.2)
        raise AssertionError(f"no SuperLink is running\n{self.logs()}")

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        while self.processes:
            self.processes.popitem()[1].wait(60)

    def status(self) -> Status | None:
        try:
            return read_status(self.folder / "status.json")
        except RunError:
            return None

    def wait(self, reached: Callable[[Status], bool], seconds: float = 240.0) -> Status:
        """Wait until the server's status says so; fails, with the logs, when it does not or the server gave up."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            status = self.status()
            if status is not None and reached(status):
                return status
            server = self.processes.get("server")
            if server is not None and server.poll() not in (None, 0):
                break
            time.sleep(0.2)
        raise AssertionError(f"not reached; status {self.status()}\n{self.logs()}")

    def finish(self, seconds: float = 240.0) -> None:
        """Wait until the server has ended by itself, with success."""
        self.wait(lambda status: status.phase == "finished", seconds)
        assert self.processes.pop("server").wait(60) == 0, self.logs()

    def logs(self) -> str:
        return "\n".join(f"--- {path.name}\n{path.read_text()[-3000:]}" for path in sorted(self.root.glob("*.log")))


@pytest.fixture
def deployment(
    tmp_path: Path, raw_study: dict[str, Any], write_site: Callable[..., Path]
) -> Iterator[Callable[..., Deployment]]:
    """``deployment(rounds={"count": 2})``: a federation of three sites with the small study, changed in sections."""
    if nginx() is None:
        pytest.skip("needs nginx, the proxy in front of a server (Debian: apt install nginx-light)")
    made: list[Deployment] = []

    def make(sites: Any = None, name: str = "deployment", **sections: Any) -> Deployment:
        whole = {key for key, section in sections.items() if "name" in section}
        raw = raw_study | {
            key: section if key in whole else {**raw_study.get(key, {}), **section} for key, section in sections.items()
        }
        made.append(Deployment(tmp_path / name, raw, write_site, sites))
        return made[-1]

    yield make
    for each in made:
        each.stop()
        deadline = time.monotonic() + 15
        while (left := running(each.root)) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert left == [], "SIGTERM, as systemd sends it, takes SuperLink, nginx and SuperNodes with it"


def running(place: Path) -> list[str]:
    """Command lines of processes that name a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = entry.read_text().replace("\0", " ")
        except OSError:
            continue
        if str(place) in text:
            found.append(text)
    return found
