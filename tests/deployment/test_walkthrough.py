"""The walk-through: its page and its script have the same commands, and the script runs to the end."""

import ast
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pydicom
import pytest

from federation.audit.log import verify
from foundation.process_group import free_port
from server.processes.proxy import nginx

ROOT = Path(__file__).resolve().parents[2]
PAGE, SCRIPT = ROOT / "docs" / "walkthrough.md", ROOT / "docs" / "walkthrough.sh"
SITES = ("north", "south", "west")
SECONDS = 300


class Typed(NamedTuple):
    """One command, and who types it."""

    who: str
    words: tuple[str, ...]


def of_the_page() -> list[Typed]:
    """Every line of the code blocks; who types it stands in bold before the block."""
    found, who, inside = [], "", False
    for line in PAGE.read_text().splitlines():
        if line.startswith("```"):
            inside = not inside
        elif inside:
            found.append(Typed(who, tuple(shlex.split(line))))
        elif bold := re.match(r"\*\*(Checkout|Study lead|Each hospital)\b", line):
            who = bold[1]
    return found


PLACES = {"$checkout": "Checkout", "$out/lead": "Study lead", "$out/$site/kit": "Each hospital"}


def of_the_script() -> list[Typed]:
    """Every command that is run or started, with what the page has for the script's variables."""
    found, who = [], ""
    for line in map(str.strip, SCRIPT.read_text().splitlines()):
        if place := re.fullmatch(r'cd "([^"]+)"', line):
            who = PLACES.get(place[1], "")
        if command := re.fullmatch(r"(?:run|background \S+) (.*?)(?: <<<y| && give_up.*)?", line):
            text = command[1].replace("$out", "runs/walkthrough").replace("$port", "8443")
            found.append(Typed(who, tuple(shlex.split(text))))
    return found


def test_page_and_script_have_the_same_commands() -> None:
    """In the same order, typed by the same people; neither can drift from the other."""
    page = of_the_page()
    assert page == of_the_script()
    assert {typed.who for typed in page} == set(PLACES.values())
    assert len(page) > 20


def texts_of_the_program() -> str:
    """All texts in its source, with what is filled in left out."""
    rooms = ("foundation", "imaging", "federation", "client", "server", "simulation")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py")]
    nodes = (node for path in files for node in ast.walk(ast.parse(path.read_text())))
    return "\n".join(node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))


def test_the_errors_on_the_page_are_the_programs() -> None:
    quoted = re.findall(r"^\| `([^`]+)` \| (?:study lead|hospital|you) \|", PAGE.read_text(), re.M)
    texts = texts_of_the_program()
    assert len(quoted) > 8
    assert [text for text in quoted if text not in texts] == []


def test_links_lead_somewhere() -> None:
    for name in re.findall(r"\]\(([^)#]+)\)", PAGE.read_text()):
        assert (PAGE.parent / name).is_file(), name


STAND_IN = """#!/usr/bin/env bash
case "$1 ${2:-}" in
    "pretend-hospitals "*) mkdir -p "$2"/{north,south,west} ;;
    "provision "*) mkdir -p kits/kit-{north,south,west} ;;
    "site init") touch site.csr ;;
    "server "*) echo "listening on nothing"; exec sleep 600 ;;
    "client "*) CLIENT ;;
esac
"""


def stand_in(place: Path, client: str) -> str:
    """A PATH on which fedpretext is a program that does nothing; ``client``: what it does in place of joining."""
    place.mkdir()
    program = place / "fedpretext"
    program.write_text(STAND_IN.replace("CLIENT", client))
    program.chmod(0o755)
    return os.pathsep.join([str(place), os.environ["PATH"]])


