"""A real federation is killed, cut off and restarted, and ends at the bits of one that nothing happened to."""

import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from federation.audit.log import verify
from foundation.files import read_jsonl
from foundation.process_group import free_port

from ..tiers import soak
from .conftest import Deployment
from .in_process import bits, undisturbed

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]
Make = Callable[..., Deployment]
IJEPA = {"name": "ijepa", "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2}


class Line:
    """A network line between sites and server that can be cut: a forwarder on a port of its own."""

    def __init__(self, port: int, towards: int) -> None:
        self._towards, self._cut = towards, threading.Event()
        self._server = socket.create_server(("127.0.0.1", port))
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self._ends.append(near)
            try:
                if self._cut.is_set():
                    raise OSError
                far = socket.create_connection(("127.0.0.1", self._towards))
            except OSError:  # nobody is there yet, or the line is cut
                near.close()
                continue
            self._ends.append(far)
            for one, other in ((near, far), (far, near)):
                self._threads.append(threading.Thread(target=self._copy, args=(one, other)))
                self._threads[-1].start()

    @staticmethod
    def _copy(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
        for each in (one, other):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def break_off(self) -> None:
        """End every connection and take no new one."""
        self._cut.set()
        for each in self._ends:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self.break_off()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)
        for each in self._ends:
            each.close()


Lines = Callable[[Deployment], Line]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """``lines(federation)``: the line over which its sites reach its server from now on."""
    made: list[Line] = []

    def lay(federation: Deployment) -> Line:
        outside = free_port()
        made.append(Line(outside, federation.port))
        for site in federation.sites:
            path = federation.kit(site) / "kit.yaml"
            path.write_text(path.read_text().replace(f"localhost:{federation.port}", f"localhost:{outside}"))
        return made[-1]

    yield lay
    for line in made:
        line.close()


def final(deployment: Deployment, site: str) -> Path:
    state = deployment.kit(site) / "state"
    return state / deployment.study.training_hash()[:16] / "final.safetensors"


def trained(deployment: Deployment, site: str) -> int:
    """How many rounds the site has trained, repeats counted."""
    state = deployment.kit(site) / "state"
    return int((state / deployment.study.training_hash()[:16] / "trained").read_text())


def released(deployment: Deployment, site: str) -> list[int]:
    """The rounds whose update left the site for the first time, by its audit log."""
    rows = (deployment.kit(site) / "state" / "audit.jsonl").read_text().splitlines()
    return [row["round"] for row in map(json.loads, rows) if row["event"] == "update released"]


def test_simulation_and_deployment_are_bit_identical(deployment: Make, tmp_path: Path) -> None:
    """Two rounds, three sites; the weights at the server, and those that every site was handed at the end.

    Before a quorum is there, the server waits and says for whom.
    """
    federation = deployment(rounds={"count": 2, "quorum": 0.6}, method=IJEPA)
    federation.start("server", "a")
    status = federation.wait(lambda status: "a" in status.sites and status.sites["a"].online)
    assert status.phase == "waiting for sites"
    assert status.detail == "1 of 2 needed; missing: b, c"
    federation.start("b", "c")
    # The others wait for nobody once a quorum is there, so the third may come late to the first round.
    federation.finish()
    expected = undisturbed(federation, tmp_path / "in-process")
    assert bits(federation.folder / "global.safetensors") == expected
    for site in federation.sites:
        assert bits(final(federation, site)) == expected
        assert trained(federation, site) == 2
        assert released(federation, site) == [1, 2]
        assert verify(federation.kit(site) / "state" / "audit.jsonl").fault == ""
    assert verify(federation.federation / "audit.jsonl").fault == ""


ONE_EACH = ["server", "a", "SuperLink"]
TEN = ["server", "a", "server", "b", "SuperLink", "c", "server", "a", "SuperLink", "b"]


@pytest.mark.parametrize(
    ("victims", "rounds"),
    [pytest.param(ONE_EACH, 3, id="one each"), soak(TEN, 6, id="ten")],
)
def test_killed_in_a_row(victims: list[str], rounds: int, deployment: Make, lines: Lines, tmp_path: Path) -> None:
    """kill -9 of the server (with SuperLink and nginx), of its SuperLink alone, or of a site (with its SuperNode).

    At random moments; what was killed is started again, but for the SuperLink, which the server starts by itself. In
    between, the line between sites and server is cut for a moment.

    No round is lost, no file is corrupt, and momentum encoders and optimiser state go on: the weights are those of an
    undisturbed run, bit for bit. The server and site a encrypt what they keep.
    """
    federation = deployment(rounds={"count": rounds}, method=IJEPA, training={"epochs": 3.0})
    federation.patient = len(victims) > 3
    federation.encrypt()
    federation.encrypt("a")
    draw, line = random.Random(4), lines(federation)
    federation.start("server", *federation.sites)
    order = draw.sample(victims, len(victims))
    federation.wait(lambda status: status.round >= 1)
    for number, victim in enumerate(order):
        # Spread over the rounds: the later half of the kills waits for the later half of the study.
        reached = 1 + number * (rounds - 1) // len(order)
        federation.wait(lambda status, reached=reached: status.round >= reached)  # type: ignore[misc]
        time.sleep(draw.uniform(0.0, 4.0))
        line.break_off()
        time.sleep(1.0)
        line.mend()
        if victim == "SuperLink":
            federation.kill_superlink()
            continue
        process = federation.processes.get(victim)
        assert process is not None
        assert process.poll() is None, f"{victim} ended by itself\n{federation.logs()}"
        federation.kill(victim)
        federation.start(victim)
    federation.finish(600)
    assert bits(federation.folder / "global.safetensors") == undisturbed(federation, tmp_path / "in-process")
    assert not list(federation.root.rglob("*.part"))
    (newest,) = federation.folder.glob(f"checkpoints/round-{rounds:05d}")
    for sealed in (
        newest / "weights.safetensors",
        *(federation.kit("a") / "state").glob("*/round-*/*.safetensors"),
    ):
        assert sealed.read_bytes().startswith(b"fedpretext vault")
    for log in (federation.federation / "audit.jsonl", *federation.root.glob("kits/kit-*/state/audit.jsonl")):
        assert verify(log).fault == ""
    for site in federation.sites:
        assert set(released(federation, site)) == set(range(1, rounds + 1))


def steps_in(seconds: float, deployment: Callable[..., Deployment], tmp_path: Path) -> int:
    """How many steps of the small study this machine trains in that time, as far as a short run can tell."""
    steps = 600
    short = deployment(
        sites={"a": (9, 3)}, name="short", rounds={"count": 1}, training={"epochs": None, "steps": steps}
    )
    undisturbed(short, tmp_path / "short-run")
    rows = read_jsonl(tmp_path / "short-run" / "metrics.jsonl")
    return int(steps * seconds / rows[0]["seconds"])


@pytest.mark.soak
def test_a_minute_without_network_in_a_long_round_costs_nothing(deployment: Make, lines: Lines, tmp_path: Path) -> None:
    """The round is longer than the time after which Flower takes a node for offline; nothing is trained twice."""
    steps = steps_in(75, deployment, tmp_path)
    federation = deployment(
        sites={"a": (9, 3), "b": (6, 2)}, rounds={"count": 1, "quorum": 1.0}, training={"epochs": None, "steps": steps}
    )
    federation.patient, line = True, lines(federation)
    federation.start("server", *federation.sites)
    federation.wait(lambda status: all(site.state == "in work" for site in status.sites.values()) and status.round == 1)
    time.sleep(6)  # both have pulled it
    line.break_off()
    federation.wait(lambda status: not any(site.online for site in status.sites.values()), 150)
    time.sleep(5)
    line.mend()
    federation.finish(400)
    for site in federation.sites:
        assert trained(federation, site) == 1
        assert released(federation, site) == [1]
    rows = [row for row in read_jsonl(federation.folder / "metrics.jsonl") if "event" not in row]
    assert [row["site"] for row in rows] == ["a", "b"], "both updates made the round"
