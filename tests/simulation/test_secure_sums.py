"""Secure aggregation through the apps that hospitals run: sums, dropouts, restarts, and a server that asks too much."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message

import client.app
import client.secure_sum
import client.site
import simulation.runtimes
from federation.secure_aggregation.encoding import error_bound
from federation.study import study_from
from foundation.errors import QuorumError, StudyError
from foundation.files import load_tensors
from server.rounds import write_study
from simulation.grid import InProcessGrid
from simulation.runtimes import Federation, run_in_process
from simulation.site_keys import make_site_keys

SITES = {"A": 9, "B": 6, "C": 4, "D": 5}
Make = Callable[..., Federation]


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """No test sees what another left in this process."""
    torch.set_num_threads(1)
    for kept in (client.site._bench, client.app._sites, client.secure_sum._unlocked):
        kept.clear()
    yield


@pytest.fixture
def hospitals(tmp_path: Path, write_site: Callable[..., Path], raw_study: dict[str, Any]) -> Make:
    """``hospitals("name", sites=4, secure_aggregation={}, ...)``: a prepared federation."""

    def make(name: str, sites: int = 4, **sections: Any) -> Federation:
        raw = {**raw_study, "rounds": {"count": 2, "attempts": 2, "deadline_minutes": 0.2}} | sections
        folder, chosen = tmp_path / name, dict(list(SITES.items())[:sites])
        write_study(folder, study_from(raw, "test"))
        places = {
            site: write_site(folder / "sites", site, pictures, patients=2, seed=seed).parent
            for seed, (site, pictures) in enumerate(chosen.items())
        }
        if raw.get("secure_aggregation") is not None:
            make_site_keys(folder, places)
        return Federation(folder, tuple(chosen))

    return make


def final(federation: Federation) -> dict[str, torch.Tensor]:
    return load_tensors(federation.folder / "global.safetensors")[0]


class Recorded(InProcessGrid):
    """Keeps what the sites answered; ``lose`` says which answers never come, by site and stage."""

    answers: list[tuple[str, str, Message]] = []  # noqa: RUF012
    lose: Callable[[str, str], bool] = staticmethod(lambda site, stage: False)

    def pull_messages(self, message_ids: Any) -> list[Message]:
        kept = []
        for reply in super().pull_messages(message_ids):
            config = dict(reply.content["config"])  # type: ignore[call-overload]
            site, stage = str(config["site"]), str(config.get("stage", "train"))
            if not type(self).lose(site, stage):
                type(self).answers.append((site, stage, reply))
                kept.append(reply)
        return kept


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> type[Recorded]:
    """The grid of every run in the test."""
    monkeypatch.setattr(Recorded, "answers", [])
    monkeypatch.setattr(Recorded, "lose", staticmethod(lambda site, stage: False))
    monkeypatch.setattr(simulation.runtimes, "InProcessGrid", Recorded)
    monkeypatch.setattr("server.secure_sum._LEAST_S", 1.0)
    return Recorded


def test_the_sum_gives_the_weights_of_the_plain_run(hospitals: Make) -> None:
    plain, secure = hospitals("plain"), hospitals("secure", secure_aggregation={})
    run_in_process(plain)
    run_in_process(secure)
    bound = error_bound(4, 1.0, sum(max(5, n) for n in SITES.values()) / 1000)
    one, other = final(plain), final(secure)
    assert one.keys() == other.keys()
    # A second round starts from weights that differ by the first's rounding, which training carries on.
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 100 * bound + 1e-6
    assert max(float((one[name] - other[name]).abs().max()) for name in one) > 0


def test_no_single_update_leaves(hospitals: Make, recorded: type[Recorded]) -> None:
    federation = hospitals("secure", secure_aggregation={})
    run_in_process(federation)
    for site, stage, reply in recorded.answers:
        arrays = [record for record in reply.content.values() if isinstance(record, ArrayRecord)]
        if stage == "train":
            assert not arrays, site
        if stage == "masked":
            numbers = np.frombuffer(next(iter(arrays[0].values())).data, dtype="<u4")
            # Under a uniform mask every bit is a coin: of n numbers the mean is 2**31 within 6 deviations.
            assert abs(numbers.mean() / 2**32 - 0.5) < 6 * (1 / 12) ** 0.5 / len(numbers) ** 0.5
    assert {stage for _, stage, _ in recorded.answers} >= {"train", "advertise", "share", "masked", "sign", "unmask"}
    assert not list(federation.folder.glob("divergence.jsonl"))


@pytest.mark.parametrize("stage", ["train", "advertise", "share", "masked", "sign", "unmask"])
def test_a_site_that_drops_out_at_a_stage(stage: str, hospitals: Make, recorded: type[Recorded]) -> None:
    recorded.lose = staticmethod(lambda site, at: (site, at) == ("B", stage))
    federation = hospitals(
        "secure", secure_aggregation={}, rounds={"count": 1, "attempts": 1, "deadline_minutes": 0.05}
    )
    run_in_process(federation)
    assert all(bool(torch.isfinite(value).all()) for value in final(federation).values())


def test_two_that_drop_out_are_too_many(hospitals: Make, recorded: type[Recorded]) -> None:
    recorded.lose = staticmethod(lambda site, at: site in "AB" and at == "masked")
    federation = hospitals(
        "secure", secure_aggregation={}, rounds={"count": 1, "attempts": 1, "deadline_minutes": 0.05}
    )
    with pytest.raises(QuorumError, match="no secure sum in 1 attempts"):
        run_in_process(federation)


def test_two_sites_are_too_few(hospitals: Make) -> None:
    with pytest.raises(StudyError, match="secure_aggregation with 2 sites: at least 3 are needed"):
        run_in_process(hospitals("secure", sites=2, secure_aggregation={}))


def test_a_server_killed_after_the_list_finishes_the_same_list(
    hospitals: Make, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = hospitals("secure", secure_aggregation={}, rounds={"count": 1, "attempts": 1, "deadline_minutes": 0.2})

    class KilledError(Exception):
        pass

    def killed(*_: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr("server.secure_sum.ServerSession.add_unmasking", killed)
        with pytest.raises(KilledError):
            run_in_process(federation)
    signed = {site for site, stage, _ in recorded.answers if stage == "sign"}
    assert signed == set(SITES)
    client.app._sites.clear()  # the sites were restarted as well
    run_in_process(federation)
    plain = hospitals("plain", rounds={"count": 1, "attempts": 1, "deadline_minutes": 0.2})
    run_in_process(plain)
    one, other = final(plain), final(federation)
    bound = error_bound(4, 1.0, sum(max(5, n) for n in SITES.values()) / 1000)
    assert max(float((one[name] - other[name]).abs().max()) for name in one) <= bound + 1e-6


def test_a_round_is_not_summed_again_over_other_sites(
    hospitals: Make, recorded: type[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    federation = hospitals("secure", secure_aggregation={}, rounds={"count": 1, "attempts": 1, "deadline_minutes": 0.1})

    def forgetful(*_: Any, **__: Any) -> None:
        raise RuntimeError("the server goes away before its checkpoint")

    with monkeypatch.context() as patch:
        patch.setattr("server.rounds.write_checkpoint", forgetful)
        with pytest.raises(RuntimeError):
            run_in_process(federation)
    # A server that wants B's update sums again without it, as if nothing had been announced.
    for kept in federation.folder.glob("spool/sum-*.json"):
        kept.write_text('{"attempt": 1, "survivors": null}')
    recorded.answers.clear()
    recorded.lose = staticmethod(lambda site, at: site == "B")
    with pytest.raises(QuorumError):
        run_in_process(federation)
    refused = [dict(reply.content["config"]).get("failure") for _, _, reply in recorded.answers]  # type: ignore[call-overload]
    assert refused.count("secure-sum-refused") == 3


def test_sites_noise_the_sum_for_privacy_by_site(hospitals: Make) -> None:
    private = {"unit": "site", "epsilon": 8, "delta": 0.005, "sites": 4, "clip": 0.5}
    federation = hospitals(
        "secure", secure_aggregation={}, privacy=private, training={"batch": 4, "epochs": None, "steps": 2}
    )
    for place in (federation.folder / "sites").glob("*/site.yaml"):
        place.write_text(place.read_text() + "\nledger: ledger.jsonl\n")
    run_in_process(federation)
    assert len((federation.folder / "privacy.jsonl").read_text().splitlines()) == 3  # opened, and a row a round
    assert (federation.folder / "sites" / "A" / "ledger.jsonl").read_text().count("discrete gaussian") == 2
