"""The journal agrees with the checkpoint that a server goes on from."""

import json
from pathlib import Path

from foundation.files import read_jsonl
from server.monitoring.journal import Journal


def test_rows(tmp_path: Path) -> None:
    with Journal(tmp_path, after_round=0) as journal:
        journal.metrics(1, "A", 12, {"loss": 0.5})
        journal.event(1, "site left out", "B", "disk-full")
        journal.event(2, "round retried", None, "1 of 2 updates")
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"round": 1, "site": "A", "images": 12, "loss": 0.5},
        {"round": 1, "event": "site left out", "site": "B", "reason": "disk-full"},
        {"round": 2, "event": "round retried", "site": None, "reason": "1 of 2 updates"},
    ]
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_rows_after_the_checkpoint_go_because_those_rounds_are_done_again(tmp_path: Path) -> None:
    with Journal(tmp_path, after_round=0) as journal:
        for round_ in (1, 2, 3):
            journal.event(round_, "site left out", "B", "x")
    with (tmp_path / "metrics.jsonl").open("a") as handle:
        handle.write('{"round": 3, "si')  # torn by the kill
    with Journal(tmp_path, after_round=2) as journal:
        journal.event(3, "site left out", "C", "y")
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["round"], row["site"]) for row in rows] == [(1, "B"), (2, "B"), (3, "C")]


def test_without_rows_there_is_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path, after_round=0):
        pass
    assert list(tmp_path.iterdir()) == []
