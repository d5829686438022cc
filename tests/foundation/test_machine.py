"""Device choice and what a run records of where it ran."""

import json
import platform
import socket

import pytest
import torch

from foundation.errors import StudyError
from foundation.machine import choose_device, commit, machine, provenance, versions


def test_auto_takes_the_fastest_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert choose_device("auto").type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto").type == "cuda"


def test_a_device_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(StudyError, match=r"^device 'cuda' is not on this machine; there are: cpu \(or write auto\)$"):
        choose_device("cuda")


def test_versions_of_what_results_depend_on() -> None:
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["python"] == platform.python_version()


def test_the_machine_is_recorded_without_its_name() -> None:
    facts = json.dumps(machine())
    assert json.loads(facts)["cores"] >= 1
    assert socket.gethostname() not in facts or len(socket.gethostname()) < 4


def test_commit_is_a_hash_or_unknown() -> None:
    name = commit().removesuffix("+changes")
    assert name == "unknown" or len(name) == 40


def test_a_runs_record_says_how_it_was_made() -> None:
    found = provenance("fedpretext simulate")
    assert list(found) == ["versions", "machine", "commit", "command"]
    assert found["command"] == "fedpretext simulate"
    assert "torch" in found["versions"]
