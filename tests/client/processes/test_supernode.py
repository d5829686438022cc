"""The SuperNode beside a site's worker: why it ended in one line, and that it ends at all."""

import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import client.processes.flower_supernode
import client.processes.supernode
from client.processes.supernode import SuperNode
from federation.keys.certificates import new_key
from federation.keys.kit import Kit

HEAD = """\
\x1b[92mINFO \x1b[0m:      Starting Flower SuperNode
\x1b[93mWARNING \x1b[0m:   EXPERIMENTAL: SuperExec authentication is experimental and may change in future releases.
INFO:     Started server process [401]
INFO:     Waiting for application startup.
\x1b[92mINFO \x1b[0m:      FastAPI lifespan: startup
INFO:     Uvicorn running on http://127.0.0.1:403 (Press CTRL+C to quit)
"""
TAIL = """\
The SuperNode could not establish a connection to the SuperLink.

For more information, visit: <https://flower.ai/docs/framework/1.42/en/ref-exit-codes/305.html>
INFO:     Shutting down
INFO:     Finished server process [401]
"""
FAILED = """\
\x1b[91mERROR \x1b[0m:     Exit Code: 305
Failed to initialize the connection to the SuperLink.
"""
TLS = "\x1b[91mERROR \x1b[0m:     SSL/TLS handshake error detected.\n" + FAILED
VERIFY = "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: "
GRACEFUL = "\x1b[92mINFO \x1b[0m:      SuperNode terminated gracefully.\n"

# As flower-supernode 1.42 wrote them.
LOGS: dict[str, tuple[str, str]] = {
    "expired certificate": (
        f"{TLS}{VERIFY}certificate has expired (_ssl.c:1006)\n",
        "the server's certificate is not valid now: certificate has expired; ask the study lead to renew it "
        "(fedpretext renew), and check this machine's clock",
    ),
    "certificate of a time to come": (
        f"{TLS}{VERIFY}certificate is not yet valid (_ssl.c:1006)\n",
        "the server's certificate is not valid now: certificate is not yet valid; ask the study lead to renew it "
        "(fedpretext renew), and check this machine's clock",
    ),
    "another address": (
        f"{TLS}{VERIFY}Hostname mismatch, certificate is not valid for 'localhost'. (_ssl.c:1006)\n",
        "the server shows a certificate for another address: Hostname mismatch; ask the study lead for a kit with the "
        "right address",
    ),
    "wrong CA": (
        f"{TLS}{VERIFY}unable to get local issuer certificate (_ssl.c:1006)\n",
        "the server's certificate is not of this kit's federation: CERTIFICATE_VERIFY_FAILED; do not go on before the "
        "study lead has explained it",
    ),
    "plain HTTP": (
        f"{TLS}[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)\n",
        "the server does not speak TLS at this address; nothing is sent without it",
    ),
    "unknown or revoked key": (
        f"{FAILED}[code: 2004] SuperNode activation failed.\n",
        "the server does not admit this site now: its key is not accepted yet, revoked or expired, this machine's "
        "clock is wrong, or another client with this key is still connected (a killed one counts for a minute); ask "
        "the study lead",
    ),
    "revoked while connected": (
        f"SuperNode ID: 123\n{GRACEFUL}",
        "the server does not admit this site now: its key is not accepted yet, revoked or expired, this machine's "
        "clock is wrong, or another client with this key is still connected (a killed one counts for a minute); ask "
        "the study lead",
    ),
    "refused": (
        'Traceback (most recent call last):\n  File "http_retry.py", line 99, in _should_giveup\n'
        "    raise RunNotRunningException\nflwr.supercore.run.RunNotRunningException\n",
        "the server refused the request; ask the study lead whether this is the right address",
    ),
    "another server": (
        f"{FAILED}Client error '404 Not Found' for url 'https://localhost:43083/v1/fleet/activate-node'\n"
        "For more information check: https://developer.mozilla.org/en-US/docs/Web/HTTP/Status/404\n",
        "what answers at the server's address does not answer as a server of this version does: 404 Not Found; ask the "
        "study lead",
    ),
    "sent elsewhere": (
        f"{FAILED}Redirect response '302 Found' for url 'https://localhost:43419/v1/fleet/activate-node'\n",
        "what answers at the server's address does not answer as a server of this version does: 302 Found; ask the "
        "study lead",
    ),
    "another protocol": (
        f"{FAILED}Invalid protobuf response payload\n",
        "what answers at the server's address does not answer as a server of this version does: Invalid protobuf; ask "
        "the study lead",
    ),
    "an app that is none": (
        "Traceback (most recent call last):\nzipfile.BadZipFile: File is not a zip file\n",
        "the server sent an app that is none (BadZipFile); nothing of it was run; ask the study lead",
    ),
}


@pytest.fixture
def node(tmp_path: Path) -> Callable[[str], SuperNode]:
    """``node(log)``: a SuperNode that has ended after writing this."""

    def make(text: str) -> SuperNode:
        kit = Kit(site="a", federation="test", server="localhost:8443", study=64 * "a")
        made = SuperNode(tmp_path / "kit", kit, new_key(), tmp_path / "supernode")
        made.log.parent.mkdir(parents=True)
        made.log.write_text(text)
        return made

    return make