def test_a_client_that_ends_ends_the_script_and_all_that_it_started(tmp_path: Path) -> None:
    path, out = stand_in(tmp_path / "bin", 'echo "error: not today" >&2; exit 2'), tmp_path / "walkthrough"
    done = subprocess.run(
        [str(SCRIPT), str(out)], capture_output=True, text=True, env=os.environ | {"PATH": path}, check=False
    )
    assert done.returncode == 1
    assert "error: not today" in done.stderr
    assert done.stderr.splitlines()[-1] == f"walkthrough: stopped; the logs are in {out}"
    assert "7. each hospital" not in done.stdout
    assert left_of(out) == []


def test_told_to_stop_it_stops_what_it_started(tmp_path: Path) -> None:
    path, out = stand_in(tmp_path / "bin", "exec sleep 600"), tmp_path / "walkthrough"
    script = subprocess.Popen([str(SCRIPT), str(out)], stdout=subprocess.DEVNULL, env=os.environ | {"PATH": path})
    try:
        deadline = time.monotonic() + 20
        while running_in(out).count("sleep 600 ") < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert running_in(out).count("sleep 600 ") == 4
    finally:
        script.send_signal(signal.SIGTERM)
        code = script.wait(10)
    assert code == 143
    assert left_of(out) == []


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 30)
def test_the_walkthrough(tmp_path: Path) -> None:
    """Three hospitals with DICOM, PNG and NIfTI, two rounds, equal weights everywhere, in less than five minutes."""
    if nginx() is None:
        pytest.skip("needs nginx, the proxy in front of a server (Debian: apt install nginx-light)")
    out, log = tmp_path / "walkthrough", tmp_path / "said.txt"
    began = time.monotonic()
    code = run_script(out, log)
    took = time.monotonic() - began
    said = log.read_text()
    print(f"the walk-through took {took:.0f} s: {re.findall(r'--- .*', said)}")
    assert code == 0, said[-5000:]
    assert took < SECONDS
    assert left_of(out) == []
    lead = out / "lead" / "kits" / "server"
    (run,) = (lead / "runs").iterdir()
    shared = (run / "arms" / "federated" / "fold-0" / "seed-0" / "global.safetensors").read_bytes()
    for site in SITES:
        (final,) = (out / site / "kit" / "state").glob("*/final.safetensors")
        assert final.read_bytes() == shared
    for whole in (lead / "audit.jsonl", *(out / site / "kit" / "state" / "audit.jsonl" for site in SITES)):
        assert verify(whole).fault == ""
    assert said.splitlines()[-1] == f"report: {run / 'report.html'}"
    assert (run / "report.html").is_file()
    assert identifiers_at(out / "lead", out / "north" / "images") == []


def run_script(out: Path, log: Path) -> int:
    """The script's exit code; told to stop when it takes too long, so that it can stop what it started."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "PORT": str(free_port()), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    with log.open("w") as said:
        script = subprocess.Popen([str(SCRIPT), str(out)], stdout=said, stderr=said, env=environment)
        try:
            return script.wait(SECONDS)
        finally:
            if script.poll() is None:
                script.send_signal(signal.SIGTERM)
                script.wait(30)


def left_of(place: Path) -> list[str]:
    """Command lines of processes that name the folder or work below it, once they had time to go."""
    deadline = time.monotonic() + 15
    while (found := running_in(place)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def running_in(place: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().replace("\0", " ")
            if str(place) in words or (process / "cwd").readlink().is_relative_to(place):
                found.append(words)
        except OSError:  # it is gone, or another user's
            continue
    return found


def identifiers_at(place: Path, images: Path) -> list[str]:
    """What the headers of ``images`` say of persons that stands in some file below ``place``."""
    held = b"".join(path.read_bytes() for path in place.rglob("*") if path.is_file())
    tags = ("PatientName", "PatientID", "PatientBirthDate", "PatientAddress", "AccessionNumber", "SOPInstanceUID")
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in images.rglob("*.dcm")]
    answer = {str(header[tag].value) for header in headers for tag in tags}
    assert len(answer) > 5 * 5
    return sorted(text for text in answer if text.encode() in held)
