"""Secure aggregation in whole rounds, real apps at both ends: what comes out, what is seen, who may be missing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message

from client.app import build_app
from client.refusals import refusal
from client.site_file import load_site_file
from federation.flower.records import record_to_weights
from federation.secure_aggregation.encoding import error_bound
from foundation.errors import QuorumError
from foundation.files import read_json, read_jsonl
from foundation.tensor_files import load_tensors
from simulation.sites.site_folders import Federation
from tests.simulation.secure_federation import IMAGES, Recorder, make, run, site_asked, stage_of

from ..tiers import slow


def secured(raw: dict[str, Any], **config: Any) -> dict[str, Any]:
    raw["secure_aggregation"] = config
    raw["rounds"] = {"count": 2, "attempts": 2, "deadline_minutes": 5}
    return raw


def test_the_weights_are_those_of_the_plain_run_to_the_stated_error(raw_study: dict[str, Any], tmp_path: Path) -> None:
    plain_raw = raw_study | {"rounds": {"count": 1, "deadline_minutes": 5}}
    plain = run(make(tmp_path / "plain", plain_raw))
    raw = secured(plain_raw) | {"rounds": {"count": 1, "deadline_minutes": 5}}
    masked = run(make(tmp_path / "masked", raw))
    weight = sum(IMAGES.values()) / 1000
    bound = error_bound(4, 1.0, weight)
    for name, value in plain.items():
        off = (value.double() - masked[name].double()).abs().max()
        assert off <= bound + 2**-23 * float(value.abs().max()), name
    rows = read_jsonl(tmp_path / "masked" / "metrics.jsonl")
    assert rows == [{"round": 1, "site": site} for site in IMAGES]


@pytest.mark.parametrize("algorithm", ["fedavgm", slow("diloco")])
def test_momentum_at_the_server_goes_on_from_sum_to_sum(
    raw_study: dict[str, Any], tmp_path: Path, algorithm: str
) -> None:
    raw_study["training"] |= {"learning_rate": 0.2, "warmup": 0.0}

    def weights(name: str, raw: dict[str, Any]) -> dict[str, Any]:
        return run(make(tmp_path / name, raw | {"rounds": {"count": 2, "deadline_minutes": 5}}))

    with_it = raw_study | {"algorithm": {"name": algorithm}}
    plain, other = weights("plain", with_it), weights("fedavg", raw_study)
    masked = weights("masked", secured(with_it))
    off = max(float((value - masked[name]).abs().max()) for name, value in plain.items())
    changed = max(float((value - other[name]).abs().max()) for name, value in plain.items())
    assert changed > 1e-3 and off < 0.02 * changed


def test_no_message_holds_a_tensor_of_an_update(raw_study: dict[str, Any], tmp_path: Path) -> None:
    recorder, federation = Recorder(), make(tmp_path / "f", secured(raw_study))
    run(federation, recorder)
    (vector,) = [load_tensors(path)[0]["update"].numpy() for path in tmp_path.glob("f/sites/A/state/*/round-00001/up*")]
    assert np.abs(vector).max() > 1e-4
    masked = 0
    for message in recorder.answered:
        for record in (one for one in message.content.values() if isinstance(one, ArrayRecord)):
            for name, array in record.items():
                if name == "weights":
                    assert record_to_weights(record) == {}  # "I have trained"
                    continue
                masked += 1
                numbers = np.frombuffer(array.data, dtype="<u4")[:-1].view("<i4").astype(float)
                assert abs(np.corrcoef(numbers, vector)[0, 1]) < 5 / np.sqrt(len(vector))
    assert masked == 4 * 2  # sites, rounds
    trained = [m for m in recorder.answered if set(m.content) >= {"metrics"}]
    assert {dict(m.content["metrics"])["num-examples"] for m in trained} == {1}
    assert all(set(m.content["metrics"]) == {"num-examples"} for m in trained)


def failing(federation: Federation, site: str, stage: str, rounds: set[int]) -> Recorder:
    """From that stage on the site answers nothing but failures in these rounds."""
    order = ["train", "advertise", "share", "masked", "sign", "unmask"]

    def before(message: Message) -> Message | None:
        at = stage_of(message)
        if (
            at not in order
            or order.index(at) < order.index(stage)
            or site_asked(message, federation) != site
            or int(message.metadata.group_id) not in rounds
        ):
            return None
        return refusal(load_site_file(federation.folder / "sites" / site / "site.yaml"), message, "internal-error")

    return Recorder(before)


@pytest.mark.parametrize("stage", ["advertise", "masked", "sign"])
def test_a_site_that_drops_out_is_left_out_and_comes_back(
    raw_study: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    federation = make(tmp_path / "f", secured(raw_study))
    recorder = failing(federation, "B", stage, {1})
    run(federation, recorder)
    rows = read_jsonl(federation.folder / "metrics.jsonl")
    in_sum = {(row["round"], row["site"]) for row in rows if "event" not in row}
    missing = {(1, "B")} if stage != "sign" else set()  # its masked update is in the sum
    assert in_sum == {(r, s) for r in (1, 2) for s in "ABCD"} - missing
    assert not any(row["event"] == "round retried" for row in rows if "event" in row)
    left_out = [(row["site"], row["reason"]) for row in rows if row.get("event") == "site left out"]
    assert left_out == ([("B", f"secure sum, {stage}: internal-error")] if stage != "sign" else [])


def test_the_weights_without_a_dropout_are_the_mean_of_the_others(raw_study: dict[str, Any], tmp_path: Path) -> None:
    rounds = {"count": 1, "deadline_minutes": 5}
    raw = raw_study | {"rounds": rounds}
    few = {site: count for site, count in IMAGES.items() if site != "D"}  # the last: the others' images are as drawn
    plain = run(make(tmp_path / "plain", raw, few))
    federation = make(tmp_path / "masked", secured(raw) | {"rounds": rounds})
    masked = run(federation, failing(federation, "D", "masked", {1}))
    bound = error_bound(4, 1.0, sum(few.values()) / 1000)
    for name, value in plain.items():
        assert (value.double() - masked[name].double()).abs().max() <= bound + 2**-23 * float(value.abs().max()), name


def test_too_many_dropouts_retry_the_round_with_fresh_keys(raw_study: dict[str, Any], tmp_path: Path) -> None:
    federation = make(tmp_path / "f", secured(raw_study))
    failed: set[str] = set()

    def before(message: Message) -> Message | None:
        site = site_asked(message, federation)
        if stage_of(message) == "share" and site in "AB" and site not in failed:
            failed.add(site)
            return refusal(load_site_file(federation.folder / "sites" / site / "site.yaml"), message, "internal-error")
        return None

    run(federation, Recorder(before))
    rows = read_jsonl(federation.folder / "metrics.jsonl")
    (retried,) = [row for row in rows if row.get("event") == "round retried"]
    assert retried["reason"] == "2 of 4 sites shared their secrets; 3 are needed for a secure sum, attempt 1"
    assert {(row["round"], row["site"]) for row in rows if "event" not in row} == {
        (r, s) for r in (1, 2) for s in "ABCD"
    }


class Killed(BaseException):
    """As a process ends: nothing catches it."""


@pytest.mark.parametrize("stage", [slow("share"), "masked", slow("sign"), slow("unmask")])
def test_a_server_that_was_killed_finishes_the_same_list(raw_study: dict[str, Any], tmp_path: Path, stage: str) -> None:
    federation = make(tmp_path / "f", secured(raw_study) | {"rounds": {"count": 1, "attempts": 2}})
    seen: list[str] = []
    dropped = failing(federation, "D", "masked", {1})

    def before(message: Message) -> Message | None:
        seen.append(stage_of(message))
        if seen.count(stage) == 2:
            raise Killed
        return dropped.before(message)

    with pytest.raises(Killed):
        run(federation, Recorder(before))
    again = Recorder()  # D is back
    run(federation, again)
    assert [message for message in again.asked if stage_of(message) == "train"] == []
    answer = read_json(federation.folder / "secure-rounds.json")["1"]
    signed = stage in ("sign", "unmask")
    assert (answer["attempts"], answer["survivors"]) == (2, list("ABC") if signed else list("ABCD"))
    assert {site for at, site in again.stages() if at == "masked"} == set("ABC" if signed else "ABCD")


@pytest.mark.parametrize("stage", [slow("sign"), "unmask"])
def test_a_site_that_is_started_anew_after_its_masked_update_goes_on(
    raw_study: dict[str, Any], tmp_path: Path, stage: str
) -> None:
    federation = make(tmp_path / "f", secured(raw_study) | {"rounds": {"count": 1, "attempts": 1}})

    def before(message: Message) -> Message | None:
        if stage_of(message) == stage:
            recorder.app = build_app()
        return None

    recorder = Recorder(before)
    run(federation, recorder)
    assert {site for at, site in recorder.stages() if at == "unmask"} == set("ABCD")


def test_a_site_that_is_started_anew_before_its_masked_update_drops_out(
    raw_study: dict[str, Any], tmp_path: Path
) -> None:
    federation = make(tmp_path / "f", secured(raw_study) | {"rounds": {"count": 1, "attempts": 1}})

    def before(message: Message) -> Message | None:
        if stage_of(message) == "masked" and site_asked(message, federation) == "C":
            recorder.app = build_app()  # all of this process; A and B have sent theirs
        return None

    recorder = Recorder(before)
    # C and D, who come after it, have lost their keys, so that 2 of 4 are left.
    with pytest.raises(QuorumError, match="secure sum, masked: secure-sum-refused"):
        run(federation, recorder)
    assert "begin another" in (federation.folder / "sites" / "C" / "state" / "site.log").read_text()
