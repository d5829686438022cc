"""Site-level privacy at the server: what the mean gets, what is charged for it, and what is written down of updates."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import server.site_noise
from federation.audit.log import AuditLog
from federation.privacy.ledger import Ledger
from federation.privacy.plan import plan_of
from federation.records import Failure, TrainInstruction, TrainReply
from federation.study import Study, study_from
from foundation.errors import QuorumError, StudyError
from foundation.files import read_jsonl
from server.checkpoint import latest_checkpoint
from server.rounds import RoundLoop, RunRecords
from server.site_noise import LEDGER_NAME

CLIP = 0.5
WIDTH = 20_000
INITIAL = {"encoder.w": torch.zeros(WIDTH), "encoder.running_var": torch.ones(2), "encoder.count": torch.tensor(3)}
SITES = "ABCD"
Act = Callable[[TrainInstruction, str, int], TrainReply | Failure]


def private(raw: dict[str, Any], **rounds: Any) -> Study:
    raw["privacy"] = {"unit": "site", "epsilon": 20.0, "delta": 1e-3, "sites": 4, "clip": CLIP}
    raw["training"] |= {"epochs": None, "steps": 1}
    raw["rounds"] = {"count": 2, "deadline_minutes": 1, "attempts": 1} | rounds
    return study_from(raw, "test")


def direction(site: str) -> torch.Tensor:
    """Of length 1; each site's own."""
    draw = torch.Generator().manual_seed(ord(site))
    vector = torch.randn(WIDTH, generator=draw, dtype=torch.float64)
    return vector / vector.norm()


def moved(instruction: TrainInstruction, site: str, length: float = CLIP, **changes: Any) -> TrainReply:
    """What a site sends whose update has this length."""
    weights = dict(instruction.weights)
    weights["encoder.w"] = (weights["encoder.w"].double() + length * direction(site)).float()
    return TrainReply(
        instruction.study_hash, instruction.round, site, 1, weights | changes.pop("weights", {}), **changes
    )


class Run:
    """A round loop over scripted sites in a folder of its own."""

    def __init__(self, study: Study, folder: Path, script: Any) -> None:
        self.study, self.folder, self._script = study, folder, script

    def run(self, act: Act | None = None, sites: str = SITES) -> dict[str, torch.Tensor]:
        channel = self._script(self.study, sites, act or (lambda instruction, site, _: moved(instruction, site)))
        audit = AuditLog(self.folder / "audit.jsonl", "server")
        initial = {name: value.clone() for name, value in INITIAL.items()}
        return RoundLoop(self.study, RunRecords(self.folder, audit), channel, initial).run()

    def rows(self) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / "metrics.jsonl")

    def charges(self) -> int:
        return len(Ledger(self.folder / LEDGER_NAME).releases())


