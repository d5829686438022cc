"""Secure sums and private rounds with real programs, TLS and kill -9: what comes out and what was written down."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.privacy.page import privacy_lines
from federation.audit.log import verify
from foundation.files import read_jsonl
from foundation.tensor_files import load_tensors

from .conftest import Deployment
from .in_process import bits, undisturbed

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]
Make = Callable[..., Deployment]
FOUR = {"a": (9, 3), "b": (6, 2), "c": (4, 2), "d": (5, 2)}


def rows_of(deployment: Deployment, site: str) -> list[dict[str, Any]]:
    lines = (deployment.kit(site) / "state" / "audit.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def files_of_server(deployment: Deployment) -> list[Path]:
    return [path for path in deployment.federation.rglob("*") if path.is_file()]


def test_secure_sums_through_kills_are_those_of_one_process(deployment: Make, tmp_path: Path) -> None:
    """Masks cancel exactly, so the weights are those of undisturbed secure rounds bit for bit, whatever was killed.

    The quorum is everybody: a round without the killed site is tried again, with new keys. In nothing that the server
    keeps, Flower's own store included, is an update to be found.
    """
    # An answer that a killed server had asked for may be lost: then the round is tried again at its deadline.
    rounds = {"count": 3, "quorum": 1.0, "deadline_minutes": 1.5, "attempts": 5}
    federation = deployment(FOUR, rounds=rounds, secure_aggregation={"largest_value": 1.0})
    federation.start("server", *federation.sites)
    draw = random.Random(6)
    for reached, victim in ((0, "b"), (1, "server"), (2, "c")):
        federation.wait(lambda status, reached=reached: status.round >= reached and bool(status.sites))  # type: ignore[misc]
        time.sleep(draw.uniform(0.0, 4.0))
        federation.kill(victim)
        federation.start(victim)
    federation.finish(400)
    assert bits(federation.folder / "global.safetensors") == undisturbed(federation, tmp_path / "in-process")
    kept = [path.read_bytes() for path in files_of_server(federation)]
    for site in federation.sites:
        rows = rows_of(federation, site)
        assert {row["stage"] for row in rows if row["event"] == "secure stage answered"} >= {"masked", "sign", "unmask"}
        assert verify(federation.kit(site) / "state" / "audit.jsonl").fault == ""
        updates = list((federation.kit(site) / "state").rglob("update.safetensors"))
        assert updates
        for update in updates:
            for tensor in load_tensors(update)[0].values():
                numbers = tensor.numpy().astype(np.float32).reshape(-1)
                piece = numbers[np.abs(numbers).argmax() // 16 * 16 :][:16].tobytes()
                assert not any(piece in data for data in kept)
    assert verify(federation.federation / "audit.jsonl").fault == ""


PROMISE = {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 4, "patients_per_step": 2}


def test_private_rounds_are_charged_at_every_site_and_tell_the_server_nothing_else(deployment: Make) -> None:
    federation = deployment(
        privacy=PROMISE, rounds={"count": 3}, training={"epochs": None, "steps": 2, "precision": "float32"}
    )
    federation.start("server", *federation.sites)
    federation.wait(lambda status: status.round >= 1)
    federation.kill("a")
    federation.start("a")
    federation.finish()
    for site in federation.sites:
        charges = Counter(row["round"] for row in read_jsonl(federation.kit(site) / "ledger.jsonl") if "round" in row)
        assert set(charges) >= {row["round"] for row in rows_of(federation, site) if row["event"] == "update released"}
        assert len(charges) == 3 or site == "a"  # a may have been away when a quorum was there
        page = "\n".join(privacy_lines(federation.kit(site), check=True))
        assert "a second accountant (Opacus) gives" in page
    record = json.loads((federation.run / "privacy.json").read_text())
    assert record["spent"] is None and record["epsilon"] == 8
    answer = [row for row in read_jsonl(federation.folder / "metrics.jsonl") if "event" not in row]
    assert answer and all(set(row) == {"round", "site", "update_norm"} for row in answer)  # the length with the noise
