"""One process at a time in a folder, and what a killed one left there."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foundation.errors import RunError
from foundation.exclusive import alone_in
from foundation.files import write_json

KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from foundation.exclusive import alone_in
from foundation.files import write_with

def write(part):
    part.write(b"half")
    os.kill(os.getpid(), signal.SIGKILL)

with alone_in(Path(sys.argv[1]), "lock", "busy"):
    write_with(Path(sys.argv[1]) / "arms" / "status.json", write)
"""


def test_a_second_process_is_refused_and_told_why(tmp_path: Path) -> None:
    with (
        alone_in(tmp_path, "lock", "busy"),
        pytest.raises(RunError, match=rf"^{tmp_path}: stop it first$"),
        alone_in(tmp_path, "lock", "stop it first"),
    ):
        pass
    with alone_in(tmp_path, "lock", "busy"):  # free again
        pass


def test_what_a_killed_writer_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_WHILE_WRITING, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (tmp_path / "arms").iterdir()
    assert left.name.endswith(".part")
    half = tmp_path / "rounds" / ".round-00003.part"
    half.mkdir(parents=True)
    (half / "weights").touch()
    write_json(tmp_path / "part" / "kept.json", 1)
    with alone_in(tmp_path, "lock", "busy"):
        found = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
        assert found == ["lock", "part/kept.json"]
        assert not half.exists()


def test_a_link_is_removed_and_what_it_leads_to_stays(tmp_path: Path) -> None:
    kept = tmp_path / "elsewhere"
    kept.mkdir()
    (kept / "image").touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / ".x.part").symlink_to(kept)
    with alone_in(run, "lock", "busy"):
        assert not (run / ".x.part").is_symlink()
    assert (kept / "image").exists()