@pytest.fixture
def run(tmp_path: Path, raw_study: dict[str, Any], script: Any) -> Callable[..., Run]:
    def make(**rounds: Any) -> Run:
        return Run(private(raw_study, **rounds), tmp_path / "run", script)

    return make


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise, so that the rest can be worked by hand."""
    monkeypatch.setattr(server.site_noise.noise, "noised", lambda value, std: value)


@pytest.mark.usefixtures("silent")
def test_without_its_noise_a_round_is_the_plain_mean_of_the_updates(run: Callable[..., Run]) -> None:
    weights = run().run()
    mean = torch.stack([direction(site) for site in SITES]).mean(dim=0) * CLIP
    assert torch.allclose(weights["encoder.w"].double(), 2 * mean, atol=1e-7)
    assert torch.equal(weights["encoder.running_var"], INITIAL["encoder.running_var"])
    assert torch.equal(weights["encoder.count"], INITIAL["encoder.count"])


@pytest.mark.parametrize("sites", [4, 3])
def test_the_noise_is_of_the_sum(run: Callable[..., Run], sites: int) -> None:
    """Standard deviation noise x clip / accepted sites: with one site fewer the mean has more noise, the sum as much.

    Of 20,000 numbers, whose deviation is off by more than 2 % less than once in 10,000 runs.
    """
    one = run(count=1)

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | Failure:
        return moved(instruction, site, 0.0) if site in SITES[:sites] else Failure("", 1, site, "disk-full")

    noise = one.run(act)["encoder.w"].double()
    plan = plan_of(one.study)
    assert plan is not None
    expected = plan.noise * CLIP / sites
    assert float(noise.std()) == pytest.approx(expected, rel=0.02)
    assert abs(float(noise.mean())) < 5 * expected / math.sqrt(WIDTH)


def test_each_training_draws_noise_of_its_own(run: Callable[..., Run]) -> None:
    one = run(count=1)
    first = one.run()["encoder.w"]
    one.folder = one.folder.with_name("again")
    assert not torch.equal(one.run()["encoder.w"], first)


@pytest.mark.usefixtures("silent")
def test_an_update_that_is_longer_than_the_clip_is_left_out_and_its_length_is_not_told(run: Callable[..., Run]) -> None:
    one = run(count=1)
    lengths = {"A": CLIP, "B": CLIP * 1.001, "C": 0.0, "D": 1e-3}
    weights = one.run(lambda instruction, site, _: moved(instruction, site, lengths[site]))
    mean = sum(direction(site) * lengths[site] for site in "ACD") / 3
    assert torch.allclose(weights["encoder.w"].double(), mean, atol=1e-7)
    # A short update is not left out for being 500 times shorter than others, and nobody's length is written anywhere.
    (event,) = [row for row in one.rows() if "event" in row]
    assert (event["site"], event["reason"]) == (
        "B", "update is longer than privacy.clip; the site has to send what its own program has shortened"
    )  # fmt: skip


def test_what_is_written_down_of_updates_is_who_sent_one(run: Callable[..., Run]) -> None:
    one = run()
    one.run()
    assert one.rows() == [{"round": number, "site": site} for number in (1, 2) for site in SITES]
    assert not (one.folder / "divergence.jsonl").exists()
    assert not list((one.folder / "replies").glob("*"))
    checkpoint = latest_checkpoint(one.folder / "checkpoints", one.study.training_hash())
    assert checkpoint is not None
    assert checkpoint.norms == {}


TELLING: dict[str, tuple[dict[str, Any], str]] = {
    "a count": ({"images": 12}, "tells a count of images or a metric"),
    "a metric": ({"metrics": {"loss": 0.5}}, "tells a count of images or a metric"),
    "a counter": ({"encoder.count": torch.tensor(9)}, "changes tensor 'encoder.count'"),
    "statistics": ({"encoder.running_var": torch.full((2,), 0.5)}, "changes tensor 'encoder.running_var'"),
}


@pytest.mark.parametrize("what", TELLING)
def test_an_update_that_tells_what_no_noise_covers_is_refused(run: Callable[..., Run], what: str) -> None:
    changes, reason = TELLING[what]

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        reply = moved(instruction, site)
        if site != "B":
            return reply
        tensors = {name: value for name, value in changes.items() if "." in name}
        fields = {name: value for name, value in changes.items() if "." not in name}
        return replace(reply, weights=reply.weights | tensors, **fields)

    one = run(count=1)
    one.run(act)
    (event,) = [row for row in one.rows() if "event" in row]
    assert event["site"] == "B"
    assert reason in event["reason"]


def test_more_sites_than_the_promise_was_made_for(run: Callable[..., Run]) -> None:
    with pytest.raises(StudyError, match=r"^there are 5 sites; privacy.sites says 4"):
        run().run(sites="ABCDE")


class _Killed(BaseException):
    pass


def test_a_mean_without_noise_reaches_no_disk_and_its_noise_is_charged_before(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed where the noise is drawn: the charge is there, the mean is not; after it, each drawing is one charge."""
    one, means = run(count=1), list[torch.Tensor]()

    def killed(value: torch.Tensor, std: float) -> torch.Tensor:
        means.append(value.clone())
        raise _Killed

    for attempt in (1, 2):
        with monkeypatch.context() as patched, pytest.raises(_Killed):
            patched.setattr(server.site_noise.noise, "noised", killed)
            one.run()
        assert one.charges() == attempt
        assert not (one.folder / "checkpoints").exists()
    weights = one.run()
    assert one.charges() == 3
    needle = means[0].numpy()[:64].tobytes()
    assert np.count_nonzero(np.frombuffer(needle, np.float32)) > 32
    assert [path for path in _files(one.folder) if needle in path.read_bytes()] == []
    # The search would have found it: the noised weights are in the checkpoint.
    assert any(weights["encoder.w"].numpy()[:64].tobytes() in path.read_bytes() for path in _files(one.folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def test_a_round_that_misses_its_quorum_is_not_charged(run: Callable[..., Run]) -> None:
    one = run()
    with pytest.raises(QuorumError):
        one.run(lambda instruction, site, _: Failure("", instruction.round, site, "disk-full"))
    assert one.charges() == 0
    one.run()
    assert one.charges() == 2


def test_the_ledger_adds_up_to_what_the_study_promises(run: Callable[..., Run]) -> None:
    one = run(count=3)
    one.run()
    plan = plan_of(one.study)
    assert plan is not None
    assert one.study.privacy is not None
    assert Ledger(one.folder / LEDGER_NAME).spent(plan.delta) == pytest.approx(plan.epsilon, rel=1e-6)
    assert plan.epsilon <= one.study.privacy.epsilon
