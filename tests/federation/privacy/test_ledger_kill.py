"""kill -9 at any moment: the ledger has charged at least what was released."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federation.privacy.accounting import Release
from federation.privacy.ledger import Ledger

ROOT = Path(__file__).resolve().parents[3]
KILLS = 20
CHILD = """
import os, sys
from pathlib import Path
from federation.privacy.accounting import Release
from federation.privacy.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]))
marks = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
print("ready", flush=True)
round_ = 0
while True:
    round_ += 1
    ledger.charge("a" * 64, round_, Release("gaussian", 2.0, 0.1, 5), None)
    os.write(marks, b"released\\n")
"""


@pytest.mark.slow
def test_a_killed_process_has_charged_what_it_released(tmp_path: Path) -> None:
    path, marks = tmp_path / "ledger.jsonl", tmp_path / "marks"
    seen = []
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path), str(marks)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(random.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        released = len(marks.read_text().splitlines())
        charged = len(Ledger(path).releases())
        # One more where the kill fell between the charge and the release: that attempt stays charged.
        assert released <= charged
        seen.append(charged - released)
    assert len(marks.read_text().splitlines()) >= 5  # the kills did fall among releases
    assert max(seen) <= KILLS and seen == sorted(seen)  # what a kill leaves charged is never taken back
    Ledger(path).charge("b" * 64, 1, Release("gaussian", 2.0, 0.1, 5), None)