@pytest.mark.parametrize("case", LOGS)
def test_why_it_ended_is_one_line_with_a_remedy(node: Callable[[str], SuperNode], case: str) -> None:
    """Defends a site engineer's judgement: a false server, an expired certificate and a revoked key look different."""
    said, line = LOGS[case]
    assert node(HEAD + said + TAIL).reason() == line


def test_numbers_in_a_log_are_not_taken_for_answers(node: Callable[[str], SuperNode]) -> None:
    """A process or a port may be number 401 or 403."""
    ended = node(
        HEAD + "Something that nobody has seen before\n" + TAIL.replace("The SuperNode could", "INFO: it could")
    )
    assert ended.reason() == (
        f"the SuperNode ended (Something that nobody has seen before); its log is {ended.log}"
    )  # fmt: skip


def test_what_an_earlier_start_wrote_is_not_a_reason(
    node: Callable[[str], SuperNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    started = node(HEAD + LOGS["expired certificate"][0] + TAIL)
    monkeypatch.setattr(client.processes.supernode.ProcessGroup, "launch", lambda *_, **__: None)
    with started:
        with started.log.open("a") as log:
            log.write(HEAD + LOGS["wrong CA"][0] + TAIL)
        assert "not of this kit's federation" in started.reason()


def test_the_key_goes_through_a_pipe_and_the_secret_is_the_owners_alone(
    node: Callable[[str], SuperNode], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Defends a site's key against other users of its machine: not on disk, not in a command line, not inherited."""
    seen: dict[str, Any] = {}

    def launch(_: Any, name: str, *command: str, keep: tuple[int, ...] = (), **more: Any) -> None:
        seen.update(command=command, keep=keep)
        seen["key"] = os.read(keep[0], 100_000)
        secret = Path(command[command.index("--superexec-auth-secret-file") + 1])
        seen["mode"], seen["secret"] = stat.S_IMODE(secret.stat().st_mode), secret

    monkeypatch.setattr(client.processes.supernode.ProcessGroup, "launch", launch)
    started = node("")
    with started:
        assert seen["key"].startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
        assert seen["mode"] == 0o600
        assert seen["command"][seen["command"].index("--host") + 1] == "127.0.0.1"
        assert "--insecure" not in seen["command"]
        body = seen["key"].splitlines()[1]
        for path in tmp_path.rglob("*"):
            assert not path.is_file() or body not in path.read_bytes()
        assert not any(body.decode() in word for word in seen["command"])
    assert not seen["secret"].exists()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(seen["keep"][0])


# ---- the program around Flower's


class Ended(BaseException):
    """In place of the process."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], int]:
    """``run(work)``: the exit status of the program where Flower's does ``work``."""

    def start(work: Callable[[], Any]) -> int:
        codes: list[int] = []

        def end(code: int) -> None:
            codes.append(code)
            raise Ended

        class Program:
            def load(self) -> Callable[[], Any]:
                return work

        monkeypatch.setattr(client.processes.flower_supernode, "entry_points", lambda **_: [Program()])
        monkeypatch.setattr(client.processes.flower_supernode.os, "_exit", end)
        monkeypatch.setattr(threading, "excepthook", threading.excepthook)
        with pytest.raises(Ended):
            client.processes.flower_supernode.main()
        return codes[0]

    return start


def fail() -> None:
    raise ValueError("FAB hash mismatch")


@pytest.mark.parametrize(("work", "code"), [(lambda: None, 1), (lambda: sys.exit(0), 0), (lambda: sys.exit(9), 9)])
def test_it_ends_with_flowers_work(run: Callable[[Callable[[], Any]], int], work: Callable[[], Any], code: int) -> None:
    """Defends a week's training against a shell that looks alive: whoever waits for the program's end sees it."""
    assert run(work) == code


def test_it_ends_after_an_error_and_says_it(
    run: Callable[[Callable[[], Any]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Defends against a server that sends what Flower's program does not expect, such as an app that is no archive."""
    assert run(fail) == 1
    assert "ValueError: FAB hash mismatch" in capsys.readouterr().err


def test_it_ends_when_a_thread_of_flowers_fails(
    run: Callable[[Callable[[], Any]], int], capsys: pytest.CaptureFixture[str]
) -> None:
    """Flower does not miss its heartbeat: without this the server would take the site for offline for ever."""

    def work() -> None:
        failed = threading.ExceptHookArgs((ValueError, ValueError("500 Internal Server Error"), None, None))
        threading.excepthook(failed)

    assert run(work) == 1
    assert "500 Internal Server Error" in capsys.readouterr().err


def test_flowers_program_is_there() -> None:
    """The contract: Flower installs a program of this name."""
    (program,) = client.processes.flower_supernode.entry_points(group="console_scripts", name="flower-supernode")
    assert callable(program.load())
