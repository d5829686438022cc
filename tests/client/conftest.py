"""One small hospital and what a server would send it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from flwr.app import RecordDict

import client.app
import client.processes.worker
from client.site import Site
from client.site_file import load_site_file
from federation.audit.log import NOTHING, AuditLog
from federation.flower.records import instruction_to_content
from federation.records import AuditNote, TrainInstruction
from federation.study import Study, study_from
from ssl_methods import build_method


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors are fastest on one thread, and a test may have changed it."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_process(restart: Callable[[], None]) -> None:
    """No test sees what another left in this process."""
    restart()


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget what a process would lose when it ends."""

    def forget() -> None:
        fresh = client.app.build_app()
        monkeypatch.setattr(client.app, "app", fresh)
        monkeypatch.setattr(client.processes.worker, "app", fresh)

    return forget


@pytest.fixture
def study(raw_study: dict[str, Any]) -> Callable[..., Study]:
    """``study(training={"batch": 2}, method={...})``: the small study with changes in sections."""

    def make(**sections: dict[str, Any]) -> Study:
        raw = dict(raw_study)
        for name, section in sections.items():
            whole = "name" in section and name in ("method", "algorithm")
            raw[name] = section if whole else {**raw.get(name, {}), **section}
        return study_from(raw, "test")

    return make


@pytest.fixture
def site(hospital: Callable[..., Path], tmp_path: Path) -> Callable[..., Site]:
    """``site(study, "A", images=9)``: a new Site object over the hospital's folder."""

    def make(study: Study, name: str = "A", **folder: Any) -> Site:
        path = tmp_path / "sites" / name / "site.yaml"
        if not path.exists():
            hospital(name, **folder)
        return Site(load_site_file(path), study)

    return make


@pytest.fixture
def instruction() -> Callable[..., TrainInstruction]:
    """``instruction(study, round_, weights)``: from the study's initial weights where none are given."""

    def make(study: Study, round_: int = 1, weights: Any = None) -> TrainInstruction:
        if weights is None:
            method = build_method(study.method, study.encoder, study.image, study.seed)
            weights = {name: value.clone() for name, value in method.shared_state().items()}
        return TrainInstruction(study.training_hash(), round_, weights)

    return make


IJEPA = {"name": "ijepa", "predictor_width": 24, "predictor_depth": 1, "predictor_heads": 2, "momentum": 0.9}


@pytest.fixture
def ijepa() -> dict[str, Any]:
    """A method with a part that stays at the site: the target encoder."""
    return dict(IJEPA)


PRIVATE: dict[str, dict[str, Any]] = {
    "patient": {"unit": "patient", "epsilon": 8, "delta": 1e-3, "patients": 4, "patients_per_step": 2},
    "site": {"unit": "site", "epsilon": 8, "delta": 1e-3, "sites": 3, "clip": 0.05},
}


@pytest.fixture
def private_study(study: Callable[..., Study]) -> Callable[..., Study]:
    """``private_study("site", privacy={"clip": 1.0}, method={...})``: the small study, private, two steps a round."""

    def make(unit: str = "patient", **sections: dict[str, Any]) -> Study:
        privacy = PRIVATE[unit] | sections.pop("privacy", {})
        training = {"epochs": None, "steps": 2} | sections.pop("training", {})
        return study(privacy=privacy, training=training, **sections)

    return make


@pytest.fixture
def private_site(hospital: Callable[..., Path], tmp_path: Path) -> Callable[..., Site]:
    """``private_site(study, "A", policy={...}, patients=5)``: a new Site object, with a ledger in its site file."""

    def make(study: Study, name: str = "A", policy: dict[str, Any] | None = None, **folder: Any) -> Site:
        path = tmp_path / "sites" / name / "site.yaml"
        if not path.exists():
            hospital(name, **folder)
        raw = yaml.safe_load(path.read_text())
        lenient = {"studies": "any", "min_images": 1, "min_patients": 1}  # smallest_count 5, as by default
        path.write_text(yaml.safe_dump(raw | {"ledger": "ledger.jsonl", "policy": lenient | (policy or {})}))
        return Site(load_site_file(path), study)

    return make


@pytest.fixture
def asked(tmp_path: Path) -> Callable[[TrainInstruction], RecordDict]:
    """``asked(instruction)``: the content of the server's message, with the head of its audit log."""
    log = AuditLog(tmp_path / "server-audit.jsonl", "server")

    def make(instruction: TrainInstruction) -> RecordDict:
        log.append("instruction sent", round=instruction.round)
        return instruction_to_content(instruction, None, AuditNote(log.extension(NOTHING), NOTHING))

    return make
