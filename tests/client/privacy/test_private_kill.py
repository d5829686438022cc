"""kill -9 of a site at any moment of a private round: its ledger never says less than was spent."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from client.site import Site
from federation.study import Study

from ...conftest import ROOT

KILLS = 20


@pytest.mark.slow
def test_a_killed_site_never_forgets_what_it_spent(
    private_study: Callable[..., Study], private_site: Callable[..., Site], tmp_path: Path
) -> None:
    s = private_study(rounds={"count": 200}, training={"steps": 1})
    private_site(s, images=6)
    (tmp_path / "study.yaml").write_text(s.to_yaml())
    program = [sys.executable, "-m", "tests.client.privacy.private_killed", str(tmp_path / "study.yaml")]
    arguments = [str(tmp_path / "sites" / "A" / "site.yaml"), str(KILLS)]
    done = subprocess.run([*program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(seen) == KILLS and sum(each["killed"] for each in seen) >= KILLS - 2
    before: list[int] = [1]
    for each in seen:
        charged, stored = each["charged"], each["stored"]
        assert charged[: len(before)] == before  # nothing that was written down is ever gone
        assert set(stored) <= set(charged)
        before = charged
    # Some were killed between the charge and the update: paid for, and never released.
    assert len(before) > len(set(before)), before
    assert max(before) > 3  # and they did get on
