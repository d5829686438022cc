"""A sum of methods, and a method with partners, trained at a site: parts, rates, local state over rounds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import client.training.site_training
from client.site import Site
from client.training.optimiser import build_optimiser, set_rates
from federation.records import TrainInstruction
from federation.study import Study
from foundation.errors import DataError
from foundation.tensor_files import load_tensors
from ssl_methods import build_method

MAE = {"name": "mae", "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 2}
MakeStudy = Callable[..., Study]
MakeSite = Callable[..., Site]
Instruct = Callable[..., TrainInstruction]


@pytest.fixture
def summed(study: MakeStudy, ijepa: dict[str, Any]) -> Study:
    """A study of MAE and I-JEPA together."""
    return study(method={"name": "combine", "methods": [{"method": MAE}, {"method": ijepa, "weight": 0.5}]})


def local_of(site: Site, round_: int) -> dict[str, Tensor]:
    return load_tensors(site.rounds._folder / f"round-{round_:05d}" / "local.safetensors")[0]


def test_a_site_sends_and_keeps_what_the_members_declare(summed: Study, site: MakeSite, instruction: Instruct) -> None:
    hospitals = [site(summed, "A", images=9), site(summed, "B", images=6)]
    replies = [hospital.train(instruction(summed)) for hospital in hospitals]
    method = build_method(summed.method, summed.encoder, summed.image, summed.seed)
    for hospital, reply in zip(hospitals, replies, strict=True):
        assert set(reply.weights) == set(method.shared_state())
        assert set(local_of(hospital, 1)) == set(method.local_state())
        assert all("ijepa.target_encoder" in key for key in local_of(hospital, 1))
        assert {"mae_loss", "ijepa_loss", "ijepa_target_std"} <= set(reply.metrics)
    one, other = (local_of(hospital, 1) for hospital in hospitals)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_the_next_round_starts_from_the_site_s_own_target_and_the_common_weights(
    summed: Study, site: MakeSite, instruction: Instruct, restart: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = site(summed, "A")
    weights = first.train(instruction(summed)).weights
    kept = local_of(first, 1)
    started: list[dict[str, Tensor]] = []
    right = client.training.site_training.train_round

    def spy(context: Any, *rest: Any) -> Any:
        started.append({key: value.clone() for key, value in context.method.state_dict().items()})
        return right(context, *rest)

    monkeypatch.setattr(client.training.site_training, "train_round", spy)
    restart()
    site(summed, "A").train(instruction(summed, 2, weights))
    assert all(torch.equal(started[0][key], value) for key, value in {**weights, **kept}.items())


def test_every_part_of_every_member_has_its_own_rate(study: MakeStudy) -> None:
    chosen = study(method={"name": "combine", "methods": [{"method": {"name": "simsiam"}}, {"method": MAE}]})
    method = build_method(chosen.method, chosen.encoder, chosen.image, chosen.seed)
    optimiser = build_optimiser(method, chosen.training)
    set_rates(optimiser, chosen.training, method, 0.9, 4)
    rates = {group["part"]: group["lr"] for group in optimiser.param_groups}
    assert set(rates) == {"encoder", "simsiam.projector", "simsiam.predictor", "mae.decoder"}
    assert rates["simsiam.predictor"] > rates["encoder"] == rates["mae.decoder"] == rates["simsiam.projector"]
    counted = sum(weight.numel() for group in optimiser.param_groups for weight in group["params"])
    assert counted == sum(weight.numel() for weight in method.parameters() if weight.requires_grad)


def with_columns(folder: Path, **columns: list[str]) -> None:
    """Add columns to a site's manifest."""
    listing = folder / "manifest.csv"
    heading, *rows = listing.read_text().splitlines()
    lines = [",".join([heading, *columns])]
    lines += [",".join([row, *(values[number] for values in columns.values())]) for number, row in enumerate(rows)]
    listing.write_text("\n".join(lines) + "\n")


def test_a_site_learns_the_order_of_slices(
    study: MakeStudy, site: MakeSite, instruction: Instruct, hospital: Callable[..., Path], tmp_path: Path
) -> None:
    chosen = study(method={"name": "slice_order", "head_width": 8})
    folder = hospital("A", images=9, patients=2).parent
    with_columns(folder, series=["s"] * 9, position=[*map(str, range(8)), ""])
    reply = site(chosen, "A").train(instruction(chosen))
    assert 0 <= reply.metrics["accuracy"] <= 1
    # One of nine images has no place; every pass sees eight of the nine.
    assert 0 <= reply.metrics["pairs_left_out"] <= 1 / 8 + 1e-6


def test_a_site_that_knows_no_order_is_told_what_is_missing(
    study: MakeStudy, site: MakeSite, instruction: Instruct, hospital: Callable[..., Path]
) -> None:
    for by, column in (("position", "series"), ("date", "date")):
        chosen = study(method={"name": "slice_order", "by": by})
        with pytest.raises(DataError, match=f"need the column '{column}' in the site's manifest"):
            site(chosen, "A").train(instruction(chosen))
    folder = hospital("C", images=4, patients=4).parent
    with_columns(folder, date=["2024-01-01"] * 4)
    with pytest.raises(DataError, match="slice_order needs a second image by dated, and no image of this site"):
        site(chosen, "C").train(instruction(chosen))
