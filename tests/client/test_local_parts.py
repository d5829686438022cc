"""Methods with parts that stay at a site or stand still, over rounds and restarts of a real site."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from client.site import Site
from federation.records import TrainInstruction, TrainReply
from federation.study import Study
from foundation.tensor_files import load_tensors

MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Instruct = Callable[..., TrainInstruction]
MOCO = {"name": "moco_v2", "queue": 10, "projection": 8, "momentum": 0.9}
AMOUNT = {"epochs": None, "steps": 2, "batch": 3, "learning_rate": 0.1, "weight_decay": 0.5}


def local_of(tmp_path: Path, round_: int) -> dict[str, Tensor]:
    (path,) = tmp_path.glob(f"sites/A/state/*/round-{round_:05d}/local.safetensors")
    return load_tensors(path)[0]


def test_the_queue_goes_on_over_rounds_and_restarts_and_is_never_sent(
    study: MakeStudy, site: MakeSite, instruction: Instruct, restart: Callable[[], None], tmp_path: Path
) -> None:
    asked = study(method=MOCO, training=AMOUNT)

    def round_(number: int, weights: dict[str, Tensor] | None = None) -> tuple[TrainReply, dict[str, Tensor]]:
        restart()
        return site(asked).train(instruction(asked, number, weights)), local_of(tmp_path, number)

    first, one = round_(1)
    second, two = round_(2, first.weights)
    # Two steps of 3 in the first round, two in the second: the last two keys lie at the start again.
    assert int(one["queue.place"]) == 6 and one["queue.patients"].tolist()[6:] == [-1] * 4
    assert int(two["queue.place"]) == 2
    assert torch.equal(two["queue.keys"][2:6], one["queue.keys"][2:6])
    assert not torch.equal(two["queue.keys"][:2], one["queue.keys"][:2])
    assert set(two["queue.patients"].tolist()) <= {0, 1, 2}
    for reply in (first, second):
        assert {name.split(".")[0] for name in reply.weights} == {"encoder", "projector"}


def test_a_frozen_patch_projection_comes_back_as_it_was_sent(
    study: MakeStudy, site: MakeSite, instruction: Instruct
) -> None:
    method: dict[str, Any] = {"name": "moco_v3", "projection": 8}
    asked = study(method=method, training=AMOUNT)
    sent = instruction(asked)
    reply = site(asked).train(sent)
    for name in ("encoder.patch_embed.proj.weight", "encoder.patch_embed.proj.bias"):
        assert torch.equal(reply.weights[name], sent.weights[name])
    moved = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(reply.weights[moved], sent.weights[moved])


@pytest.mark.parametrize(("returns", "anew"), [(6, False), (7, True)])
def test_a_site_that_was_away_for_long_starts_as_a_new_one(
    study: MakeStudy,
    site: MakeSite,
    instruction: Instruct,
    tmp_path: Path,
    returns: int,
    anew: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = study(method=MOCO, training=AMOUNT, rounds={"count": 8})
    back = instruction(asked, returns, site(asked).train(instruction(asked, 1)).weights)
    with caplog.at_level("INFO"):
        replies = [site(asked).train(back)]
    assert ("its last round was 1; parts that stay here" in caplog.text) == anew
    (place,) = tmp_path.glob("sites/A/state/*")
    kept = load_tensors(place / f"round-{returns:05d}" / "optimiser.safetensors")[0]
    assert float(kept["encoder.norm.weight/step"]) == (2.0 if anew else 4.0)
    for folder in place.glob("round-*"):
        shutil.rmtree(folder)
    replies.append(site(asked).train(back))
    alike = [torch.equal(value, replies[1].weights[name]) for name, value in replies[0].weights.items()]
    assert all(alike) == anew
