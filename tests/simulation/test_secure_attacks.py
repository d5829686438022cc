"""A server that breaks the protocol, against a site's real app: it is refused by category, and the round goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict

import server.secure_round
from client.refusals import refusal
from client.site_file import load_site_file
from federation.algorithms.algorithm import is_parameter
from federation.audit.log import NOTHING, AuditLog, verify
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.secure_aggregation.update import grid_of
from federation.study import load_study, study_from
from foundation.errors import QuorumError, StudyError
from foundation.files import read_json, read_jsonl
from foundation.tensor_files import load_tensors
from server.secure_round import STATE_NAME
from simulation.simulate import simulate, simulation_config
from simulation.sites.checks import check_runtime
from simulation.sites.site_folders import Federation
from ssl_methods import build_method
from tests.simulation.secure_federation import Recorder, make, run, site_asked, stage_of

REFUSED = "secure-sum-refused"
Change = Callable[[Any], Any]


def secured(raw: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return raw | {"secure_aggregation": {}, "rounds": {"count": 1, "attempts": 1, "deadline_minutes": 5}} | changes


class Tampering(Recorder):
    """Asks site A at one stage for something else too, first or last; ``told`` is what it answers to that."""

    def __init__(self, federation: Federation, stage: str, change: Change, after: bool = False) -> None:
        super().__init__()
        self._federation, self._stage, self._change, self._after = federation, stage, change, after
        self.reported: list[str] = []

    def __call__(self, message: Message, context: Context) -> Message:
        if stage_of(message) != self._stage or site_asked(message, self._federation) != "A":
            return super().__call__(message, context)
        if self._after:
            answer = super().__call__(message, context)
            self._tamper(message, context)
            return answer
        self._tamper(message, context)
        return super().__call__(message, context)

    def _tamper(self, message: Message, context: Context) -> None:
        config = dict(cast(ConfigRecord, message.content["config"]))
        changed = self._change(config | {"text": json.loads(str(config["text"]))})
        changed["text"] = json.dumps(changed["text"])
        content = RecordDict({**message.content, "config": ConfigRecord(changed)})
        meta = message.metadata
        false = Message(content, meta.dst_node_id, meta.message_type, group_id=meta.group_id)
        answer = self.app(false, context)
        self.reported.append(str(answer.content["config"].get("failure", "answered")))
        assert not any(isinstance(record, ArrayRecord) for record in answer.content.values())


def text(change: Change) -> Change:
    return lambda config: config | {"text": change(config["text"])}


ATTACKS: dict[str, tuple[str, Change, bool]] = {
    "a second list of survivors": ("sign", text(lambda names: names[:-1]), True),
    "two survivors": ("sign", text(lambda names: names[:2]), False),
    "a list with a stranger": ("sign", text(lambda names: [*names, "E"]), False),
    "shares without signatures": ("unmask", text(lambda asked: asked | {"signatures": {}}), False),
    "shares for another list": ("unmask", text(lambda asked: asked | {"survivors": asked["survivors"][:3]}), False),
    "signatures that do not fit": (
        "unmask", text(lambda asked: asked | {"signatures": dict.fromkeys(asked["signatures"], "00" * 70)}), False,
    ),
    "another set once it is unmasked": (
        "unmask", lambda config: config | {"stage": "sign", "text": config["text"]["survivors"][:3]}, True,
    ),
    "masks with other shares": ("masked", text(lambda shares: shares[:-1]), True),
    "two sites": ("share", text(lambda sites: sites[:2]), False),
    "keys that nobody signed": (
        "share", text(lambda sites: [one | ({"mask_key": "09" * 32} if one["site"] == "B" else {}) for one in sites]),
        False,
    ),
    "another's certificate": ("share", text(lambda sites: [
        one | ({"certificate": sites[0]["certificate"]} if one["site"] == "B" else {}) for one in sites
    ]), False),
    "an attempt of its own": ("sign", lambda config: config | {"attempt": 7}, False),
    "a stage with what is another's": ("sign", lambda config: config | {"stage": "unmask"}, False),
}  # fmt: skip


@pytest.fixture
def federation(raw_study: dict[str, Any], tmp_path: Path) -> Federation:
    return make(tmp_path / "f", secured(raw_study))


@pytest.mark.parametrize("attack", ATTACKS)
def test_the_site_refuses_and_the_honest_round_ends_well(federation: Federation, attack: str) -> None:
    stage, change, after = ATTACKS[attack]
    tampering = Tampering(federation, stage, change, after)
    run(federation, tampering)
    (reported,) = tampering.reported
    assert reported in ((REFUSED, "study-not-approved") if "stage" in attack else (REFUSED,))
    log = federation.folder / "sites" / "A" / "state" / "audit.jsonl"
    assert verify(log).fault == ""
    refusals = [row for row in read_jsonl(log) if row["event"] in ("request refused", "policy refused")]
    assert [row["category"] for row in refusals] == [reported]
    assert {row["site"] for row in read_jsonl(federation.folder / "metrics.jsonl") if "event" not in row} == set("ABCD")


def test_every_stage_stands_in_both_logs(federation: Federation) -> None:
    run(federation)
    stages = ["advertise", "share", "masked", "sign", "unmask"]
    held = federation.folder / "audit.jsonl"
    for site in "ABCD":
        own = federation.folder / "sites" / site / "state" / "audit.jsonl"
        for asked, log in (("secure stage sent", held), ("secure stage asked for", own)):
            rows = [row for row in read_jsonl(log) if row["event"] == asked and row.get("site", site) == site]
            assert [row["stage"] for row in rows] == stages
        released = [row for row in read_jsonl(own) if row["event"] == "secure stage answered"]
        received = [r for r in read_jsonl(held) if r["event"] == "secure stage received" and r["site"] == site]
        assert [row["content"] for row in released] == [row["content"] for row in received]
        assert AuditLog(held, "server").known(site).count == len(read_jsonl(own))


def test_a_policy_that_wants_more_sites(raw_study: dict[str, Any], tmp_path: Path) -> None:
    federation = make(tmp_path / "f", secured(raw_study))
    place = federation.folder / "sites" / "A" / "site.yaml"
    place.write_text(place.read_text().replace("policy: {", "policy: {min_secure_sites: 5, "))
    run(federation)
    rows = read_jsonl(federation.folder / "metrics.jsonl")
    assert [(row["site"], row["reason"]) for row in rows if "event" in row] == [("A", f"secure sum, share: {REFUSED}")]
    assert "policy.min_secure_sites is 5" in (place.parent / "state" / "site.log").read_text()


def test_an_update_that_cannot_be_encoded_stays_at_the_site(raw_study: dict[str, Any], tmp_path: Path) -> None:
    federation = make(tmp_path / "f", secured(raw_study) | {"secure_aggregation": {"largest_value": 1e-6}})
    with pytest.raises(QuorumError, match="loss-not-finite"):
        run(federation)
    log = (federation.folder / "sites" / "A" / "state" / "site.log").read_text()
    assert "secure_aggregation.largest_value is 1e-06: it is not sent" in log
    log_of_norms = secured(raw_study)
    log_of_norms["rounds"] |= {"norm_bound": 1e-6}
    other = make(tmp_path / "g", log_of_norms)
    with pytest.raises(QuorumError, match="loss-not-finite"):
        run(other)
    assert (
        "above rounds.norm_bound 1e-06: it is not sent"
        in (other.folder / "sites" / "B" / "state" / "site.log").read_text()
    )


def test_two_sites_are_too_few(raw_study: dict[str, Any], tmp_path: Path) -> None:
    federation = make(tmp_path / "f", secured(raw_study), {"A": 9, "B": 6})
    with pytest.raises(StudyError, match="secure_aggregation with 2 sites: at least 3 are needed"):
        run(federation)


CLIP = 0.5
SITE = {"unit": "site", "epsilon": 800.0, "delta": 0.009, "sites": 4, "clip": CLIP}


def private(raw: dict[str, Any]) -> dict[str, Any]:
    return secured(raw, privacy=SITE, training=raw["training"] | {"epochs": None, "steps": 2})


def test_sites_noise_what_they_mask_and_every_ledger_is_charged_once(raw_study: dict[str, Any], tmp_path: Path) -> None:
    raw = private(raw_study)
    study = study_from(raw, "test")
    grid = grid_of(study)
    assert grid is not None
    federation = make(tmp_path / "f", raw)
    failed: list[str] = []

    def before(message: Message) -> Message | None:
        if stage_of(message) == "masked" and len(failed) < 2:  # the first attempt fails after the noise was drawn
            failed.append(site_asked(message, federation))
            return refusal(load_site_file(federation.folder / "sites/A/site.yaml"), message, "internal-error")
        return None

    federation = make(tmp_path / "g", raw | {"rounds": raw["rounds"] | {"attempts": 2}})
    weights = run(federation, Recorder(before))
    assert read_json(federation.folder / STATE_NAME)["1"]["attempts"] == 2
    plan = plan_of(study)
    assert plan is not None
    ledgers = [federation.folder / "privacy.jsonl", *federation.folder.glob("sites/*/ledger.jsonl")]
    assert [Ledger(path).releases() for path in ledgers] == [[plan.per_round]] * 5
    parts = [load_tensors(path)[0] for path in sorted(federation.folder.glob("sites/*/state/*/round-00001/update*"))]
    noise = np.stack([part["noise"].numpy() for part in parts])
    assert noise.std() == pytest.approx(grid.deviation, rel=0.02)
    assert abs(np.corrcoef(noise)[0, 1]) < 5 / np.sqrt(noise.shape[1])
    assert all(float(part["update"].norm()) <= CLIP for part in parts)
    mean = sum(part["update"].numpy().astype(float) * grid.scale + part["noise"].numpy() for part in parts) / 4
    method = build_method(study.method, study.encoder, study.image, study.seed)
    initial = method.shared_state()
    frozen = {name for name, value in method.named_parameters() if not value.requires_grad}
    assert frozen
    start = 0
    for name in sorted(name for name, value in initial.items() if is_parameter(name, value)):
        size, change = initial[name].numel(), (weights[name] - initial[name]).double().flatten().numpy()
        if name in frozen:
            assert not change.any()
        else:
            wanted = mean[start : start + size] / grid.scale
            assert np.abs(change - wanted).max() < 1 / grid.scale + 2**-22 * (1 + np.abs(wanted).max())
        start += size


def test_the_noise_needs_more_sites_than_there_are(raw_study: dict[str, Any], tmp_path: Path) -> None:
    """With privacy.sites 6 the noise is made for the sum of 5, and 4 have trained."""
    federation = make(tmp_path / "f", private(raw_study) | {"privacy": SITE | {"sites": 6}})
    with pytest.raises(QuorumError, match="fewer than 5 of 4 sites gave a usable update"):
        run(federation)


def test_sites_sign_no_sum_that_their_noise_is_too_little_for(
    raw_study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.secure_round, "fewest_survivors", lambda study: 3)
    federation = make(tmp_path / "f", private(raw_study) | {"privacy": SITE | {"sites": 6}})
    with pytest.raises(QuorumError, match=f"secure sum, sign: {REFUSED}"):
        run(federation)
    for site in "ABCD":
        log = (federation.folder / "sites" / site / "state" / "site.log").read_text()
        assert "a sum of 4 updates is asked for; at least 5 are one" in log


def test_ray_is_refused(study_file: Path) -> None:
    study = load_study(study_file, ["secure_aggregation={}", "simulation.runtime=ray"])
    with pytest.raises(StudyError, match=r"simulation\.runtime ray: a site's keys live in its process"):
        check_runtime(study, simulation_config(study))


@pytest.mark.slow
def test_a_whole_run_with_its_report(study_file: Path, tmp_path: Path) -> None:
    done = simulate(study_file, ["secure_aggregation={}", "simulation.arms=[centralised]"], runs=tmp_path, device="cpu")
    federated = done.folder / "arms" / "federated" / "fold-0" / "seed-0"
    assert load_study(federated / "study.yaml").secure_aggregation is not None
    assert (
        load_study(done.folder / "arms" / "centralised" / "fold-0" / "seed-0" / "study.yaml").secure_aggregation is None
    )
    assert {key for row in read_jsonl(federated / "metrics.jsonl") for key in row} == {"round", "site"}
    assert done.report.exists()


def test_privacy_by_patient_goes_under_masks(raw_study: dict[str, Any], tmp_path: Path) -> None:
    patient = {"unit": "patient", "epsilon": 40.0, "delta": 0.005, "patients": 2, "patients_per_step": 2}
    raw = secured(raw_study, privacy=patient, training=raw_study["training"] | {"epochs": None, "steps": 2})
    federation = make(tmp_path / "f", raw)
    run(federation)
    assert {row["site"] for row in read_jsonl(federation.folder / "metrics.jsonl")} == set("ABCD")
    assert all(len(Ledger(path).releases()) == 1 for path in federation.folder.glob("sites/*/ledger.jsonl"))
    held = AuditLog(federation.folder / "audit.jsonl", "server")
    assert all(held.known(f"{site}/ledger") != NOTHING for site in "ABCD")
