"""The round loop with scripted sites: what goes wrong at one site never stops or changes the others' run."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from federation.records import Failure, SiteInfo, TrainInstruction, TrainReply
from foundation.errors import QuorumError, RunError, StudyError
from server import rounds
from server.checkpoint import latest_checkpoint
from server.rounds import write_study

Make = Callable[..., Any]
Honest = Callable[[TrainInstruction, str], TrainReply]


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def undisturbed(loop: Make, tmp_path: Path) -> dict[str, torch.Tensor]:
    run = loop()
    run.folder = tmp_path / "undisturbed"
    result: dict[str, torch.Tensor] = run.run()
    return result


def test_three_rounds_by_hand(loop: Make) -> None:
    run = loop()
    weights = run.run()
    # Each round halves the weights and adds the mean of (site's letter / 100 + round / 10), counted by images.
    letters = (65 * 10 + 66 * 20 + 67 * 30 + 68 * 40) / 100 / 100
    value = 0.0
    for number in (1, 2, 3):
        value = value * 0.5 + letters + number / 10
    assert weights["encoder.w"].tolist() == pytest.approx([value] * 4, rel=1e-6)
    assert weights["encoder.count"].item() == 6
    assert run.metrics() == [(number, site) for number in (1, 2, 3) for site in "ABCD"]
    assert run.events() == []
    assert not list((run.folder / "replies").glob("*"))


def test_the_order_of_arrival_changes_no_bit(loop: Make, honest_site: Honest, script: Any) -> None:
    draw = torch.Generator().manual_seed(1)
    weights = {f"{site}{number}": torch.randn(4, generator=draw) for site in "ABCD" for number in (1, 2, 3)}

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        reply = honest_site(instruction, site)
        return replace(reply, weights=reply.weights | {"encoder.w": weights[f"{site}{instruction.round}"]})

    results = []
    for order in ("ABCD", "DCBA", "CADB"):
        run = loop()
        run.folder = run.folder.with_name(order)

        class Shuffled(script):
            def instruct(self, instruction: TrainInstruction, sites: Sequence[str], order: str = order) -> None:
                super().instruct(instruction, [site for site in order if site in sites])

        results.append(run.run(channel=Shuffled(run.study, tuple(order), act)))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def broken(kind: str) -> Callable[[TrainReply], TrainReply]:
    def change(reply: TrainReply) -> TrainReply:
        w = reply.weights["encoder.w"]
        changes = {
            "NaN": {"encoder.w": torch.full_like(w, float("nan"))},
            "wrong shape": {"encoder.w": torch.ones(5)},
            "extra tensor": {"decoder.w": torch.ones(1)},
            "wrong type": {"encoder.w": w.double()},
            "hundredfold": {"encoder.w": w * 100},
            "beyond the bound": {"encoder.w": w + 1e6},
        }
        return replace(reply, weights=reply.weights | changes[kind])

    return change


REASONS = {
    "NaN": "tensor 'encoder.w' has values that are not finite",
    "wrong shape": "tensor 'encoder.w' is [5] torch.float32 instead of [4] torch.float32",
    "extra tensor": "has the extra tensor 'decoder.w'; the study shares exactly 2 tensors",
    "wrong type": "tensor 'encoder.w' is [4] torch.float64 instead of [4] torch.float32",
    "hundredfold": "times the median",
    "beyond the bound": "is above the bound 10000 (rounds.norm_bound)",
}


@pytest.mark.parametrize("kind", REASONS)
def test_one_of_four_sites_is_left_out_and_named_and_the_run_goes_on(
    loop: Make, honest_site: Honest, kind: str
) -> None:
    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        reply = honest_site(instruction, site)
        return broken(kind)(reply) if site == "B" and instruction.round == 2 else reply

    run = loop()
    weights = run.run(act)
    ((number, event, site, reason),) = run.events()
    assert (number, event, site) == (2, "site left out", "B")
    assert REASONS[kind] in reason
    assert run.metrics() == [(n, s) for n in (1, 2, 3) for s in "ABCD" if (n, s) != (2, "B")]
    # ... exactly as if B had not been there in round 2.
    absent = loop()
    absent.folder = absent.folder.with_name("absent")
    expected = absent.run(lambda i, s, _: Failure("", 2, s, "x") if (i.round, s) == (2, "B") else honest_site(i, s))
    assert same(weights, expected)


def test_a_reply_that_is_lost_is_asked_for_again(loop: Make, undisturbed: Any, honest_site: Honest) -> None:
    def act(instruction: TrainInstruction, site: str, times: int) -> TrainReply | None:
        return None if (instruction.round, site, times) == (1, "C", 1) else honest_site(instruction, site)

    run = loop(quorum=1.0)
    assert same(run.run(act), undisturbed)
    assert run.channel.sent.count((1, "C")) == 2
    assert run.channel.sent.count((1, "A")) == 1  # what was stored is not asked for again
    assert run.events() == [(1, "round retried", None, "3 of 4 updates, attempt 1")]


def test_the_deadline_is_the_studys(loop: Make, honest_site: Honest) -> None:
    for minutes, deadline in ((2.0, 2.0), (30.0, 30.0)):
        run = loop(attempts=1, quorum=1.0, deadline_minutes=minutes)
        run.folder = run.folder.with_name(str(minutes))
        started = rounds.time.monotonic()
        with pytest.raises(QuorumError):
            run.run(lambda i, s, _: honest_site(i, s) if s == "A" else None)
        assert (rounds.time.monotonic() - started) / 60 == pytest.approx(deadline, abs=0.05)


def test_with_quorum_the_round_goes_on_without_the_missing(loop: Make, honest_site: Honest) -> None:
    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | None:
        return None if (instruction.round, site) == (1, "C") else honest_site(instruction, site)

    run = loop(quorum=0.75)
    run.run(act)
    assert run.events() == [(1, "site left out", "C", "no answer before the deadline")]
    assert run.channel.sent.count((1, "C")) == 1


def test_a_site_that_was_offline_is_asked_again(loop: Make, undisturbed: Any, honest_site: Honest) -> None:
    def act(instruction: TrainInstruction, site: str, times: int) -> TrainReply | Failure:
        if site == "B" and times <= 3:
            return Failure("", instruction.round, site, "offline")
        return honest_site(instruction, site)

    run = loop(deadline_minutes=1)
    assert same(run.run(act), undisturbed)
    assert run.channel.sent.count((2, "B")) == 4
    assert run.channel.sent.count((2, "A")) == 1
    assert run.events() == []


def test_an_offline_site_is_not_asked_without_a_pause(
    loop: Make, honest_site: Honest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "_RESEND_S", 25.0)

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | Failure:
        return Failure("", instruction.round, site, "offline") if site == "B" else honest_site(instruction, site)

    run = loop()
    run.run(act)
    # In the round's minute: at its start, once more at once, then every 25 seconds.
    assert run.channel.sent.count((1, "B")) == 4


def test_a_site_that_collapses_is_told_once_and_recorded_every_time(
    loop: Make, honest_site: Honest, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | Failure:
        reply = honest_site(instruction, site)
        spread = 0.9 / 5 ** (instruction.round - 1) if site == "B" else 0.9
        return replace(
            reply, metrics=reply.metrics | {"feature_spread": 0.5, "output_rank": 0.5, "output_spread": spread}
        )

    run = loop(count=4)
    run.run(act)
    assert run.events() == [(number, "collapsing", "B", "features lose their spread") for number in (3, 4)]
    answer = [line for line in capsys.readouterr().err.splitlines() if "collapse" in line]
    assert len(answer) == 1
    assert answer[0].startswith("round 3: site B: the features of its images are becoming all alike (collapse)")


def test_a_site_that_cannot_is_not_waited_for(loop: Make, honest_site: Honest) -> None:
    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | Failure:
        return Failure("", instruction.round, site, "disk-full") if site == "B" else honest_site(instruction, site)

    run = loop(deadline_minutes=60)
    run.run(act)
    assert run.events() == [(number, "site left out", "B", "disk-full") for number in (1, 2, 3)]


def test_a_missed_quorum_names_sites_and_reasons_and_harms_nothing(
    loop: Make, honest_site: Honest, undisturbed: Any
) -> None:
    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | Failure | None:
        if instruction.round < 3 or site == "A":
            return honest_site(instruction, site)
        nan = broken("NaN")(honest_site(instruction, site))
        return {"B": Failure("", 3, "B", "out-of-memory"), "C": None, "D": nan}[site]

    run = loop(quorum=0.5, attempts=2)
    with pytest.raises(QuorumError) as caught:
        run.run(act)
    assert str(caught.value) == (
        "round 3: fewer than 2 of 4 sites gave a usable update in 2 attempts (B: out-of-memory; C: no answer before "
        "the deadline; D: tensor 'encoder.w' has values that are not finite); mend those sites, then go on"
    )
    checkpoint = latest_checkpoint(run.folder / "checkpoints", run.study.training_hash())
    assert checkpoint is not None
    assert checkpoint.round == 2
    assert run.channel.sent.count((3, "A")) == 1
    # The sites are mended: the run goes on, A's stored update is used, nothing was half-applied.
    assert same(run.run(), undisturbed)
    assert run.channel.sent == [(3, "B"), (3, "C"), (3, "D")]


@pytest.mark.parametrize(
    ("quorum", "sites", "needed"), [(0.5, 3, 2), (0.55, 20, 11), (0.07, 100, 7), (1.0, 4, 4), (0.01, 4, 1)]
)
def test_the_quorum_in_sites(loop: Make, quorum: float, sites: int, needed: int) -> None:
    """0.55 x 20 is above 11 in floating point; 11 sites are enough all the same."""
    names = [f"S{number:03d}" for number in range(sites)]
    run = loop(quorum=quorum, attempts=1, deadline_minutes=1)
    with pytest.raises(QuorumError, match=f"^round 1: fewer than {needed} of {sites} sites"):
        run.run(lambda i, s, _: Failure("", i.round, s, "internal-error"), sites=names)


def test_a_killed_server_goes_on_from_its_reply_store(
    loop: Make, honest_site: Honest, undisturbed: Any, script: Any
) -> None:
    class Killed(BaseException):
        pass

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        if (instruction.round, site) == (2, "C"):
            raise Killed
        return honest_site(instruction, site)

    run = loop()

    class OneByOne(script):
        """Answers are made when they are collected, so that A and B are stored when C kills the server."""

        def instruct(self, instruction: TrainInstruction, sites: Sequence[str]) -> None:
            self.queue = [(instruction, site) for site in sites]

        def collect(self) -> list[Any]:
            instruction, site = self.queue.pop(0)
            super().instruct(instruction, [site])
            return list(super().collect())

    with pytest.raises(Killed):
        run.run(channel=OneByOne(run.study, "ABCD", act))
    assert same(run.run(), undisturbed)
    assert run.channel.sent[:2] == [(2, "C"), (2, "D")]
    assert run.metrics() == [(number, site) for number in (1, 2, 3) for site in "ABCD"]


def test_a_finished_run_gives_its_weights_again_and_asks_nobody(loop: Make, undisturbed: Any) -> None:
    run = loop()
    run.run()
    assert same(run.run(), undisturbed)
    assert run.channel.sent == []


def test_after_an_older_checkpoint_the_reply_store_of_another_history_is_not_aggregated(
    loop: Make, honest_site: Honest, undisturbed: Any
) -> None:
    """Round 2 is done again, to another result (D is there now): what was trained from the lost one does not fit."""

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply | Failure:
        if instruction.round == 2 and site == "D":
            return Failure("", 2, "D", "internal-error")
        if instruction.round == 3 and site != "A":
            return Failure("", 3, site, "internal-error")
        return honest_site(instruction, site)

    run = loop(attempts=1)
    with pytest.raises(QuorumError):
        run.run(act)
    assert [path.name for path in (run.folder / "replies" / "round-00003").iterdir()] == ["A.safetensors"]
    weights_file = run.folder / "checkpoints" / "round-00002" / "weights.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    assert same(run.run(), undisturbed)
    assert (3, "A") in run.channel.sent


def test_late_and_foreign_replies_are_ignored(loop: Make, honest_site: Honest, undisturbed: Any) -> None:
    run = loop()
    earlier: list[TrainReply] = []

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        reply = honest_site(instruction, site)
        if site == "A":
            run.channel.answers.extend(earlier)  # round 1's reply, once more in every later round
            if instruction.round == 1:
                earlier.append(replace(reply, weights={"encoder.w": torch.ones(4) * 50}))
            run.channel.answers.append(replace(reply, site="stranger"))
        return reply

    assert same(run.run(act), undisturbed)
    assert run.events() == []


def test_a_second_reply_of_a_site_is_ignored(loop: Make, honest_site: Honest, undisturbed: Any) -> None:
    run = loop()

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        reply = honest_site(instruction, site)
        if site == "A":
            run.channel.answers.append(reply)
            return broken("hundredfold")(reply)
        return reply

    assert same(run.run(act), undisturbed)


class Sites:
    """A contact that only says who is there."""

    def __init__(self, *sites: SiteInfo) -> None:
        self._sites = list(sites)

    def sites(self) -> list[SiteInfo]:
        return self._sites


@pytest.mark.parametrize(
    ("names", "study", "said"),
    [
        (("A", "B", "A"), None, "two sites call themselves 'A'; each site needs a name of its own"),
        (("A", "B"), "other", "site A: has another study on its disk; give all sites this study file"),
        (("A", "../../x"), None, "a site calls itself '../../x'; a name is letters, digits, dot, dash, underscore"),
        (("A", ""), None, "a site calls itself ''; a name is letters, digits, dot, dash, underscore"),
    ],
)
def test_who_may_take_part(loop: Make, names: tuple[str, ...], study: str | None, said: str) -> None:
    run = loop()
    infos = [SiteInfo(name, study or run.study.training_hash(), 3) for name in names]
    with pytest.raises(StudyError) as caught:
        run.run(channel=Sites(*infos))
    assert str(caught.value) == said
    assert not (run.folder / "checkpoints").exists()


def test_a_median_is_refused_for_two_sites_and_waits_for_three(loop: Make, honest_site: Honest) -> None:
    run = loop(algorithm={"name": "fedmedian"}, quorum=0.01, attempts=1)
    with pytest.raises(StudyError, match=r"^algorithm 'fedmedian' needs at least 3 sites; there are 2$"):
        run.run(sites="AB")
    with pytest.raises(QuorumError, match="fewer than 3 of 4 sites"):
        run.run(lambda i, s, _: honest_site(i, s) if s in "AB" else Failure("", i.round, s, "disk-full"))
    run.run()
    assert run.metrics()[-1] == (3, "D")


@pytest.mark.parametrize("killed_after", [1, 2])
def test_the_state_of_an_algorithm_survives(loop: Make, honest_site: Honest, killed_after: int) -> None:
    class Killed(BaseException):
        pass

    def act(instruction: TrainInstruction, site: str, _: int) -> TrainReply:
        if instruction.round > killed_after:
            raise Killed
        return honest_site(instruction, site)

    whole, resumed = loop(algorithm={"name": "fedadam"}), loop(algorithm={"name": "fedadam"})
    whole.folder = whole.folder.with_name("whole")
    expected = whole.run()
    with pytest.raises(Killed):
        resumed.run(act)
    assert same(resumed.run(), expected)


def test_the_servers_own_full_disk_is_no_sites_fault(loop: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RunError("disk is full") from OSError(28, "No space left on device")

    monkeypatch.setattr("server.reply_store.Vault.save_tensors", full)
    with pytest.raises(RunError, match=r"^disk is full$"):
        loop().run()


def test_the_study_is_written_for_both_apps(loop: Make, tmp_path: Path) -> None:
    run = loop()
    path = write_study(tmp_path / "arm", run.study)
    assert path == tmp_path / "arm" / "study.yaml"
    assert path.read_text() == run.study.to_yaml()
